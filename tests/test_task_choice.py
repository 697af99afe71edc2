"""Which tasks GRPO trains on: a file of their own, and those that SFT did not master."""

import json
import math
from dataclasses import replace
from statistics import fmean

import pytest
import tiny_random
import torch
from transformers import AutoTokenizer

import configs
from common.files import RunError, SettingsError, mark_complete
from data_reader import DatasetError, read_tasks, sft_rows
from gptoss.load import load_model
from training import pipeline, task_choice
from training.rewards import make_reward_functions
from training.run_data import load_grpo_tasks, load_tasks
from training.task_choice import gold_probabilities, leave_out_long, leave_out_mastered


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_random.tiny_config(tmp_path_factory.mktemp("choice"), grpo__max_steps=1)


@pytest.fixture(scope="module")
def tasks(config):
    return read_tasks(config.data.dataset_path)


def limited(config, limit, folder):
    """Return the settings with a limit and another folder."""
    stage = replace(config.grpo, max_gold_probability=limit)
    return replace(config, grpo=stage, output_dir=str(folder))


def test_the_probability_of_gold_is_that_of_its_tokens_one_by_one(db):
    small = configs.get_preset("cpu")
    model, tokenizer = load_model(small.model, trainable=False)
    tasks = read_tasks("dataset.jsonl")[:10]
    found = gold_probabilities(model, tokenizer, tasks, small.data.prompt_style)
    assert len({len(task.query) for task in tasks}) > 5  # rows of a pass are padded
    for row, value in zip(sft_rows(tasks, small.data.prompt_style), found, strict=True):
        prompt, completion = (
            tokenizer(row[part], add_special_tokens=False)["input_ids"]
            for part in ("prompt", "completion")
        )
        with torch.no_grad():
            logps = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        total = sum(
            float(logps[len(prompt) - 1 + place, token]) for place, token in enumerate(completion)
        )
        assert math.log(value) == pytest.approx(total, rel=1e-4)


def test_mastered_tasks_are_left_out_and_a_resume_keeps_the_choice(config, tasks, tmp_path, monkeypatch):
    changed = limited(config, 0.9, tmp_path)
    values = [0.95 if number % 3 else 0.2 for number in range(len(tasks))]
    monkeypatch.setattr(task_choice, "gold_probabilities", lambda *_: values)
    left = leave_out_mastered(None, None, tasks, changed)
    assert left == tasks[::3]
    # A resumed run reads the choice: it measures nothing.
    monkeypatch.setattr(task_choice, "gold_probabilities", None)
    assert leave_out_mastered(None, None, tasks, changed) == left


def test_agent_mode_leaves_out_tasks_whose_conversations_outgrow_the_context(db, tmp_path):
    small = configs.get_preset("cpu", "agent")
    tokenizer = AutoTokenizer.from_pretrained(small.model.model_name)
    tasks = read_tasks("dataset.jsonl")[:40]

    def left(tokens):
        folder = str(tmp_path / str(tokens))
        changed = {"output_dir": folder, "model.max_seq_length": tokens}
        return leave_out_long(tokenizer, tasks, db, configs.with_overrides(small, changed))

    kept, more = left(1024), left(2048)
    assert 0 < len(kept) < len(more) < len(tasks)
    assert all(task in more for task in kept)
    # By the oracle's calls: what is left out reads more of the store.
    calls = [[len(task.gold_actions) for task in tasks if (task in kept) == is_kept] for is_kept in (0, 1)]
    assert fmean(calls[0]) > fmean(calls[1])
    assert left(2048) == more
    with pytest.raises(SettingsError, match="model.max_seq_length=201 leaves no task"):
        left(201)


