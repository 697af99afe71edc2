"""Audit a task file of any origin: count what is invalid, name each finding by line, show the mix.

One pass; memory grows by hashes and signatures (about 2 KB a row) and by the findings.
"""

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from common.user_error import cut, printable, shorten
from data_reader import ScannedRow, Task, gold_completion, scan_tasks
from envs.retail import WRITE_TOOLS, RetailDatabase
from tasks.audit.duplicates import (
    EvenSample,
    SplitLeakage,
    UniquenessCheck,
    fingerprint,
    wording_figures,
)
from tasks.audit.execution import RowChecks
from tasks.audit.finding import Finding
from tasks.audit.policy import AUTHENTICATION_TOOLS

CHECKS = ("row", "gold", "grounding", "policy", "duplicate")
COUNTS = {
    "num_tasks": "tasks",
    "num_valid": "valid",
    "num_unreadable": "unreadable rows",
    "num_failing_gold": "gold that fails on the store",
    "num_ungrounded": "arguments not in the words",
    "num_policy_violations": "gold against the rules",
    "num_duplicates": "duplicates",
    "num_near_duplicates": "near duplicates (not a finding)",
    "num_repeated_gold": "gold seen before (not a finding)",
}
"""The counts of a report, and what they are called in words."""


@dataclass(frozen=True)
class Reason:
    """One finding, with its row."""

    line: int
    """Line in the file on which the row begins."""
    task_id: str
    """The row's name; `line-<n>` when it has none."""
    check: str
    """Which question it fails: one of `CHECKS`."""
    kind: str
    reason: str


@dataclass
class AuditReport:
    """Counts, findings and mix of one file."""

    path: str
    num_tasks: int = 0
    """Rows, unreadable ones too."""
    num_valid: int = 0
    """Rows without a finding."""
    num_unreadable: int = 0
    """Rows that are no task at all: broken JSON, a field missing or of a wrong type."""
    num_failing_gold: int = 0
    """Rows with a gold call that the schema or the store refuses, or that changes nothing."""
    num_ungrounded: int = 0
    """Rows with an argument that cannot be known from the words."""
    num_policy_violations: int = 0
    """Rows whose gold breaks a rule of wiki.md."""
    num_duplicates: int = 0
    """Rows that repeat an earlier row's query (case and punctuation aside) or task_id."""
    num_near_duplicates: int = 0
    """Rows whose wording, ids and numbers masked, nearly repeats an earlier row's, in this file or
    one it is compared with; not a finding."""
    num_repeated_gold: int = 0
    """Rows with exactly the gold calls of an earlier row; not a finding."""
    findings: dict[str, int] = field(default_factory=dict)
    """Findings by kind."""
    reasons: list[Reason] = field(default_factory=list)
    """Every finding, in file order."""
    mix: dict[str, Any] = field(default_factory=dict)
    """Tools, calls per task, tags and splits, as counts of readable rows."""
    wording: dict[str, float] = field(default_factory=dict)
    """Figures of up to 400 queries, see `wording_figures`."""
    near_duplicates: list[dict[str, Any]] = field(default_factory=list)
    """{"line", "of_path", "of_line", "similarity"} each."""
    repeated_gold: list[dict[str, int]] = field(default_factory=list)
    """{"line", "of_line"} each."""
    leakage: dict[str, Any] = field(default_factory=dict)
    """Customers and queries in two splits, over this file and those it is compared with."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON data."""
        return asdict(self)

    def print(self, file: TextIO | None = None) -> None:
        """Write the report for people: counts, then the first findings by line."""
        out = file or sys.stdout
        for name in COUNTS:
            print(f"{name:<22} {getattr(self, name):>7}", file=out)
        leaks = self.leakage
        print(
            f"in two splits          {leaks['num_users_in_two_splits']} users, "
            f"{leaks['num_queries_in_two_splits']} queries, "
            f"{leaks['num_near_duplicates_in_two_splits']} near duplicates",
            file=out,
        )
        for title, counts in (("splits", "splits"), ("calls", "num_calls"), ("tools", "tools")):
            print(wrapped(title, self.mix[counts]), file=out)
        print(wrapped("wording", self.wording), file=out)
        lines = shorten([f"{self.path}:{r.line}: {r.kind}: {r.reason}" for r in self.reasons])
        for line in [*lines, "--json lists every reason"] if lines else []:
            print(line, file=out)


def wrapped(title: str, figures: dict) -> str:
    """Return named figures as lines of at most 100 columns, aligned with the counts above."""
    # A name and its figure stay on one line: the blank between them is not one to break at.
    cells = ", ".join(f"{name}\N{NO-BREAK SPACE}{figure}" for name, figure in figures.items())
    head = f"{title:<22} "
    text = textwrap.fill(cells, 100, initial_indent=head, subsequent_indent=" " * len(head))
    return text.replace("\N{NO-BREAK SPACE}", " ")


def row_finding(text: str) -> tuple[str, Finding]:
    """Sort a reader's finding, "file:line: field: reason"; a call against its schema is gold's."""
    _, _, text = text.partition(": ")
    if re.match(r"(item \d+: )?gold_actions\[", text):
        return "gold", Finding("schema", text)
    return "row", Finding("unreadable", text)


