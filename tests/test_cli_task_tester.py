"""The command line: what it prints, writes and returns, and that errors are clear lines."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from example_tasks import make_tasks

import configs
import task_tester
from common.user_error import UserError
from data_reader import DatasetError, gold_completion, read_tasks, task_to_json
from envs.retail import RetailDatabase
from task_tester import main, score_completion, summarize

ROOT = Path(__file__).parents[1]
TAU_BENCH = ROOT.parent / "shared" / "taubench"
FIELD = ROOT.parent / "shared" / "field" / "taubench_form"
DB = RetailDatabase.load()
TASKS = list(make_tasks(DB).values())
SCORE_KEYS = [
    "task_id", "reward", "outcome", "max_reward", "exact_match", "db_match", "parse_error",
]


def run(*arguments: object, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "task_tester.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **settings)


def write_lines(path: Path, rows) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text(text + "\n", encoding="utf-8")
    return path


@pytest.fixture
def task_file(tmp_path) -> Path:
    return write_lines(tmp_path / "tasks.jsonl", [task_to_json(task) for task in TASKS])


def completion_rows():
    """Return gold for every second task and something worse for the others, in another order."""
    rows = [
        {"task_id": t.task_id, "completion": gold_completion(t) if n % 2 else '{"tool_calls":[]}'}
        for n, t in enumerate(TASKS)
    ]
    rows[0]["completion"] = "no JSON"
    return rows[::-1]


# -- score -------------------------------------------------------------------------------------


def test_score_as_a_process(tmp_path, task_file):
    rows = completion_rows()
    completions = write_lines(tmp_path / "c.jsonl", rows)
    output = tmp_path / "s.jsonl"
    done = run("score", "--tasks", task_file, "--completions", completions, "--json",
               "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    by_id = {task.task_id: task for task in TASKS}
    scores = [score_completion(by_id[row["task_id"]], row["completion"], DB) for row in rows]
    assert json.loads(done.stdout) == summarize(scores)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["task_id"] for row in written] == [row["task_id"] for row in rows]
    assert all(list(row) == SCORE_KEYS for row in written)
    assert written == [{key: getattr(s, key) for key in SCORE_KEYS} for s in scores]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".written_by.json", "c.jsonl", "s.jsonl", "tasks.jsonl"]


def test_score_prints_a_table(tmp_path, task_file, capsys):
    completions = write_lines(tmp_path / "c.jsonl", completion_rows())
    assert main(["score", "--tasks", str(task_file), "--completions", str(completions)]) == 0
    printed = capsys.readouterr().out
    for words in ["exact_match_rate", "outcome_rate", "find_user_id_by_email", "not_json 1"]:
        assert words in printed


def test_score_does_not_import_torch(tmp_path, task_file):
    completions = write_lines(tmp_path / "c.jsonl", completion_rows())
    code = (
        "import sys, task_tester; "
        f"task_tester.main(['score', '--tasks', {str(task_file)!r}, '--completions', "
        f"{str(completions)!r}]); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets', 'trl')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 0


def test_tasks_without_a_completion_are_counted_and_left_out(tmp_path, task_file, capsys):
    answered = TASKS[2]
    rows = [{"task_id": answered.task_id, "completion": gold_completion(answered)}]
    completions = write_lines(tmp_path / "c.jsonl", rows)
    arguments = ["score", "--tasks", str(task_file), "--completions", str(completions), "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    metrics = json.loads(captured.out)
    assert metrics["num_tasks"] == 1 and metrics["exact_match_rate"]["value"] == 1.0
    assert f"{len(TASKS) - 1} of {len(TASKS)} tasks have no completion" in captured.err


def test_rows_without_task_ids_are_named_by_line(tmp_path, capsys):
    rows = []
    for task in TASKS[:3]:
        row = json.loads(task_to_json(task))
        del row["task_id"]
        rows += [json.dumps(row), ""]  # blank lines count as lines
    tasks = write_lines(tmp_path / "tasks.jsonl", rows)
    completions = write_lines(tmp_path / "c.jsonl", [
        {"task_id": f"line-{1 + 2 * n}", "completion": gold_completion(TASKS[n])} for n in (2, 0, 1)
    ])
    assert main(["score", "--tasks", str(tasks), "--completions", str(completions), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["num_tasks"] == 3 and metrics["exact_match_rate"]["value"] == 1.0


def test_trials_of_one_task_may_repeat(tmp_path, task_file, capsys):
    rows = completion_rows() * 3
    completions = write_lines(tmp_path / "c.jsonl", rows)
    arguments = ["score", "--tasks", str(task_file), "--completions", str(completions), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["num_tasks"] == len(TASKS)


def test_all_faults_of_completions_are_reported(tmp_path, task_file, capsys):
    good = json.dumps(completion_rows()[0])
    completions = tmp_path / "c.jsonl"
    rows = [
        good, '{"task_id": "nobody", "completion": "x"}', '{"task_id": "transfer"}', "{oops",
        '{"task_id": 7, "completion": "x"}', '{"task_id": "transfer", "completion": {"a": 1}}',
        '["x"]', '{"task_id": "sum", "task_id": "sum", "completion": ""}', '{"completion": "x"}',
    ]
    completions.write_bytes("\n".join(rows).encode() + b'\n{"task_id": "\xff"}\n')
    output = tmp_path / "s.jsonl"
    status = main(["score", "--tasks", str(task_file), "--completions", str(completions),
                   "--output", str(output)])
    captured = capsys.readouterr()
    assert status == 1 and captured.out == "" and not output.exists()
    for line, words in [
        (2, "task_id: 'nobody' names no task"), (3, "completion: is missing"),
        (4, "row: not valid JSON"), (5, "task_id: must be text"), (6, "completion: must be text"),
        (7, "row: must be an object"), (8, "stands twice"), (9, "task_id: 'line-9' names no task"),
        (10, "row: not UTF-8"),
    ]:
        assert f"{completions}:{line}: " in captured.err and words in captured.err
    assert f"{completions}:1: " not in captured.err


def test_faulty_tasks_and_gold_are_invalid_data(tmp_path, capsys):
    rows = [json.loads(task_to_json(task)) for task in TASKS[:3]]
    rows[1]["gold_actions"] *= 2  # the second cancellation will be refused
    tasks = write_lines(tmp_path / "tasks.jsonl", rows)
    completions = write_lines(
        tmp_path / "c.jsonl", [{"task_id": t.task_id, "completion": ""} for t in TASKS[:3]]
    )
    arguments = ["score", "--tasks", str(tasks), "--completions", str(completions)]
    assert main(arguments) == 1
    assert f"{tasks}:2: gold_actions: task auth_and_write: gold call 4" in capsys.readouterr().err
    write_lines(tasks, ["{}", *map(json.dumps, rows)])
    assert main(arguments) == 1
    assert f"{tasks}:1: query: is missing" in capsys.readouterr().err


@pytest.fixture
def refused_rows(tmp_path):
    """Task file and completions: one clean row, one with a refused gold call, one without gold."""
    rows = [json.loads(task_to_json(task)) for task in TASKS[:3]]
    lost = {"name": "get_product_details", "arguments": {"product_id": "0000000001"}}
    rows[1]["gold_actions"].insert(1, lost)
    rows[2]["gold_actions"] = []
    answers = [gold_completion(TASKS[0]), gold_completion(TASKS[1]), '{"tool_calls": []}']
    completions = [
        {"task_id": row["task_id"], "completion": answer} for row, answer in zip(rows, answers)
    ]
    return (
        write_lines(tmp_path / "tasks.jsonl", rows), write_lines(tmp_path / "c.jsonl", completions),
        [row["task_id"] for row in rows],
    )


def test_refused_gold_is_refused_with_its_remedy(refused_rows, tmp_path, capsys):
    tasks, completions, _ = refused_rows
    scored = tmp_path / "s.jsonl"
    arguments = ["--tasks", str(tasks), "--output", str(scored)]
    assert main(["score", "--completions", str(completions), *arguments]) == 1
    assert main(["evaluate", "--model", "a/b", *arguments]) == 1
    for error in capsys.readouterr().err.split("task_tester.py")[1::2]:
        lines = error.splitlines()
        assert len(lines) == 3 and "--refused-gold" in lines[-1]
        assert f"{tasks}:2: gold_actions: task" in lines[0] and "is refused" in lines[0]
        assert f"{tasks}:3: gold_actions: task" in lines[1] and "no gold call" in lines[1]
    assert not scored.exists()


@pytest.mark.parametrize("rule, num_scored", [("ignore", 3), ("skip", 1)])
def test_refused_gold_is_ignored_or_skipped(rule, num_scored, refused_rows, tmp_path, capsys):
    tasks, completions, ids = refused_rows
    scored = tmp_path / "s.jsonl"
    arguments = ["--tasks", str(tasks), "--completions", str(completions), "--output", str(scored)]
    assert main(["score", *arguments, "--refused-gold", rule, "--json"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ids[:num_scored]
    assert all(row["outcome"] == 1 and row["reward"] == row["max_reward"] for row in rows)
    metrics = json.loads(out)
    assert metrics["num_tasks"] == num_scored and metrics["completeness_score"]["value"] == 1
    assert err.count("\n") == 1 and "2 of 3 tasks" in err and ", ".join(ids[1:]) in err


def test_skipping_every_task_is_invalid_data(refused_rows, tmp_path, capsys):
    tasks, completions, ids = refused_rows
    write_lines(completions, [{"task_id": ids[2], "completion": ""}])
    arguments = ["score", "--tasks", str(tasks), "--completions", str(completions)]
    assert main([*arguments, "--refused-gold", "skip"]) == 1
    assert f"{tasks}:3: gold_actions: task {ids[2]}: has no gold call" in capsys.readouterr().err


@pytest.mark.parametrize("rule, num_tasks", [("ignore", 3), ("skip", 1)])
def test_evaluate_takes_the_rule(rule, num_tasks, refused_rows, fake_training, tmp_path):
    arguments = ["--model", "a/b", "--tasks", str(refused_rows[0]), "--output", str(tmp_path / "e")]
    assert main(["evaluate", *arguments, "--refused-gold", rule]) == 0
    tasks = fake_training[0]["tasks"]
    assert [task.task_id for task in tasks] == refused_rows[2][:num_tasks]
    if rule == "ignore":
        assert tasks[1].gold_actions == TASKS[1].gold_actions and tasks[2].gold_actions == []


@pytest.mark.parametrize("name", ["tasks_dev.json", "tasks_train.json"])
@pytest.mark.skipif(not TAU_BENCH.is_dir(), reason="tau-bench's data is not here")
def test_every_task_of_tau_bench_gets_a_verdict(name, tmp_path, capsys):
    tasks = read_tasks(TAU_BENCH / name, may_be_empty=True)
    completions = write_lines(
        tmp_path / "c.jsonl",
        [{"task_id": task.task_id, "completion": gold_completion(task)} for task in tasks],
    )
    arguments = ["--tasks", str(TAU_BENCH / name), "--data-dir", str(TAU_BENCH), "--json"]
    arguments += ["--completions", str(completions), "--output", str(tmp_path / "s.jsonl")]
    assert main(["score", *arguments, "--refused-gold", "ignore"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(rows) == len(tasks) and all(row["outcome"] == 1 for row in rows)


@pytest.mark.skipif(not FIELD.is_dir(), reason="shared/field is not beside the repository")
def test_tasks_of_tau_benchs_form_from_the_field(tmp_path, capsys):
    for rule, num_tasks in (("ignore", 5), ("skip", 3)):
        assert main([
            "score", "--tasks", str(FIELD / "tasks.json"), "--refused-gold", rule, "--json",
            "--completions", str(FIELD / "completions.jsonl"),
            "--output", str(tmp_path / f"{rule}.jsonl"),
        ]) == 0
        rows = [json.loads(line) for line in (tmp_path / f"{rule}.jsonl").open()]
        assert [row["outcome"] for row in rows] == [1.0] * num_tasks


def test_an_old_output_survives_a_failed_run(tmp_path, task_file, monkeypatch):
    completions = write_lines(tmp_path / "c.jsonl", completion_rows())
    output = tmp_path / "s.jsonl"
    arguments = ["score", "--tasks", str(task_file), "--completions", str(completions),
                 "--output", str(output)]
    assert main(arguments) == 0
    old = output.read_text()
    monkeypatch.setattr(task_tester.Score, "figures", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert output.read_text() == old
    assert not list(tmp_path.glob(".*.tmp"))


# -- audit and evaluate: wiring ----------------------------------------------------------------


@pytest.fixture
def fake_audit(monkeypatch):
    """Put a fake `tasks.audit.audit` in place; its report's counts can be set."""
    found = {"num_tasks": 2, "num_valid": 2}

    def audit_file(path, data_dir, against, **split):
        found["split"] = split
        if Path(path).stat().st_size == 0:
            raise DatasetError([f"{path}: holds no task"])
        return SimpleNamespace(
            **found, to_json=lambda: found, print=lambda: print("audited"),
        )

    module = ModuleType("tasks.audit.audit")
    module.audit_file = audit_file
    monkeypatch.setitem(sys.modules, "tasks.audit.audit", module)
    report_module = ModuleType("tasks.audit.report")
    report_module.write_report = lambda reports, path: Path(path).write_text("# Audit")
    monkeypatch.setitem(sys.modules, "tasks.audit.report", report_module)
    return found


