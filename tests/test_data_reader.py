"""Task files: every finding named with its line, splits that never meet, prompts, datasets."""

import gzip
import itertools
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_tasks import call, make_tasks

import data_reader
from data_reader import (
    DatasetError,
    Task,
    build_grpo_dataset,
    build_sft_dataset,
    gold_completion,
    iter_tasks,
    plan_messages,
    read_tasks,
    scan_tasks,
    split_tasks,
    task_from_json,
    task_group,
    task_to_json,
)
from envs.retail import TOOL_SCHEMAS, RetailDatabase
from prompting import plan
from prompting.harmony import parse_completion, render_prompt

ROOT = Path(__file__).parents[1]
TAUBENCH = ROOT.parent / "shared" / "taubench"
TOKENIZER = ROOT.parent / "shared" / "gpu" / "gptoss_tokenizer.json.gz"
BLANKS = ("", " \n", "\u200b\u2060\ufeff", "\u3164", "\u2800", "\u00ad\ufe0f", "\u0007", "\u0301",
          "\U000e0041")
LOOK = call("get_order_details", order_id="#W0000000")


def row(**changes) -> dict:
    """Return a valid row with some fields replaced, or dropped where the change is `...`."""
    fields = {"query": "Where is my order?", "gold_actions": [LOOK], "gold_final": "told"}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def write(path: Path, *lines) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def findings_of(path: Path) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        read_tasks(path)
    assert all(finding in str(caught.value) for finding in caught.value.problems)
    return caught.value.problems


# -- rows --------------------------------------------------------------------------------------


def test_a_row_needs_three_fields_only(tmp_path):
    (task,) = read_tasks(write(tmp_path / "t.jsonl", row()))
    assert task == Task("Where is my order?", [LOOK], "told", "line-1") and task.line == 1


def test_all_fields_are_read_and_written(tmp_path):
    fields = {
        "task_id": "a", "user_id": "u_1", "instruction": "You are…", "outputs": ["1.0"],
        "tags": {"kind": "cancel", "hard": True, "n": 1.5},
    }
    (task,) = read_tasks(write(tmp_path / "t.jsonl", row(**fields)))
    assert {name: getattr(task, name) for name in fields} == fields
    assert task_from_json(task_to_json(task)) == task


@pytest.mark.parametrize("line, finding", [
    (row(query=...), "query: is missing"),
    (row(query=None), "query: is null, the row has query, gold_actions, gold_final; add the"),
    (row(query=5), "query: must be text, not int"),
    (row(query=" \n"), "query: is empty"),
    (row(gold_final=...), "gold_final: is missing"),
    (row(gold_final=["x"]), "gold_final: must be text, not list"),
    (row(gold_actions=...), "gold_actions: is missing"),
    (row(gold_actions={}), "gold_actions: must be a list of calls"),
    (row(gold_actions=[]), "gold_actions: is empty"),
    (row(gold_actions=["think"]), "gold_actions[0]: must be an object with exactly name and"),
    (row(gold_actions=[LOOK, {"name": "think"}]), "gold_actions[1]: must be an object"),
    (row(gold_actions=[{**LOOK, "id": 1}]), "gold_actions[0]: must be an object with exactly"),
    (row(gold_actions=[call("refund")]), "gold_actions[0]: unknown tool 'refund'"),
    (row(gold_actions=[{**LOOK, "name": 3}]), "gold_actions[0]: unknown tool"),
    (row(gold_actions=[{**LOOK, "arguments": "{}"}]), "arguments must be an object, not a string"),
    (row(gold_actions=[call("get_order_details")]), "missing argument order_id"),
    (row(gold_actions=[call("think", thought="", x=1)]), "unexpected argument 'x'"),
    (row(gold_actions=[call("think", thought=True)]), "thought must be a string, not a boolean"),
    (row(gold_actions=[call("cancel_pending_order", order_id="#W1", reason="bored")]),
     "reason must be one of"),
    (row(task_id=7), "task_id: must be text, not int"),
    (row(task_id=""), "task_id: is empty"),
    (row(user_id=7), "user_id: must be text, not int"),
    (row(instruction=[]), "instruction: must be text, not list"),
    (row(outputs="x"), "outputs: must be a list of texts, not str"),
    (row(outputs=["x", 1]), "outputs: must be a list of texts, one is int; write it as \"1\""),
    *((row(outputs=["x", blank]), "outputs: a text is empty; write what") for blank in BLANKS),
    *((row(query=blank), "query: is empty; add the customer's message") for blank in BLANKS),
    (row(task_id="\u200b "), "task_id: is empty; give it a name"),
    (row(instruction="\t"), "instruction: is empty; write the customer's scenario"),
    (row(tags=["x"]), "tags: must be an object, not list"),
    (row(query="Hi <|end|> there"), "row: contains the control token <|end|>"),
    (row(gold_actions=[call("think", thought="<|call|>")]), "contains the control token <|call|>"),
    ('{"query": "\\ud800", "gold_final": "", "gold_actions": []}', "half of a surrogate pair"),
    ('{"query": "a", "query": "b"}', "not valid JSON: key 'query' stands twice"),
    ('{"tags": {"a": 1, "a": 2}}', "not valid JSON: key 'a' stands twice"),
    ('{"tags": {"a": NaN}}', "not valid JSON: NaN is not JSON"),
    ('{"tags": {"a": 1e999}}', "not valid JSON"),
    ("[" * 9_000, "file's"),
    ('{"a":' * 9_000, "nested too deeply"),
    ('{"a": ' + "9" * 5_000 + "}", "digits"),
    ('{"query": "x"', "not valid JSON"),
    ('"text"', "row: must be a JSON object"),
    (json.dumps(json.dumps(row())), "row: must be a JSON object, not its text; write the object without"),
    ("null", "row: must be a JSON object"),
])
def test_faulty_rows_are_named(line, finding, tmp_path):
    path = write(tmp_path / "t.jsonl", row(), line, row())
    if finding == "file's":  # a row that begins like an array is a row all the same
        finding = "nested too deeply"
    assert any(text.startswith(f"{path}:2: ") and finding in text for text in findings_of(path))
    assert not any(f"{path}:{good}: " in text for good in (1, 3) for text in findings_of(path))
    tasks = read_tasks(path, skip_invalid=True)
    assert [task.task_id for task in tasks] == ["line-1", "line-3"]


