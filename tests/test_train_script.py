"""The command: exit codes, one-line errors, and a run from end to end."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_random

import train_script
from training.pipeline import prepare_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    tiny_random.tiny_config(folder)
    return folder


def words(folder: Path, *more: str) -> list[str]:
    """The command line of a run of one step a stage on the random model."""
    settings = {
        "model.model_name": folder / "model", "model.num_threads": 1, "model.lora_rank": 4,
        "sft.max_steps": 1, "sft.per_device_train_batch_size": 4, "grpo.max_steps": 1,
        "grpo.per_device_train_batch_size": 8, "grpo.max_completion_length": 8,
        "evaluation.num_tasks": 4, "evaluation.max_new_tokens": 8, "show_progress": "false",
    }
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["--preset", "cpu", "--dataset", str(folder / "tasks.jsonl"), *sets, *more]


def test_a_run_from_end_to_end(folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert train_script.main(words(folder, "--output-dir", str(output))) == 0
    assert capsys.readouterr().out.rstrip().endswith(
        f"done: {output} holds final_model, evaluation.json and plots")
    facts = json.loads((output / "config.json").read_text())
    assert facts["settings"]["sft"]["max_steps"] == 1
    assert "torch" in facts["versions"] and "git_hash" in facts
    stages = json.loads((output / "evaluation.json").read_text())
    assert list(stages) == ["base", "sft", "sft_grpo"]
    names = {path.name for path in output.iterdir()}
    assert {"metrics.csv", "completions.jsonl", "final_model", "merged_model", "plots", "sft",
            "tensorboard"} <= names
    assert (output / "final_model" / "adapter_model.safetensors").exists()
    # A finished run that is resumed is read back: same figures, no training.
    metrics = (output / "metrics.csv").read_bytes()
    assert train_script.main(words(folder, "--output-dir", str(output), "--resume")) == 0
    assert (output / "metrics.csv").read_bytes() == metrics
    # With other settings it is refused; without --resume it is moved aside, not overwritten.
    other = words(folder, "--output-dir", str(output), "--resume", "--set", "sft.max_steps=2")
    assert train_script.main(other) == 1
    assert "was started with sft.max_steps=1, not 2" in capsys.readouterr().err
    prepare_run(tiny_random.tiny_config(folder, output_dir=str(output)))
    assert (tmp_path / "run.earlier-1" / "evaluation.json").exists()
    assert not (output / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--preset", "gpu"], 2, "unknown preset 'gpu'; choose one of auto, cpu"),
        (["--set", "grpo.lr=1"], 2, "unknown field 'grpo.lr'"),
        (["--set", "grpo"], 2, "write STAGE.FIELD=VALUE"),
        (["--dataset", "none.jsonl"], 1, "none.jsonl: cannot be read"),
        (["--dataset", "EMPTY"], 1, "holds no task"),
        (["--dataset", "TWO"], 1, "split: 0 tasks"),
        (["--dataset", "BROKEN"], 1, "row: not valid JSON"),
        (["--dataset", "REFUSED"], 1, "gold_actions: "),
        (["--output-dir", "FILE/run"], 1, "cannot be written"),
        (["--set", "model.model_name=models/none"], 1, "models/none: no such folder"),
    ],
)
def test_errors_are_one_clear_line(folder, tmp_path, capsys, arguments, code, message):
    (tmp_path / "EMPTY").write_text("")
    lines = (folder / "tasks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "TWO").write_text("".join(lines[:2]))
    (tmp_path / "BROKEN").write_text("".join(lines[:30]) + "{\n")
    row = json.loads(lines[0]) | {"task_id": "refused"}
    row["gold_actions"] = [{"name": "get_user_details", "arguments": {"user_id": "nobody_1"}}]
    (tmp_path / "REFUSED").write_text("".join(lines[:30]) + json.dumps(row) + "\n")
    (tmp_path / "FILE").write_text("")
    found = [
        str(tmp_path / word) if word.split("/")[0] in ("EMPTY", "TWO", "BROKEN", "REFUSED", "FILE")
        else word for word in arguments
    ]
    line = words(folder, "--output-dir", str(tmp_path / "run"), *found)
    assert train_script.main(line) == code
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1, error


def test_a_full_disk_is_one_line(folder, tmp_path, capsys, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.pipeline.run_pipeline", fill)
    assert train_script.main(words(folder, "--output-dir", str(tmp_path / "run"), "--resume")) == 1
    out, err = capsys.readouterr()
    assert out == f"no earlier run in {tmp_path / 'run'}: a new one begins\n"
    assert err.startswith(f"error: disk full while writing {tmp_path / 'run'}: ")
    assert err.count("\n") == 1


def test_difficulty_tags_are_looked_at_before_training_with_a_curriculum(folder, tmp_path, capsys):
    rows = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
    for row in rows:
        row["tags"] = {"difficulty": "very hard"}
    path = tmp_path / "tagged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = words(folder, "--output-dir", str(tmp_path / "run"), "--dataset", str(path))
    assert train_script.main([*arguments, "--set", "grpo.curriculum=true"]) == 1
    told = capsys.readouterr().err
    assert f"error: {path}:" in told and "tags.difficulty is 'very hard'; write easy" in told
    assert not (tmp_path / "run").exists()


def test_invalid_rows_are_skipped_on_purpose(folder, tmp_path):
    lines = (folder / "tasks.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path / "some.jsonl"
    path.write_text("".join(lines) + "{\n")
    config = tiny_random.tiny_config(
        folder, data__dataset_path=str(path), data__eval_dataset_path=str(path),
        data__skip_invalid_tasks=True, evaluation__num_tasks=0, output_dir=str(tmp_path / "run"),
    )
    run = prepare_run(config)
    assert len(run.train) + len(run.validation) + len(run.test) == len(lines)
    users = [{task.user_id for task in part} for part in (run.train, run.validation, run.test)]
    assert not users[0] & users[1] and not users[0] & users[2] and not users[1] & users[2]


def test_a_folder_that_cannot_be_written_as_another_user_sees_it(folder, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert train_script.main(words(folder, "--output-dir", str(blocked))) == 1
    assert "choose another --output-dir" in capsys.readouterr().err


def test_help_and_unknown_options():
    command = [sys.executable, str(ROOT / "train_script.py")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--resume" in shown.stdout and "torchrun" in shown.stdout
    assert subprocess.run([*command, "--nonsense"], capture_output=True).returncode == 2


def test_help_lists_the_commands(capsys):
    for word in ("-h", "--help"):
        with pytest.raises(SystemExit) as stop:
            train_script.main([word])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert all(re.search(rf"^    {name} ", shown, re.M) for name in train_script.COMMANDS)
        assert "--preset P" in shown


@pytest.mark.parametrize(("words", "run", "values"), [
    ([], "train", {"preset": "auto", "resume": False}),
    (["--preset", "cpu", "--resume"], "train", {"preset": "cpu", "resume": True}),
    (["train", "--set", "seed=1"], "train", {"overrides": ["seed=1"]}),
    (["chat", "--model", "D"], "chat", {"model": "D"}),
    (["export", "--model", "D", "--format", "gguf", "--output", "O"], "export", {"format": "gguf"}),
    (["sweep", "--preset", "cpu", "--num-trials", "3"], "sweep", {"preset": "cpu", "num_trials": 3}),
])
def test_words_choose_the_command(words, run, values):
    arguments = vars(train_script.parse_arguments(words))
    assert arguments["run"] is getattr(train_script, run)
    assert values.items() <= arguments.items()


@pytest.mark.parametrize("words", [["--preset", "cpu", "chat"], ["chat"], ["no_command"], ["sweep", "x"]])
def test_words_that_fit_no_command_are_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as stop:
        train_script.main(words)
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err
