"""A run that is killed at any moment and started again ends as if nothing had happened."""

import csv
import dataclasses
import errno
import hashlib
import json
import os
import random
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import resume_run
import torch
from safetensors.torch import load_file, save_file

import configs
from common.files import (
    RunError,
    build_folder,
    finish_move,
    is_complete,
    is_disk_full,
    latest_complete,
    mark_complete,
    read_json,
    remove_checkpoints,
)
from envs.retail import RetailDatabase
from envs.retail.store import DEFAULT_DATA_DIR
from gptoss.load import load_adapter, load_model, save_adapter
from gptoss.preflight import ModelError
from training import pipeline, run_data
from training.monitor import restore_best
from training.trainer import run_trainer

NUM_KILLS = 8


def finish(config, log_path: Path) -> float:
    """Run to the end in a process of its own; return its seconds."""
    started = time.monotonic()
    status = os.waitpid(resume_run.start(config, log_path), 0)[1]
    assert status == 0, log_path.read_text()
    return time.monotonic() - started


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folder, digests and seconds of a run that was left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = resume_run.resume_config(folder)
    seconds = finish(config, folder / "log.txt")
    return folder, resume_run.digests(folder / "run"), seconds


@pytest.mark.slow
def test_killed_runs_end_bitwise_equal(uninterrupted):
    """As does any second run with one seed: what was killed early is such a run."""
    folder, expected, seconds = uninterrupted
    first = folder / "run"
    shutil.move(first, folder / "left_alone")
    config = resume_run.resume_config(folder)
    draws = random.Random(0)
    kills = []
    while len(kills) < NUM_KILLS:
        process_id = resume_run.start(config, folder / "killed.txt")
        until = time.monotonic() + draws.uniform(0.1, 0.5) * seconds
        done = 0
        while time.monotonic() < until and not done:
            done, status = os.waitpid(process_id, os.WNOHANG)
            time.sleep(0.01)
        if done:
            # It came through before the moment drawn: compare, and begin another run.
            assert status == 0, (folder / "killed.txt").read_text()
            assert resume_run.digests(first) == expected
            shutil.rmtree(first)
            continue
        resume_run.kill(process_id)
        kills.append({path.name for path in first.glob("*")})
    finish(config, folder / "killed.txt")
    assert resume_run.digests(first) == expected
    stages = {"grpo" if "best_adapter" in names else "sft" for names in kills}
    assert stages == {"sft", "grpo"}, "the kills did not reach every stage"


@pytest.mark.slow
@pytest.mark.parametrize("stops", [
    {"grpo__max_kl": 1e-9, "grpo__eval_steps": 0},
    {"grpo__early_stopping_patience": 1, "grpo__eval_steps": 2},
], ids=["KL guard", "early stopping"])
def test_a_run_killed_after_it_stopped_early_does_not_train_on(tmp_path, monkeypatch, stops):
    config = resume_run.resume_config(
        tmp_path, sft__max_steps=1, grpo__generation_batch_size=0, **stops
    )
    finish(config, tmp_path / "log.txt")
    expected = resume_run.digests(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["stage"] == "grpo"]
    assert 0 < max(steps) < config.grpo.max_steps
    shutil.move(tmp_path / "run", tmp_path / "left_alone")
    save = pipeline._save_stage_adapter

    def die(run, model, tokenizer, folder):
        if folder.name == "final_model":
            raise KeyboardInterrupt
        save(run, model, tokenizer, folder)

    monkeypatch.setattr(pipeline, "_save_stage_adapter", die)
    with pytest.raises(KeyboardInterrupt):
        resume_run.run(config)
    monkeypatch.undo()
    finish(config, tmp_path / "log.txt")
    assert resume_run.digests(tmp_path / "run") == expected