def test_all_findings_of_a_file_come_at_once(tmp_path):
    path = write(
        tmp_path / "t.jsonl", row(query=..., gold_final=3, gold_actions=[call("nope"), {}]), row(),
        "", "{", row(user_id=1),
    )
    assert [finding.removeprefix(f"{path}:").split(": ")[:2] for finding in findings_of(path)] == [
        ["1", "gold_final"], ["1", "query"], ["1", "gold_actions[0]"], ["1", "gold_actions[1]"],
        ["4", "row"], ["5", "user_id"],
    ]


def test_broken_json_is_named_by_its_line(tmp_path):
    path = write(tmp_path / "t.jsonl", *[row()] * 6, '{"query": "x",}', row())
    (finding,) = findings_of(path)
    assert finding.startswith(f"{path}:7: row: not valid JSON: ")


def test_a_duplicate_task_id_is_a_finding(tmp_path):
    rows = [row(task_id="a"), row(), row(task_id="a"), row(task_id="line-2")]
    path = write(tmp_path / "t.jsonl", *rows)
    assert findings_of(path) == [
        f"{path}:3: task_id: 'a' is at {path}:1 too; name each task once",
        f"{path}:4: task_id: 'line-2' is at {path}:2 too; name each task once",
    ]


# -- files -------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path):
    assert "no such file" in findings_of(tmp_path / "nope.jsonl")[0].lower()
    assert "is a folder" in findings_of(tmp_path)[0]
    for text in ["", "\n \n\r\n"]:
        (tmp_path / "empty.jsonl").write_text(text)
        assert "holds no task" in findings_of(tmp_path / "empty.jsonl")[0]
    with pytest.raises(DatasetError):
        list(iter_tasks(tmp_path / "nope.jsonl"))


def test_nothing_valid_is_refused_even_when_skipping(tmp_path):
    with pytest.raises(DatasetError, match="query: is missing"):
        read_tasks(write(tmp_path / "t.jsonl", {}), skip_invalid=True)


def test_crlf_blank_lines_and_a_byte_order_mark_are_fine(tmp_path):
    path = tmp_path / "t.jsonl"
    text = f"\ufeff{json.dumps(row())}\r\n\r\n  \n{json.dumps(row(query='Zoë?'))}"
    path.write_bytes(text.encode())
    assert [(t.query, t.line) for t in read_tasks(path)] == [("Where is my order?", 1), ("Zoë?", 4)]


