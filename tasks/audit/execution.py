"""Name everything that is wrong with a task, one function per kind of question.

Each check takes a task and returns a list of `Fault`; an empty list means that this check has
nothing to say against it. All work on rows with only `query`, `gold_actions` and `gold_final`, from
this project's generator or from anywhere else. `check_format` goes first: the others may rely on
what it checked. Left out on purpose: counting and reporting (an audit's work) and reading files.

Kinds here: empty_field, schema (format); refused_call, no_effect, wrong_effect (execution);
duplicate_query, duplicate_task_id (uniqueness). The other checks live in the modules of their
names and are at hand here.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from common.reader_text import folded
from data_reader import Task
from envs.retail import WRITE_TOOLS, Episode, RetailDatabase, check_arguments
from tasks.audit.conventions import TRANSFER_SUBJECTS, check_conventions
from tasks.audit.finding import Fault, call_label, order_remedy
from tasks.audit.grounding import ADDRESS_FIELDS, check_agent_grounding, check_grounding
from tasks.audit.policy import check_policy

__all__ = [
    "Fault",
    "TRANSFER_SUBJECTS",
    "UniquenessCheck",
    "check_agent_grounding",
    "check_conventions",
    "check_execution",
    "check_format",
    "check_grounding",
    "check_policy",
]

def check_format(task: Task) -> list[Fault]:
    """Check that there is a query and that every gold call fits its tool's schema.

    Args:
        task: The task.
    """
    faults = []
    if not task.query.strip():
        faults.append(Fault("empty_field", "query is empty"))
    for index, action in enumerate(task.gold_actions):
        problem = check_arguments(action["name"], action["arguments"])
        if problem is not None:
            faults.append(Fault("schema", f"{call_label(index, action)}: {problem}"))
    return faults


def effect_problem(action: dict, record: dict) -> str | None:
    """Say how a record differs from what an accepted write should have made of it.

    Args:
        action: The write.
        record: The order or user afterwards.

    Returns:
        None when the record is as the call asks.
    """
    name, arguments = action["name"], action["arguments"]
    if "address1" in arguments:
        wrong = [f for f in ADDRESS_FIELDS if record["address"].get(f) != arguments[f]]
        return f"address fields not changed: {', '.join(wrong)}" if wrong else None
    if name == "modify_pending_order_payment":
        paid = {p["payment_method_id"] for p in record["payment_history"]}
        return None if arguments["payment_method_id"] in paid else "no payment by the new method"
    if name == "modify_pending_order_items":
        held = {item["item_id"] for item in record["items"]}
        missing = [i for i in arguments["new_item_ids"] if i not in held]
        return f"new items not in the order: {', '.join(missing)}" if missing else None
    expected = {
        "cancel_pending_order": "cancelled",
        "return_delivered_order_items": "return requested",
        "exchange_delivered_order_items": "exchange requested",
    }[name]
    return None if record["status"] == expected else f"status is {record['status']!r}"


def _refusal(index: int, action: dict, content: object, db: RetailDatabase) -> Fault:
    detail = f"{call_label(index, action)}: {content}; {order_remedy(action, db)}"
    return Fault("refused_call", detail)


def check_execution(task: Task, db: RetailDatabase) -> list[Fault]:
    """Replay gold: every call is accepted and every write changes the store as it says.

    Args:
        task: The task, whose calls fit the tool schemas.
        db: The store it is about.
    """
    episode = Episode(db)
    faults = []
    for index, action in enumerate(task.gold_actions):
        name, arguments = action["name"], action["arguments"]
        if name not in WRITE_TOOLS:
            observation = episode.call(name, arguments)
            if not observation.ok:
                faults.append(_refusal(index, action, observation.content, db))
            continue
        lookup = ("get_user_details", "user_id")
        if "order_id" in arguments:
            lookup = ("get_order_details", "order_id")
        tool, key = lookup
        before = episode.call(tool, {key: arguments[key]}).content
        observation = episode.call(name, arguments)
        if not observation.ok:
            faults.append(_refusal(index, action, observation.content, db))
            continue
        after = episode.call(tool, {key: arguments[key]}).content
        problem = effect_problem(action, after)
        if after == before:
            faults.append(Fault("no_effect", f"{call_label(index, action)}: nothing changed"))
        elif problem is not None:
            faults.append(Fault("wrong_effect", f"{call_label(index, action)}: {problem}"))
    return faults


def fingerprint(text: str) -> int:
    """Return 64 bits of a text that stay the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def normalized_query(query: str) -> str:
    """Return a query without case, punctuation and spacing, which make no new task."""
    return " ".join(re.findall(r"[\w#@]+", folded(query)))


class UniquenessCheck:
    """Remember the tasks seen so far and name repeated ones.

    About 100 bytes a task: only 64-bit hashes are kept.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._queries: set[int] = set()
        self._task_ids: set[int] = set()

    def check(self, task: Task) -> list[Fault]:
        """Return a fault for each way in which the task repeats an earlier one; remember it.

        Args:
            task: The task; an empty `task_id` is not compared.
        """
        faults = []
        query = fingerprint(normalized_query(task.query))
        if query in self._queries:
            faults.append(Fault("duplicate_query", "an earlier task has the same query"))
        self._queries.add(query)
        if task.task_id:
            task_id = fingerprint(task.task_id)
            if task_id in self._task_ids:
                faults.append(Fault("duplicate_task_id", f"task_id {task.task_id!r} is taken"))
            self._task_ids.add(task_id)
        return faults