def test_audit_exit_codes_and_output(tmp_path, task_file, fake_audit, capsys):
    report = tmp_path / "report.md"
    assert main(["audit", str(task_file), "--json", "--report", str(report)]) == 0
    assert json.loads(capsys.readouterr().out) == fake_audit and report.read_text() == "# Audit"
    fake_audit["num_valid"] = 1
    assert main(["audit", str(task_file)]) == 1
    assert capsys.readouterr().out == "audited\n"
    task_file.write_text("")
    assert main(["audit", str(task_file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "holds no task" in captured.err


def test_audit_takes_the_split_of_a_run(tmp_path, task_file, fake_audit, capsys):
    assert main(["audit", str(task_file)]) == 0 and fake_audit["split"] == {}
    config = configs.with_overrides(
        configs.get_preset("cpu"), {"data.split_seed": 7, "data.train_fraction": 0.5}
    )
    (tmp_path / "config.json").write_text(f'{{"settings": {config.to_json()}}}')
    assert main(["audit", str(task_file), "--run", str(tmp_path)]) == 0
    assert fake_audit["split"] == {"seed": 7, "fractions": (0.5, 0.1, 0.4)}
    (tmp_path / "config.json").write_text("{")
    capsys.readouterr()
    for folder, told in ((tmp_path, "not valid JSON"), (tmp_path / "none", "holds no run")):
        assert main(["audit", str(task_file), "--run", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error and f"--run {folder}" in error


@pytest.fixture
def fake_training(monkeypatch):
    """Put a fake of the training module in place; return the calls it got."""
    calls = []
    evaluation = ModuleType("training.evaluation")

    def evaluate_model_dir(**arguments):
        calls.append(arguments)
        if arguments["model"] == "broken/model":
            raise UserError("it cannot be loaded; check the name")

    evaluation.evaluate_model_dir = evaluate_model_dir
    monkeypatch.setitem(sys.modules, "training.evaluation", evaluation)
    return calls


def test_evaluate_passes_its_arguments_on(tmp_path, task_file, fake_training, capsys):
    arguments = ["evaluate", "--tasks", str(task_file), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(tmp_path), "--limit", "2", "--num-trials", "3"]) == 0
    (found,) = fake_training
    assert [t.task_id for t in found["tasks"]] == [t.task_id for t in TASKS[:2]]
    assert (found["model"], found["num_trials"]) == (str(tmp_path), 3)
    assert found["output_dir"] == tmp_path / "out" and found["db"].orders == DB.orders
    assert main([*arguments, "--model", "broken/model"]) == 2
    assert capsys.readouterr().err == (
        "task_tester.py evaluate: error: --model broken/model: "
        "it cannot be loaded; check the name\n"
    )


@pytest.mark.parametrize("model", ["./nope", "a/b/final", "/nope", "tests/nope", "prompting/harmony.py"])
def test_a_missing_model_folder_is_one_line(
    model, task_file, tmp_path, fake_training, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    output = tmp_path / "out"
    arguments = ["evaluate", "--tasks", str(task_file), "--output", str(output)]
    status = main([*arguments, "--model", model])
    captured = capsys.readouterr()
    assert status == 2 and captured.err.count("\n") == 1 and not fake_training
    assert f"--model {model}: no such folder" in captured.err and not output.exists()


# -- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    (), ("frobnicate",), ("score",), ("score", "--tasks", "x"), ("audit",), ("evaluate",),
    ("evaluate", "--model", "m", "--tasks", "t", "--output", "o", "--limit", "0"),
    ("evaluate", "--model", "m", "--tasks", "t", "--output", "o", "--num-trials", "two"),
])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [(), ("audit",), ("evaluate",), ("score",)])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0 and "exit code: 0" in capsys.readouterr().out


def test_missing_files_are_one_line(tmp_path, task_file, capsys):
    missing, here = str(tmp_path / "nope"), str(task_file)
    completions = str(write_lines(tmp_path / "c.jsonl", completion_rows()))
    for arguments in [
        ["score", "--tasks", missing, "--completions", completions],
        ["score", "--tasks", here, "--completions", missing],
        ["score", "--tasks", str(tmp_path), "--completions", completions],
        ["score", "--tasks", here, "--completions", completions, "--data-dir", missing],
        ["score", "--tasks", here, "--completions", completions, "--output", f"{missing}/s.jsonl"],
        ["score", "--tasks", here, "--completions", completions, "--output", str(tmp_path)],
        ["audit", missing],
        ["audit", str(tmp_path)],
        ["evaluate", "--model", str(tmp_path), "--tasks", missing, "--output", missing],
    ]:
        assert main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1, arguments
        assert captured.err.startswith(f"task_tester.py {arguments[0]}: error: "), arguments


def test_a_broken_store_is_invalid_data(tmp_path, task_file, capsys):
    completions = write_lines(tmp_path / "c.jsonl", completion_rows())
    folder = tmp_path / "store"
    folder.mkdir()
    arguments = ["score", "--tasks", str(task_file), "--completions", str(completions)]
    assert main([*arguments, "--data-dir", str(folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_empty_completions_are_invalid_data(tmp_path, task_file, capsys):
    completions = write_lines(tmp_path / "c.jsonl", [""])
    assert main(["score", "--tasks", str(task_file), "--completions", str(completions)]) == 1
    assert "holds no completion" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path, task_file):
    completions = write_lines(tmp_path / "c.jsonl", completion_rows())
    command = (
        f"{sys.executable} task_tester.py score --tasks {task_file} --completions {completions} "
        "| (exec 0<&-; sleep 0.1); sleep 1; echo ${PIPESTATUS[0]}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() == "0"


@pytest.mark.parametrize("key", ["taskId", "id", "TASK_ID", "task-id", "task", "task_id ", "\ufefftask_id"])
def test_a_misspelt_task_id_is_named_and_not_matched_by_line(tmp_path, capsys, key):
    tasks = write_lines(tmp_path / "tasks.jsonl", [task_to_json(task) for task in TASKS])
    rows = [{key: task.task_id, "completion": gold_completion(task)} for task in reversed(TASKS)]
    answers = write_lines(tmp_path / "c.jsonl", rows)
    assert main(["score", "--tasks", str(tasks), "--completions", str(answers)]) == 1
    error = capsys.readouterr().err
    assert "write task_id instead" in error and "Traceback" not in error
