"""Score one conversation: whether it did what the task asks, by which steps, against which rules.

Pure: the messages run again on a fresh store (`scoring.transcript`), so a recording is scored as the
live conversation is. Success is decided by the store and by what the customer was told; the reward
adds small shaped terms that can never lift a failure to a success.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from data_reader import Task
from envs.retail import WRITE_TOOLS, Episode, RetailDatabase
from scoring.reward import call_key, replay_gold, same_store
from scoring.transcript import Said, Transcript, replay
from scoring.violations import AUTHENTICATION_TOOLS, Violation, find_violations


@dataclass(frozen=True)
class EpisodeWeights:
    """What each part of an episode's reward counts, in reward points."""

    success: float = 1.0
    """Once, when the task was done."""
    progress: float = 0.2
    """At most: times the share of gold's calls made and of outputs told."""
    violation: float = -0.1
    """For each violation of the policy."""
    wrong_write: float = -0.1
    """For each accepted write that gold does not make."""
    refused_call: float = -0.02
    """For each call that was refused."""
    worst_penalty: float = -0.5
    """The least that the three penalties make together."""

    def __post_init__(self) -> None:
        """Refuse weights with which a failure could earn more than a success."""
        for name in ("success", "progress"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must be 0 or more, is {getattr(self, name)}")
        for name in ("violation", "wrong_write", "refused_call", "worst_penalty"):
            if not getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be 0 or less, is {getattr(self, name)}")
        if not self.success + self.worst_penalty > self.progress:
            raise ValueError("success: must exceed progress and the worst penalty together")


WEIGHTS = EpisodeWeights()


@dataclass(frozen=True)
class EpisodeScore:
    """How one conversation about one task fared."""

    task_id: str
    success: bool
    """The store ends as gold leaves it and every output was told; where gold writes nothing, every
    gold call was made and no write was accepted."""
    reward: float
    """`max_reward` at best."""
    max_reward: float
    """Reward of an episode that plays gold without a violation or a refusal."""
    db_match: bool
    outputs_told: bool
    """Every string of `outputs` was said to the customer."""
    violations: tuple[Violation, ...]
    num_turns: int
    """Messages of the agent."""
    num_calls: int
    num_refusals: int
    """Calls that were refused."""
    termination: str | None = None
    """Why the conversation ended, see `agent.conversation.Termination`."""
    parts: dict[str, float] = field(default_factory=dict)
    """Reward by weight name, before `worst_penalty`."""


def _steps(calls: Iterable[tuple[str, Mapping[str, Any], Any]]) -> list[tuple[str, tuple]]:
    """Return the names of accepted calls, with keys that are equal when two calls serve a task alike.

    Writes are compared by arguments. Reads are compared by what they show, so that any way to
    authenticate the customer, any spelling of a sum and any summary for a person will do.
    """
    steps = []
    for name, arguments, content in calls:
        if name in WRITE_TOOLS:
            steps.append((name, call_key(name, arguments)))
        elif name != "think":
            kind = "authenticate" if name in AUTHENTICATION_TOOLS else name
            steps.append((name, (kind, json.dumps(content, sort_keys=True))))
    return steps


_NUMBER = re.compile(r"(?<![\w#.,])\d[\d,]*(?:\.\d+)?")


def is_told(output: str, text: str) -> bool:
    """Return whether words hold an output: a number by value ("8" is not in "18"), else the text.

    Args:
        output: one of `Task.outputs`.
        text: what the agent said to the customer; letter case makes no difference.
    """
    if _NUMBER.fullmatch(output):
        numbers = (number.replace(",", "") for number in _NUMBER.findall(text))
        return float(output.replace(",", "")) in map(float, numbers)
    return output.casefold() in text.casefold()


def told_outputs(task: Task, transcript: Transcript) -> list[str]:
    """Return the outputs that the agent said to the customer."""
    said = "\n".join(
        event.text for event in transcript.events
        if isinstance(event, Said) and event.speaker == "agent"
    )
    return [output for output in task.outputs if is_told(output, said)]


def score_episode(
    task: Task,
    messages: Sequence[Mapping[str, Any]],
    db: RetailDatabase,
    termination: str | None = None,
) -> EpisodeScore:
    """Score a conversation, live or recorded.

    Args:
        task: the task; its gold calls must replay on `db`.
        termination: `Conversation.termination`; recorded, and not scored.

    Raises:
        GoldError: gold does not replay.
    """
    gold = replay_gold(task, db)
    transcript = replay(messages, db)
    calls = transcript.calls
    made = _steps((c.name, c.arguments, c.content) for c in calls if c.ok)
    episode = Episode(db)
    gold_steps = Counter(key for _, key in _steps(
        (a["name"], a["arguments"], episode.call(a["name"], a["arguments"]).content)
        for a in task.gold_actions
    ))
    missing = gold_steps - Counter(key for _, key in made)
    unasked = Counter(key for name, key in made if name in WRITE_TOOLS) - gold_steps
    db_match = same_store(transcript.changed_records, gold.changed_records)
    told = told_outputs(task, transcript)
    outputs_told = len(told) == len(task.outputs)
    success = db_match and outputs_told
    if not any(gold.changed_records.values()):
        success = success and not missing and not unasked
    violations = find_violations(transcript, db, task.user_id)
    num_refusals = sum(not call.ok for call in calls)
    num_wanted = gold_steps.total() + len(task.outputs)
    num_reached = num_wanted - missing.total() - (len(task.outputs) - len(told))
    counts = {
        "success": float(success),
        "progress": 1.0 if success else num_reached / num_wanted if num_wanted else 0.0,
        "violation": len(violations),
        "wrong_write": 0 if success else unasked.total(),
        "refused_call": num_refusals,
    }
    parts = {name: getattr(WEIGHTS, name) * count if count else 0.0 for name, count in counts.items()}
    penalty = parts["violation"] + parts["wrong_write"] + parts["refused_call"]
    reward = parts["success"] + parts["progress"] + max(WEIGHTS.worst_penalty, penalty)
    return EpisodeScore(
        task.task_id, success, round(reward, 9), WEIGHTS.success + WEIGHTS.progress, db_match,
        outputs_told, tuple(violations), transcript.num_turns, len(calls), num_refusals,
        termination, parts,
    )


def score_to_dict(score: EpisodeScore) -> dict[str, Any]:
    """Return the score as JSON data, violations as objects."""
    row = {f.name: getattr(score, f.name) for f in fields(score)}
    row["violations"] = [violation._asdict() for violation in score.violations]
    return row
