"""RESULTS.md and its picture are what the rows say; rows are what the learning benchmarks left."""

import json
import sys

import pytest
from PIL import Image

from benchmarks import agent_learning, learning_examples, learning_rows, results_page
from data_reader import gold_completion, read_tasks

SHARED = {"setting": "a setting", "tasks": "some tasks", "machine": "a machine", "note": ""}


def estimate(value, low, high):
    return {"value": value, "low": low, "high": high}


def row(method, **changes):
    rates = {"exact_match_rate": estimate(0.5, 0.4, 0.6), "db_match_rate": estimate(0.7, 0.6, 0.8)}
    found = {"model": "tiny-gpt-oss", "mode": "plan", "method": method, "seed": 1, "num_tasks": 50,
             "metrics": rates, "train_minutes": 2.0, "command": f"python benchmarks/x.py --method {method}"}
    return found | SHARED | changes


def test_page_and_picture_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["x", "--output", str(tmp_path / "page.md"), "--picture", str(tmp_path / "p.png")]
    )
    results_page.main()
    remedy = "run: python benchmarks/results_page.py"
    assert (tmp_path / "page.md").read_text() == results_page.PAGE.read_text(), remedy
    drawn, kept = (Image.open(path) for path in (tmp_path / "p.png", results_page.PICTURE))
    # The pixels differ with the version of matplotlib; what was drawn does not.
    assert (drawn.text["Description"], drawn.size) == (kept.text["Description"], kept.size), remedy


@pytest.mark.parametrize(("low", "high", "words"), [
    (0.001, 0.02, "gain proven"), (0.0, 0.02, "no proven gain"), (-0.01, 0.02, "no proven gain"),
    (-0.02, -0.001, "loss proven"), (0.0, 0.0, "no change: the adapter of SFT was kept"),
])
def test_verdict(low, high, words):
    assert results_page.verdict(estimate((low + high) / 2, low, high)) == words


def test_page_says_nothing_of_rows_that_are_not_there(tmp_path):
    gain = {"exact_match_rate": estimate(0.05, 0.01, 0.09)}
    for method, changes in (("sft", {}), ("grpo", {"minus_sft": gain}), ("more-sft", {"minus_sft": gain})):
        (tmp_path / f"{method}.json").write_text(json.dumps(row(method, **changes)))
    examples = tmp_path / "examples.jsonl"
    text = results_page.page(results_page.read_rows(tmp_path), {}, examples)
    assert "| more SFT | 1 | 0.500 [0.400, 0.600]" in text and "1 runs, 1 with a proven gain" in text
    assert "`python benchmarks/x.py --method` with each of `sft`, `grpo`, `more-sft`" in text
    (tmp_path / "more-sft.json").unlink()
    less = results_page.page(results_page.read_rows(tmp_path), {}, examples)
    assert "| SFT+GRPO | 1 |" in less and "| more SFT |" not in less and "more SFT against" not in less
    assert "random rewards against" not in text and "Ablations" not in text and "##" in text


def learning_result(method, right, **changes):
    return {
        "command": "python benchmarks/learning.py --model /data/M --results /tmp/r --seed 1", "model": "M",
        "method": method, "seed": 1, "evaluation_tokens": 9, "machine": "one H200",
        "exact_match": right, "db_match": "1" * len(right),
        "metrics": {"num_tasks": len(right), "exact_match_rate": estimate(0.5, 0.0, 1.0)},
        "train_minutes": 4.0, "steps": 20,
        "curve": [{"step": 0, "heldout/exact_match": 0.5}, {"step": 5, "loss": 1.0},
                  {"step": 10, "heldout/exact_match": 0.6}, {"step": 20, "loss": 1.0}],
        "settings": {
            "mode": "plan", "evaluation": {"num_bootstrap": 200}, "preset": "small-dense",
            "data": {"split_seed": 0, "eval_dataset_path": "/data/held.jsonl", "data_dir": ""},
            **{stage: {
                "num_eval_tasks": 40, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8,
                "learning_rate": 1e-4,
            } for stage in ("sft", "grpo")},
        },
    } | changes


GIVEN = ("--setting", "s", "--tasks", "t", "--machine", "m")


def rows_from(tmp_path, monkeypatch, *paths, given=GIVEN):
    words = [*given, "--output", str(tmp_path / "rows")]
    monkeypatch.setattr(sys, "argv", ["learning_rows.py", *map(str, paths), *words])
    learning_rows.main()
    return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "rows").iterdir()}