@pytest.mark.slow
def test_run_out_of_memory_goes_on_with_the_setting_that_is_named(tmp_path):
    """Half the rows a pass and twice the passes are the same steps, up to the order of sums."""
    whole = resume_run.resume_config(
        tmp_path, sft__max_steps=1, grpo__generation_batch_size=0, model__sampling_rows=8
    )
    finish(whole, tmp_path / "log.txt")
    shutil.move(tmp_path / "run", tmp_path / "left_alone")

    def run_out(scorer):
        tool_reward, outcome_reward = resume_run.make_spread_rewards(scorer)
        calls = iter(range(4))

        def tool_reward_for_a_while(**kwargs):
            if next(calls, None) is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return tool_reward(**kwargs)

        tool_reward_for_a_while.__name__ = "tool_reward"
        return [tool_reward_for_a_while, outcome_reward]

    with pytest.raises(ModelError) as error:
        resume_run.run(whole, make_rewards=run_out)
    options = re.findall(r"--set (\S+)=(\S+)", str(error.value))
    assert str(error.value).endswith("--set grpo.gradient_accumulation_steps=4 --resume")
    smaller = configs.with_overrides(whole, dict(options))
    finish(smaller, tmp_path / "log.txt")

    start, expected, found = (
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("left_alone/sft/adapter", "left_alone/final_model", "run/final_model")
    )
    moved = sum((expected[n] - start[n]).square().sum() for n in start).sqrt()
    apart = sum((expected[n] - found[n]).square().sum() for n in start).sqrt()
    assert 0 < apart < 1e-4 * moved
    facts = read_json(tmp_path / "run" / "config.json", {})
    assert facts["settings"]["grpo"]["gradient_accumulation_steps"] == 4
    assert facts["changed_on_resume"] == [{
        "grpo.gradient_accumulation_steps": [2, 4], "grpo.per_device_train_batch_size": [4, 2],
    }]
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "grpo" and row["loss"]]
    steps = [row["step"] for row in rows]
    assert steps == [str(step) for step in range(1, 7)]


@pytest.mark.parametrize(("changes", "refused"), [
    ({"grpo__generation_batch_size": 8}, ""),
    ({"evaluation__batch_size": 2, "model__gradient_checkpointing": True}, ""),
    ({"merge_model": False}, ""),
    ({"sft__per_device_train_batch_size": 4, "sft__gradient_accumulation_steps": 2}, ""),
    # Checkpoints lie at every second step, calls of three steps do not end there.
    ({"grpo__generation_batch_size": 24}, "grpo.generation_batch_size=16, not 24"),
    ({"sft__per_device_train_batch_size": 4}, "sft.per_device_train_batch_size=8, not 4"),
    ({"grpo__max_completion_length": 11}, "grpo.max_completion_length=12, not 11"),
    ({"model__lora_reach": "attention"}, "model.lora_reach='attention+experts', not 'attention'"),
    ({"seed": 1}, "seed=3407, not 1"),
])
def test_settings_that_make_another_run_are_refused(tmp_path, changes, refused):
    one_pass = {"sft__gradient_accumulation_steps": 1}
    pipeline.prepare_run(resume_run.resume_config(tmp_path, **one_pass))
    parts = tmp_path / "run" / "evaluation_parts"
    parts.mkdir()
    before = (tmp_path / "run" / "config.json").read_text()
    other = resume_run.resume_config(tmp_path, **(one_pass | changes))
    if refused:
        with pytest.raises(RunError, match=f"was started with {re.escape(refused)}"):
            pipeline.prepare_run(other, resume=True)
        assert (tmp_path / "run" / "config.json").read_text() == before and parts.exists()
        return
    pipeline.prepare_run(other, resume=True)
    # A part of an evaluation in other batches could not be told from one in these.
    changed = set(changes) - {"merge_model"}
    assert parts.exists() == (not changed)
    facts = read_json(tmp_path / "run" / "config.json", {})
    (noted,) = facts.get("changed_on_resume", [{}])
    assert {name.replace(".", "__") for name in noted} == changed
    # What is compared next is what the run goes on with.
    with pytest.raises(RunError, match="was started with seed"):
        pipeline.prepare_run(dataclasses.replace(other, seed=2), resume=True)
    pipeline.prepare_run(other, resume=True)


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.bin").write_bytes(b"x" * 100)
    mark_complete(checkpoint)
    return checkpoint


