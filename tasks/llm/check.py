"""Decide by code whether a reworded query still means the same task."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from data_reader import Task
from envs.retail import RetailDatabase
from tasks.audit.conventions import check_conventions
from tasks.audit.execution import check_format
from tasks.audit.finding import Finding
from tasks.audit.grounding import check_grounding
from tasks.audit.policy import check_policy

MAX_LENGTH_RATIO = 3.0
FACT_PATTERN = re.compile(
    r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"  # email addresses
    r"|#\w+"  # order ids
    r"|\b[A-Za-z][^\W_]*_\w*\d\w*\b"  # user and payment ids
    r"|\d+(?:\.\d+)?"  # item and product ids, zip codes, house numbers, amounts
)


def rewording_findings(task: Task, query: str, db: RetailDatabase) -> list[Finding]:
    """Check `query` as new words for `task`.

    Returns:
        Findings; empty when the new words may be kept.
    """
    findings = []
    if query.strip() == task.query.strip():
        findings.append(Finding("unchanged", "the words are the same"))
    if not 0 < len(query.strip()) <= MAX_LENGTH_RATIO * len(task.query):
        findings.append(Finding("length", f"{len(query)} characters for {len(task.query)}"))
    old, new = set(FACT_PATTERN.findall(task.query)), set(FACT_PATTERN.findall(query))
    values = {value for call in _values(task) for value in call if value in task.query}
    lost = sorted((old - new) | {value for value in values if value not in query})
    if lost:
        findings.append(Finding("facts lost", f"must be verbatim: {', '.join(lost)}"))
    added = sorted(new - old)
    if added:
        findings.append(Finding("facts added", f"not known before: {', '.join(added)}"))
    if not lost and _mention_order(task, query) != _mention_order(task, task.query):
        findings.append(Finding("order changed", "intents or items come in another order"))
    if not findings:
        reworded = replace(task, query=query)
        findings += check_format(reworded) or [
            finding
            for check in (check_policy, check_grounding, check_conventions)
            for finding in check(reworded, db)
        ]
    return findings


def _values(task: Task) -> list[list[str]]:
    """Return the text values of each gold call, in the order of its arguments."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value] if value else []
        return [text for part in value for text in texts(part)] if isinstance(value, list) else []

    return [texts(list(call["arguments"].values())) for call in task.gold_actions]


def _mention_order(task: Task, query: str) -> tuple[list[int], list[str]]:
    """Return the order in which `query` first names calls (by what is theirs alone) and items."""
    calls = _values(task)
    uses = Counter(value for call in calls for value in set(call))
    first = {}
    # The first call authenticates; where a customer says who they are is free.
    for index, call in enumerate(calls[1:], 1):
        places = [query.find(value) for value in call if uses[value] == 1 and value in query]
        if places:
            first[index] = min(places)
    items = {value for call in calls for value in call if re.fullmatch(r"\d{6,}", value)}
    return sorted(first, key=first.__getitem__), sorted(items & _words(query), key=query.find)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))
