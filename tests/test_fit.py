"""A task that would be cut is refused in one line, by file and line, before anything is computed."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_random
from transformers import AutoTokenizer, LlamaConfig

import configs
import task_tester
import train_script
from data_reader import Task, gold_completion, plan_messages, read_tasks, task_to_json
from gptoss.load import load_model, save_adapter
from prompting.harmony import render_completion, render_prompt
from training import pipeline, task_store
from training.fit import Demand, describe_long_tasks, find_long_tasks
from training.run_data import load_tasks

ROOT = Path(__file__).resolve().parent.parent
LONG = " Please hurry." * 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    tiny_random.tiny_config(folder)
    return folder


def write_long(path: Path, lines: list[int], count: int = 40) -> Path:
    """Write tasks of which those on some lines have a query of 2,100 bytes more."""
    tasks = [
        replace(task, query=task.query + LONG) if line in lines else task
        for line, task in enumerate(tiny_random.make_tasks(count), start=1)
    ]
    path.write_text("".join(task_to_json(task) + "\n" for task in tasks))
    return path


def lines_of_splits(folder: Path) -> list[list[int]]:
    train, validation, test, _ = load_tasks(tiny_random.tiny_config(folder))
    return [[task.line for task in part] for part in (train, validation, test)]


@pytest.mark.parametrize("style", ["brief", "full"])
@pytest.mark.parametrize("with_gold", [True, False])
def test_tokens_are_those_of_the_whole_text(style, with_gold):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-gpt-oss")
    tasks = read_tasks(ROOT / "dataset.jsonl")[:60]
    tasks.append(Task("Zoë 12 \u2028 \n\n x", tasks[0].gold_actions, "", "odd", line=999))
    demand = Demand("F", tasks) if with_gold else Demand("F", tasks, "setting", 31)
    found = dict(find_long_tasks(demand, tokenizer, style, limit=0))
    for task in tasks:
        text = render_prompt(plan_messages(task, style))
        text += render_completion(gold_completion(task)) if with_gold else ""
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert found[task.line] == tokens + (0 if with_gold else 31)
    limit = int(np.median(list(found.values())))
    long = {line: tokens for line, tokens in found.items() if tokens > limit}
    assert 0 < len(long) < len(tasks)
    assert dict(find_long_tasks(demand, tokenizer, style, limit)) == long


def test_sizes_on_disk_are_those_in_memory(folder):
    stored, _, _, _ = load_tasks(tiny_random.tiny_config(folder))
    assert isinstance(stored, task_store.StoredTasks)
    for part in (stored, stored[3:7], stored.select([5, 2])):
        assert task_store.text_sizes(part).tolist() == task_store.text_sizes(list(part)).tolist()
    assert task_store.text_sizes([]).shape == (0, 2)


@pytest.mark.parametrize(("split", "more", "answer"), [
    (0, {}, "the gold calls"),
    (0, {"sft__max_steps": 0}, "grpo.max_completion_length=12"),
    (1, {}, "evaluation.max_new_tokens=12"),
    (2, {}, "evaluation.max_new_tokens=12"),
])
def test_a_long_task_of_any_split_is_named_before_the_base_evaluation(
    folder, tmp_path, monkeypatch, capsys, split, more, answer
):
    line = lines_of_splits(folder)[split][0]
    path = write_long(tmp_path / "tasks.jsonl", [line])
    config = tiny_random.tiny_config(
        folder, data__dataset_path=str(path), data__eval_dataset_path=str(path),
        evaluation__num_tasks=0, output_dir=str(tmp_path / "run"), **more,
    )
    monkeypatch.setattr(configs, "config_from_arguments", lambda _: config)
    assert train_script.main([]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    need = int(re.search(r"need (\d+) tokens", error)[1])
    limit = config.model.max_seq_length
    assert f"error: {path}:{line}: the prompt and {answer} need {need} tokens" in error
    assert f"model.max_seq_length is {limit}; use --set model.max_seq_length=" in error
    assert not (tmp_path / "run" / "evaluation_parts").exists()
    # What the line says helps, to the token.
    named = int(re.search(r"--set model.max_seq_length=(\d+)", error)[1])
    for length, fits in ((named, True), (named - 1, False)):
        larger = replace(config, model=replace(config.model, max_seq_length=length))
        run = pipeline.prepare_run(larger)
        assert need <= named
        try:
            pipeline.load_run_model(run)
            assert fits
        except pipeline.SettingsError:
            assert not fits


def test_many_long_tasks_are_counted_and_the_models_own_limit_is_named(folder, tmp_path):
    path = write_long(tmp_path / "tasks.jsonl", list(range(3, 12)))
    config = tiny_random.tiny_config(folder, model__max_seq_length=512)
    demand = Demand(str(path), read_tasks(path), "evaluation.max_new_tokens", 12)
    tokenizer = tiny_random.make_tokenizer()

    def describe(context: int) -> str:
        model = SimpleNamespace(config=LlamaConfig(max_position_embeddings=context))
        return describe_long_tasks([demand], model, tokenizer, config)

    line = describe(100_000)
    assert line.startswith(f"{path}:3: ") and "\n" not in line
    assert f"(also too long: {path}:4, {path}:5, {path}:6 and 5 more)" in line
    assert describe(511).endswith("the model reads at most 511; leave these tasks out")


def test_evaluate_names_a_prompt_that_leaves_no_room(folder, tmp_path, capsys):
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"settings": json.loads(config.to_json())}))
    save_adapter(*load_model(config.model), tmp_path / "final_model")
    path = write_long(tmp_path / "tasks.jsonl", [2], count=3)
    words = ["evaluate", "--model", str(tmp_path / "final_model"), "--tasks", str(path)]
    output = tmp_path / "out"
    assert task_tester.main([*words, "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"error: {path}:2: the prompt and evaluation.max_new_tokens" in error
    assert not output.exists()
    assert task_tester.main([*words, "--output", str(output), "--limit", "1"]) == 0


@pytest.mark.parametrize("name", ["cpu", "t4", "24gb", "80gb"])
def test_the_shipped_tasks_fit_into_every_preset_and_the_check_is_fast(name):
    config = configs.get_preset(name)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-gpt-oss")
    model = SimpleNamespace(config=LlamaConfig(max_position_embeddings=4096))
    tasks = read_tasks(ROOT / "3.5k.jsonl")
    demands = [
        Demand("F", tasks), Demand("F", tasks, "a", config.grpo.max_completion_length),
        Demand("F", tasks, "b", config.evaluation.max_new_tokens),
    ]
    started = time.process_time()
    assert describe_long_tasks(demands, model, tokenizer, config) == ""
    assert time.process_time() - started < 10
