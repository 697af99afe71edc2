"""Generate tasks: draw a blueprint, check it, word it, check the words.

Each draft has its own random stream, seeded by seed, task number and attempt, so the file does not
depend on the number of workers.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from common.user_error import UserError
from data_reader import DatasetError, Task, task_from_json, task_to_json
from envs.retail import Episode, RetailDatabase
from tasks.audit.conventions import check_conventions
from tasks.audit.duplicates import UniquenessCheck, fingerprint
from tasks.audit.execution import RowChecks, check_execution, check_format, shown_values
from tasks.audit.finding import Finding
from tasks.audit.grounding import check_agent_grounding, check_grounding
from tasks.audit.policy import check_policy
from tasks.blueprint import Blueprint
from tasks.generate.sampler import BlueprintSampler
from tasks.generate.store_view import StoreView
from tasks.mix import DEFAULT_MIX, TaskMix
from tasks.phrasing.instruction import address_words, write_instruction
from tasks.phrasing.query import word

# Drafts of one task number before the run fails.
MAX_ATTEMPTS = 50
CHUNK_SIZE = 100
CHUNKS_AHEAD_PER_WORKER = 3
# The steps in the order in which a draft meets them.
STEPS = (
    "sampling", "format", "execution", "policy", "grounding", "uniqueness", "wording",
    "words_grounding",
)


class GenerationError(UserError, ValueError):
    """The store cannot yield as many different tasks as requested."""


@dataclass(frozen=True)
class Draft:
    """The result of one attempt, before the uniqueness check."""

    step: str
    """The step that rejected it; "" if it passed all."""
    kind: str
    """The first finding's kind; "" if it passed."""
    key: int = 0
    """64-bit hash of the task's meaning; 0 if it was rejected before the uniqueness check."""
    task: Task | None = None


@dataclass
class YieldTable:
    """How many drafts each step saw and passed, and why it rejected the others."""

    num_written: int = 0
    num_drafts: int = 0
    rejected: dict[str, Counter[str]] = field(default_factory=lambda: {s: Counter() for s in STEPS})
    """Counts of reasons by step."""

    def as_dict(self) -> dict:
        """Return the counts as JSON data."""
        steps, seen = [], self.num_drafts
        for step in STEPS:
            reasons = dict(sorted(self.rejected[step].items()))
            passed = seen - sum(reasons.values())
            steps.append({"step": step, "seen": seen, "passed": passed, "rejected": reasons})
            seen = passed
        return {"num_written": self.num_written, "num_drafts": self.num_drafts, "steps": steps}

    def as_text(self) -> str:
        """Return the table as text."""
        lines = [f"{'step':16}{'seen':>9}{'passed':>9}  rejected"]
        for row in self.as_dict()["steps"]:
            reasons = ", ".join(f"{kind} {count}" for kind, count in row["rejected"].items())
            lines.append(f"{row['step']:16}{row['seen']:>9}{row['passed']:>9}  {reasons or '-'}")
        lines.append(f"written {self.num_written} of {self.num_drafts} drafts")
        return "\n".join(lines)


def fact_sheet(blueprint: Blueprint) -> str:
    """Return the blueprint's facts as plain text, to check grounding before the query is worded."""
    who = blueprint
    lines = [
        who.email if who.authentication == "email" else f"{who.first_name} {who.last_name}, zip {who.zip}"
    ]
    for intent in blueprint.intents:
        facts = dict(intent.facts)
        parts = [str(facts.pop(name)) for name in ("order_id", "user_id") if name in facts]
        address = facts.pop("address", None)
        if address:
            parts.append(address_words(address))
        for pair in facts.pop("pairs", ()):
            parts.append(f"{pair['old']['item_id']} for {pair['new']['item_id']}")
        parts += [item["item_id"] for item in facts.pop("items", ())]
        parts += [facts.pop("method")["id"]] if "method" in facts else []
        parts += facts.pop("numbers", [])
        parts += [str(value) for value in facts.values() if isinstance(value, str)]
        lines.append(", ".join(parts))
    return ".\n".join(lines)


