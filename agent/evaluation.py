"""Play every task with a policy and write what came of it; killed at any moment, it goes on.

A finished episode is one line of `episodes.part.jsonl`, flushed to disk, and is not played again.
At the end the lines become `trajectories.jsonl`, in the order of the tasks, and `episodes.html`; then
`evaluation.json` is written and the part file goes. Left out: scores (`scoring/`).
"""

import fcntl
import hashlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from agent.conversation import Conversation, Customer, Limits, Policy
from agent.viewer import write_viewer
from agent.workers import Workers
from common.files import RunError, write_json_atomic, write_text_atomic
from data_reader import Task
from envs.retail import RetailDatabase
from scoring.episode import EpisodeScore, score_episode, score_to_dict
from scoring.trials import summarize_trials
from tasks.llm.client import BudgetSpent, LlmUnavailable

PART_NAME = "episodes.part.jsonl"
MAX_FAILURES_IN_A_ROW = 5
"""Episodes without an answer from an endpoint, one after the other, that end the evaluation."""


@dataclass(frozen=True)
class Plan:
    """What is played, and how much of it at once."""

    tasks: Sequence[Task]
    num_trials: int = 1
    """Episodes of each task, each with a seed of its own."""
    seed: int = 0
    """Seed of all of them."""
    limits: Limits = Limits()
    lanes: int = 1
    """Threads that play; a policy that waits for an endpoint wants many."""
    lane_size: int = 16
    """Conversations that a thread plays at once; a local model wants many."""
    step_threads: int = 1
    """Threads in which the customers of a lane answer; those behind an endpoint want many."""

    def episodes(self) -> Iterator[tuple[Task, int, int]]:
        """Yield task, trial (from 0) and seed of every episode, in the order of the final file."""
        for task in self.tasks:
            for trial in range(self.num_trials):
                yield task, trial, episode_seed(self.seed, task, trial)


def episode_seed(seed: int, task: Task, trial: int) -> int:
    """Return the seed of one episode of a task, below 2**32."""
    name = f"{seed}:{task.task_id}:{trial}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4])


class _Record:
    """The part file: a line of settings, then a line for each finished episode."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[tuple[str, int], dict] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]  # a kill may have cut the last line
        if whole:
            self._read(whole, settings)
        self._file = path.open("r+b" if path.exists() else "xb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise RunError(
                f"{path}: another evaluation is writing it; wait for its end or choose another "
                "--output"
            ) from None
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if not whole:
            self._write(settings)

    def _read(self, whole: bytes, settings: Mapping[str, Any]) -> None:
        try:
            first, *rows = [json.loads(line) for line in whole.splitlines()]
            self.rows = {(row["task_id"], row["trial"]): row for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path}: damaged ({error}); delete it to start anew") from None
        for name, value in settings.items():
            if first.get(name) != value:
                raise RunError(
                    f"{self.path}: an unfinished evaluation with other settings ({name} is "
                    f"{first.get(name)!r}, not {value!r}); repeat its command, at its commit, to "
                    "finish it, choose another --output, or delete the file"
                )

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def add(self, row: dict) -> None:
        """Keep a finished episode for good."""
        with self._lock:
            self.rows[row["task_id"], row["trial"]] = row
            self._write(row)

    def close(self) -> None:
        """Close the file; episodes that end later are not kept."""
        with self._lock:
            self._file.close()


@dataclass
class _Open:
    """An episode that is being played."""

    trial: int
    conversation: Conversation
    failures: Counter[str] = field(default_factory=Counter)
    num_prompt_tokens: int = 0

    def step(self, reply: dict[str, Any] | None) -> bool:
        """Play the policy's message, None when it has none; always True."""
        if reply is None:
            self.conversation.abort()
            return True
        if reply.get("failure"):
            self.failures[reply["failure"]] += 1
        self.num_prompt_tokens += reply.get("num_prompt_tokens", 0)
        self.conversation.step(reply)
        return True

    def row(self) -> dict[str, Any]:
        """Return the line of `trajectories.jsonl`."""
        return episode_row(
            self.conversation, self.trial, num_tokens=self.conversation.num_tokens,
            num_prompt_tokens=self.num_prompt_tokens, failures=dict(self.failures),
        )


def episode_row(talk: Conversation, trial: int, **figures: Any) -> dict[str, Any]:
    """Return an ended conversation as a line of `trajectories.jsonl`.

    It holds no time, so that it can be repeated.
    """
    score = score_episode(talk.task, talk.messages, talk.db, talk.termination)
    return {
        "task_id": talk.task.task_id, "trial": trial, "seed": talk.seed, **score_to_dict(score),
        **figures, "messages": talk.messages,
    }


