"""Files as users really have them: read, or named once with the right line and a remedy."""

import bz2
import gzip
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from base64 import b64encode
from itertools import islice
from pathlib import Path
from random import Random

import pytest

import task_tester
from common import strict_json
from common.user_error import MAX_FINDINGS, shorten
from data_reader import (
    DatasetError,
    gold_completion,
    iter_tasks,
    read_tasks,
    scan_tasks,
    task_to_json,
)
from envs.retail import TOOL_SCHEMAS, Episode, RetailDatabase
from envs.retail.tools.call_form import call_finding
from prompting.harmony import parse_completion
from scoring.parse import parse_plan
from tasks.audit.duplicates import masked_words
from tasks.llm.check import FACT_PATTERN
from training.task_store import open_splits

ROOT = Path(__file__).parents[1]
FIELD = ROOT.parent / "shared" / "field"
DB = RetailDatabase.load()
TASKS = list(islice(iter_tasks(ROOT / "dataset.jsonl"), 10))
ROWS = [json.loads(task_to_json(task)) for task in TASKS]
MAX_LINES = 20

needs_field = pytest.mark.skipif(not FIELD.is_dir(), reason="../shared/field is not there")


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def audit(capsys, path: Path) -> tuple[int, list[str]]:
    """Audit a file; return the exit code and the lines that name what is wrong."""
    status = task_tester.main(["audit", str(path)])
    captured = capsys.readouterr()
    return status, [
        line for line in (captured.out + captured.err).splitlines() if f"{path}:" in line
    ]


def score(capsys, tasks: Path, completions: Path) -> tuple[int, str, str]:
    words = ["score", "--tasks", str(tasks), "--completions", str(completions)]
    status = task_tester.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def training_error(path: Path) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        open_splits(path, DB, 0, (0.7, 0.1, 0.2))
    return str(caught.value).splitlines()


# -- the lines that are shown ------------------------------------------------------------------


def test_a_cause_is_shown_once_with_its_first_lines_and_count():
    findings = [f"a b.jsonl:{n}: query: is empty (column {n})" for n in range(1, 9)]
    findings.insert(3, "a b.jsonl:4: tags: must be an object")
    assert shorten(findings) == [
        "a b.jsonl:1: query: is empty (column 1) (and 7 more: lines 2, 3, 4, 5, 6, ...)",
        "a b.jsonl:4: tags: must be an object",
    ]
    assert shorten(findings[:2]) == findings[:2]
    assert shorten(["no place", *findings[3:4]]) == ["no place", findings[3]]
    assert shorten([]) == []


def test_any_number_of_causes_and_any_length_is_bounded():
    words = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(100)]
    lines = shorten([f"f:{n}: {word}: is wrong" for n, word in enumerate(words)])
    assert len(lines) == MAX_FINDINGS + 1 and lines[-1] == f"... and {100 - MAX_FINDINGS} other findings"
    (line,) = shorten(["f:1: " + "x" * 10**6 + " is the end"])
    assert len(line) < 1000 and line.endswith("is the end")


def test_a_large_pretty_printed_file_gives_its_cause_once(tmp_path, capsys):
    text = "\n".join(json.dumps(row, indent=2) for row in ROWS * 200)
    path = write(tmp_path / "pretty.jsonl", text)
    lines = training_error(path)
    assert len(lines) <= MAX_LINES
    assert lines[0].startswith(f"{path}:1: row: a JSON object over several lines; write each object on")
    second = json.dumps(ROWS[0], indent=2).count("\n") + 2
    assert f"(and {len(ROWS) * 200 - 1} more: lines {second}, " in lines[0]
    status, shown = audit(capsys, path)
    assert status == 1 and len(shown) == 1 and "over several lines" in shown[0]


@pytest.mark.parametrize("indent", [0, "\t", 1])
def test_pretty_printed_completions_too(tmp_path, capsys, indent):
    rows = [{"task_id": t.task_id, "completion": gold_completion(t)} for t in TASKS]
    text = "\n".join(json.dumps(row, indent=indent) for row in rows)
    status, out, err = score(
        capsys, write(tmp_path / "t.jsonl", jsonl(ROWS)), write(tmp_path / "c.jsonl", text)
    )
    assert status == 1 and out == "" and err.count("\n") == 1 and "c.jsonl:1: row: a JSON" in err


def test_a_cut_row_swallows_no_other(tmp_path, capsys):
    text = jsonl(ROWS).splitlines()
    text[2] = text[2][:40]
    path = write(tmp_path / "cut.jsonl", "\n".join(text))
    status, (line,) = audit(capsys, path)
    assert status == 1 and line.startswith(f"{path}:3: ") and "not valid JSON" in line
    assert len(read_tasks(path, skip_invalid=True)) == len(ROWS) - 1


# -- arrays ------------------------------------------------------------------------------------


def spoil(line_number: int, change) -> tuple[str, int]:
    lines = json.dumps(ROWS, indent=1, ensure_ascii=False).splitlines()
    lines[line_number - 1] = change(lines[line_number - 1])
    return "\n".join(lines), line_number