def check_outputs(blueprint: Blueprint, db: RetailDatabase) -> list[Finding]:
    """Check that each intent's call shows its answer, which an earlier intent may have changed."""
    episode = Episode(db)
    shown = [shown_values(episode, action) for action in blueprint.gold_actions]
    return [
        Finding("stale_output", f"{intent.kind}: its call does not show the answer")
        for intent, values in zip(blueprint.intents, shown[1:])
        if not values.issuperset(intent.outputs)
    ]


def check_refusals(task: Task, blueprint: Blueprint, db: RetailDatabase) -> list[Finding]:
    """Check that the policy forbids each refused request."""
    findings = []
    for intent in blueprint.intents:
        if intent.forbidden is not None:
            tried = replace(task, gold_actions=[*task.gold_actions, intent.forbidden])
            if not check_policy(tried, db):
                findings.append(Finding("refusal_not_needed", f"{intent.kind}: the rules allow it"))
    return findings


class Drafter:
    """Makes drafts from a store and a mix; a draft depends on (seed, index, attempt) alone."""

    def __init__(self, db: RetailDatabase, seed: int, mix: TaskMix):
        self.db, self.seed, self.mix = db, seed, mix
        self.row_checks = RowChecks(db)
        self.sampler = BlueprintSampler(StoreView(db), mix)

    def draft(self, index: int, attempt: int) -> Draft:
        """Make one attempt at a task's number; check everything but uniqueness, which needs the others."""
        rng = Random(f"{self.seed}/{index}/{attempt}")
        blueprint = self.sampler.sample(rng)
        if blueprint is None:
            return Draft("sampling", "no_customer")
        plan = Task(
            query=fact_sheet(blueprint), gold_actions=blueprint.gold_actions,
            gold_final=blueprint.gold_final, task_id=f"retail-{self.seed}-{index}",
            user_id=blueprint.user_id, outputs=blueprint.outputs,
        )
        db = self.db
        checks = (
            ("format", lambda: check_format(plan)),
            ("execution", lambda: check_execution(plan, db) or check_outputs(blueprint, db)),
            ("policy", lambda: check_policy(plan, db) or check_refusals(plan, blueprint, db)),
            ("grounding", lambda: check_grounding(plan, db)),
        )
        for step, check in checks:
            if findings := check():
                return Draft(step, findings[0].kind)
        key = fingerprint(blueprint.key) or 1
        task = self.worded(rng, blueprint, plan)
        try:
            task_from_json(task_to_json(task))
        except DatasetError:  # a name in the store holds a control token, for instance
            return Draft("wording", "unreadable", key)
        rows = self.row_checks
        checked = check_conventions(task, db) + rows.customer_findings(task)
        if findings := checked + rows.address_findings(task):
            return Draft("wording", findings[0].kind, key)
        if findings := check_grounding(task, db) + check_agent_grounding(task, db):
            return Draft("words_grounding", findings[0].kind, key)
        return Draft("", "", key, task)

    def worded(self, rng: Random, blueprint: Blueprint, plan: Task) -> Task:
        """Return the plan with its words and tags."""
        words = word(rng, self.mix, blueprint)
        return replace(
            plan,
            query=words.query,
            instruction=write_instruction(rng, blueprint, words.persona),
            tags={
                "wishes": [intent.kind for intent in blueprint.intents],
                "num_wishes": len(blueprint.intents),
                "channel": words.channel, "persona": words.persona,
                "difficulty": blueprint.difficulty, "refusal": blueprint.refusal,
                "distractor": blueprint.distractor is not None,
            },
        )

    def drafts(self, index: int) -> list[Draft]:
        """Draft a task number until a draft passes all checks but uniqueness."""
        made = []
        for attempt in range(MAX_ATTEMPTS):
            made.append(self.draft(index, attempt))
            if made[-1].task is not None:
                break
        return made


