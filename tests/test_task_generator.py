"""The generator: declared mix, same bytes for the same arguments, no half-written file."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from data_reader import task_to_json
from envs.retail import READ_TOOLS, WRITE_TOOLS, RetailDatabase
from envs.retail.make_store import make_store
from task_generator import main, yield_path
from tasks.audit.audit import audit_file
from tasks.generate.pipeline import STEPS, GenerationError, TaskStream
from tasks.mix import DEFAULT_MIX, TaskMix

ROOT = Path(__file__).resolve().parent.parent
TAU_BENCH = ROOT.parent / "shared" / "taubench"
COMMITTED = {"dataset.jsonl": (800, 1), "3.5k.jsonl": (3500, 2)}
DIFFICULTIES = ("easy", "medium", "hard")


def run(*arguments: str, timeout_s: int = 120) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "task_generator.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def generate(output: Path, num_tasks: int = 120, seed: int = 4, *more: str) -> bytes:
    """Generate in this process and return the file's bytes."""
    arguments = ["--num-tasks", str(num_tasks), "--seed", str(seed), "--output", str(output)]
    main([*arguments, *more])
    return output.read_bytes()


@pytest.fixture(scope="module")
def tasks():
    return list(TaskStream(1200, seed=21))


@pytest.fixture
def tiny_store(tmp_path):
    """A store of one customer with one order."""
    db = RetailDatabase.load()
    user_id = next(u for u, user in db.users.items() if user["orders"])
    order_id = db.users[user_id]["orders"][0]
    products = {item["product_id"] for item in db.orders[order_id]["items"]}
    folder = tmp_path / "store"
    folder.mkdir()
    for name, records in (
        ("users", {user_id: {**db.users[user_id], "orders": [order_id]}}),
        ("orders", {order_id: db.orders[order_id]}),
        ("products", {product_id: db.products[product_id] for product_id in products}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(records))
    return folder


# -- the mix -----------------------------------------------------------------------------------


def test_number_of_intents_follows_the_table(tasks):
    counts = Counter(task.tags["num_wishes"] for task in tasks)
    assert set(counts) == {1, 2, 3, 4}
    for number, share in enumerate(DEFAULT_MIX.num_intents_shares, 1):
        assert abs(counts[number] / len(tasks) - share) < 0.04


def test_every_write_tool_has_its_share(tasks):
    counts = Counter(a["name"] for t in tasks for a in t.gold_actions)
    num_writes = sum(counts[name] for name in WRITE_TOOLS)
    for name in WRITE_TOOLS:
        assert 0.08 <= counts[name] / num_writes <= 0.25, name


def test_every_tool_but_think_is_used(tasks):
    used = {a["name"] for t in tasks for a in t.gold_actions}
    assert used == (WRITE_TOOLS | READ_TOOLS) - {"think"}


def test_refusals_and_distractors_have_their_share(tasks):
    refusals = sum(task.tags["refusal"] for task in tasks) / len(tasks)
    assert 0.10 <= refusals <= 0.25
    assert 0 < sum(task.tags["distractor"] for task in tasks) / len(tasks) <= 0.10
    assert all(t.tags["difficulty"] == "hard" for t in tasks if t.tags["distractor"])
    nothing_to_write = sum(
        all(w.startswith("refuse_") or w == "transfer" for w in t.tags["wishes"]) for t in tasks
    )
    assert nothing_to_write / len(tasks) >= 0.08


def test_the_kinds_of_task_that_the_store_must_teach_are_there(tasks):
    intents = Counter(w for t in tasks for w in t.tags["wishes"])
    calls = [a for t in tasks for a in t.gold_actions]
    several = Counter(a["name"] for a in calls if len(a["arguments"].get("item_ids", ())) > 1)
    for name in ("exchange_delivered_order_items", "modify_pending_order_items"):
        assert several[name] > 10
    for kind in (*DEFAULT_MIX.intent_weights, *DEFAULT_MIX.refused_weights):
        assert intents[kind] > 0, kind
    payments = [a for a in calls if a["name"] == "modify_pending_order_payment"]
    assert any(a["arguments"]["payment_method_id"].startswith("gift_card") for a in payments)
    addresses = [a["arguments"] for a in calls if "address1" in a["arguments"]]
    assert {bool(address["address2"]) for address in addresses} == {True, False}
    reasons = {a["arguments"]["reason"] for a in calls if "reason" in a["arguments"]}
    assert reasons == {"no longer needed", "ordered by mistake"}
    assert any(t.outputs for t in tasks if t.tags["wishes"] == ["calculate_sum"])


def test_changes_before_the_item_change_of_an_order(tasks):
    num_shared = 0
    for task in tasks:
        orders = [
            (a["name"], a["arguments"]["order_id"])
            for a in task.gold_actions
            if a["name"] in WRITE_TOOLS and "order_id" in a["arguments"]
        ]
        for name, order_id in orders:
            num_shared += sum(o == order_id for _, o in orders) > 1
            if name == "modify_pending_order_items":
                assert [n for n, o in orders if o == order_id][-1] == name
    assert num_shared > 0


def test_difficulty_grows_with_the_task(tasks):
    calls = {d: [] for d in DIFFICULTIES}
    for task in tasks:
        calls[task.tags["difficulty"]].append(len(task.gold_actions))
    means = [sum(calls[d]) / len(calls[d]) for d in DIFFICULTIES]
    assert means == sorted(means)
    assert all(len(calls[d]) / len(tasks) > 0.1 for d in DIFFICULTIES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_intents_shares": (0.5, 0.1)},
        {"email_share": 1.5},
        {"intent_weights": {"complain": 1.0}},
    ],
)
def test_mix_names_the_field_that_is_wrong(wrong):
    with pytest.raises(ValueError, match=f"TaskMix.{next(iter(wrong))}"):
        TaskMix(**wrong)