def test_other_encodings_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    text = json.dumps(row(query="Zoë?"), ensure_ascii=False)
    path.write_bytes(json.dumps(row()).encode() + b"\n" + text.encode("latin-1"))
    (finding,) = findings_of(path)
    assert finding.startswith(f"{path}:2: row: not UTF-8 at byte")
    assert "save the file as UTF-8" in finding
    path.write_bytes(text.encode("utf-16"))
    assert "is UTF-16 text, not UTF-8; save it as UTF-8" in findings_of(path)[0]


def test_a_json_array_is_read_too(tmp_path):
    rows = [row(), row(query=...), row(task_id="c")]
    path = write(tmp_path / "t.json", json.dumps(rows, indent=1))
    assert findings_of(path)[0].startswith(f"{path}:14: item 2: query: is missing")
    assert [t.task_id for t in read_tasks(path, skip_invalid=True)] == ["line-1", "c"]
    assert "not valid JSON" in findings_of(write(path, "[", json.dumps(row()), "]]"))[0]


def test_rows_in_taubench_form_are_read(tmp_path):
    actions = [{"instruction": "You are Zoë.", "actions": [LOOK], "user_id": "z", "outputs": []}]
    (task,) = read_tasks(write(tmp_path / "t.json", json.dumps(actions)))
    assert (task.query, task.gold_actions, task.gold_final) == ("You are Zoë.", [LOOK], "")
    (finding,) = findings_of(write(tmp_path / "t.json", json.dumps([{"actions": [LOOK]}])))
    assert "query: is missing" in finding


def tau2_row(**fields) -> dict:
    scenario = {
        "persona": "You are brief",
        "instructions": {
            "known_info": "You are Zoë.", "reason_for_call": "You ask for a refund",
            "unknown_info": None, "task_instructions": "You insist!", "domain": "retail",
        },
    }
    action = {"action_id": "0", "info": None, "compare_args": None, **LOOK}
    criteria = {"actions": [action], "communicate_info": ["10"], "nl_assertions": None}
    return {
        "id": "7", "user_scenario": scenario, "initial_state": None,
        "evaluation_criteria": criteria, **fields,
    }


def test_rows_in_tau2_form_are_read(tmp_path):
    empty = {"actions": [], "communicate_info": None}
    rows = [tau2_row(), tau2_row(id="8", evaluation_criteria=empty)]
    task, talk = read_tasks(write(tmp_path / "t.json", json.dumps(rows)))
    assert task.instruction == "You are Zoë. You ask for a refund. You insist! You are brief."
    assert (task.task_id, task.gold_actions, task.outputs) == ("7", [LOOK], ["10"])
    assert (task.query, talk.gold_actions, talk.outputs) == (task.instruction, [], [])


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"evaluation_criteria": None}, "evaluation_criteria: must be an object"),
        ({"evaluation_criteria": {"actions": 3}}, "gold_actions: must be a list"),
        ({"evaluation_criteria": {"actions": [3]}}, "gold_actions[0]: must be an object"),
        (
            {"evaluation_criteria": {"actions": [{"name": "fly", "arguments": {}}]}},
            "gold_actions[0]: unknown tool",
        ),
        (
            {"evaluation_criteria": {"actions": [{"action_id": "1", "name": "think", "kwargs": {}}]}},
            "arguments, not name, kwargs; rename kwargs to arguments",
        ),
        ({"evaluation_criteria": {"actions": [], "communicate_info": [1]}}, "outputs: must be"),
        ({"initial_state": {"message_history": []}}, "initial_state: must be null"),
        ({"id": 7}, "task_id: must be text"),
        ({"user_scenario": 3}, "user_scenario: must hold the customer's instructions"),
    ],
)
def test_a_faulty_row_in_tau2_form_gets_one_line(tmp_path, fields, finding):
    (line,) = findings_of(write(tmp_path / "t.json", json.dumps([tau2_row(**fields)])))
    assert finding in line and "item 1" in line


@pytest.mark.skipif(not TAUBENCH.is_dir(), reason="../shared/taubench is not there")
def test_taubench_files_are_read():
    assert len(read_tasks(TAUBENCH / "tasks_train.json")) == 400
    (finding,) = findings_of(TAUBENCH / "tasks_dev.json")
    assert "item 18: gold_actions: is empty" in finding  # a task in which the agent does nothing
    assert len(read_tasks(TAUBENCH / "tasks_dev.json", skip_invalid=True)) == 19


def test_scan_gives_good_and_bad_rows_in_order(tmp_path):
    path = write(tmp_path / "t.jsonl", row(), {}, row())
    assert [(r.line, r.task is None, len(r.findings)) for r in scan_tasks(path)] == [
        (1, False, 0), (2, True, 1), (3, False, 0)
    ]