class Deduplicator:
    """Passes on drafts whose meaning and query are new, and counts the others."""

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        self.table = YieldTable()
        self._keys: set[int] = set()
        self._queries = UniquenessCheck()

    def decide(self, draft: Draft) -> Task | None:
        """Count a draft; return its task if it is new."""
        table = self.table
        table.num_drafts += 1
        if draft.key and draft.key in self._keys:
            table.rejected["uniqueness"]["same_blueprint"] += 1
            return None
        if draft.task is None:
            table.rejected[draft.step][draft.kind] += 1
            return None
        if self._queries.check(draft.task):
            table.rejected["words_grounding"]["same_query"] += 1
            return None
        self._keys.add(draft.key)
        table.num_written += 1
        return draft.task

    def task(self, index: int, drafts: list[Draft]) -> Task:
        """Return the task of a number, with further drafts if those given are not new.

        Raises:
            GenerationError: No attempt gave a new task.
        """
        for attempt in range(MAX_ATTEMPTS):
            draft = drafts[attempt] if attempt < len(drafts) else self.drafter.draft(index, attempt)
            task = self.decide(draft)
            if task is not None:
                return task
        raise GenerationError(
            f"the store gives no new task after {index}: {MAX_ATTEMPTS} drafts in a row were "
            "repetitions or did not pass; ask for fewer tasks or use a larger store"
        )


_worker_drafter: Drafter | None = None


def _end_with_parent() -> None:
    """End this worker when its parent is gone, for instance killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker(data_dir: Path | None, seed: int, mix: TaskMix) -> None:
    global _worker_drafter
    # Ctrl-C reaches the whole process group; only the parent handles it and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_drafter = Drafter(RetailDatabase.load(data_dir), seed, mix)


def _draft_chunk(indices: range) -> list[list[Draft]]:
    assert _worker_drafter is not None
    return [_worker_drafter.drafts(index) for index in indices]


def _all_drafts(
    drafter: Drafter, data_dir: Path | None, num_tasks: int, num_workers: int
) -> Iterator[list[Draft]]:
    """Yield the drafts of each task number in order, with a bounded number of chunks in flight."""
    if num_workers == 1:
        yield from map(drafter.drafts, range(num_tasks))
        return
    chunks = (range(n, min(n + CHUNK_SIZE, num_tasks)) for n in range(0, num_tasks, CHUNK_SIZE))
    with ProcessPoolExecutor(
        num_workers, initializer=_start_worker, initargs=(data_dir, drafter.seed, drafter.mix)
    ) as pool:
        waiting: deque[Future[list[list[Draft]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_draft_chunk, chunk))
                if len(waiting) >= num_workers * CHUNKS_AHEAD_PER_WORKER:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class TaskStream:
    """Iterates over new tasks; `table` holds the yield so far."""

    def __init__(
        self, num_tasks: int, seed: int, data_dir: Path | None = None, num_workers: int = 1,
        mix: TaskMix = DEFAULT_MIX,
    ):
        """Load the store.

        Args:
            seed: Determines every task, together with the store and the mix.
            num_workers: Processes that draft; they do not change the tasks.

        Raises:
            DatabaseError: The store cannot be read.
            GenerationError: Nobody in the store can be authenticated.
        """
        self.num_tasks, self.data_dir, self.num_workers = num_tasks, data_dir, num_workers
        self.drafter = Drafter(RetailDatabase.load(data_dir), seed, mix)
        if not self.drafter.sampler.view.users:
            raise GenerationError("the store has no user whom an email or name and zip would find")
        self._deduplicator = Deduplicator(self.drafter)

    @property
    def table(self) -> YieldTable:
        """The yield so far."""
        return self._deduplicator.table

    def __iter__(self) -> Iterator[Task]:
        """Yield the tasks in order.

        Raises:
            GenerationError: The store is too small for so many different tasks.
        """
        drafts = _all_drafts(self.drafter, self.data_dir, self.num_tasks, self.num_workers)
        for index, made in enumerate(drafts):
            yield self._deduplicator.task(index, made)
