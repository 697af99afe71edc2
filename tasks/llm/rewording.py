"""Optional steps by a language model: new words for queries, and a committee that reviews tasks.

A model never changes gold. Its words are kept only if code finds the same facts verbatim, in the
same order, and every check of a generated task passes; otherwise the task keeps its own words and
the reason is counted. Without `--reword` and `--review` nothing here runs.
"""

import argparse
import sys
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from common import strict_json
from data_reader import Task, gold_completion
from envs.retail import RetailDatabase
from tasks.audit.duplicates import fingerprint, normalized_query
from tasks.audit.finding import Finding
from tasks.llm.check import rewording_findings
from tasks.llm.client import ChatClient, LlmConfig, LlmError, LlmUnavailable

WIKI_PATH = Path(__file__).resolve().parent.parent.parent / "envs" / "retail" / "wiki.md"
MAX_FAILURES_IN_A_ROW = 5
REWORD_PROMPT = (
    "You rewrite messages of customers of an online shop. Say the same in other words and another "
    "tone, as a real customer would type it. Keep every fact exactly as it is written: names, "
    "email, ids with their '#', zip codes, address lines, amounts, options, reasons. Add no fact, "
    "drop none, keep the requests in their order, write numbers only where the original has them. "
    'Answer with one JSON object and nothing else: {"query": "<the new message>"}'
)
REVIEW_PROMPT = (
    "You review tasks for a customer service agent of an online shop. You see the customer's "
    "message and the tool calls that are held to be the one right answer. {focus} "
    'Answer with one JSON object and nothing else: {{"accept": true or false, "reason": "<one '
    'sentence>"}}\n\nThe rules of the shop:\n{wiki}'
)
REVIEW_FOCUSES = (
    "Accept when every argument of every call can be read from the message and nothing the "
    "customer asks for is left out.",
    "Accept when the calls stand in the order of the customer's requests and follow the rules.",
    "Accept when the message reads like one a real customer could send and can mean only these "
    "calls.",
)


@dataclass
class LlmReport:
    """What the steps did."""

    counts: Counter = field(default_factory=Counter)
    """Outcomes and how often each came, e.g. "reworded", "original kept: facts changed"."""
    last_failure: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, outcome: str) -> None:
        """Count one outcome."""
        with self._lock:
            self.counts[outcome] += 1

    def lines(self, client: ChatClient) -> list[str]:
        """Return the report for people, one line an outcome, tokens and cost last."""
        out = [f"{outcome}: {count}" for outcome, count in sorted(self.counts.items())]
        if self.last_failure:
            out.append(f"last failure: {self.last_failure}")
        return [*out, str(client.usage)]


def _json_answer(text: str, fields: dict[str, type]) -> dict[str, Any] | None:
    """Read an answer that must be one JSON object of these fields; a code fence is allowed."""
    text = text.strip().removeprefix("```").removeprefix("json").removesuffix("```")
    try:
        value = strict_json.loads(text)
    except strict_json.StrictJsonError:
        return None
    if not isinstance(value, dict) or set(value) != set(fields):
        return None
    return value if all(type(value[name]) is kind for name, kind in fields.items()) else None


class LlmSteps:
    """Rewords and reviews single tasks; safe to call from several threads.

    Args:
        db: The store that gold is checked on.
        num_reviewers: Votes for a review, odd, >= 1.
        review_models: Models of the committee, taken in turn; empty means the client's own.
    """

    def __init__(
        self, client: ChatClient, db: RetailDatabase, num_reviewers: int = 3,
        review_models: Iterable[str] = (),
    ) -> None:
        if num_reviewers < 1 or num_reviewers % 2 == 0:
            raise LlmError(f"the number of reviewers must be odd and positive, got {num_reviewers}")
        self.client, self.db, self.report = client, db, LlmReport()
        self.num_reviewers = num_reviewers
        self.review_models = tuple(review_models) or (client.config.model,)
        self._wiki = WIKI_PATH.read_text(encoding="utf-8")
        self._failures_in_a_row = 0

    def reword(self, task: Task) -> Task:
        """Return the task in new words, or unchanged when none pass; one retry that names the findings."""
        objections = ""
        reason = ""
        for _ in range(2):
            query, findings = self._new_words(task, objections)
            if query is not None and not findings:
                self.report.add("reworded")
                return replace(task, query=query, tags={**task.tags, "reworded": True})
            reason = findings[0].kind
            if reason == "no answer":
                break
            objections = "; ".join(f"{finding.kind}: {finding.detail}" for finding in findings)
        self.report.add(f"original words kept: {reason}")
        return task

    def review(self, task: Task, original: Task | None = None) -> Task:
        """Put the task before the committee; after a rejection, once more in new words.

        Args:
            original: The task before rewording, kept when the committee rejects the new words.

        Returns:
            The task with tags["review"] ("accepted 2/3", "rejected 1/3"), or `original`.
        """
        original = original or task
        accepted, tally, objections = self._vote(task)
        if accepted is False:
            query, findings = self._new_words(original, f"reviewers object: {objections}")
            if query is not None and not findings:
                revised = replace(original, query=query, tags={**original.tags, "reworded": True})
                accepted, tally, _ = self._vote(revised)
                if accepted:
                    self.report.add("review: accepted after feedback")
                    return replace(revised, tags={**revised.tags, "review": f"accepted {tally}"})
            self.report.add("review: rejected")
            if original is not task:
                return original
            return replace(task, tags={**task.tags, "review": f"rejected {tally}"})
        if accepted is None:
            self.report.add("review: too few votes")
            return task
        self.report.add("review: accepted")
        return replace(task, tags={**task.tags, "review": f"accepted {tally}"})

    def _ask(self, messages: list[dict[str, str]], model: str | None = None) -> str | None:
        """Ask; return None after a failure, and without asking once too many came in a row."""
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            return None
        try:
            answer = self.client.ask(messages, model)
        except LlmUnavailable as error:
            self._failures_in_a_row += 1
            self.report.last_failure = str(error)
            return None
        self._failures_in_a_row = 0
        return answer

    def _new_words(self, task: Task, objections: str) -> tuple[str | None, list[Finding]]:
        text = task.query + (f"\n\nA first try was sent back: {objections}" if objections else "")
        answer = self._ask(
            [{"role": "system", "content": REWORD_PROMPT}, {"role": "user", "content": text}]
        )
        if answer is None:
            return None, [Finding("no answer", self.report.last_failure)]
        value = _json_answer(answer, {"query": str})
        if value is None:
            return None, [Finding("broken answer", 'the answer is not {"query": "..."}')]
        return value["query"], rewording_findings(task, value["query"], self.db)

    def _vote(self, task: Task) -> tuple[bool | None, str, str]:
        """Return (majority, or None without a quorum; "accepts/votes"; reasons against)."""
        votes = []
        for index in range(self.num_reviewers):
            focus = REVIEW_FOCUSES[index % len(REVIEW_FOCUSES)]
            system = REVIEW_PROMPT.format(focus=focus, wiki=self._wiki)
            user = f"Message:\n{task.query}\n\nTool calls:\n{gold_completion(task)}"
            answer = self._ask(
                [{"role": "system", "content": system}, {"role": "user", "content": user}],
                self.review_models[index % len(self.review_models)],
            )
            value = answer and _json_answer(answer, {"accept": bool, "reason": str})
            if value:
                votes.append(value)
            else:
                self.report.add("review: unreadable vote")
        num_accepts = sum(vote["accept"] for vote in votes)
        tally = f"{num_accepts}/{len(votes)}"
        if 2 * len(votes) <= self.num_reviewers:
            return None, tally, ""
        against = "; ".join(vote["reason"] for vote in votes if not vote["accept"])
        return 2 * num_accepts > len(votes), tally, against