def test_iter_stops_at_the_first_faulty_row(tmp_path):
    tasks = iter_tasks(write(tmp_path / "t.jsonl", row(), {}, row()))
    assert isinstance(tasks, Iterator) and next(tasks).line == 1
    with pytest.raises(DatasetError, match=":2: query: is missing"):
        next(tasks)


def test_streaming_takes_flat_memory(tmp_path):
    path = tmp_path / "t.jsonl"
    line = json.dumps(row(query="x" * 1_000)) + "\n"
    path.write_text(line * 6_000)  # 6 MB
    tracemalloc.start()
    num_tasks = sum(1 for _ in iter_tasks(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_tasks == 6_000 and peak_bytes < 1_000_000


def test_task_from_json_names_the_problem():
    with pytest.raises(DatasetError, match="query: is missing"):
        task_from_json("{}")
    with pytest.raises(DatasetError, match="not valid JSON"):
        task_from_json("{")


# -- splits ------------------------------------------------------------------------------------


def tasks_of_users(num_users: int, each: int = 3) -> list[Task]:
    return [
        Task("q", [LOOK], "", f"{user}-{n}", user_id=f"user_{user}")
        for n, user in itertools.product(range(each), range(num_users))
    ]


def ids(split):
    return [[task.task_id for task in part] for part in split]


def test_splits_never_share_a_customer_and_lose_no_task():
    tasks = tasks_of_users(200)
    splits = split_tasks(tasks)
    users = [{task.user_id for task in part} for part in splits]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(users, 2))
    assert sorted(sum(ids(splits), [])) == sorted(task.task_id for task in tasks)
    shares = [len(part) / 600 for part in splits]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.07)


def test_a_customer_is_in_the_same_split_in_every_file():
    first, second = tasks_of_users(300), random.Random(1).sample(tasks_of_users(500), 900)
    for seed in range(3):
        place = {
            task.user_id: name
            for name, part in split_tasks(first, seed=seed)._asdict().items() for task in part
        }
        for name, part in split_tasks(second, seed=seed)._asdict().items():
            assert all(place.get(task.user_id, name) == name for task in part)
    assert ids(split_tasks(first, seed=1)) != ids(split_tasks(first, seed=2))


def test_splits_do_not_change_between_machines():
    splits = split_tasks(tasks_of_users(100, each=1), seed=0)
    assert [len(part) for part in splits] == [72, 10, 18]
    assert [task.user_id for task in splits.validation][:3] == ["user_20", "user_24", "user_25"]


def test_a_split_that_is_too_small_is_refused():
    with pytest.raises(DatasetError, match="validation split: 0 tasks, at least 1 asked") as caught:
        split_tasks(tasks_of_users(1))
    assert "add tasks of more customers" in str(caught.value)
    with pytest.raises(DatasetError, match=r"test split: \d+ tasks, at least 512 asked"):
        split_tasks(tasks_of_users(200), min_tasks=(1, 1, 512))
    with pytest.raises(DatasetError):
        split_tasks([])
    only_train = split_tasks(tasks_of_users(9), fractions=(1.0, 0.0, 0.0))
    assert [len(part) for part in only_train] == [27, 0, 0]
    no_test = split_tasks(tasks_of_users(60), fractions=(0.9, 0.1, 0.0))
    assert not no_test.test and no_test.validation


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (0.7, 0.3)])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(ValueError, match="fractions: "):
        split_tasks(tasks_of_users(9), fractions=fractions)


def test_groups_of_rows_without_a_user_id():
    db = RetailDatabase.load()
    user_id, user = next(iter(db.users.items()))
    by_email = call("find_user_id_by_email", email=user["email"])
    by_name = call(
        "find_user_id_by_name_zip", **user["name"], zip=user["address"]["zip"]
    )
    named, email, name, given, none, same = [
        Task("Where  is it?", [action, LOOK], "", "t", user_id=user)
        for action, user in [
            (LOOK, user_id), (by_email, None), (by_name, None),
            (call("get_user_details", user_id=user_id), None), (LOOK, None), (LOOK, None),
        ]
    ]
    assert task_group(named) == task_group(given) == f"user:{user_id}"
    assert task_group(email, db) == task_group(name, db) == f"user:{user_id}"
    assert task_group(email) == f"given:{user['email'].lower()}" != task_group(name)
    assert task_group(none) == task_group(same) == "query:where is it?"
    shouted = call("find_user_id_by_email", email=user["email"].upper())
    assert task_group(Task("q", [shouted], "", "t")) == task_group(email)


