"""Task files: JSONL rows to checked tasks, to prompts, splits and training sets.

Checked here is what one row shows by itself: JSON, fields, types, tool names, arguments by schema.
Whether gold replays on a store, is grounded in the query and keeps to the policy, `tasks/audit/` checks.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.bench_rows import is_tau2_row, own_form
from common.json_rows import DatasetError, parse_row, read_rows, shown_keys, typed_field
from common.reader_text import folded, is_blank
from common.row_form import as_json, missing_finding
from common.user_error import quoted
from envs.retail import Episode, RetailDatabase
from envs.retail.tools.call_form import call_finding, is_call
from prompting.harmony import find_special_token
from prompting.plan import PromptStyle, plan_instructions
from prompting.plan_format import HARMONY, PlanFormat

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Task:
    """What a customer asks for and the calls that serve it."""

    query: str
    gold_actions: list[dict]
    """Reference calls in order, each `{"name", "arguments"}`; none only in a task of tau2-bench
    that asks for words alone, or where a caller of `read_tasks` allows it. Read-only."""
    gold_final: str
    """The outcome in a short phrase."""
    task_id: str
    """Unique in its file; `line-<n>` for a row that names none (the item number in an array)."""
    user_id: str | None = None
    instruction: str | None = None
    """The same intents as a scenario for a simulated customer."""
    outputs: list[str] = field(default_factory=list)
    """Strings that the agent must tell the customer."""
    tags: dict = field(default_factory=dict)
    """What the generator notes about the task (kind, difficulty and the like)."""
    line: int = field(default=0, compare=False)
    """Line in its file on which its row begins, from 1; 0 when made in memory."""
    refused_gold: list[dict] | None = None
    """Calls that were left out of `gold_actions` as the store refuses them, in order; None unless
    `scoring.reward.ignore_refused_gold` made the task."""


class ScannedRow(NamedTuple):
    """One row of a task file: its task, or what is wrong with it."""

    line: int
    task: Task | None
    findings: list[str]
    """Each "file:line: field: reason"; empty exactly when there is a task."""
    number: int
    """Item number in a JSON array, from 1; the line in any other file."""


class Splits(NamedTuple):
    """Tasks of users that meet in no other split."""

    train: Sequence[Task]
    validation: Sequence[Task]
    test: Sequence[Task]


REQUIRED = {
    "query": "the customer's message as query",
    "gold_actions": 'the reference calls [{"name", "arguments"}] as gold_actions',
    "gold_final": "the outcome in a short phrase as gold_final",
}
"""What every row must have, and in words what to add."""
KNOWN_FIELDS = (*REQUIRED, "actions", "evaluation_criteria")
"""Fields by which a row is known, those of tau-bench and tau2-bench too."""


# -- rows --------------------------------------------------------------------------------------


def _check_gold(actions: Any, findings: list[str], may_be_empty: bool) -> None:
    if not isinstance(actions, list):
        meant = as_json(actions)
        lists = [k for k, v in meant.items() if isinstance(v, list)] if isinstance(meant, dict) else []
        remedy = 'write [{"name", "arguments"}]'
        if isinstance(meant, list):
            remedy = "write the list itself, not its text"
        elif lists:
            remedy = f"it has {shown_keys(meant)}; write the list under {lists[0][:40]} alone"
        elif is_call(meant):
            remedy = "put the call into a list, [...]"
        findings.append(f"gold_actions: must be a list of calls, not {type(actions).__name__}; {remedy}")
        return
    if not actions and not may_be_empty:
        findings.append("gold_actions: is empty; name at least one call, or leave the row out")
    for index, action in enumerate(actions):
        finding = call_finding(action)
        if finding:
            findings.append(f"gold_actions[{index}]: {finding}")


def _check_text(row: Mapping[str, Any], findings: list[str]) -> None:
    text = json.dumps(row, ensure_ascii=False)
    token = find_special_token(text)
    if token is not None:
        findings.append(f"row: contains the control token {token}; remove it from the text")
    try:
        text.encode()
    except UnicodeEncodeError:
        findings.append("row: contains half of a surrogate pair (\\ud800-\\udfff); write it whole")


def _is_gold(key: str, value: Any) -> bool:
    value = as_json(value)
    return isinstance(value, list) and bool(value) and all(map(is_call, value))


def _task_of_row(
    row: Any, line: int, number: int, findings: list[str], may_be_empty: bool = False
) -> Task | None:
    """Build the task of a row; None, and the reasons added to `findings`, when it has any finding."""
    if not isinstance(row, dict):
        text = "row: must be a JSON object, not its text; write the object without quotes around it"
        is_text = isinstance(as_json(row), dict)
        findings.append(text if is_text else "row: must be a JSON object; write one task object a line")
        return None
    may_be_empty = may_be_empty or is_tau2_row(row)
    given, row = row, own_form(row, findings)
    query = typed_field(row, "query", str, "text", findings)
    gold_final = typed_field(row, "gold_final", str, "text", findings)
    missing = [name for name in REQUIRED if row.get(name) is None]
    if missing:
        needed = {name: REQUIRED[name] for name in missing}
        findings.append(missing_finding(given, needed, {"gold_actions": _is_gold}, KNOWN_FIELDS))
    if len(missing) == len(REQUIRED):  # no task at all
        return None
    if query is not None and is_blank(query):
        findings.append("query: is empty; add the customer's message")
    if row.get("gold_actions") is not None:
        _check_gold(row["gold_actions"], findings, may_be_empty)
    task_id = typed_field(row, "task_id", str, "text", findings)
    if task_id is not None and is_blank(task_id):
        findings.append("task_id: is empty; give it a name or leave the field out")
    user_id = typed_field(row, "user_id", str, "text", findings)
    instruction = typed_field(row, "instruction", str, "text", findings)
    if instruction and is_blank(instruction):
        findings.append("instruction: is empty; write the customer's scenario or leave the field out")
    outputs = typed_field(row, "outputs", list, "a list of texts", findings) or []
    for output in outputs:
        if not isinstance(output, str):
            kind, shown = type(output).__name__, output if isinstance(output, int | float) else "..."
            findings.append(f'outputs: must be a list of texts, one is {kind}; write it as "{shown}"')
        elif is_blank(output):
            findings.append("outputs: a text is empty; write what the agent must say, or leave it out")
    tags = typed_field(row, "tags", dict, "an object", findings) or {}
    _check_text(row, findings)
    if findings:
        return None
    return Task(
        query, row["gold_actions"], gold_final, task_id or f"line-{number}", user_id, instruction,
        outputs, tags, line,
    )


# -- files -------------------------------------------------------------------------------------


def scan_tasks(
    path: str | Path, check_ids: bool = True, may_be_empty: bool = False
) -> Iterator[ScannedRow]:
    """Stream the rows of a task file, good and bad.

    Args:
        path: JSONL (UTF-8, one task a line; blank lines, CRLF and a byte order mark are fine), or
            one JSON array such as tau-bench's and tau2-bench's own task files (read at once).
        check_ids: report a repeated task id; remembers every id.
        may_be_empty: let rows through whose gold holds no call.

    Raises:
        DatasetError: the file is missing, unreadable or a folder, or holds no row.
    """
    lines_by_id: dict[str, str] = {}
    num_rows = 0
    for line, number, place, row, finding in read_rows(Path(path)):
        num_rows += 1
        findings = [finding] if finding else []
        task = None if finding else _task_of_row(row, line, number, findings, may_be_empty)
        if task is not None and check_ids:
            earlier = lines_by_id.setdefault(task.task_id, place)
            if earlier != place:
                findings.append(f"task_id: {quoted(task.task_id)} is at {earlier} too; name each task once")
                task = None
        yield ScannedRow(line, task, [f"{place}: {text}" for text in findings], number)
    if num_rows == 0:
        raise DatasetError([f"{path}: holds no task; write one JSON object a line"])


def read_tasks(path: str | Path, skip_invalid: bool = False, may_be_empty: bool = False) -> list[Task]:
    """Read a whole task file.

    >>> tasks = read_tasks("dataset.jsonl")
    >>> len(tasks), sorted(tasks[0].gold_actions[0])
    (800, ['arguments', 'name'])

    Args:
        path: see `scan_tasks`.
        skip_invalid: leave invalid rows out instead of refusing the file.
        may_be_empty: see `scan_tasks`.

    Raises:
        DatasetError: any row is invalid (all findings are listed) unless they are skipped; no row is
            valid; or the file cannot be read.
    """
    tasks: list[Task] = []
    findings: list[str] = []
    for row in scan_tasks(path, may_be_empty=may_be_empty):
        if row.task is not None:
            tasks.append(row.task)
        findings += row.findings
    if findings and not (skip_invalid and tasks):
        raise DatasetError(findings)
    return tasks


def iter_tasks(path: str | Path) -> Iterator[Task]:
    """Stream the tasks of a file in flat memory; task ids are not compared with each other.

    Raises:
        DatasetError: at the first invalid row, or when the file cannot be read.
    """
    for row in scan_tasks(path, check_ids=False):
        if row.task is None:
            raise DatasetError(row.findings)
        yield row.task


def task_to_json(task: Task, keep_empty: bool = False) -> str:
    """Return the task as one row of a task file; `task_from_json` gives an equal task.

    `keep_empty` writes optional fields that are empty, too.
    """
    row: dict[str, Any] = {
        "task_id": task.task_id, "query": task.query, "gold_actions": task.gold_actions,
        "gold_final": task.gold_final,
    }
    for name in ("user_id", "instruction", "outputs", "tags"):
        if keep_empty or getattr(task, name):
            row[name] = getattr(task, name)
    return json.dumps(row, ensure_ascii=False)


def task_from_json(text: str, line: int = 0) -> Task:
    """Build a task from one row.

    Args:
        line: its line in its file, from 1; names a task that has no `task_id`.

    Raises:
        DatasetError: the row is invalid.
    """
    row, finding, _ = parse_row(text.encode(errors="surrogatepass"))
    findings = [finding] if finding else []
    task = None if finding else _task_of_row(row, line, line, findings)
    if task is None:
        raise DatasetError(findings)
    return task


# -- splits ------------------------------------------------------------------------------------


def task_group(task: Task, db: RetailDatabase | None = None) -> str:
    """Name the group that must not be torn apart by a split: the customer.

    That is `user_id`; for a row without one the customer whom the gold calls authenticate (looked
    up in `db` when it is given, else the email, or name and zip code, itself) or name by user id;
    failing these, the query's own text.
    """
    if task.user_id:
        return f"user:{task.user_id}"
    for action in task.gold_actions:
        name, arguments = action["name"], action["arguments"]
        if name in ("find_user_id_by_email", "find_user_id_by_name_zip"):
            found = Episode(db).call(name, arguments) if db is not None else None
            if found is not None and found.ok:
                return f"user:{found.content}"
            return "given:" + "|".join(folded(arguments[key]) for key in sorted(arguments))
        if "user_id" in arguments:
            return f"user:{arguments['user_id']}"
    return f"query:{folded(task.query).strip()}"


def split_tasks(
    tasks: Iterable[Task],
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    min_tasks: tuple[int, int, int] = (1, 1, 1),
    db: RetailDatabase | None = None,
) -> Splits:
    """Split tasks by customer, in the order given.

    A customer's split depends on nothing but the group's name, the seed and the fractions, so it is
    the same in every file and on every machine.

    Args:
        seed: another seed deals the customers out anew.
        fractions: shares of customers for train, validation and test; 0 to 1, summing to 1.
        min_tasks: fewest tasks that each split must hold; not asked of a split with share 0.
        db: store that knows the user id of rows without one, see `task_group`.

    Raises:
        ValueError: the fractions are not three shares that sum to 1.
        DatasetError: a split is smaller than asked.
    """
    splits = Splits([], [], [])
    for task in tasks:
        splits[split_number(task, seed, fractions, db)].append(task)
    check_split_sizes(splits, fractions, min_tasks)
    return splits


def split_number(
    task: Task, seed: int, fractions: tuple[float, float, float], db: RetailDatabase | None = None
) -> int:
    """Return a task's split: 0 train, 1 validation, 2 test; see `split_tasks`."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions: {fractions} must be three shares of 0 to 1 that sum to 1")
    digest = hashlib.sha256(f"{seed}|{task_group(task, db)}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    if position < fractions[0]:
        return 0
    return 1 if position < fractions[0] + fractions[1] or fractions[2] == 0 else 2


def check_split_sizes(
    splits: Splits, fractions: tuple[float, float, float], min_tasks: tuple[int, int, int] = (1, 1, 1),
) -> None:
    """Raise a DatasetError that names each split smaller than asked; see `split_tasks`."""
    short = [
        f"{name} split: {len(part)} tasks, at least {least} asked ({share:g} of the customers)"
        for name, part, share, least in zip(Splits._fields, splits, fractions, min_tasks, strict=True)
        if share > 0 and len(part) < least
    ]
    if short:
        sizes = ", ".join(f"{n} {len(p)}" for n, p in zip(Splits._fields, splits, strict=True))
        remedy = f"the tasks fall into {sizes}; add tasks of more customers, or change fractions"
        raise DatasetError([f"{text}; {remedy}" for text in short])


# -- prompts and training sets -----------------------------------------------------------------


def plan_messages(task: Task, style: PromptStyle = "full") -> list[dict[str, str]]:
    """Return the messages that ask for the task's plan; only its query is shown.

    Args:
        style: "full" carries policy and tools, "brief" one line (for a model that learns them from
            examples); a ValueError for any other.
    """
    return [
        {"role": "developer", "content": plan_instructions(style)},
        {"role": "user", "content": task.query},
    ]


def plan_prompt(task: Task, style: PromptStyle = "full", plans: PlanFormat = HARMONY) -> str:
    """Return the prompt of a task in the model's format, the same in training and evaluation."""
    return plans.prompt(plan_messages(task, style))


def gold_completion(task: Task) -> str:
    """Return the answer that scores the maximum, as compact JSON.

    >>> call = {"name": "calculate", "arguments": {"expression": "1 + 2"}}
    >>> gold_completion(Task("What is 1 + 2?", [call], "3", "sum"))
    '{"tool_calls":[{"name":"calculate","arguments":{"expression":"1 + 2"}}]}'
    """
    calls = [{"name": action["name"], "arguments": action["arguments"]} for action in task.gold_actions]
    return json.dumps({"tool_calls": calls}, ensure_ascii=False, separators=(",", ":"))


def sft_rows(
    tasks: Iterable[Task], style: PromptStyle = "full", plans: PlanFormat = HARMONY
) -> Iterator[dict[str, str]]:
    """Yield rows of `prompt` and `completion`, separate texts in the model's format."""
    for task in tasks:
        completion = plans.completion(gold_completion(task))
        yield {"prompt": plan_prompt(task, style, plans), "completion": completion}


def grpo_rows(
    tasks: Iterable[Task], style: PromptStyle = "full", numbers: Iterable[int] | None = None,
    plans: PlanFormat = HARMONY,
) -> Iterator[dict[str, str | int]]:
    """Yield rows of `prompt` (text) and `task` (its number, counted from 0 unless given)."""
    pairs = enumerate(tasks) if numbers is None else zip(numbers, tasks, strict=True)
    for number, task in pairs:
        yield {"prompt": plan_prompt(task, style, plans), "task": int(number)}


def build_sft_dataset(tasks: Iterable[Task], style: PromptStyle = "full") -> "Dataset":
    """Return the rows of `sft_rows` as a dataset in memory."""
    from datasets import Dataset

    return Dataset.from_list(list(sft_rows(tasks, style)))


def build_grpo_dataset(tasks: Iterable[Task], style: PromptStyle = "full") -> "Dataset":
    """Return the rows of `grpo_rows` as a dataset in memory."""
    from datasets import Dataset

    return Dataset.from_list(list(grpo_rows(tasks, style)))