def array_cases():
    lines = json.dumps(ROWS, indent=1, ensure_ascii=False).splitlines()
    finals = [n for n, line in enumerate(lines, start=1) if '"gold_final"' in line]
    names = [n for n, line in enumerate(lines, start=1) if '"name": ' in line]
    yield "repeated key", *spoil(finals[2], lambda line: f'{line.rstrip(",")},{line}'), "stands twice"
    yield "repeated key in a call", *spoil(names[3], lambda line: line + line), "key 'name' stands"
    yield "NaN", *spoil(finals[1], lambda line: line.split(":")[0] + ": NaN,"), "NaN is not JSON"
    yield "huge", *spoil(finals[4], lambda line: line.split(":")[0] + ": 1e999,"), "too large"
    yield "single quote", *spoil(finals[3], lambda line: line.replace('"', "'")), "property name"
    yield "cut", "\n".join(lines[: finals[3]])[:-9], finals[3], "Unterminated string"
    text = "\n".join([*lines[:-1], " ,", "]"])
    yield "trailing comma", text, len(lines) + 1, "a comma before the closing ]"
    yield "no bracket", "\n".join(lines[:-1]), len(lines) - 1, "Expecting ',' delimiter"
    yield "two arrays", "\n".join([*lines, "", "[]"]), len(lines) + 2, "Extra data"


@pytest.mark.parametrize(
    ("text", "line", "reason"), [case[1:] for case in array_cases()],
    ids=[case[0] for case in array_cases()],
)
@pytest.mark.parametrize("before", ["", "\n \n", "\ufeff\r\n"])
def test_a_broken_array_is_named_by_the_line_that_an_editor_shows(
    tmp_path, capsys, text, line, reason, before
):
    path = write(tmp_path / "a.json", before + text)
    line += before.count("\n")
    status, (shown,) = audit(capsys, path)
    assert status == 1 and shown.startswith(f"{path}:{line}: ") and reason in shown
    assert "(line" not in shown and "column" not in shown  # one position
    assert training_error(path)[0].startswith(f"{path}:{line}: row: not valid JSON: ")


def test_items_have_the_line_on_which_they_begin_and_their_number(tmp_path, capsys):
    rows = json.loads(json.dumps(ROWS))
    del rows[4]["gold_final"]
    rows[6]["gold_actions"] = [{"name": "get_order_details", "arguments": {"order_id": "#W0"}}]
    text = json.dumps(rows, indent=1)
    path = write(tmp_path / "a.json", text)
    starts = [n for n, line in enumerate(text.splitlines(), start=1) if line == " {"]
    found = list(scan_tasks(path))
    assert [row.line for row in found] == starts
    assert [row.number for row in found] == list(range(1, len(ROWS) + 1))
    status, lines = audit(capsys, path)
    assert status == 1
    assert f"{path}:{starts[4]}: unreadable: item 5: gold_final: is missing" in lines[0]
    assert any(f"{path}:{starts[6]}: refused_call: item 7: " in line for line in lines)
    assert training_error(path)[1].startswith(f"{path}:{starts[6]}: gold_actions: task")


def test_the_place_of_a_refused_key_or_number():
    for text, position in [
        ('{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}', 23),
        ('{"a": "\\"a\\": [{", "a\\u0062": 1, "ab" : 2}', 33),
        ('{"a": [1, {"x": -Infinity}]}', 16), ('["NaN", 1, NaN]', 11),
    ]:
        with pytest.raises(strict_json.StrictJsonError) as caught:
            strict_json.loads(text)
        assert caught.value.position == position, text
        assert str(caught.value).endswith(f"(column {position + 1})")


@needs_field
@pytest.mark.parametrize(("name", "line", "word"), [
    ("badgold", 122, "item 5"), ("dupkey", 138, "gold_final"), ("nan", 55, "NaN"),
    ("trailing-comma", 196, "comma"), ("cut", 159, "Unterminated"),
])
def test_arrays_from_the_field(capsys, name, line, word):
    path = FIELD / "arrays" / f"arr-{name}.json"
    status, (shown,) = audit(capsys, path)
    assert status == 1 and shown.startswith(f"{path}:{line}: ") and word in shown


# -- encodings ---------------------------------------------------------------------------------