# -- prompts and training sets -----------------------------------------------------------------


def test_full_prompt_names_every_tool_argument_and_choice():
    text = plan_messages(Task("Hello?", [LOOK], "", "t"))[0]["content"]
    for name, schema in TOOL_SCHEMAS.items():
        properties = schema["function"]["parameters"]["properties"]
        (line,) = [line for line in text.split("\n") if line.startswith(f"{name}(")]
        assert line.count(",") == max(0, len(properties) - 1)
        for parameter, spec in properties.items():
            assert parameter in line and all(f'"{one}"' in line for one in spec.get("enum", []))
            assert (f"{parameter}: string[]" in line) == (spec["type"] == "array")
    assert [f"\n{n}. " in text for n in range(1, 9)] == [True] * 8


def test_the_subjects_for_human_agents_are_those_of_the_wiki():
    wiki = (ROOT / "envs" / "retail" / "wiki.md").read_text(encoding="utf-8").lower()
    for subject in ["lost parcel", "warranty claim", "price match", "coupon request",
                    "damaged on arrival", "invoice correction"]:
        assert f'"{subject}"' in plan.POLICY and subject in wiki


def test_messages_show_the_query_and_no_gold():
    for style in ("full", "brief"):
        messages = plan_messages(Task("Hello?", [LOOK], "secret", "t", user_id="secret"), style)
        assert [message["role"] for message in messages] == ["developer", "user"]
        assert messages[1]["content"] == "Hello?" and "secret" not in str(messages)
    assert len(messages[0]["content"].split("\n")) == 1
    with pytest.raises(ValueError, match="must be full or brief"):
        plan_messages(Task("Hello?", [LOOK], "", "t"), "long")


@pytest.mark.skipif(not TOKENIZER.is_file(), reason="../shared/gpu holds no GPT-OSS tokenizer")
def test_full_prompt_with_the_longest_query_fits_1536_tokens():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(gzip.decompress(TOKENIZER.read_bytes()).decode())
    files = [path for path in (ROOT / "dataset.jsonl", ROOT / "3.5k.jsonl") if path.is_file()]
    tasks = [task for path in files for task in read_tasks(path)]
    tasks = tasks or [Task("x " * 500, [LOOK], "", "t")]
    tasks = sorted(tasks, key=lambda task: len(task.query))[-50:]
    prompts = [render_prompt(plan_messages(task, "full")) for task in tasks]
    answers = [gold_completion(task) for task in tasks]
    lengths = [len(e.ids) for e in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    assert max(lengths) <= 1_536
    answer_lengths = [len(e.ids) for e in tokenizer.encode_batch(answers, add_special_tokens=False)]
    assert max(a + b for a, b in zip(lengths, answer_lengths, strict=True)) + 10 <= 2_048
    encoded = tokenizer.encode(prompts[0], add_special_tokens=False)
    assert encoded.tokens[0] == "<|start|>" and encoded.tokens[-2] == "<|start|>"


def test_gold_completion_is_compact_json():
    task = Task("q", [call("think", thought="é"), LOOK], "", "t")
    assert gold_completion(task) == (
        '{"tool_calls":[{"name":"think","arguments":{"thought":"é"}},'
        '{"name":"get_order_details","arguments":{"order_id":"#W0000000"}}]}'
    )


@pytest.mark.parametrize("style", ["full", "brief"])
def test_training_sets_are_plain_text(style):
    pytest.importorskip("datasets")
    tasks = list(make_tasks(RetailDatabase.load()).values())
    sft, grpo = build_sft_dataset(tasks, style), build_grpo_dataset(iter(tasks), style)
    assert sft.column_names == ["prompt", "completion"] and grpo.column_names == ["prompt", "task"]
    for number, (task, sft_row, grpo_row) in enumerate(zip(tasks, sft, grpo, strict=True)):
        prompt = render_prompt(plan_messages(task, style))
        assert sft_row["prompt"] == grpo_row["prompt"] == prompt
        assert prompt.endswith("<|start|>assistant") and gold_completion(task) not in prompt
        parsed = parse_completion(sft_row["completion"])
        assert parsed.final == gold_completion(task) and parsed.complete
        assert grpo_row["task"] == number


def test_importing_the_reader_loads_no_heavy_package():
    import subprocess
    import sys

    code = "import sys, data_reader; sys.exit(any(m in sys.modules for m in ('datasets', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert data_reader.__doc__
