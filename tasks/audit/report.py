"""Write the analysis of task files: one Markdown text and a few plots, from their audits.

The text holds only what the audits counted, so the same files give the same text.
`python -m tasks.audit.report` writes the report of the committed datasets.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from common import outputs
from common.user_error import UserError, cut, system_error
from data_reader import DatasetError, Splits
from envs.retail import DatabaseError
from envs.retail.store import store_files
from tasks.audit import PLOT_KINDS, REPORT_COMMAND, report_files
from tasks.audit.audit import COUNTS, AuditReport, audit_files

ROOT = Path(__file__).resolve().parent.parent.parent
OWN_FILES = ("dataset.jsonl", "3.5k.jsonl")
OWN_REPORT = "docs/ANALYSIS_REPORT.md"
OWN_COMMAND = "python -m tasks.audit.report"
MAX_LISTED = 50
# Findings that task files of this kind are known for, as patterns of "kind: reason".
KNOWN_FINDINGS = (
    ("address incomplete or made up",
     r"\b(address[12]|city|state|country|zip)\b.* not in the query|address2 is empty"),
    ("item ids that the query does not name", r"item_ids .*not in the query"),
    ("items paired otherwise than the query does", r"^swapped_pair"),
    ("email that the query does not give", r"\bemail .*not in the query"),
    ("order id that the query does not name", r"order_id .*not in the query"),
    ("payment method that the query does not name", r"payment_method_id .*not in the query"),
    ("cancel reason against the words", r"^reason_contradicts"),
    ("item that the order does not hold", r"^item_not_in_order"),
    ("order of somebody else", r"^other_customers_order"),
    ("gift card too small", r"^gift_card_short"),
)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table, the first column to the left and numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows] + [""]


def _share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.1f} %)" if total else "0"


def _names(reports: Sequence[AuditReport]) -> list[str]:
    return [Path(report.path).name for report in reports]


def _counter_table(
    reports: Sequence[AuditReport], counters: Sequence[dict], first: str, totals: Sequence[int]
) -> list[str]:
    """Tabulate a counter of each report, with shares of its total."""
    keys = sorted({key for counter in counters for key in counter})
    if set(keys) <= set(Splits._fields):
        keys = [name for name in Splits._fields if name in keys]
    columns = list(zip(counters, totals, strict=True))
    rows = ([key, *(_share(counter.get(key, 0), total) for counter, total in columns)] for key in keys)
    return _table([first, *_names(reports)], rows)


def _count_known(report: AuditReport, pattern: str) -> int:
    """Count the rows with a finding that matches a pattern of `KNOWN_FINDINGS`."""
    return len({r.line for r in report.reasons if re.search(pattern, f"{r.kind}: {r.reason}")})


def analysis_text(reports: Sequence[AuditReport], command: str, plots: Sequence[str]) -> str:
    """Return the analysis of audits that were compared with each other, as Markdown with links of plots."""
    names, leaks = _names(reports), reports[0].leakage
    num_tasks = [report.num_tasks for report in reports]

    def table(first: str, rows: Iterable[tuple[str, Callable[[AuditReport], object]]]) -> list[str]:
        """Tabulate figures: a title and what gives it from a report."""
        return _table([first, *names], ([title, *map(figure, reports)] for title, figure in rows))

    def counts(name: str, first: str) -> list[str]:
        return _counter_table(reports, [report.mix[name] for report in reports], first, num_tasks)

    tools = [report.mix["tools"] for report in reports]
    lines = [
        "# Analysis of " + " and ".join(names), "",
        f"Written by `{command}`; do not edit. Every number is counted from the files.", "",
        "## What the audit found", "",
        *table("", ((title, attrgetter(key)) for key, title in COUNTS.items())),
        "A task is valid when its row reads, its gold calls fit the tool schemas and run on the "
        "store, each write changes what it says, no rule of wiki.md is broken, every argument can "
        "be known from the words, and no earlier row has the same query or name. Near duplicates "
        "(wording alike from 0.8 on, ids and numbers masked) and repeated gold are shown and do "
        "not make a task invalid.", "",
        "## Findings that such files are known for", "", "Rows with at least one of them.", "",
        *table("finding", ((title, partial(_count_known, pattern=p)) for title, p in KNOWN_FINDINGS)),
        *_finding_lines(reports), *_yield_lines(reports),
        "## What the tasks ask for", "",
        *(f"![{Path(plot).stem}]({plot})" for plot in plots), "",
        "Calls of each tool in gold:", "",
        *_counter_table(reports, tools, "tool", [sum(counter.values()) for counter in tools]),
        "Calls per task, authentication included:", "", *counts("num_calls", "calls"),
        "How gold finds the customer:", "", *counts("authentication", "by"),
    ]
    for tag in sorted({name for report in reports for name in report.mix["tags"]}):
        counters = [report.mix["tags"].get(tag, {}) for report in reports]
        if 0 < max(map(len, counters)) <= 40:
            lines += [f"Tag `{tag}`:", "", *_counter_table(reports, counters, tag, num_tasks)]
    lines += table("", (
        ("tasks that change the store", lambda r: _share(r.mix["num_writing_tasks"], r.num_tasks)),
        ("words in a query, mean", lambda r: r.mix["mean_query_words"]),
    ))
    figures = dict.fromkeys(key for report in reports for key in report.wording)
    return "\n".join([
        *lines,
        "## Wording", "",
        "Figures of up to 400 queries drawn evenly from each file, ids and numbers masked: share "
        "of distinct word groups, distinct openings, distinct texts, size of the vocabulary.", "",
        *table("figure", ((key, lambda r, key=key: r.wording.get(key, "")) for key in figures)),
        "## Splits", "", *counts("splits", "split"),
        f"Over all files together, {leaks['num_users_in_two_splits']} customers, "
        f"{leaks['num_queries_in_two_splits']} queries and "
        f"{leaks['num_near_duplicates_in_two_splits']} near duplicates are in more than one "
        "split. Customers are identified by the gold calls that find them, not by the row's `user_id`.",
        "", *(f"- {example}" for example in leaks["examples"]), *[""] * bool(leaks["examples"]),
        "## What this does not show", "",
        "- The queries come from a generator's grammar; real customers write worse and mean less "
        "clearly.",
        "- Grounding compares text: that a value is in the query does not prove that a reader "
        "would pick it.",
        "- The audit trusts the store; a wrong record there is a wrong record here.", "",
    ])


def _finding_lines(reports: Sequence[AuditReport]) -> list[str]:
    lines = ["## Findings by line", ""]
    for name, report in zip(_names(reports), reports, strict=True):
        if not report.reasons:
            lines += [f"{name}: none.", ""]
            continue
        kinds = ", ".join(f"{kind} {count}" for kind, count in report.findings.items())
        more = len(report.reasons) - MAX_LISTED
        lines += [
            f"{name}: {len(report.reasons)} findings ({kinds}).", "",
            *(
                f"- line {r.line}, {cut(r.task_id)}: {r.kind}: {r.reason}"
                for r in report.reasons[:MAX_LISTED]
            ),
            *([f"- ... {more} more"] if more > 0 else []), "",
        ]
    return lines


def _yield_lines(reports: Sequence[AuditReport]) -> list[str]:
    """Tabulate what the generator rejected, for files with `F.yield.json` beside them or in docs/."""
    tables = {}
    for name, report in zip(_names(reports), reports, strict=True):
        path = Path(report.path).with_suffix(".yield.json")
        if not path.is_file() and path.resolve().parent == ROOT:
            path = ROOT / "docs" / path.name
        if path.is_file():
            tables[name] = json.loads(path.read_text(encoding="utf-8"))["steps"]
    if not tables:
        return []

    def cell(step: dict) -> str:
        reasons = ", ".join(f"{kind} {count}" for kind, count in step["rejected"].items())
        return f"{step['passed']} of {step['seen']}" + (f" ({reasons})" if reasons else "")

    return [
        "## What the generator rejected", "",
        "Drafts that passed each step, and the reasons of the others.", "",
        *_table(["step", *tables], (
            [steps[0]["step"], *map(cell, steps)] for steps in zip(*tables.values(), strict=True)
        )),
    ]


def draw_plots(reports: Sequence[AuditReport], folder: Path, stem: str) -> None:
    """Draw the mix of the files as small PNGs, those of `plot_links`."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    names = _names(reports)
    panels = [("tools", "share of gold calls", [r.mix["tools"] for r in reports])]
    wishes = [r.mix["tags"].get("wishes", {}) for r in reports]
    if any(wishes):
        panels.append(("wishes", "share of wishes", wishes))
    for kind, title, counters in panels:
        keys = sorted({key for counter in counters for key in counter}, reverse=True)
        figure = Figure(figsize=(7, 1 + 0.28 * len(keys)), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(reports)
        for index, counter in enumerate(counters):
            total = max(1, sum(counter.values()))
            places = [row - index * height for row in range(len(keys))]
            shares = [counter.get(key, 0) / total for key in keys]
            axes.barh(places, shares, height, label=names[index])
        axes.set_yticks([row - 0.4 + height / 2 for row in range(len(keys))], keys, fontsize=8)
        axes.set_xlabel(title)
        axes.legend()
        _save(figure, folder / f"{stem}_{kind}.png")
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    panes = figure.subplots(1, 2)
    histograms = (("num_calls", "calls per task", 0.8), ("query_words", "words in a query", 8))
    for axes, (name, title, width) in zip(panes, histograms, strict=True):
        for index, report in enumerate(reports):
            counter = report.mix[name]
            total = max(1, sum(counter.values()))
            places = [key + index * width / len(reports) for key in counter]
            shares = [count / total for count in counter.values()]
            axes.bar(places, shares, width / len(reports), align="edge", label=names[index])
        axes.set_xlabel(title)
        axes.set_ylabel("share of tasks")
    panes[0].legend()
    _save(figure, folder / f"{stem}_sizes.png")


def _save(figure: Any, path: Path) -> None:
    with outputs.writing(REPORT_COMMAND, path) as (part,):
        # Without the version of the plotting library, the same data gives the same bytes.
        figure.savefig(part, format="png", dpi=80, metadata={"Software": None})


def plot_links(reports: Sequence[AuditReport], stem: str) -> list[str]:
    """Return the links of the plots that `draw_plots` draws, without drawing them."""
    has_wishes = any(report.mix["tags"].get("wishes") for report in reports)
    return [f"plots/{stem}_{kind}.png" for kind in PLOT_KINDS if has_wishes or kind != "wishes"]


def write_report(reports: Sequence[AuditReport], path: str | Path, command: str | None = None) -> None:
    """Write the analysis of audited files, and its plots into `plots/` beside it.

    Args:
        command: The command that writes it; None names an audit of the first file.
    """
    path = Path(path)
    stem = path.stem.lower()
    if command is None:
        words = ["python", "task_tester.py", "audit", str(reports[0].path), "--report", str(path)]
        command = shlex.join(words)
    draw_plots(reports, path.parent / "plots", stem)
    text = analysis_text(reports, command, plot_links(reports, stem))
    with outputs.writing(REPORT_COMMAND, path) as (part,):
        part.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the analysis of the named files, or of the project's own."""
    parser = argparse.ArgumentParser(prog="python -m tasks.audit.report", description=main.__doc__)
    parser.add_argument("files", nargs="*", help=f"task files (default: {' '.join(OWN_FILES)})")
    parser.add_argument("--output", type=Path, default=ROOT / OWN_REPORT, metavar="FILE.md")
    parser.add_argument("--data-dir", type=Path, help="a store's folder (default: the project's)")
    outputs.add_overwrite(parser)
    args = parser.parse_args(arguments)
    files = args.files or [ROOT / name for name in OWN_FILES]
    command = OWN_COMMAND
    if args.files:
        command += f" {shlex.join(args.files)} --output {shlex.quote(str(args.output))}"
    inputs = [*map(Path, files), *store_files(args.data_dir)]
    try:
        outputs.check_files(REPORT_COMMAND, report_files(args.output), inputs, overwrite=args.overwrite)
        reports = audit_files(files, args.data_dir)
        write_report(reports, args.output, command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, DatasetError | DatabaseError) else 1
    except OSError as error:
        print(f"error: {system_error(error, args.output)}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}")
    return 0 if all(report.num_valid == report.num_tasks for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
