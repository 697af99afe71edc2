"""Conversations that end right, for training: the oracle talks to the scripted customer.

Kept is an episode only when the store ends as gold leaves it, every output was said, no rule was
broken and every id in a call had been shown before. Left out: customers and agents behind endpoints.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.conversation import Conversation, play
from agent.customers import ScriptedCustomer
from agent.evaluation import episode_row, episode_seed
from agent.policies import scripted_policy
from common.json_rows import DatasetError, read_rows
from common.outputs import writing
from data_reader import Task
from envs.retail import RetailDatabase
from scoring.episode import score_episode
from scoring.transcript import parse_arguments, replay
from tasks.audit.duplicates import EvenSample, wording_figures
from tasks.audit.grounding import SearchText

DEFECTS = ("unknown_task", "wrong_result", "failed", "violation", "ungrounded")
"""What keeps a conversation out of training data, see `find_defect` and `audit_conversations`."""
_FREE = ("reason", "summary", "thought")
"""Arguments in the agent's own words, or chosen from a closed set."""
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def find_ungrounded(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the values in the agent's calls that neither the customer nor a result had shown.

    Returns:
        Each as "tool.argument: value"; numbers of a sum count one by one.
    """
    shown: list[str] = []
    found = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        text = SearchText("\n".join(shown)) if calls else None
        for call in calls:
            arguments = parse_arguments(call["arguments"])
            for name, value in arguments.items() if isinstance(arguments, dict) else ():
                values = _NUMBER.findall(value) if name == "expression" else value
                values = values if isinstance(values, list) else [values]
                found += [
                    f"{call['name']}.{name}: {item}" for item in values
                    if name not in _FREE and item != "" and not text.has(name, str(item))
                ]
        if message["role"] in ("user", "tool"):
            shown.append(message["content"])
    return found


def find_defect(row: Mapping[str, Any], task: Task, db: RetailDatabase) -> str | None:
    """Return what keeps a conversation out of training data, None when nothing does.

    Args:
        row: A line of a trajectory file; judged by its messages, which run again.

    Returns:
        wrong_result: a call answers otherwise now; failed: the task was not done; violation: a rule
        was broken; ungrounded: see `find_ungrounded`.

    Raises:
        GoldError: The task's gold does not replay.
    """
    messages = row["messages"]
    shown = [message["content"] for message in messages if message["role"] == "tool"]
    made = [call.content for call in replay(messages, db).calls]
    texts = [c if isinstance(c, str) else json.dumps(c, ensure_ascii=False) for c in made]
    score = score_episode(task, messages, db)
    findings = {
        "wrong_result": shown != texts, "failed": not score.success,
        "violation": bool(score.violations), "ungrounded": bool(find_ungrounded(messages)),
    }
    return next((name for name, holds in findings.items() if holds), None)


def play_gold(
    tasks: Iterable[Task], db: RetailDatabase, seed: int, num_customers: int = 1
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Yield tasks, whose gold must replay, and lines of a trajectory file: the oracle's episodes of them.

    Each of the `num_customers` episodes of a task has a customer of its own.
    """
    oracle = scripted_policy("oracle")
    for task in tasks:
        for trial in range(num_customers):
            customer_seed = episode_seed(seed, task, trial)
            talk = Conversation(task, db, ScriptedCustomer(task, customer_seed), seed=customer_seed)
            play([talk], oracle)
            yield task, episode_row(talk, trial)


def write_trajectories(
    command: str, tasks: Iterable[Task], db: RetailDatabase, output: Path, seed: int = 0,
    num_customers: int = 1,
) -> Counter[str]:
    """Play the tasks, read one at a time, and write the conversations that end right, whole or not at all.

    Returns:
        How many were `kept`, and dropped by reason, see `find_defect`.

    Raises:
        GoldError: A task's gold does not replay.
        OSError: The file cannot be written.
    """
    counts: Counter[str] = Counter()
    with writing(command, output) as (part,), open(part, "w", encoding="utf-8") as file:
        for task, row in play_gold(tasks, db, seed, num_customers):
            defect = find_defect(row, task, db)
            counts[defect or "kept"] += 1
            if defect is None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts


def read_conversations(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield file:line and row of a trajectory file.

    Raises:
        DatasetError: The file cannot be read or holds no row, or a row is no conversation.
    """
    is_empty = True
    for found in read_rows(path):
        is_empty = False
        finding = found.finding or _row_finding(found.value)
        if finding:
            raise DatasetError([f"{found.place}: {finding}"])
        yield found.place, found.value
    if is_empty:
        raise DatasetError([f"{path}: holds no conversation; write it with task_generator.py trajectories"])


def _row_finding(row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("task_id"), str):
        return "task_id: is missing; name the task of the conversation"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return 'messages: must be a list of messages; write [{"role", "content"}, ...]'
    for number, message in enumerate(messages):
        if not _is_message(message):
            return f"messages[{number}]: is no message of a user, an assistant or a tool"
    return ""


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "tool"):
        return False
    calls = message.get("tool_calls") or []
    content = message.get("content")
    is_text = isinstance(content, str) or content is None and bool(calls)
    return is_text and isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function"), dict)
        and all(isinstance(call["function"].get(name), str) for name in ("name", "arguments"))
        for call in calls
    )


def audit_conversations(
    path: Path, tasks: Iterable[Task], db: RetailDatabase
) -> tuple[Counter[str], list[str], dict[str, dict[str, float]]]:
    """Check every conversation of a file anew.

    Returns:
        How many are `valid`, and how many have which defect (`unknown_task`, or see
        `find_defect`); the findings, each "file:line: defect"; and the `wording_figures` of up to
        400 of the customers' first messages (`openings`), of their messages (`utterances`), of all
        that one customer says (`customers`), and of the tasks' queries (`queries`) to compare.

    Raises:
        DatasetError: As `read_conversations`.
        GoldError: A task's gold does not replay.
    """
    by_id = {task.task_id: task for task in tasks}
    counts: Counter[str] = Counter()
    findings = []
    samples = {name: EvenSample() for name in ("openings", "utterances", "customers", "queries")}
    for place, row in read_conversations(path):
        said = [m["content"] for m in row["messages"] if m["role"] == "user"]
        found = {"openings": said[:1], "utterances": said, "customers": [" ".join(said)]}
        for name, texts in found.items():
            for text in texts:
                samples[name].add(text)
        task = by_id.get(row["task_id"])
        defect = "unknown_task" if task is None else find_defect(row, task, db)
        counts[defect or "valid"] += 1
        if defect:
            findings.append(f"{place}: {defect}")
    for task in by_id.values():
        samples["queries"].add(task.query)
    figures = {name: wording_figures(sample.texts) for name, sample in samples.items()}
    return counts, findings, figures