class _Player:
    """Plays episodes on any number of threads until none is left or an endpoint is lost."""

    def __init__(
        self, plan: Plan, db: RetailDatabase, policy: Policy,
        make_customer: Callable[[Task, int], Customer], record: _Record,
    ) -> None:
        self._plan, self._db, self._policy = plan, db, policy
        self._make_customer, self._record = make_customer, record
        played = record.rows.keys()
        self._left = (e for e in plan.episodes() if (e[0].task_id, e[1]) not in played)
        self._lock = threading.Lock()
        self._failures_in_a_row = 0
        self.last_failure = ""
        self._stopped = False

    def play(self) -> None:
        """Play all that is left; `last_failure` says why some of it could not be.

        Raises:
            LlmError: An endpoint refuses key or model name.
        """
        if self._plan.lanes == 1:
            self._play_lane()
            return
        with Workers(self._plan.lanes) as workers:
            futures = [workers.submit(self._play_lane) for _ in range(self._plan.lanes)]
            try:
                for future in futures:
                    future.result()
            except BaseException as error:
                self._stopped = True  # the other threads end at their next turn
                if isinstance(error, Exception):  # Ctrl-C waits for nobody
                    wait(futures)
                raise

    def _play_lane(self) -> None:
        if self._plan.step_threads == 1:
            self._play_turns(map)
            return
        with Workers(self._plan.step_threads) as workers:
            self._play_turns(workers.map)

    def _play_turns(self, map_steps: Callable[..., Iterable[Any]]) -> None:
        opened: list[_Open] = []
        while not self._stopped:
            taken = self._take(self._plan.lane_size - len(opened))
            started = map_steps(partial(self._attempt, self._start), taken)
            opened += [entry for entry in started if entry and not self._is_finished(entry)]
            if not opened:
                if not taken:
                    return
                continue
            waiting = [entry.conversation for entry in opened]
            replies = self._attempt(self._policy.reply, waiting)
            if replies is None:
                opened = []
                continue
            kept = map_steps(partial(self._attempt, _Open.step), opened, replies)
            pairs = zip(opened, kept, strict=True)
            opened = [entry for entry, is_kept in pairs if is_kept and not self._is_finished(entry)]

    def _take(self, count: int) -> list[tuple[Task, int, int]]:
        with self._lock:
            return list(itertools.islice(self._left, count))

    def _start(self, episode: tuple[Task, int, int]) -> _Open:
        task, trial, seed = episode
        customer = self._make_customer(task, seed)
        return _Open(trial, Conversation(task, self._db, customer, self._plan.limits, seed))

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Run what may ask an endpoint; None when it gave no answer: the episode is dropped."""
        try:
            return action(*arguments)
        except LlmUnavailable as error:
            with self._lock:
                self.last_failure = str(error)
                self._failures_in_a_row += 1
                enough = self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW
                self._stopped |= enough or isinstance(error, BudgetSpent)
            return None

    def _is_finished(self, entry: _Open) -> bool:
        if not entry.conversation.done:
            return False
        self._record.add(entry.row())
        self._failures_in_a_row = 0
        return True


def score_of_row(row: Mapping[str, Any]) -> EpisodeScore:
    """Return the score that a line of `trajectories.jsonl` holds."""
    return EpisodeScore(**{f.name: row[f.name] for f in fields(EpisodeScore)})


def evaluate_agent(
    plan: Plan, db: RetailDatabase, policy: Policy, make_customer: Callable[[Task, int], Customer],
    settings: Mapping[str, Any], output_dir: Path,
) -> dict[str, Any]:
    """Play a plan to its end and write `trajectories.jsonl`, `episodes.html` and `evaluation.json`.

    Args:
        make_customer: Makes the customer of an episode from its task and seed.
        settings: What tells this evaluation from others (model, task file, ...), JSON values; an
            unfinished one goes on only with the same.
        output_dir: Made when missing; older files of the same names are replaced at the end.

    Returns:
        The content of `evaluation.json`.

    Raises:
        RunError: The folder holds an unfinished evaluation with other settings, or an endpoint gave
            no answer to some episodes; those that are finished are kept.
        LlmError: An endpoint refuses key or model name.
    """
    part = output_dir / PART_NAME
    with closing(_Record(part, settings)) as record:
        player = _Player(plan, db, policy, make_customer, record)
        player.play()
    keys = [(task.task_id, trial) for task, trial, _ in plan.episodes()]
    missing = sum(key not in record.rows for key in keys)
    if missing:
        raise RunError(
            f"{missing} of {len(keys)} episodes got no answer ({player.last_failure}); the others "
            f"are kept in {part}: give the same command again to play what is missing"
        )
    rows = [record.rows[key] for key in keys]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text_atomic(output_dir / "trajectories.jsonl", "".join(lines))
    write_viewer(output_dir / "episodes.html", rows, plan.tasks, db)
    metrics = summarize_trials(score_of_row(row) for row in rows)
    write_json_atomic(output_dir / "evaluation.json", metrics)
    part.unlink()
    return metrics