def test_cut_checkpoints_are_skipped_and_removed(tmp_path):
    whole = make_checkpoint(tmp_path, 9)
    short = make_checkpoint(tmp_path, 10)
    (short / "weights.bin").write_bytes(b"x" * 99)
    unmarked = make_checkpoint(tmp_path, 11)
    (unmarked / "complete.json").unlink()
    missing = make_checkpoint(tmp_path, 12)
    (missing / "weights.bin").unlink()
    assert latest_complete(tmp_path) == whole
    remove_checkpoints(tmp_path, only_incomplete=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_folder_is_replaced_only_when_whole(tmp_path):
    target = tmp_path / "adapter"
    build_folder(target, lambda part: (part / "a.txt").write_text("old"))
    with pytest.raises(KeyError):
        build_folder(target, lambda part: {}["no"])
    assert (target / "a.txt").read_text() == "old"
    assert is_complete(target)


def test_a_whole_folder_left_beside_its_place_is_moved_there(tmp_path):
    target, beside = tmp_path / "adapter", tmp_path / "adapter.tmp"
    build_folder(beside, lambda part: (part / "a.txt").write_text("new"))
    target.mkdir()
    (target / "half.txt").write_text("old")
    finish_move(target)
    assert (target / "a.txt").read_text() == "new" and not beside.exists()
    build_folder(beside, lambda part: (part / "a.txt").write_text("newer"))
    finish_move(target)
    assert (target / "a.txt").read_text() == "new"
    (target / "complete.json").unlink()
    (beside / "complete.json").unlink()
    finish_move(target)
    assert (target / "a.txt").read_text() == "new"


def test_an_earlier_run_is_set_aside_wholly_or_not_at_all(tmp_path, monkeypatch):
    """Cut short while its files are moved, the folder still holds the earlier run's settings."""
    config = resume_run.resume_config(tmp_path)
    pipeline.prepare_run(config)
    folder = tmp_path / "run"
    for name in ("final_model", "metrics.csv"):
        (folder / name).write_text("earlier")
    move, calls = shutil.move, []

    def move_one(source, target):
        calls.append(Path(source).name)
        if len(calls) > 1:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr("training.pipeline.shutil.move", move_one)
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare_run(other)
    monkeypatch.undo()
    with pytest.raises(RunError, match="was started with seed=3407, not 1"):
        pipeline.prepare_run(other, resume=True)
    pipeline.prepare_run(other)
    assert {path.name for path in folder.iterdir()} == {"config.json", "run.lock"}
    aside = {path.name for path in tmp_path.glob("run.earlier-*/*")}
    assert aside == {"final_model", "metrics.csv", "config.json"}


def remove_a_row(folder: Path) -> str:
    path = folder / "tasks.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return f"{path} (40 lines then, 39 lines now)"


def change_gold(folder: Path) -> str:
    path = folder / "tasks.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["gold_final"] = "another"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return f"{path} (other content in 40 lines)"


def change_the_store(folder: Path) -> str:
    path = folder / "store" / "users.json"
    users = json.loads(path.read_text())
    next(iter(users.values()))["name"]["first_name"] = "Another"
    path.write_text(json.dumps(users))
    return f"store {folder / 'store'} (other content in"


@pytest.mark.parametrize("change", [remove_a_row, change_gold, change_the_store])
def test_a_run_is_not_resumed_on_other_data(tmp_path, change):
    shutil.copytree(DEFAULT_DATA_DIR, tmp_path / "store")
    config = resume_run.resume_config(tmp_path, data__data_dir=str(tmp_path / "store"))
    pipeline.prepare_run(config)
    record = tmp_path / "run" / "config.json"
    before = record.read_text()
    for path in (tmp_path / "tasks.jsonl", *(tmp_path / "store").iterdir()):
        path.write_bytes(path.read_bytes())
    pipeline.prepare_run(config, resume=True)
    told = change(tmp_path)
    # A setting that may change is not recorded when the run is refused.
    smaller = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, batch_size=2)
    )
    with pytest.raises(RunError) as error:
        pipeline.prepare_run(smaller, resume=True)
    assert "\n" not in str(error.value) and record.read_text() == before
    assert f"was started with other data: {told}" in str(error.value)
    assert "resume with the same data or choose another --output-dir" in str(error.value)
    # What an earlier version wrote says nothing about the data, and goes on.
    facts = json.loads(before)
    assert facts.pop("hashes")
    record.write_text(json.dumps(facts))
    pipeline.prepare_run(config, resume=True)