def zipped(data: bytes, path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", data)
    return path.read_bytes()


ENCODED = {
    "utf-16": (lambda data, _: data.decode().encode("utf-16"), "is UTF-16 text"),
    "utf-16-le": (lambda data, _: data.decode().encode("utf-16-le"), "is UTF-16 text"),
    "utf-16-be": (lambda data, _: data.decode().encode("utf-16-be"), "is UTF-16 text"),
    "utf-32": (lambda data, _: data.decode().encode("utf-32"), "is UTF-32 text"),
    "utf-32-be": (lambda data, _: data.decode().encode("utf-32-be"), "is UTF-32 text"),
    "gzip": (lambda data, _: gzip.compress(data), "is gzip data"),
    "bzip2": (lambda data, _: bz2.compress(data), "is bzip2 data"),
    "zip": (zipped, "is zip data"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_other_encodings_are_named_once_by_every_reader(tmp_path, capsys, name):
    encode, words = ENCODED[name]
    completions = jsonl({"task_id": t.task_id, "completion": gold_completion(t)} for t in TASKS)
    good = write(tmp_path / "good.jsonl", jsonl(ROWS))
    tasks = write(tmp_path / "t.jsonl", encode(good.read_bytes(), tmp_path / "z"))
    answers = write(tmp_path / "c.jsonl", encode(completions.encode(), tmp_path / "z"))
    (line,) = training_error(tasks)
    assert line.startswith(f"{tasks}: {words}") and "; " in line
    for command in (
        ["audit", tasks], ["score", "--tasks", good, "--completions", answers],
        ["score", "--tasks", tasks, "--completions", answers],
    ):
        assert task_tester.main(list(map(str, command))) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err
    for file_name in ("users.json", "orders.json", "products.json"):
        store = tmp_path / f"store-{file_name}"
        store.mkdir()
        for source in (ROOT / "envs/retail/data").glob("*.json"):
            write(store / source.name, source.read_bytes())
        write(store / file_name, encode((store / file_name).read_bytes(), tmp_path / "z"))
        assert task_tester.main(["audit", str(good), "--data-dir", str(store)]) == 1
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and f"{store / file_name}: {words}" in captured.err


def test_byte_order_marks_are_read_in_tasks_completions_and_stores(tmp_path, capsys):
    bom = "\ufeff"
    half = len(ROWS) // 2
    tasks = write(tmp_path / "t.jsonl", bom + jsonl(ROWS[:half]) + bom + jsonl(ROWS[half:]))
    answers = [{"task_id": t.task_id, "completion": gold_completion(t)} for t in TASKS]
    completions = write(
        tmp_path / "c.jsonl", bom + jsonl(answers[:half]).replace("\n", "\r\n") + bom
        + jsonl(answers[half:]),
    )
    store = tmp_path / "store"
    store.mkdir()
    for source in (ROOT / "envs/retail/data").glob("*.json"):
        write(store / source.name, bom.encode() + source.read_bytes())
    assert read_tasks(tasks) == TASKS
    assert RetailDatabase.load(store).orders == DB.orders
    status, out, err = score(capsys, tasks, completions)
    assert (status, err) == (0, "") and "exact_match_rate         1.000" in out
    many = write(tmp_path / "many.jsonl", "".join(
        bom + json.dumps({**row, "task_id": f"{row['task_id']}-{n}", "user_id": f"u_{n}"}) + "\n"
        for n in range(60) for row in ROWS[:2]
    ))
    splits = open_splits(many, DB, 0, (0.7, 0.1, 0.2))
    assert sum(len(part) for part in splits) == 120
    assert {task.line for part in splits for task in part} == set(range(1, 121))


def test_other_bytes_in_the_middle_are_named_by_line(tmp_path, capsys):
    text = jsonl(ROWS).encode().splitlines(keepends=True)
    path = write(tmp_path / "t.jsonl", b"".join(text) + jsonl(ROWS).encode("utf-16"))
    status, lines = audit(capsys, path)
    assert status == 1 and len(lines) <= 3 and all("UTF-16" in line or "UTF-8" in line for line in lines)
    assert lines[0].startswith(f"{path}:11: ")
    text[3] = '{"query": "Zoë"}\n'.encode("latin-1")
    status, (line,) = audit(capsys, write(path, b"".join(text)))
    assert line.startswith(f"{path}:4: ") and "not UTF-8 at byte 14; save the file as UTF-8" in line


@pytest.mark.parametrize(("change", "remedy"), [
    (lambda text: text.replace("}\n", "},\n"), "drop the comma after the object"),
    (lambda text: "\n".join(str(json.loads(line)) for line in text.splitlines()), "json.dumps"),
    (lambda text: text.replace("\n", "\r"), "end each line with a line feed"),
    (lambda text: "".join(f"[{line}]\n" for line in text.splitlines()), "one whole JSON array, or"),
    (lambda text: json.dumps({"tasks": list(map(json.loads, text.splitlines()))}), "row has tasks"),
])
def test_other_forms_of_rows_have_a_remedy(tmp_path, capsys, change, remedy):
    path = write(tmp_path / "t.jsonl", change(jsonl(ROWS)))
    status, (line,) = audit(capsys, path)
    assert status == 1 and remedy in line


@needs_field
@pytest.mark.parametrize(("name", "words"), [
    ("20-utf16.jsonl", ": is UTF-16 text"), ("21-utf16le-nobom.jsonl", ": is UTF-16 text"),
    ("22-gzip.jsonl.gz", ": is gzip data"), ("24-pretty-objects.jsonl", ":1: unreadable: row: a JSON"),
    ("25-trailing-comma-lines.jsonl", "drop the comma"), ("26-python-repr.jsonl", "json.dumps"),
    ("27-cr-only.jsonl", "line feed"), ("28-wrapped-object.json", "the row has tasks"),
    ("29-array-per-line.jsonl", ":2: "), ("cut-row.jsonl", ":7: "),
    ("23-two-files-joined-bom.jsonl", ""), ("30-u2028.jsonl", ""), ("00-good.jsonl", ""),
])
def test_encodings_from_the_field(capsys, name, words):
    status, lines = audit(capsys, FIELD / "encodings" / name)
    assert (status, len(lines)) == ((1, 1) if words else (0, 0))
    assert not words or words in lines[0]


def test_a_pipe_is_read_by_the_tester_and_refused_in_one_line_by_training(tmp_path, capsys):
    read_end, write_end = os.pipe()
    os.write(write_end, jsonl(ROWS[:3]).encode())
    os.close(write_end)
    path = Path(f"/dev/fd/{read_end}")
    (line,) = training_error(path)
    assert line == f"{path}: is no regular file and can be read once only; save it as one"
    assert read_tasks(path) == TASKS[:3]
    os.close(read_end)
    assert "is no regular file" in training_error(Path(os.devnull))[0]


# -- shapes ------------------------------------------------------------------------------------


def calls(change) -> list[dict]:
    return [{**row, "gold_actions": [change(call) for call in row["gold_actions"]]} for row in ROWS]


def as_text(call: dict) -> str:
    return json.dumps(call["arguments"])


def camel(name: str) -> str:
    return re.sub("_(.)", lambda found: found[1].upper(), name)


CALL = ROWS[0]["gold_actions"][0]
SHAPES = {
    "text": (calls(lambda c: {**c, "arguments": as_text(c)}), ["not a string; write {...}"]),
    "null": (calls(lambda c: {**c, "arguments": {**c["arguments"], "x": None}}), ["holds null (x); leave"]),
    "parameters": (
        calls(lambda c: {"name": c["name"], "parameters": c["arguments"]}),
        ["name, parameters", "rename parameters to arguments"],
    ),
    "input": (
        calls(lambda c: {"name": c["name"], "input": c["arguments"]}), ["rename input to arguments"],
    ),
    "function": (
        calls(lambda c: {"id": "1", "type": "function", "function": c}),
        ["id, type, function", "keep the object under function"],
    ),
    "extra": (calls(lambda c: {**c, "id": 3}), ["name, arguments, id", "drop id"]),
    "prefix": (
        calls(lambda c: {**c, "name": f"retail.{c['name']}"}), ["unknown tool 'retail.", "; write '"],
    ),
    "list": (calls(lambda c: [c["name"], c["arguments"]]), ['write {"name": "...", "arguments": {']),
    "sharegpt": (
        [{"conversations": [{"from": "human", "value": row["query"]}]} for row in ROWS],
        ["query: is missing (gold_actions, gold_final too)", "has conversations", "as gold_actions"],
    ),
    "chat": ([{"messages": [], "tools": []} for _ in ROWS], ["has messages, tools", "as query"]),
    "xlam": (
        [{"id": n, "query": row["query"], "answers": "[]"} for n, row in enumerate(ROWS)],
        ["gold_actions: is missing (gold_final too)", "has id, query, answers", "as gold_actions"],
    ),
    "xlam with answers": (
        [{"id": 0, "query": row["query"], "answers": json.dumps(row["gold_actions"]),
          "tools": json.dumps(list(TOOL_SCHEMAS.values()))} for row in ROWS],
        ["rename answers to gold_actions, as a list, not as text and add the outcome"],
    ),
    "gemini": (
        calls(lambda c: {"functionCall": {"name": c["name"], "args": c["arguments"]}}),
        ["not functionCall; keep the object under functionCall and nothing else, rename args to"],
    ),
    "function call": (
        calls(lambda c: {"function_call": {"name": c["name"], "arguments": as_text(c)}}),
        ["keep the object under function_call", "its arguments as an object, not as text"],
    ),
    "bedrock": (
        calls(lambda c: {"toolUse": {"toolUseId": "1", "name": c["name"], "input": c["arguments"]}}),
        ["keep the object under toolUse", "rename input to arguments, drop toolUseId"],
    ),
    "anthropic": (
        calls(lambda c: {"type": "tool_use", "id": "1", "name": c["name"], "input": c["arguments"]}),
        ["not type, id, name, input; rename input to arguments, drop type, id"],
    ),
    "langchain": (
        calls(lambda c: {"name": c["name"], "args": c["arguments"], "id": "1", "type": "tool_call"}),
        ["not name, args, id, type; rename args to arguments, drop id, type"],
    ),
    "agent action": (
        calls(lambda c: {"tool": c["name"], "tool_input": c["arguments"], "log": ""}),
        ["not tool, tool_input, log; rename tool to name, rename tool_input to arguments, drop log"],
    ),
    "parallel": (
        calls(lambda c: {"recipient_name": f"functions.{c['name']}", "parameters": c["arguments"]}),
        ["rename recipient_name to name, rename parameters to arguments"],
    ),
    "name as key": (
        calls(lambda c: {c["name"]: c["arguments"]}),
        [f'not {CALL["name"]}; write {{"name": "{CALL["name"]}", "arguments": {{...}}}}'],
    ),
    "message": (
        calls(lambda c: {"from": "function_call", "value": json.dumps(c)}),
        ["not from, value; keep the object under value as an object and nothing else"],
    ),
    "flat": (
        calls(lambda c: {"name": c["name"], **c["arguments"]}),
        [f"put {', '.join(CALL['arguments'])} into arguments"],
    ),
    "call as text": (calls(json.dumps), ["not a text; write the object itself"]),
    "no arguments": (calls(lambda c: {**c, "arguments": None}), ["not null; write {"]),
    "upper keys": (
        calls(lambda c: {**c, "arguments": {k.upper(): v for k, v in c["arguments"].items()}}),
        [f"(arguments has {', '.join(CALL['arguments']).upper()}); rename", *(
            f"rename {key.upper()} to {key}" for key in CALL["arguments"])],
    ),
    "null for a value": (
        calls(lambda c: {**c, "arguments": dict.fromkeys(c["arguments"])}),
        [f"holds null ({', '.join(CALL['arguments'])}); give a value to "],
    ),
    "camel case": (
        calls(lambda c: {**c, "name": camel(c["name"])}),
        [f"{camel(CALL['name'])}'; write '{CALL['name']}'"],
    ),
    "plan": (
        [{**row, "gold_actions": {"tool_calls": row["gold_actions"]}} for row in ROWS],
        ["not dict; it has tool_calls; write the list under tool_calls alone"],
    ),
    "calls as text": (
        [{**row, "gold_actions": json.dumps(row["gold_actions"])} for row in ROWS],
        ["not str; write the list itself, not its text"],
    ),
    "null query": (
        [{**row, "query": None} for row in ROWS], ["query: is null, the row has task_id, query"],
    ),
    "null and missing": (
        [{"query": None, "gold_actions": row["gold_actions"]} for row in ROWS],
        ["query: is null (gold_final is missing), the row has query, gold_actions; add the customer's"],
    ),
    "renamed": (
        [{"Query": row["query"], "goldActions": row["gold_actions"], "final": "x"} for row in ROWS],
        ["rename Query to query and rename goldActions to gold_actions and rename final to gold_final"],
    ),
    "data": ([{"data": ROWS}], ["the row has data; write each object under .data[] on a line"]),
    "row": (
        [{"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]}],
        ["the row has features, rows; write each object under .rows[].row on a line of its own"],
    ),
    "by name": (
        [{row["task_id"]: row for row in ROWS}], ["under .[] on a line of its own (jq -c '.[]')"],
    ),
    "tau-bench without a scenario": (
        [{"user_id": "u", "actions": row["gold_actions"]} for row in ROWS],
        ["query: is missing, the row has user_id, actions; add the customer's message as query"],
    ),
    "number": ([{**row, "task_id": n} for n, row in enumerate(ROWS)], ['not int; write "0"']),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_other_origins_name_their_keys_and_a_remedy(tmp_path, capsys, name):
    rows, words = SHAPES[name]
    path = write(tmp_path / "t.jsonl", jsonl(rows))
    status, lines = audit(capsys, path)
    assert status == 1 and all("; " in line for line in lines) and len(lines) <= MAX_LINES
    assert all(word in lines[0] for word in words), lines[0]
    if name in ("sharegpt", "chat", "xlam", "number", "data", "row", "by name"):
        assert len(lines) == 1


@pytest.mark.parametrize("indent", [None, 2, "\t"])
@pytest.mark.parametrize("read", ["tasks", "completions"])
def test_a_wrapped_file_is_named_once_however_it_is_written(tmp_path, capsys, indent, read):
    rows = ROWS
    if read == "completions":
        rows = [{"task_id": t.task_id, "completion": gold_completion(t)} for t in TASKS]
    path = write(tmp_path / "w.json", json.dumps({"version": 1, "data": {"test": rows}}, indent=indent))
    tasks = write(tmp_path / "t.jsonl", jsonl(ROWS))
    answers = ["score", "--tasks", str(tasks), "--completions", str(path)]
    assert task_tester.main(["audit", str(path)] if read == "tasks" else answers) == 1
    captured = capsys.readouterr()
    (line,) = [x for x in (captured.out + captured.err).splitlines() if f"{path}:" in x]
    assert f"{path}:1: " in line and "(jq -c '.data.test[]')" in line
    assert "the row has version, data; write each object under .data.test[]" in line
    if read == "tasks":
        assert "(jq -c '.data.test[]')" in training_error(path)[0]


def test_one_task_over_several_lines_is_read(tmp_path):
    path = write(tmp_path / "t.json", "\ufeff\n" + json.dumps(ROWS[0], indent=1))
    assert read_tasks(path) == TASKS[:1]
    assert [row.line for row in scan_tasks(path)] == [2]
    only_training = open_splits(path, DB, 0, (1, 0, 0))
    assert list(only_training.train) == TASKS[:1]


@pytest.mark.parametrize(("call", "remedy"), [
    ({"order_id": 7, "reason": "no longer needed"}, 'not a number; write order_id as "7"'),
    ({"order_id": "#W1", "reason": "No Longer Needed"},
     "write 'no longer needed', not 'No Longer Needed'"),
    ({"order_id": "#W1", "reason": "x" * 10**5}, "; write 'no longer needed', not 'xxx"),
    ({"orderId": "#W1", "why": "x"}, "rename orderId to order_id, add reason, leave out why"),
    ({"id": "#W1", "reason": "no longer needed"}, "rename id to order_id"),
    ({"arguments": {"order_id": "#W1", "reason": "x"}}, "take order_id, reason out of arguments"),
    ({"order_id": "#W1", "reason": "x", "note": None}, "holds null (note); leave out note"),
    ({"\n\x1b[31m" * 10**5: 1}, "(arguments has \\n\\x1b[31m"),
    ([], 'not an array; write {"order_id": ..., "reason": ...}'),
])
def test_arguments_that_do_not_fit_name_their_keys_and_the_right_ones(call, remedy):
    finding = call_finding({"name": "cancel_pending_order", "arguments": call})
    assert remedy in finding and len(finding) < 600


def test_lists_that_do_not_fit_have_a_remedy():
    order = {"order_id": "#W1", "payment_method_id": "paypal_1"}
    for items, remedy in (("[\"1\"]", "write the list of item_ids itself, not its text"),
                          ([1], 'write item_ids as ["...", "..."], each id in quotes')):
        call = {"name": "return_delivered_order_items", "arguments": {**order, "item_ids": items}}
        assert call_finding(call).endswith(remedy)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file's name is text")
def test_a_file_of_any_name_is_audited(tmp_path, capsys):
    path = write(Path(f"{tmp_path}/\n\x1b[31m na\udcffme $x [1].jsonl"), jsonl(ROWS) + "{}\n")
    for words in (["--json"], ["--report", str(tmp_path / "r.md")], []):
        assert task_tester.main(["audit", str(path), *words]) == 1
        captured = capsys.readouterr()
        assert captured.err == "" and "\x1b" not in captured.out and "udcffme" in captured.out
    assert "na\\udcffme" in (tmp_path / "r.md").read_text()


HOSTILE = "id\n\x1b[31m\u202e" + "x" * 100_000


def test_no_users_text_is_echoed_raw_or_whole(tmp_path, capsys):
    rows = [{**row, "task_id": f"{n}{HOSTILE}", "user_id": HOSTILE} for n, row in enumerate(ROWS)]
    rows[0]["gold_actions"] = [{"name": "get_order_details", "arguments": {"order_id": "#W0"}}]
    tasks = write(tmp_path / "t.jsonl", jsonl(rows))
    more = [rows[1], {HOSTILE: 1}, {**ROWS[0], "gold_actions": [{HOSTILE: {}}]}]
    bad = write(tmp_path / "bad.jsonl", jsonl(rows + more))
    answers = write(tmp_path / "c.jsonl", jsonl(
        {"task_id": rows[n]["task_id"], "completion": "<|start|>" + HOSTILE} for n in (0, 1)))
    unknown = write(tmp_path / "u.jsonl", jsonl([
        {"task_id": HOSTILE, "completion": ""}, {"Task": HOSTILE, HOSTILE: HOSTILE},
        {"completion": "", "id": 1}]))
    named = write(tmp_path / "\n\x1b[31mt.jsonl", "{")
    words = ["score", "--tasks", str(tasks), "--completions"]
    for command in (
        ["audit", str(bad)], ["audit", str(named)], ["audit", str(tmp_path / "\nnone\x1b")],
        [*words, str(answers)], [*words, str(answers), "--refused-gold", "skip"],
        [*words, str(answers), "--refused-gold", "ignore"], [*words, str(unknown)],
        ["audit", str(tasks), "--data-dir", str(tmp_path / "\x1b\n")],
    ):
        task_tester.main(command)
        captured = capsys.readouterr()
        lines = (captured.out + captured.err).split("\n")
        assert all(line.isprintable() and len(line) < 1500 for line in lines), command
        assert len(lines) < 40
    assert all(line.isprintable() and len(line) < 1500 for line in training_error(bad))
    assert str(DatasetError(["f:1: a\nb"], "then this")).count("\n") == 1


def test_an_order_id_without_its_hash_is_given_with_it(tmp_path, capsys):
    rows = [row for row in ROWS if any("order_id" in c["arguments"] for c in row["gold_actions"])]
    text = jsonl(rows).replace("#W", "W")
    status, lines = audit(capsys, write(tmp_path / "t.jsonl", text))
    assert status == 1 and any(re.search(r"order not found; write '#W\d{7}'", x) for x in lines)


@needs_field
@pytest.mark.parametrize(("name", "words"), [
    ("01-null-arguments.jsonl", "null"), ("02-function-wrapper.jsonl", "id, type, function"),
    ("03-arguments-string.jsonl", "not a string"), ("04-parameters-key.jsonl", "name, parameters"),
    ("05-kwargs-key.jsonl", "name, kwargs"), ("06-extra-call-keys.jsonl", "action_id"),
    ("08-taubench-results.json", "task_id, reward, trial, traj, info"),
    ("09-q-agt-ogt.json", "q, agt, ogt"), ("10-sharegpt.jsonl", "conversations, tools, system"),
    ("11-xlam.jsonl", "id, query, answers, tools"), ("12-messages.jsonl", "messages"),
    ("31-ids-as-numbers.jsonl", "task_id: must be text"), ("32-item-ids-as-numbers.jsonl", "a number"),
    ("33-lists-as-strings.jsonl", "array of strings"), ("34-no-hash.jsonl", "write '#W1958092'"),
    ("35-functions-prefix.jsonl", "write 'find_user_id_by_email'"),
])
def test_shapes_from_the_field(capsys, name, words):
    status, lines = audit(capsys, FIELD / "shapes" / name)
    assert status == 1 and words in lines[0] and all("; " in line for line in lines)
    assert len(lines) <= MAX_FINDINGS + 1
    if "07" < name < "13":
        assert len(lines) == 1


# -- completions -------------------------------------------------------------------------------


def answers_file(path: Path, change) -> Path:
    return write(path, jsonl(
        change({"task_id": t.task_id, "completion": gold_completion(t)}, n)
        for n, t in enumerate(TASKS, start=1)
    ))


@pytest.mark.parametrize(("change", "words"), [
    (lambda row, n: {**row, "task_id": n}, "task_id: must be text, not int; write the task's own id"),
    (lambda row, n: {**row, "task_id": f"t{n}"}, "names no task of the task file; write the task's"),
    (lambda row, n: {"task_id": row["task_id"], "response": "x"},
     "has task_id, response; rename response to completion"),
    (lambda row, n: {**row, "completion": [row]}, "completion: must be text, not list; give the"),
    (lambda row, n: {**row, "completion": {"tool_calls": []}}, "not dict; give the final message's"),
    (lambda row, n: [row], "one whole JSON array, or an object a line"),
])
def test_faulty_completions_have_the_remedy_of_their_own_field(tmp_path, capsys, change, words):
    tasks = write(tmp_path / "t.jsonl", jsonl(ROWS))
    status, out, err = score(capsys, tasks, answers_file(tmp_path / "c.jsonl", change))
    assert status == 1 and out == "" and err.count("\n") == 1 and words in err
    assert TASKS[0].task_id in err or "task_id: must" not in err


def raw(channel: str):
    return lambda row, n: {**row, "completion": channel + row["completion"]}


@pytest.mark.parametrize("change", [
    raw("<|channel|>final<|message|>"), raw("<|channel|>analysis<|message|>Hm.<|end|>"),
    raw("analysisHm.assistantfinal"), raw("Here is the plan: "), raw("<think>Hm.</think>"),
    lambda row, n: {**row, "completion": json.dumps(json.loads(row["completion"])["tool_calls"])},
    lambda row, n: {**row, "completion": str(json.loads(row["completion"]))},
    lambda row, n: {**row, "completion": '<tool_call>{"name": "think"}</tool_call>'},
    lambda row, n: {**row, "completion": f"```\n{row['completion']}\n```"},
    lambda row, n: {**row, "completion": "<|channel|>commentary to=functions.think<|message|>{}<|call|>"},
])
def test_more_than_the_final_text_is_warned_of_once(tmp_path, capsys, change):
    tasks = write(tmp_path / "t.jsonl", jsonl(ROWS))
    completions = answers_file(tmp_path / "c.jsonl", change)
    status, out, err = score(capsys, tasks, completions)
    assert status == 0 and "exact_match_rate         0.000" in out
    assert err.count("\n") == 1 and f"warning: {completions}:1: completion: more or other" in err
    assert f"as {len(ROWS)} of {len(ROWS)} are" in err
    assert "give the final message's text alone" in err


def test_plain_failures_are_not_warned_of(tmp_path, capsys):
    tasks = write(tmp_path / "t.jsonl", jsonl(ROWS))
    texts = ["", "I cannot do that.", '{"tool_calls": []}', "{"]
    completions = answers_file(
        tmp_path / "c.jsonl", lambda row, n: {**row, "completion": texts[n % 4]}
    )
    assert score(capsys, tasks, completions)[::2] == (0, "")


def test_an_array_of_completions_is_read(tmp_path, capsys):
    rows = [{"completion": gold_completion(task)} for task in TASKS]
    unnamed = [{k: v for k, v in row.items() if k != "task_id"} for row in ROWS]
    tasks = write(tmp_path / "t.json", json.dumps(unnamed, indent=2))
    status, out, err = score(capsys, tasks, write(tmp_path / "c.json", json.dumps(rows, indent=1)))
    assert (status, err) == (0, "") and "exact_match_rate         1.000" in out


@needs_field
@pytest.mark.parametrize(("name", "status", "words"), [
    ("c00-good.jsonl", 0, ""), ("c09-bom-crlf.jsonl", 0, ""), ("c04-array.json", 0, ""),
    ("c01-int-ids.jsonl", 1, "task_id: must be text, not int; write the task's own id"),
    ("c11-int-line-ids.jsonl", 1, 'such as "line-1"'), ("c08-utf16.jsonl", 1, "is UTF-16 text"),
    ("c02-raw-harmony.jsonl", 0, "c02-raw-harmony.jsonl:1: completion: more or other"),
    ("c03-stripped-tokens.jsonl", 0, "as 8 of 8 are"),
    ("c07-fenced.jsonl", 0, "as 8 of 8 are"), ("c12-shapes.jsonl", 0, "as 6 of 8 are"),
    ("c05-messages.jsonl", 1, "must be text, not list"), ("c06-plan-object.jsonl", 1, "not dict"),
    ("c10-response-key.jsonl", 1, "the row has task_id, response"),
])
def test_completions_from_the_field(capsys, name, status, words):
    folder = FIELD / "completions"
    found, out, err = score(capsys, folder / "00-good.jsonl", folder / name)
    assert found == status
    assert ("exact_match_rate         1.000" in out) == (words == "")
    assert (err == "") if not words else (words in err and err.count("\n") == 1)


# -- several processes -------------------------------------------------------------------------


def test_of_several_processes_the_first_to_fail_prints_whatever_its_rank(tmp_path):
    code = "from common.user_error import print_error; print_error('error: no such folder')"

    def run(rank: int, attempt: str) -> str:
        folder = tmp_path / attempt / str(rank)
        folder.mkdir(parents=True)
        settings = {"RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(folder / "error.json")}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | settings, text=True,
            capture_output=True, check=True,
        ).stderr

    assert run(1, "first") == "error: no such folder\n"
    assert run(0, "first") == run(2, "first") == ""
    assert run(0, "second") == "error: no such folder\n"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--dataset", "none.jsonl"], ["--nonsense"], ["--preset", "x"]])
def test_torchrun_shows_a_users_error_once(tmp_path, words):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
               "train_script.py", "--preset", "cpu", "--output-dir", str(tmp_path / "run"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and done.stderr.count("error: ") == 1, done.stderr


# -- time --------------------------------------------------------------------------------------

UNITS = (
    "a", "A", "0", "_", " ", "\n", "@", ".", "#", "'", "<", "-", "\\", '\\"', "{", "[", "a_", "_1",
    "a@", "@a", "a.", "1,", "w1 ", "no ", "not a ", "an a ", "did not ", "```", "é", "(", "<|", "< ",
)


def seconds(action, *arguments) -> float:
    start = time.process_time()
    action(*arguments)
    return time.process_time() - start


def plain_readers():
    yield "masked_words", masked_words, 40_000
    yield "facts", FACT_PATTERN.findall, 40_000
    yield "harmony", parse_completion, 40_000
    yield "header", lambda t: parse_completion(t + "<|channel|>final" + t + "<|message|>x"), 40_000
    yield "plan", parse_plan, 20_000
    yield "json", lambda text: json_error('{"a": 1, "a": 2, "b": "' + text), 40_000
    yield "calculate", lambda t: Episode(DB).call("calculate", {"expression": "1" + t}), 40_000
    yield "findings", lambda text: shorten([text, f"f:1: {text}"]), 40_000


def json_error(text: str) -> None:
    with pytest.raises(strict_json.StrictJsonError):
        strict_json.loads(text)


@pytest.mark.parametrize(
    ("read", "length"), [r[1:] for r in plain_readers()], ids=[r[0] for r in plain_readers()]
)
def test_no_unit_repeated_takes_quadratic_time(read, length):
    # A quadratic pattern takes over 5 s here, a linear one some milliseconds.
    for unit in UNITS:
        text = unit * (length // len(unit))
        assert min(seconds(read, text), seconds(read, text)) < 0.5, repr(unit)


def with_word(path: Path, word: str) -> Path:
    rows = json.loads(json.dumps(ROWS))
    rows[0]["query"] += " " + word
    return write(path, jsonl(rows))


@pytest.mark.parametrize("unit", ["QUJD", "a_", "@", "0", "W1234567. ", "no a ", "by mistake. "])
def test_the_time_of_an_audit_grows_with_the_length_of_a_word(tmp_path, capsys, unit):
    def measure(length: int) -> float:
        path = with_word(tmp_path / "t.jsonl", unit * (length // len(unit)))
        return seconds(task_tester.main, ["audit", str(path), "--json"])

    measure(1000)
    once = measure(40_000)
    assert measure(160_000) < max(8 * once, 3.0)  # 16 times as long where time is quadratic


@pytest.mark.slow
def test_two_megabytes_of_base64_are_audited_in_seconds(tmp_path, capsys):
    word = b64encode(Random(0).randbytes(1_500_000)).decode()
    path = with_word(tmp_path / "t.jsonl", word)
    assert seconds(task_tester.main, ["audit", str(path), "--json"]) < 20