class Audit:
    """Audit rows one by one.

    Args:
        leakage: Shared with the files that this one is compared with.
    """

    def __init__(self, path: str, db: RetailDatabase, leakage: SplitLeakage) -> None:
        self.report = AuditReport(path)
        self._leakage = leakage
        self._checks = RowChecks(db)
        self._unique = UniquenessCheck()
        self._golds: dict[int, int] = {}
        self._kinds: Counter = Counter()
        self._counts: dict[str, Counter] = {
            name: Counter() for name in ("splits", "num_calls", "tools", "authentication")
        }
        self._tags: dict[str, Counter] = {}
        self._words: Counter = Counter()
        self._num_writing = self._num_words = 0
        self._sample = EvenSample()

    def add(self, row: ScannedRow) -> None:
        """Check one row and count it."""
        task = row.task
        if task is None:
            findings = [row_finding(text) for text in row.findings]
        else:
            findings = self._checks.findings(task)
            findings += [("duplicate", finding) for finding in self._unique.check(task)]
            self._describe(task, row.line)
        report = self.report
        report.num_tasks += 1
        report.num_valid += not findings
        failed = {check for check, _ in findings}
        report.num_unreadable += task is None and "row" in failed
        report.num_failing_gold += "gold" in failed
        report.num_ungrounded += "grounding" in failed
        report.num_policy_violations += "policy" in failed
        report.num_duplicates += "duplicate" in failed
        task_id = task.task_id if task else f"line-{row.number}"
        item = f"item {row.number}: " if task and row.number != row.line else ""
        for check, finding in findings:
            self._kinds[finding.kind] += 1
            detail = cut(item + finding.detail)
            report.reasons.append(Reason(row.line, task_id, check, finding.kind, detail))

    def finish(self) -> AuditReport:
        """Return the report of the rows so far."""
        report = self.report
        report.findings = dict(self._kinds.most_common())
        report.num_near_duplicates = len(report.near_duplicates)
        report.num_repeated_gold = len(report.repeated_gold)
        num_tasks = max(1, sum(self._counts["splits"].values()))
        report.mix = {name: dict(sorted(c.items())) for name, c in self._counts.items()}
        report.mix["num_writing_tasks"] = self._num_writing
        report.mix["mean_query_words"] = round(self._num_words / num_tasks, 1)
        report.mix["query_words"] = dict(sorted(self._words.items()))
        report.mix["tags"] = {name: dict(sorted(c.items())) for name, c in self._tags.items()}
        report.wording = wording_figures(self._sample.texts)
        report.leakage = self._leakage.to_dict()
        return report

    def _describe(self, task: Task, line: int) -> None:
        """Count what the task is made of, whether or not it is valid."""
        names = [action["name"] for action in task.gold_actions]
        counts = self._counts
        split, near = self._leakage.add(task, self.report.path, line)
        if near is not None:
            self.report.near_duplicates.append(near)
        counts["splits"][split] += 1
        counts["num_calls"][len(names)] += 1
        counts["tools"].update(names)
        counts["authentication"].update(AUTHENTICATION_TOOLS.intersection(names) or ["none"])
        self._num_writing += any(name in WRITE_TOOLS for name in names)
        num_words = len(task.query.split())
        self._num_words += num_words
        self._words[num_words // 10 * 10] += 1
        for name, value in task.tags.items():
            values = value if isinstance(value, list) else [value]
            plain = [str(one) for one in values if isinstance(one, str | bool | int)]
            self._tags.setdefault(name, Counter()).update(plain)
        gold = fingerprint(gold_completion(task))
        of_line = self._golds.setdefault(gold, line)
        if of_line != line:
            self.report.repeated_gold.append({"line": line, "of_line": of_line})
        self._sample.add(task.query)


def audit_files(
    paths: Sequence[str | Path], data_dir: str | Path | None = None, **split: Any
) -> list[AuditReport]:
    """Audit several task files, JSONL or a JSON array such as tau-bench's own, and compare them.

    Args:
        data_dir: Folder of the store; None means the project's own.
        **split: `seed` and `fractions` of the split, as in training; see `SplitLeakage`.

    Returns:
        One report a file; `leakage` is over all of them, duplicates are within each.

    Raises:
        DatasetError: A file cannot be read at all.
        DatabaseError: The store cannot be loaded.
    """
    db = RetailDatabase.load(data_dir)
    leakage = SplitLeakage(db, **split)
    audits = [Audit(printable(str(path)), db, leakage) for path in paths]
    for path, audit in zip(paths, audits, strict=True):
        for row in scan_tasks(path, check_ids=False):
            audit.add(row)
    # Leaks are known when every file has been read.
    return [audit.finish() for audit in audits]


def audit_file(
    path: str | Path, data_dir: str | Path | None = None, against: Sequence[str | Path] = (), **split: Any
) -> AuditReport:
    """Audit one task file; arguments as `audit_files`.

    Args:
        against: Other files; customers and queries in another split there are leaks.
    """
    return audit_files([path, *against], data_dir, **split)[0]