def test_rows_of_learning_are_paired_by_task_with_the_sft_of_their_seed(tmp_path, monkeypatch):
    for method, right in (("sft", "1100" * 10), ("grpo", "1110" * 10)):
        (tmp_path / f"M-{method}-1.json").write_text(json.dumps(learning_result(method, right)))
    rows = rows_from(tmp_path, monkeypatch, tmp_path / "M-grpo-1.json", tmp_path / "M-sft-1.json")
    found = rows["m-plan-s-grpo-1"]
    gain = found["minus_sft"]["exact_match_rate"]
    assert gain["value"] == 0.25 and 0.1 < gain["low"] < 0.25 < gain["high"] < 0.45
    assert found["minus_sft"]["db_match_rate"] == estimate(0.0, 0.0, 0.0)
    assert found["command"] == "python benchmarks/learning.py --model M --seed 1"
    assert [(point["step"], point["minutes"]) for point in found["curve"]] == [(0, 0.0), (10, 2.0)]
    assert found["completions"] == 640 and "minus_sft" not in rows["m-plan-s-sft-1"]


def test_a_result_says_itself_what_its_row_needs(tmp_path, monkeypatch):
    again = {"trained": False, "num_trials": 2}
    metrics = {"num_tasks": 2, "exact_match_rate": estimate(0.5, 0.0, 1.0),
               "pass_hat_k": {"1": estimate(0.5, 0.2, 0.7), "2": estimate(0.25, 0.1, 0.4)}}
    for name, result in {
        "M-sft-1": learning_result("sft", "10"), "M-grpo-1": learning_result("grpo", "11"),
        "M-sft-1-on-held-x2": learning_result("sft", "1000", **again, metrics=metrics),
        "M-grpo-1-on-held-x2": learning_result("grpo", "1110", **again, metrics=metrics),
    }.items():
        if "trained" in result:
            del result["train_minutes"], result["steps"], result["curve"]
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    rows = rows_from(tmp_path, monkeypatch, *tmp_path.glob("M-*.json"), given=())
    trained = rows["m-plan-preset-small-dense-grpo-1"]
    assert trained["tasks"] == "tasks of the test customers in held.jsonl"
    assert trained["machine"] == "one H200"
    assert trained["note"] == "SFT+GRPO, seed 1: 20 steps of 32 completions at 0.0001."
    assert "20 steps of 32 gold answers" in rows["m-plan-preset-small-dense-sft-1"]["note"]
    name = "m-plan-preset-small-dense-evaluated-on-held-2-answers-a-task-grpo-1"
    # Two answers to each of two tasks: 0.5 more of the first task, 0.5 more of the second.
    assert rows[name]["minus_sft"]["exact_match_rate"] == estimate(0.5, 0.5, 0.5)
    assert rows[name]["note"] == ""

    monkeypatch.setitem(results_page.MODELS, "M", "M (1 parameter)")
    groups = results_page.read_rows(tmp_path / "rows")
    text = results_page.page(groups, {}, tmp_path / "none")
    assert "1 runs, 0 with a proven" in text  # what is evaluated again is no run more
    assert "| SFT+GRPO | 1 | 0.500 [0.200, 0.700] | 0.250 [0.100, 0.400] |" in text
    assert 'learning_rows.py RESULT --setting "preset small-dense"` makes the rows' in text
    assert len(results_page.trained_in(groups)) == 1

    (tmp_path / "M-sft-1.json").unlink()
    with pytest.raises(SystemExit, match=r"M-sft-1.json: missing; M-grpo-1.json is compared with it"):
        rows_from(tmp_path, monkeypatch, tmp_path / "M-grpo-1.json", given=())
    silent = learning_result("base", "10", machine=None)
    (tmp_path / "M-base.json").write_text(json.dumps(silent))
    with pytest.raises(SystemExit, match="M-base.json: does not say on what machine"):
        rows_from(tmp_path, monkeypatch, tmp_path / "M-base.json", given=())
    del silent["seed"]
    (tmp_path / "M-base.json").write_text(json.dumps(silent))
    with pytest.raises(SystemExit, match="M-base.json: lacks 'seed'"):
        rows_from(tmp_path, monkeypatch, tmp_path / "M-base.json", given=())