# -- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dataset.jsonl", pytest.param("3.5k.jsonl", marks=pytest.mark.slow)]
)
def test_committed_file_is_what_the_command_writes(name, tmp_path):
    num_tasks, seed = COMMITTED[name]
    assert generate(tmp_path / name, num_tasks, seed) == (ROOT / name).read_bytes()
    written = yield_path(tmp_path / name).read_text()
    assert written == yield_path(ROOT / "docs" / name).read_text()


def test_no_query_stands_in_both_files():
    queries = [
        {json.loads(line)["query"] for line in (ROOT / name).read_text().splitlines()}
        for name in COMMITTED
    ]
    assert [len(q) for q in queries] == [num_tasks for num_tasks, _ in COMMITTED.values()]
    assert not queries[0] & queries[1]


def test_same_arguments_same_bytes_other_seed_other_tasks(tmp_path):
    first = generate(tmp_path / "a.jsonl")
    assert generate(tmp_path / "b.jsonl") == first
    assert generate(tmp_path / "c.jsonl", seed=5) != first


def test_shorter_file_is_the_beginning_of_a_longer_one(tmp_path):
    short = generate(tmp_path / "a.jsonl", 50)
    assert generate(tmp_path / "b.jsonl", 70).startswith(short)


def test_workers_write_the_same_file(tmp_path):
    alone = generate(tmp_path / "a.jsonl", 250)
    assert generate(tmp_path / "b.jsonl", 250, 4, "--workers", "2") == alone


def test_rows_have_the_fields_and_yield_stands_beside(tmp_path, capsys):
    rows = [json.loads(line) for line in generate(tmp_path / "t.jsonl", 30).splitlines()]
    assert [row["task_id"] for row in rows] == [f"retail-4-{n}" for n in range(30)]
    for row in rows:
        assert list(row) == [
            "task_id", "query", "gold_actions", "gold_final", "user_id", "instruction",
            "outputs", "tags",
        ]  # fmt: skip
        assert {"wishes", "num_wishes", "channel", "persona", "difficulty"} <= set(row["tags"])
    table = json.loads(yield_path(tmp_path / "t.jsonl").read_text())
    assert [step["step"] for step in table["steps"]] == list(STEPS)
    assert table["num_written"] == 30 == table["steps"][-1]["passed"]
    assert "written 30 of" in capsys.readouterr().out