def test_each_task_file_is_hashed_once(tmp_path, monkeypatch):
    config = resume_run.resume_config(tmp_path)
    opened = []
    open_path = Path.open

    def note(path, *args, **kwargs):
        opened.append(str(path))
        return open_path(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", note)
    monkeypatch.setattr(run_data, "CHUNK_BYTES", 100)
    found = run_data.describe_content(config, RetailDatabase.load())
    assert opened.count(config.data.dataset_path) == 1
    digest = hashlib.sha256((tmp_path / "tasks.jsonl").read_bytes()).hexdigest()
    assert found[config.data.dataset_path] == {"sha256": digest, "size": "40 lines"}
    other = dataclasses.replace(config, data=dataclasses.replace(
        config.data, eval_dataset_path=str(shutil.copy(tmp_path / "tasks.jsonl", tmp_path / "b")),
    ))
    assert len(run_data.describe_content(other, RetailDatabase.load())) == 3


def damage(folder: Path, how: str) -> None:
    """Take a tensor out of a saved adapter, or add one that the model does not know."""
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    if how == "missing":
        del weights[name]
    else:
        weights[name.replace("layers.0", "layers.7")] = weights[name].clone()
    save_file(weights, path)
    mark_complete(folder)


@pytest.mark.parametrize("how", ["missing", "unknown"])
def test_an_adapter_that_does_not_fit_is_refused_wherever_it_is_loaded(tmp_path, how):
    config = resume_run.resume_config(tmp_path)
    run = pipeline.prepare_run(config)
    model, tokenizer = pipeline.load_run_model(run)
    saved = save_adapter(model, tokenizer, tmp_path / "saved")
    model.add_adapter("ref", model.peft_config["default"])
    load_adapter(model, saved)  # the reference policy's own weights are none of it
    damage(saved, how)
    for name in ("sft/adapter", "final_model", "best_adapter", "sft/checkpoint-1"):
        shutil.copytree(saved, run.folder / name)
        if name == "best_adapter":
            (run.folder / name / "step.json").write_text('{"step": 1}')
    trainer = SimpleNamespace(model=model, args=SimpleNamespace(output_dir=run.folder / "sft"))
    counts = "1 tensors missing, 0 unused" if how == "missing" else "0 tensors missing, 1 unused"
    for load in (
        lambda: pipeline.train_sft(run, model, tokenizer),
        lambda: pipeline.train_grpo(run, model, tokenizer),
        lambda: restore_best(run.folder, model, 1),
        lambda: run_trainer(trainer, resume=True),
        lambda: load_model(config.model, adapter_dir=saved),
    ):
        with pytest.raises(ModelError, match=f"adapter does not fit: {counts}") as error:
            load()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_without_settings_is_left_as_it_is(tmp_path, resume):
    config = resume_run.resume_config(tmp_path)
    folder = tmp_path / "run"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "mine.png").write_text("not of a run")
    pipeline.prepare_run(config, resume)
    assert (folder / "plots" / "mine.png").exists()
    (folder / "config.json").unlink()
    (folder / "final_model").mkdir()
    with pytest.raises(RunError, match="holds final_model of a run but no config.json; choose"):
        pipeline.prepare_run(config, resume)


def test_full_disk_is_one_clear_line_and_keeps_the_old_folder(tmp_path):
    target = tmp_path / "adapter"
    make_checkpoint(tmp_path, 7)
    build_folder(target, lambda part: (part / "a.txt").write_text("old"))

    def fill(part: Path) -> None:
        (part / "half.bin").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="disk full .*checkpoint-7 is intact.*--resume"):
        build_folder(target, fill)
    assert (target / "a.txt").read_text() == "old"


def test_full_disk_while_training_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    config = resume_run.resume_config(tmp_path, sft__num_train_epochs=1.0)
    original, calls = torch.save, []

    def fail_later(value, path, *args, **kwargs):
        calls.append(path)
        if "checkpoint-2" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fail_later)
    with pytest.raises(RunError, match="disk full .*checkpoint-1 is intact"):
        resume_run.run(config)
    assert calls
    monkeypatch.undo()
    assert latest_complete(tmp_path / "run" / "sft").name == "checkpoint-1"


def test_wrapped_disk_errors_are_recognised(tmp_path):
    assert is_disk_full(RuntimeError("PytorchStreamWriter: No space left on device"), tmp_path)
    assert not is_disk_full(RuntimeError("shape mismatch"), tmp_path)


def test_full_disk_while_evaluating_is_one_clear_line(tmp_path, monkeypatch):
    config = resume_run.resume_config(tmp_path)
    run = pipeline.prepare_run(config)
    model, tokenizer = pipeline.load_run_model(run)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.evaluation.write_json_atomic", fail)
    with pytest.raises(RunError, match="disk full .*--resume"):
        pipeline.evaluate_stage(run, model, tokenizer, "base")
