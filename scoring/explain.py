"""Show in words what a completion did and what it earned; for people, never for training.

Everything shown comes from `score_completion` and `Episode`, so it agrees with the reward.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from common.user_error import printable
from data_reader import Task, gold_completion
from envs.retail import Episode, RetailDatabase
from scoring.parse import parse_plan
from scoring.reward import Score, score_completion

_MAX_SHOWN = 88


def _short(value: object) -> str:
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def describe_changes(db: RetailDatabase, changed_records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line per changed field: record, field, value before, value after (or added).

    Args:
        db: The store before the calls.
        changed_records: What `Episode.changed_records` returned.
    """
    stores = {"orders": db.orders, "users": db.users}
    lines = []
    for kind, records in changed_records.items():
        for record_id, record in records.items():
            before = stores[kind][record_id]
            for name in record:
                if record[name] != before.get(name):
                    change = _describe_change(before.get(name), record[name])
                    lines.append(f"{kind}/{record_id}.{name}: {change}")
    return lines


def _describe_change(before: object, after: object) -> str:
    # Of a list that grew, start to start cut off would show the same text twice.
    if isinstance(before, list) and isinstance(after, list) and after[: len(before)] == before:
        return f"added {_short(after[len(before):])}"
    return f"{_short(before)} -> {_short(after)}"


def format_score(score: Score) -> str:
    """Return reward, its parts by name, and the outcome in one line."""
    parts = ", ".join(f"{name} {points:+g}" for name, points in score.parts.items() if points)
    return (
        f"reward {score.reward:g} of {score.max_reward:g} ({parts or 'nothing earned'}); "
        f"outcome {score.outcome:g}"
    )


def explain_calls(completion: str, db: RetailDatabase) -> str:
    """Run a plan on a fresh store; describe each call, its observation and what changed."""
    calls, parse_error = parse_plan(completion)
    if parse_error is not None:
        return f"no plan ({parse_error}): {_short(completion)}"
    episode = Episode(db)
    lines = []
    for number, call in enumerate(calls, start=1):
        observation = episode.call(call.name, call.arguments)
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        lines.append(printable(f"call {number}: {call.name} {arguments}"))
        lines.append(f"  {'ok' if observation.ok else 'refused'}: {_short(observation.content)}")
    changes = describe_changes(db, episode.changed_records())
    lines += [f"changed {change}" for change in changes] or ["changed nothing"]
    return "\n".join(lines)


def explain_completion(task: Task, completion: str, db: RetailDatabase) -> str:
    """Run and score a completion; describe calls, changes of the store, and reward by part."""
    score = score_completion(task, completion, db)
    return f"{explain_calls(completion, db)}\n{format_score(score)}"


def break_one_argument(task: Task) -> str:
    """Return the gold completion with one character of its last call's first text changed.

    Raises:
        ValueError: The last gold call has no text argument.
    """
    plan = json.loads(gold_completion(task))
    arguments = plan["tool_calls"][-1]["arguments"]
    for name, value in arguments.items():
        if isinstance(value, str) and value:
            last = "1" if value[-1] == "0" else "0"
            arguments[name] = value[:-1] + last
            return json.dumps(plan, ensure_ascii=False, separators=(",", ":"))
    raise ValueError(f"task {task.task_id}: the last gold call has no text to change")


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """Return the advantages of one group: reward minus group mean, divided by the group's std.

    As TRL computes them with `scale_rewards="group"`: sample standard deviation, 1e-4 added.
    A group whose rewards are all equal has advantages of 0 and teaches nothing.

    Args:
        rewards: Rewards of the completions of one task, shape `[G]`, G >= 2.
    """
    mean, deviation = fmean(rewards), stdev(rewards)
    return [round((reward - mean) / (deviation + 1e-4), 3) for reward in rewards]