def test_rows_of_agent_mode_and_of_a_stopped_run(tmp_path, monkeypatch):
    settings = {
        "model": {"model_name": "models/A"}, "mode": "agent", "seed": 3, "grpo": {"num_eval_tasks": 32},
        "data": {"eval_dataset_path": "held.jsonl"}, "preset": "cpu",
    }
    rates = {"success_rate": estimate(0.2, 0.1, 0.3), "num_tasks": 9, "mean_turns": estimate(5, 4, 6)}
    result = {"settings": settings, "command": "python x.py", "machine": "m", "seconds": {"SFT": 60.0, "GRPO": 120.0},
              "rates": {stage: rates for stage in ("base", "sft", "sft_grpo")},
              "difference": {"success_rate": estimate(0.1, 0.0, 0.2), "mean_turns": estimate(0, 0, 0)}}
    path, run = tmp_path / "agent_learning_main_3.json", tmp_path / "run"
    path.write_text(json.dumps(result))
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"settings": settings | {"seed": 4}}))
    (run / "metrics.csv").write_text(
        "stage,step,step_time,heldout/success\ngrpo,0,,0.25\ngrpo,1,30.0,\ngrpo,2,30.0,0.5\n"
    )
    rows = rows_from(tmp_path, monkeypatch, path, run)
    assert rows["a-agent-s-grpo-3"]["minus_sft"] == {"success_rate": estimate(0.1, 0.0, 0.2)}
    assert rows["a-agent-s-grpo-3"]["train_minutes"] == 2 * rows["a-agent-s-sft-3"]["train_minutes"] == 2.0
    assert set(rows["a-agent-s-base"]["metrics"]) == {"success_rate"}
    stopped = rows["a-agent-s-grpo-4"]
    assert [(p["minutes"], p["success_rate"]) for p in stopped["curve"]] == [(0.0, 0.25), (1.0, 0.5)]
    assert stopped["metrics"] == {} and stopped["steps"] == 2
    path.write_text("{}")
    with pytest.raises(SystemExit, match="no result of"):
        rows_from(tmp_path, monkeypatch, path)


def test_options_that_a_command_lacks_come_before_its_own():
    command = "python benchmarks/x.py --output-dir /tmp/x --model /data/M --seed 1"
    found = learning_rows.plain_command(command, ["--set", "sft.max_steps=9"])
    assert found == "python benchmarks/x.py --set sft.max_steps=9 --model M --seed 1"


def test_more_sft_counts_all_steps_of_sft_and_not_the_last_logged_one():
    first = {"settings": {"sft": {"max_steps": 150}}, "seconds": {"SFT": 60.0, "GRPO": 120.0}}
    assert agent_learning.steps_of_more_sft(first) == 450


def test_examples_are_the_first_of_each_kind(tmp_path, monkeypatch):
    tasks = read_tasks(results_page.ROOT / "dataset.jsonl")[:40]
    lines = (results_page.ROOT / "dataset.jsonl").read_text().splitlines(keepends=True)[:40]
    (tmp_path / "tasks.jsonl").write_text("".join(lines))
    for name, wrong in (("sft", 2), ("grpo", 4)):
        (tmp_path / name).mkdir()
        rows = [
            {"task_id": task.task_id, "exact_match": bool(place % wrong),
             "completion": gold_completion(task) if place % wrong else "no plan"}
            for place, task in enumerate(tasks)
        ]
        (tmp_path / name / "completions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    output = tmp_path / "examples.jsonl"
    monkeypatch.setattr(sys, "argv", [
        "x", "--tasks", str(tmp_path / "tasks.jsonl"), "--before", str(tmp_path / "sft"), "--after",
        str(tmp_path / "grpo"), "--model", "tiny-gpt-oss", "--seed", "1", "--output", str(output),
    ])
    learning_examples.main()
    about, *shown = map(json.loads, output.read_text().splitlines())
    assert about["counts"] == {"after": 10, "before": 0, "both": 20, "neither": 10}
    assert [row["task_id"] for row in shown[:5]] == [tasks[place].task_id for place in (2, 6, 10, 14, 18)]
    assert shown[0]["sft"].startswith("no plan (") and shown[0]["grpo"] == tasks[2].gold_actions
    text = "\n".join(results_page.examples(output))
    assert "10 made right by GRPO, 0 made wrong" in text and "wrong, then right" in text
