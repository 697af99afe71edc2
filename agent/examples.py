"""Agent mode for people: one conversation as text, and success rates of several policies."""

from collections.abc import Mapping, Sequence
from typing import Any

from agent.conversation import Conversation, Limits, Policy, play
from agent.customers import ScriptedCustomer
from agent.policies import scripted_policy
from data_reader import Task
from envs.retail import RetailDatabase
from scoring.episode import EpisodeScore, score_episode
from scoring.explain import describe_changes
from scoring.metrics import format_estimate
from scoring.trials import summarize_trials

_MAX_SHOWN = 160
_SPEAKERS = {"user": "customer  ", "tool": "  result  "}


def describe_conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what was said and done, a line a message; longer texts are cut."""
    lines = []
    for message in messages:
        for call in message.get("tool_calls") or []:
            lines.append(f"  call      {call['function']['name']} {call['function']['arguments']}")
        if message.get("content") and message["role"] != "system":
            text = message["content"]
            shown = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
            lines.append(_SPEAKERS.get(message["role"], "agent     ") + shown)
    return "\n".join(lines)


def describe_score(score: EpisodeScore) -> str:
    """Return reward, its parts by name, and the violations in one line."""
    parts = ", ".join(f"{name} {points:+g}" for name, points in score.parts.items() if points)
    violations = "; ".join(f"{v.kind}: {v.detail}" for v in score.violations) or "none"
    return (
        f"reward {score.reward:g} of {score.max_reward:g} ({parts or 'nothing earned'}); "
        f"success {score.success}; violations: {violations}"
    )


def show_conversation(task: Task, db: RetailDatabase, policy: Policy | None = None) -> None:
    """Play a task with the scripted customer; print what was said and done, changed and earned.

    Args:
        policy: Plays the agent; None is the oracle.
    """
    talk = Conversation(task, db, ScriptedCustomer(task, seed=0))
    play([talk], policy or scripted_policy("oracle"))
    print(describe_conversation(talk.messages))
    for change in describe_changes(db, talk.episode.changed_records()) or ["nothing"]:
        print(f"changed {change}")
    score = score_episode(task, talk.messages, db, talk.termination)
    print(f"ended: {talk.termination}; {describe_score(score)}")


def print_success_rates(
    tasks: Sequence[Task], db: RetailDatabase, policies: Mapping[str, Policy],
    limits: Limits | None = None,
) -> None:
    """Let each policy play every task, at least one, once; print its success and violation rates."""
    print(f"{'policy':<12}{'success':>24}{'violations':>24}   ({len(tasks)} tasks)")
    for name, policy in policies.items():
        talks = [Conversation(task, db, ScriptedCustomer(task, seed=0), limits) for task in tasks]
        play(talks, policy)
        metrics = summarize_trials(
            [score_episode(talk.task, talk.messages, db, talk.termination) for talk in talks]
        )
        print(rates_line(name, metrics))


def rates_line(name: str, metrics: Mapping[str, Any]) -> str:
    """Return one policy's line under the head of `print_success_rates`."""
    cells = [format_estimate(metrics[key]) for key in ("success_rate", "violation_rate")]
    return f"{name:<12}" + "".join(f"{cell:>24}" for cell in cells)