def in_order(step: Callable[[Task], Task], tasks: Iterable[Task], num_workers: int) -> Iterator[Task]:
    """Apply a step in threads, in order; hold at most 2 x num_workers tasks, repeat no query."""
    seen: set[int] = set()
    pending: deque = deque()

    def finish() -> Task:
        task, future = pending.popleft()
        changed = future.result()
        key = fingerprint(normalized_query(changed.query))
        if changed.query != task.query and key in seen:
            return task
        seen.add(key)
        return changed

    pool = ThreadPoolExecutor(num_workers)
    try:
        for task in tasks:
            pending.append((task, pool.submit(step, task)))
            if len(pending) >= 2 * num_workers:
                yield finish()
        while pending:
            yield finish()
    finally:
        # After an error or an early stop, do not pay for tasks still in the queue.
        pool.shutdown(wait=False, cancel_futures=True)


def add_llm_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the LLM steps to a command line."""
    group = parser.add_argument_group(
        "optional LLM steps",
        "Any OpenAI-compatible endpoint; the key is read from OPENAI_API_KEY. Needs the openai "
        "package.",
    )
    group.add_argument("--reword", action="store_true", help="let a model reword queries")
    group.add_argument("--review", action="store_true", help="let a committee vote on every task")
    group.add_argument("--reviewers", type=int, default=3, metavar="K", help="votes (default 3)")
    group.add_argument(
        "--review-model", action="append", default=[], metavar="NAME",
        help="a model of the committee; may be given several times (default: --llm-model)",
    )
    group.add_argument("--llm-model", metavar="NAME", help="default: TASK_LLM_MODEL")
    group.add_argument("--llm-base-url", metavar="URL", help="default: OPENAI_BASE_URL")
    group.add_argument(
        "--llm-rpm", type=float, default=60.0, metavar="N",
        help="requests per minute (default 60, 0: no limit)",
    )
    group.add_argument("--llm-timeout", type=float, default=60.0, metavar="S", help="default 60 s")
    group.add_argument("--llm-workers", type=int, default=4, metavar="N", help="default 4")
    group.add_argument(
        "--llm-price", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"),
        help="US dollars per million tokens read and written, for the cost count",
    )
    group.add_argument("--llm-max-cost", type=float, metavar="USD", help="stop asking beyond it")


def apply_llm_steps(
    tasks: Iterable[Task], args: argparse.Namespace, db: RetailDatabase
) -> Iterator[Task]:
    """Run the steps the command line asks for on tasks whose words pass the checks; without any pass them on.

    The report goes to stderr after the last task.

    Raises:
        LlmError: At the call for a wrong setting or missing package; later, when the endpoint
            refuses key or model name.
    """
    if not (args.reword or args.review):
        return iter(tasks)
    config = LlmConfig.from_environment(
        model=args.llm_model, base_url=args.llm_base_url, timeout_s=args.llm_timeout,
        requests_per_minute=args.llm_rpm, num_workers=args.llm_workers,
        input_price=args.llm_price[0], output_price=args.llm_price[1], max_cost=args.llm_max_cost,
    )
    steps = LlmSteps(ChatClient(config), db, args.reviewers, args.review_model)

    def step(task: Task) -> Task:
        changed = steps.reword(task) if args.reword else task
        return steps.review(changed, original=task) if args.review else changed

    def run() -> Iterator[Task]:
        try:
            yield from in_order(step, tasks, config.num_workers)
        finally:
            print("LLM steps:", *steps.report.lines(steps.client), sep="\n  ", file=sys.stderr)

    return run()
