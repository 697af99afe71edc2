"""Conversations as training data: only right ones are written, the same bytes again, and audited."""

import json
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest

import task_generator
import task_tester
from agent import Conversation, ScriptedCustomer, play, scripted_policy
from agent.trajectories import find_defect, find_ungrounded, play_gold
from data_reader import read_tasks, task_to_json
from scoring.episode import score_episode
from scoring.violations import is_yes
from tasks.audit.duplicates import masked_words, wording_figures

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tasks():
    return read_tasks(ROOT / "dataset.jsonl")[:60]


@pytest.fixture(scope="module")
def task_file(tasks, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    path.write_text("".join(task_to_json(task) + "\n" for task in tasks), encoding="utf-8")
    return path


def write(task_file, output, *more):
    words = ["trajectories", "--tasks", str(task_file), "--output", str(output), *more]
    task_generator.main(words)
    return output.read_bytes()


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_conversation_ends_right_and_is_made_again_byte_for_byte(
    task_file, tmp_path, capsys, tasks
):
    first = write(task_file, tmp_path / "a.jsonl", "--seed", "5")
    assert "wrote 60 of 60 conversations" in capsys.readouterr().out
    assert first == write(task_file, tmp_path / "b.jsonl", "--seed", "5")
    assert first != write(task_file, tmp_path / "c.jsonl", "--seed", "6")
    rows = rows_of(tmp_path / "a.jsonl")
    assert [row["task_id"] for row in rows] == [task.task_id for task in tasks]
    assert all(row["success"] and not row["violations"] for row in rows)


def test_more_customers_talk_about_the_same_task_in_other_words(task_file, tmp_path):
    write(task_file, tmp_path / "t.jsonl", "--customers", "2")
    rows = rows_of(tmp_path / "t.jsonl")
    assert len(rows) == 120 and [row["trial"] for row in rows[:4]] == [0, 1, 0, 1]
    pairs = zip(rows[::2], rows[1::2], strict=True)
    assert sum(a["messages"][0] != b["messages"][0] for a, b in pairs) > 50


def audit(task_file, path, capsys):
    words = ["audit", str(task_file), "--trajectories", str(path), "--json"]
    code = task_tester.main(words)
    return code, json.loads(capsys.readouterr().out)


def test_the_audit_passes_what_was_written(task_file, tmp_path, capsys):
    write(task_file, tmp_path / "t.jsonl")
    capsys.readouterr()
    code, report = audit(task_file, tmp_path / "t.jsonl", capsys)
    assert code == 0 and report["num_conversations"] == report["num_valid"] == 60
    assert report["num_ungrounded"] == report["num_wrong_result"] == 0
    openings, utterances = report["wording"]["openings"], report["wording"]["utterances"]
    assert openings["num_texts"] == 60 < utterances["num_texts"]
    assert report["wording"]["customers"]["num_texts"] == report["wording"]["queries"]["num_texts"] == 60
    assert openings["distinct_masked"] == 60


def cut(texts, num_words):
    """Return the first texts, as many as hold up to this number of words."""
    lengths = accumulate(len(masked_words(text)) for text in texts)
    return [text for text, length in zip(texts, lengths, strict=True) if length <= num_words]


def test_customers_talk_as_variedly_as_the_queries_are_worded(db):
    """At an equal number of words, since the shares fall and the vocabulary grows with it."""
    tasks = read_tasks(ROOT / "3.5k.jsonl")[:1500]
    said = [
        [m["content"] for m in row["messages"] if m["role"] == "user"] for _, row in play_gold(tasks, db, 0)
    ]
    kinds = {
        "openings": [texts[0] for texts in said], "utterances": [text for texts in said for text in texts],
        "customers": [" ".join(texts) for texts in said],
    }
    queries = Random(0).sample([task.query for task in tasks], 400)
    for kind, texts in kinds.items():
        texts = Random(0).sample(texts, 400)
        num_words = min(sum(len(masked_words(text)) for text in some) for some in (texts, queries))
        ours, theirs = (wording_figures(cut(some, num_words)) for some in (texts, queries))
        for name in ("distinct_2", "distinct_3", "distinct_4", "vocabulary"):
            assert ours[name] >= 0.97 * theirs[name], (kind, name)
        for name in ("openers_4", "distinct_masked"):
            assert ours[name] / ours["num_texts"] >= 0.97 * theirs[name] / theirs["num_texts"], (kind, name)


def change(row, role, old, new):
    for message in row["messages"]:
        if message["role"] == role and old in json.dumps(message):
            message.update(json.loads(json.dumps(message).replace(old, new)))


def test_the_audit_names_each_defect_by_line(task_file, tmp_path, capsys, tasks):
    write(task_file, tmp_path / "t.jsonl")
    capsys.readouterr()
    rows = rows_of(tmp_path / "t.jsonl")
    write_number = next(
        n for n, task in enumerate(tasks) if task.gold_actions[-1]["name"] == "cancel_pending_order"
    )
    order_id = tasks[write_number].gold_actions[-1]["arguments"]["order_id"]
    change(rows[0], "tool", rows[0]["messages"][2]["content"], "somebody_else_1")
    rows[1]["task_id"] = "nobody-knows"
    rows[2]["messages"] = rows[2]["messages"][:1]
    # The customer never says the order: the call's id comes from nowhere.
    change(rows[write_number], "user", order_id, "my order")
    path = tmp_path / "spoiled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, report = audit(task_file, path, capsys)
    assert code == 1 and report["num_valid"] == 56
    assert report["reasons"][:3] == [
        f"{path}:1: wrong_result", f"{path}:2: unknown_task", f"{path}:3: failed",
    ]
    assert f"{path}:{write_number + 1}: " in report["reasons"][3]
    assert find_ungrounded(rows[write_number]["messages"])[0].endswith(order_id)


def test_the_oracle_proposes_what_it_heard_until_it_is_corrected(db, tasks):
    """A customer who changes their mind says what gold has before the oracle writes it."""
    talks = [Conversation(task, db, ScriptedCustomer(task, seed)) for task in tasks for seed in range(4)]
    play(talks, scripted_policy("oracle"))
    corrected = 0
    for talk in talks:
        intent = talk.customer.intents[0]
        slot = next((name for name in ("reason", "payment") if name in intent.slots), None)
        if talk.customer.persona.changes_mind and intent.kind == "write" and slot:
            said = " ".join(m["content"] for m in talk.messages if m["role"] == "user")
            assert intent.slots[slot].lower() in said.lower()
            corrected += 1
        assert score_episode(talk.task, talk.messages, db, talk.termination).success
    assert corrected > 5


def test_a_conversation_without_a_yes_is_left_out(db, tasks):
    task, row = next(
        (task, row) for task, row in play_gold(tasks, db, 0)
        if task.gold_actions[-1]["name"] == "cancel_pending_order" and len(task.gold_actions) == 2
    )
    assert find_defect(row, task, db) is None
    said = next(m for m in row["messages"] if m["role"] == "user" and is_yes(m["content"]))
    said["content"] = "Perhaps."
    assert find_defect(row, task, db) == "violation"


@pytest.mark.parametrize("line, finding", [
    ("{}", "task_id: is missing"),
    ('{"task_id": "a", "messages": []}', "messages: must be a list"),
    ('{"task_id": "a", "messages": [{"role": "narrator", "content": "x"}]}', "messages[0]"),
    ('{"task_id": "a", "messages": [{"role": "assistant", "tool_calls": [{}]}]}', "messages[0]"),
    ("nonsense", "not valid JSON"),
])
def test_damaged_rows_are_one_line_with_their_place(task_file, tmp_path, capsys, line, finding):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    assert task_tester.main(["audit", str(task_file), "--trajectories", str(path)]) == 1
    error = capsys.readouterr().err
    assert f"{path}:1: {finding}" in error or f"{path}:1: row: {finding}" in error
    assert error.count("\n") == 1


def test_a_strangers_file_and_the_tasks_themselves_are_kept(task_file, tmp_path, capsys):
    stranger = tmp_path / "mine.jsonl"
    stranger.write_text("my own\n")
    before = task_file.read_bytes()
    for place in (stranger, task_file):
        with pytest.raises(SystemExit) as stop:
            write(task_file, place)
        assert stop.value.code == 1
    assert stranger.read_text() == "my own\n" and task_file.read_bytes() == before


def test_faulty_tasks_leave_no_file(task_file, tmp_path, capsys):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_bytes(task_file.read_bytes() + b'{"query": "x"}\n')
    with pytest.raises(SystemExit) as stop:
        write(tasks, tmp_path / "t.jsonl")
    error = capsys.readouterr().err
    assert stop.value.code == 1 and f"{tasks}:61" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.jsonl"]


def test_help_says_what_it_writes():
    done = subprocess.run(
        [sys.executable, "task_generator.py", "trajectories", "--help"], cwd=ROOT,
        capture_output=True, text=True, check=True,
    )
    assert "conversations that end right" in done.stdout and "--tasks" in done.stdout