def test_grpo_that_began_with_all_tasks_keeps_them(db, tmp_path, monkeypatch, capsys):
    """A run that was cut before tasks were left out has checkpoints but no choice."""
    small = configs.with_overrides(configs.get_preset("cpu", "agent"), {"output_dir": str(tmp_path)})
    tasks = read_tasks("dataset.jsonl")[:4]
    monkeypatch.setattr(task_choice, "conversation_row", lambda *_: {"input_ids": [0] * 10_000})
    (tmp_path / "checkpoint-2").mkdir()  # a kill cut it: it does not count
    (tmp_path / "sft" / "checkpoint-3").mkdir(parents=True)
    mark_complete(tmp_path / "sft" / "checkpoint-3")
    with pytest.raises(SettingsError, match="leaves no task"):
        leave_out_long(None, tasks, db, small)
    (tmp_path / "grpo_tasks.json").unlink()
    capsys.readouterr()
    mark_complete(tmp_path / "checkpoint-2")
    for _ in range(2):
        assert list(leave_out_long(None, tasks, db, small)) == tasks
    assert capsys.readouterr().out == "GRPO keeps all 4 tasks, as it began before tasks were left out\n"


def test_a_limit_that_leaves_no_task_is_one_line(config, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(task_choice, "gold_probabilities", lambda *_: [0.95] * len(tasks))
    with pytest.raises(SettingsError, match="leaves no task.*data.grpo_dataset_path"):
        leave_out_mastered(None, None, tasks, limited(config, 0.9, tmp_path))


def test_each_file_needs_only_the_customers_that_it_is_read_for(config, tmp_path):
    path = tmp_path / "all.jsonl"
    tiny_random.write_tasks(path, 60)
    rows = path.read_text().splitlines(keepends=True)
    whole = configs.with_overrides(config, {"data.dataset_path": str(path), "data.eval_dataset_path": str(path)})
    train, validation, test, db = load_tasks(whole)
    files = {"train": train, "held_out": [*validation, *test]}
    for name, tasks in files.items():
        (tmp_path / name).write_text("".join(rows[task.line - 1] for task in tasks))
    train_only, held_out = str(tmp_path / "train"), str(tmp_path / "held_out")
    apart = configs.with_overrides(config, {
        "data.dataset_path": train_only, "data.eval_dataset_path": held_out,
        "data.grpo_dataset_path": train_only,
    })
    found = load_tasks(apart)
    assert [len(part) for part in found[:3]] == [len(train), len(validation), len(test)]
    assert len(load_grpo_tasks(apart, found[0], db)) == len(train)
    one_file = configs.with_overrides(apart, {"data.eval_dataset_path": train_only})
    with pytest.raises(DatasetError, match="test split: 0 tasks"):
        load_tasks(one_file)
    for field in ("data.dataset_path", "data.grpo_dataset_path"):
        wrong = configs.with_overrides(apart, {field: held_out})
        with pytest.raises(DatasetError, match="train split: 0 tasks"):
            load_grpo_tasks(wrong, load_tasks(wrong)[0], db)


def test_grpo_trains_on_a_file_of_its_own(config, tmp_path):
    own = tmp_path / "own.jsonl"
    tiny_random.write_tasks(own, 60)
    rows = [json.loads(line) for line in own.read_text().splitlines()]
    own.write_text("".join(json.dumps(row | {"query": row["query"] + " Today."}) + "\n" for row in rows))
    own_config = configs.with_overrides(config, {
        "data.grpo_dataset_path": str(own), "output_dir": str(tmp_path / "run"),
    })
    run = pipeline.prepare_run(own_config)
    assert run.grpo_train and all(task.query.endswith(" Today.") for task in run.grpo_train)
    assert not any(task.query.endswith(" Today.") for task in run.train)
    held_out = {task.user_id for task in [*run.validation, *run.test]}
    assert not held_out & {task.user_id for task in run.grpo_train}
    shown = []

    def make_rewards(scorer):
        tool_reward, outcome_reward = make_reward_functions(scorer)

        def watch(**given):
            rewards = tool_reward(**given)
            shown.extend(scorer.tasks)
            return rewards

        return [watch, outcome_reward]

    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_grpo(run, model, tokenizer, make_rewards=make_rewards)
    assert shown and all(task.query.endswith(" Today.") for task in shown)
    run.lock.close()
    with own.open("a") as stream:
        stream.write(json.dumps(rows[0] | {"task_id": "one-more"}) + "\n")
    with pytest.raises(RunError, match="own.jsonl .60 lines then, 61 lines now. changed"):
        pipeline.prepare_run(own_config, resume=True)
