"""Sweeps: the space is checked, trials are compared, a kill changes nothing about the result."""

import csv
import functools
import hashlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import resume_run
import tiny_random

import configs
from common.files import RunError, SettingsError
from training import pipeline, sweep, sweep_space

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = ("grpo.learning_rate=log:1e-6:1e-2", "grpo.beta=choice:0,0.01")

pytest.importorskip("optuna", reason="sweeps need optuna (requirements.txt)")


def parse(*words: str):
    return sweep.build_sweep_parser().parse_args(words)


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of trials.csv, timings left out."""
    with open(folder / "trials.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grpo.learning_rate", "write STAGE.FIELD"),
        ("grpo.learning_rate=1e-5", "write STAGE.FIELD"),
        ("grpo.learning_rate=uniform:0:1", "write STAGE.FIELD"),
        ("grpo.speed=range:0:1", "unknown field 'grpo.speed'"),
        ("data.split_seed=range:0:3", "only fields of model, sft and grpo"),
        ("seed=range:0:3", "only fields of model, sft and grpo"),
        ("grpo.temperature=range:0.5", "LOW and HIGH"),
        ("grpo.temperature=range:1:0.5", "below HIGH"),
        ("grpo.temperature=range:0.5:hot", "expected float"),
        ("grpo.temperature=range:-1:1", "above 0"),
        ("grpo.temperature=range:nan:1", "above 0"),
        ("grpo.temperature=range:0.1:inf", "a finite number"),
        ("grpo.beta=log:0:0.1", "above 0 on a logarithmic scale"),
        ("grpo.loss_type=range:dapo:grpo", "is no number"),
        ("grpo.loss_type=choice:dapo,best", "one of"),
        ("grpo.beta=choice:0.1", "two values"),
        ("grpo.beta=choice:0.1,0.10", "given twice"),
        ("model.lora_rank=range:4:8.5", "expected int"),
    ],
)
def test_faulty_ranges_are_one_line_and_exit_code_2(text, reason, capsys, tmp_path):
    arguments = parse("--preset", "cpu", "--output-dir", str(tmp_path / "s"), "--param", text)
    assert sweep.run_sweep(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and reason in error
    assert not (tmp_path / "s").exists()


def test_ranges_take_the_type_of_their_field():
    base = configs.get_preset("cpu")
    rank = sweep_space.parse_parameter("model.lora_rank=log:4:64", base)
    assert rank.is_whole and (rank.low, rank.high) == (4, 64)
    assert rank.distribution().__class__.__name__ == "IntDistribution"
    curriculum = sweep_space.parse_parameter("grpo.curriculum=choice:true,false", base)
    assert curriculum.choices == (True, False)
    for preset in ("cpu", "t4", "24gb", "80gb"):
        for parameter in sweep_space.DEFAULT_SPACE:
            stage, _, name = parameter.path.partition(".")
            assert parameter.contains(getattr(getattr(configs.get_preset(preset), stage), name))


def test_sft_is_shared_only_when_nothing_reaches_it():
    def shares(*texts):
        words = [word for text in texts for word in ("--param", text)]
        return sweep_space.sweep_from_arguments(parse("--preset", "cpu", *words)).shares_sft

    assert shares() and shares(*PARAMETERS)
    assert not shares("grpo.beta=choice:0,0.01", "sft.learning_rate=log:1e-4:1e-3")
    assert not shares("model.lora_rank=choice:8,16")


def make_figure(_, number: int, values: dict) -> dict[str, float]:
    """Stand in for training: best at a learning rate of 1e-4 without KL."""
    value = 1 - abs(math.log10(values["grpo.learning_rate"]) + 4) / 4 - values["grpo.beta"]
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


@pytest.fixture
def fake_training(monkeypatch):
    monkeypatch.setattr(sweep, "train_shared_sft", lambda _: None)
    monkeypatch.setattr(sweep, "measure_trial", make_figure)
    monkeypatch.setattr("gptoss.memory.free_memory", lambda: None)


def fake_arguments(folder: Path, num_trials: int, *words: str):
    parameters = [word for text in PARAMETERS for word in ("--param", text)]
    return parse("--preset", "cpu", "--output-dir", str(folder), "--num-trials", str(num_trials),
                 *parameters, *words)


class Killed(BaseException):
    """Ends a sweep in the middle, as a signal does."""


def test_a_sweep_cut_at_any_trial_ends_as_one_left_alone(fake_training, tmp_path, monkeypatch):
    assert sweep.run_sweep(fake_arguments(tmp_path / "whole", 14)) == 0
    expected = read_rows(tmp_path / "whole")
    assert len(expected) == 14

    started = []

    def cut_odd(one, number, values):
        started.append(number)
        if number % 2 and started.count(number) == 1:
            raise Killed
        return make_figure(one, number, values)

    monkeypatch.setattr(sweep, "measure_trial", cut_odd)
    for _ in range(7):
        with pytest.raises(Killed):
            sweep.run_sweep(fake_arguments(tmp_path / "cut", 14))
    assert sweep.run_sweep(fake_arguments(tmp_path / "cut", 14)) == 0
    assert read_rows(tmp_path / "cut") == expected
    assert sorted(started) == sorted([*range(14), *range(1, 14, 2)])


def test_a_trial_killed_after_its_result_is_not_trained_again(fake_training, tmp_path, monkeypatch):
    import optuna

    original = optuna.Study.tell

    def kill(*_, **__):
        raise Killed

    monkeypatch.setattr(optuna.Study, "tell", kill)
    with pytest.raises(Killed):
        sweep.run_sweep(fake_arguments(tmp_path, 1))
    monkeypatch.setattr(optuna.Study, "tell", original)
    monkeypatch.setattr(sweep, "measure_trial", None)
    assert sweep.run_sweep(fake_arguments(tmp_path, 1)) == 0
    assert len(read_rows(tmp_path)) == 1


def test_a_kill_while_values_are_drawn_leaves_no_trial(fake_training, tmp_path):
    arguments = fake_arguments(tmp_path, 3)
    one = sweep_space.sweep_from_arguments(arguments)
    with sweep._locked(tmp_path):
        sweep.open_study(one).ask()  # begun, but no value is stored yet
    assert sweep.run_sweep(arguments) == 0
    assert len(read_rows(tmp_path)) == 3
    assert "" not in {row["grpo.beta"] for row in read_rows(tmp_path)}


def test_first_trial_is_the_preset_and_the_best_is_marked(fake_training, tmp_path, capsys):
    assert sweep.run_sweep(fake_arguments(tmp_path, 12)) == 0
    rows = read_rows(tmp_path)
    assert float(rows[0]["grpo.learning_rate"]) == configs.get_preset("cpu").grpo.learning_rate
    best = max(rows, key=lambda row: float(row["exact_match_rate"]))
    output = capsys.readouterr().out
    assert f"* {int(best['trial']):5d}" in output
    assert f"--set grpo.learning_rate={best['grpo.learning_rate']}" in output
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    # More trials of the same sweep are added to it; another sweep is refused.
    assert sweep.run_sweep(fake_arguments(tmp_path, 13)) == 0
    assert read_rows(tmp_path)[:12] == rows and len(read_rows(tmp_path)) == 13
    capsys.readouterr()
    assert sweep.run_sweep(fake_arguments(tmp_path, 13, "--set", "grpo.max_steps=7")) == 1
    assert "holds a sweep with other settings" in capsys.readouterr().err


def test_failed_trials_are_noted_and_the_sweep_goes_on(fake_training, tmp_path, monkeypatch):
    def fail_some(one, number, values):
        if number in (1, 2):
            raise RuntimeError("out of memory\nmore")
        return make_figure(one, number, values)

    monkeypatch.setattr(sweep, "measure_trial", fail_some)
    assert sweep.run_sweep(fake_arguments(tmp_path, 4)) == 0
    rows = read_rows(tmp_path)
    assert [row["state"] for row in rows] == ["done", "failed", "failed", "done"]
    assert rows[1]["error"] == "out of memory"
    assert "fail_some" in (tmp_path / "trials" / "001" / "error.txt").read_text()

    def too_long(one, number, values):
        if number == 1:
            raise SettingsError("26 of 26 rows need up to 1410 tokens")
        return make_figure(one, number, values)

    monkeypatch.setattr(sweep, "measure_trial", too_long)
    assert sweep.run_sweep(fake_arguments(tmp_path / "long", 3)) == 0
    assert [row["state"] for row in read_rows(tmp_path / "long")] == ["done", "failed", "done"]

    def fail_all(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sweep, "measure_trial", fail_all)
    assert sweep.run_sweep(fake_arguments(tmp_path / "none", 2)) == 1


def test_trouble_of_the_folder_or_the_study_ends_the_sweep_with_one_line(
    fake_training, tmp_path, monkeypatch, capsys
):
    def no_folder(*_):
        raise RunError("the folder cannot be used")

    monkeypatch.setattr(sweep, "measure_trial", no_folder)
    assert sweep.run_sweep(fake_arguments(tmp_path, 3)) == 1
    assert capsys.readouterr().err == "error: the folder cannot be used\n"

    def damage(one, number, values):
        (tmp_path / "cut" / "study.db").write_bytes(b"x" * 100_000)
        return make_figure(one, number, values)

    monkeypatch.setattr(sweep, "measure_trial", damage)
    assert sweep.run_sweep(fake_arguments(tmp_path / "cut", 3)) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'cut' / 'study.db'}: cannot be used (")
    assert told.count("\n") == 1
    (tmp_path / "study.db").write_text("no database")
    assert sweep.run_sweep(fake_arguments(tmp_path, 3)) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'study.db'}: cannot be used (file is not a database)")
    assert told.count("\n") == 1


def test_a_second_sweep_and_torchrun_are_refused(fake_training, tmp_path, monkeypatch, capsys):
    with sweep._locked(tmp_path):
        assert sweep.run_sweep(fake_arguments(tmp_path, 1)) == 1
    assert "another sweep is running" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sweep.run_sweep(fake_arguments(tmp_path, 1)) == 2
    assert "without torchrun" in capsys.readouterr().err


def real_arguments(folder: Path):
    """Return a sweep of two short trials over the random model."""
    config = tiny_random.tiny_config(folder)
    settings = [
        f"model.model_name={config.model.model_name}", "model.num_threads=1", "model.lora_rank=4",
        "sft.max_steps=2", "sft.per_device_train_batch_size=4", "sft.learning_rate=1e-2",
        "grpo.max_steps=3", "grpo.per_device_train_batch_size=8", "grpo.num_generations=4",
        "grpo.max_completion_length=8", "grpo.save_steps=1", "grpo.eval_steps=0",
        "grpo.early_stopping_patience=0", "grpo.resample_rounds=0", "evaluation.num_tasks=3",
        "evaluation.max_new_tokens=8", "evaluation.num_bootstrap=20", "show_progress=false",
    ]
    words = [word for text in settings for word in ("--set", text)]
    words += [word for text in PARAMETERS for word in ("--param", text)]
    return parse("--preset", "cpu", "--dataset", config.data.dataset_path, "--output-dir",
                 str(folder / "sweep"), "--num-trials", "2", *words)


def start(arguments, log_path: Path) -> int:
    """Fork a process that does the sweep, with rewards that have spread; return its id."""
    process_id = os.fork()
    if process_id:
        return process_id
    code = 70
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        pipeline.train_grpo = functools.partial(
            pipeline.train_grpo, make_rewards=resume_run.make_spread_rewards
        )
        code = sweep.run_sweep(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(arguments, log_path: Path) -> None:
    status = os.waitpid(start(arguments, log_path), 0)[1]
    assert status == 0, log_path.read_text()


def digests(folder: Path) -> list[str]:
    """Return the hashes of the trained adapters, in the order of the trials."""
    paths = sorted((folder / "sweep" / "trials").glob("*/final_model/adapter_model.safetensors"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.mark.slow
def test_a_real_sweep_killed_in_a_trial_ends_the_same(tmp_path):
    arguments = real_arguments(tmp_path)
    process_id = start(arguments, tmp_path / "killed.txt")
    # The second trial has a checkpoint but is not done: kill it there.
    checkpoint = tmp_path / "sweep" / "trials" / "001" / "checkpoint-1" / "complete.json"
    deadline = time.monotonic() + 90
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process_id, signal.SIGKILL)
    assert os.waitpid(process_id, 0)[1] == signal.SIGKILL, (tmp_path / "killed.txt").read_text()
    assert [row["trial"] for row in read_rows(tmp_path / "sweep")] == ["0"]
    kept = (tmp_path / "sweep" / "trials" / "000" / "trial.json",
            tmp_path / "sweep" / "shared" / "sft" / "adapter" / "complete.json")
    before = [path.stat().st_mtime_ns for path in kept]

    finish(arguments, tmp_path / "killed.txt")
    assert [path.stat().st_mtime_ns for path in kept] == before
    rows, adapters = read_rows(tmp_path / "sweep"), digests(tmp_path)
    assert len(rows) == len(set(adapters)) == 2

    (tmp_path / "sweep").rename(tmp_path / "killed")
    finish(arguments, tmp_path / "whole.txt")
    assert read_rows(tmp_path / "sweep") == rows and digests(tmp_path) == adapters
    assert not list((tmp_path / "sweep").glob("trials/*/checkpoint-*"))


def test_module_offers_the_command_without_torch():
    if importlib.util.find_spec("unsloth") is not None:
        pytest.skip("the package imports Unsloth, and so torch, where it is installed")
    code = "import sys; from training.sweep import build_sweep_parser, run_sweep; " \
        "build_sweep_parser(); sys.exit('torch' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