def test_file_may_be_named_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert generate(Path("here.jsonl"), 3).count(b"\n") == 3
    assert sorted(os.listdir()) == [".written_by.json", "here.jsonl", "here.yield.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-tasks", "0"], "must be 1 or more"),
        (["--num-tasks", "-3"], "must be 1 or more"),
        (["--num-tasks", "many"], "--num-tasks"),
        (["--num-tasks", "3", "--workers", "0"], "must be 1 or more"),
        (["--num-tasks", "3", "--output", "no/such/folder/t.jsonl"], "does not exist"),
        (["--num-tasks", "3", "--output", "."], "is a folder"),
        ([], "required"),
    ],
)
def test_wrong_arguments_end_with_code_2(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--seed", "1", "--output", str(tmp_path / "t.jsonl"), *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_broken_store_ends_with_code_1_and_leaves_the_old_file(tmp_path, capsys):
    output = tmp_path / "t.jsonl"
    output.write_text("old\n")
    (tmp_path / "users.json").write_text("{")
    with pytest.raises(SystemExit) as ended:
        generate(output, 3, 1, "--data-dir", str(tmp_path))
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "users.json" in error
    assert output.read_text() == "old\n"


@pytest.mark.slow
def test_store_that_is_too_small_stops_with_a_clear_error(tiny_store, tmp_path, capsys):
    output = tmp_path / "t.jsonl"
    with pytest.raises(SystemExit) as ended:
        generate(output, 1_000_000, 1, "--data-dir", str(tiny_store))
    assert ended.value.code == 1
    assert "the store gives no new task" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_small_store_gives_what_it_can(tiny_store):
    tasks = list(TaskStream(60, seed=1, data_dir=tiny_store))
    assert len({task.query for task in tasks}) == 60


def test_store_without_orders_or_products_gives_questions_till_they_repeat(tiny_store):
    users = json.loads((tiny_store / "users.json").read_text())
    for user in users.values():
        user["orders"] = []
    (tiny_store / "users.json").write_text(json.dumps(users))
    for name in ("orders", "products"):
        (tiny_store / f"{name}.json").write_text("{}")
    assert len(list(TaskStream(5, seed=1, data_dir=tiny_store))) == 5
    with pytest.raises(GenerationError, match="no new task after"):
        list(TaskStream(10_000, seed=1, data_dir=tiny_store))
    (tiny_store / "users.json").write_text("{}")
    with pytest.raises(GenerationError, match="no user"):
        TaskStream(5, seed=1, data_dir=tiny_store)


@pytest.mark.skipif(not TAU_BENCH.is_dir(), reason="tau-bench's data is not here")
def test_tau_bench_store_gives_tasks_too():
    tasks = list(TaskStream(300, seed=1, data_dir=TAU_BENCH))
    counts = Counter(a["name"] for t in tasks for a in t.gold_actions)
    assert set(counts) == (WRITE_TOOLS | READ_TOOLS) - {"think"}


# -- the law: what the generator writes passes the audit -----------------------------------------

NUM_SEEDS = 20


def write_store(folder: Path, seed: int, num_users: int, num_orders: int, **changes) -> None:
    """Write an invented store; `users` and `products` may change each of their records."""
    names = ("users", "orders", "products")
    for name, records in zip(names, make_store(seed, num_users, num_orders), strict=True):
        for record in records.values():
            changes.get(name, lambda record: None)(record)
        text = json.dumps(records, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def few_customers(folder):
    write_store(folder, 3, 30, 60)


def many_orders(folder):
    write_store(folder, 11, 20, 200)


def foreign_names(folder):
    """Names and towns in letters of many kinds, composed and decomposed."""
    names = ("Zoe\u0308", "Straße", "İpek", "محمد", "Jean-Luc", "O'Brien", "李", "Thị\u202fHồng")

    def change(user):
        number = len(user["email"]) + len(user["address"]["city"])
        user["name"] = {"first_name": names[number % 8], "last_name": names[number % 7]}
        user["address"]["city"] = f"Łódź {names[number % 5]}"

    write_store(folder, 5, 40, 80, users=change)


def same_email(folder):
    """Some customers share an address with another one."""
    def change(user):
        user["email"] = user["email"][:3] + "@example.com"

    write_store(folder, 6, 40, 80, users=change)


def bare_addresses(folder):
    """No second lines, no house numbers, no five-digit codes."""
    def change(user):
        user["address"].update(address1="Ash Lane", address2="", zip="A1")

    write_store(folder, 8, 40, 80, users=change)


def little_stock(folder):
    """Few variants are available, some products have none."""
    def change(product):
        for number, variant in enumerate(product["variants"].values()):
            variant["available"] = number % 5 == 4

    write_store(folder, 9, 40, 80, products=change)


def control_tokens(folder):
    """Some products' names would be read as control tokens."""
    def change(product):
        product["name"] += " <|end|>" * (len(product["name"]) % 2)

    write_store(folder, 10, 40, 80, products=change)


STORES = [
    few_customers, many_orders, foreign_names, same_email, bare_addresses, little_stock,
    control_tokens,
]


def assert_all_valid(folder: Path | None, path: Path, num_tasks: int, seed: int) -> None:
    stream = TaskStream(num_tasks, seed=seed, data_dir=folder)
    path.write_text("".join(task_to_json(task, keep_empty=True) + "\n" for task in stream), encoding="utf-8")
    report = audit_file(path, folder)
    assert report.num_valid == num_tasks, [(seed, r.reason) for r in report.reasons][:5]


@pytest.mark.slow
@pytest.mark.parametrize("make", STORES, ids=lambda make: make.__name__)
def test_what_is_written_passes_the_audit_for_every_store_and_seed(make, tmp_path):
    make(tmp_path)
    for seed in range(NUM_SEEDS):
        assert_all_valid(tmp_path, tmp_path / "tasks.jsonl", 30, seed)


@pytest.mark.slow
@pytest.mark.skipif(not TAU_BENCH.is_dir(), reason="tau-bench's data is not here")
def test_what_is_written_from_tau_benchs_store_passes_the_audit(tmp_path):
    for seed in range(NUM_SEEDS):
        assert_all_valid(TAU_BENCH, tmp_path / "tasks.jsonl", 60, seed)


@pytest.mark.skipif(not TAU_BENCH.is_dir(), reason="tau-bench's data is not here")
def test_300_tasks_of_tau_benchs_store_are_valid(tmp_path):
    assert_all_valid(TAU_BENCH, tmp_path / "tasks.jsonl", 300, seed=5)


def test_memory_does_not_grow_with_the_tasks():
    stream = iter(TaskStream(100_000, seed=6))
    for _ in islice(stream, 100):
        pass
    tracemalloc.start()
    for _ in islice(stream, 200):
        pass
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # About 100 bytes of hashes a task stay; a kept task would be some 6,000.
    assert grown / 200 < 2_000


def test_killed_run_leaves_the_old_file(tmp_path):
    output = tmp_path / "t.jsonl"
    old = generate(output, 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["--num-tasks", "200000", "--seed", "1", "--output", str(output)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "task_generator.py", *arguments], cwd=ROOT, stderr=subprocess.PIPE,
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 50_000 for path in tmp_path.glob(".t.jsonl.*.tmp")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1].decode()
        assert output.read_bytes() == old
        if number != signal.SIGKILL:
            assert process.returncode == 130 and "interrupted" in error
            assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_command_runs_as_a_command(tmp_path):
    done = run("--num-tasks", "5", "--seed", "1", "--output", str(tmp_path / "t.jsonl"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote 5 tasks" in done.stdout
    assert run("--help").returncode == 0


def test_llm_steps_need_a_model_name(tmp_path, monkeypatch, capsys):
    """A wrong LLM setting is one line and code 2, and no file is left."""
    monkeypatch.delenv("TASK_LLM_MODEL", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(
            ["--num-tasks", "2", "--seed", "1", "--output", str(tmp_path / "f.jsonl"), "--reword"]
        )
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
