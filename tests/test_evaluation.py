"""Evaluation: the same answers whatever the batching, files that a kill leaves whole, pairing."""

import json
from dataclasses import replace

import pytest
import tiny_random
import torch

from common.files import RunError
from data_reader import gold_completion, plan_prompt
from gptoss.generation import generate_batch, split_batches
from gptoss.load import load_model, save_adapter
from prompting.harmony import render_completion
from training import evaluation as evaluation_module
from training.evaluation import (
    choose_tasks,
    compare_evaluations,
    complete_tasks,
    evaluate_model,
    evaluate_model_dir,
    format_table,
    print_table,
    record_differences,
    score_texts,
)

METRICS = {
    "exact_match_rate", "action_precision", "action_recall", "action_f1", "json_parse_success",
    "ordering_accuracy", "completeness_score", "db_match_rate", "mean_reward",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def loaded(folder):
    model, tokenizer = load_model(tiny_random.tiny_config(folder).model)
    # Weights that never end an answer would make every comparison below trivial.
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model.eval(), tokenizer


def test_batches_hold_every_prompt_once_sorted_by_length():
    batches = split_batches([5, 1, 9, 1, 7], batch_size=2)
    assert batches == [[1, 3], [0, 4], [2]]


def test_answers_do_not_depend_on_the_batch_they_are_in(folder, loaded):
    tasks = tiny_random.make_tasks(7)
    answers = []
    for size in (1, 3, 7):
        config = tiny_random.tiny_config(folder, evaluation__batch_size=size)
        answers.append(complete_tasks(*loaded, tasks, config, parts_dir=None))
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) > 1


def test_decoding_is_what_the_plain_loop_gives(loaded):
    """Greedy decoding with cache and padding against argmax over full forward passes."""
    model, tokenizer = loaded
    prompts = [plan_prompt(task, "brief") for task in tiny_random.make_tasks(2)]
    texts = generate_batch(model, tokenizer, prompts, max_new_tokens=6)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                token = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
            ids.append(token)
            if token in model.generation_config.eos_token_id:
                break
        assert tokenizer.decode(ids[start:]) == text


def test_sampling_follows_the_seed(folder, loaded):
    tasks = tiny_random.make_tasks(4)
    config = tiny_random.tiny_config(folder, evaluation__greedy=False)
    first = complete_tasks(*loaded, tasks, config, None)
    assert complete_tasks(*loaded, tasks, config, None) == first
    assert complete_tasks(*loaded, tasks, replace(config, seed=config.seed + 1), None) != first


def test_files_and_restart_by_batch(tmp_path, folder, loaded, db, monkeypatch):
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path))
    tasks = tiny_random.make_tasks(7)
    whole = evaluate_model(*loaded, tasks, db, config, "base")
    assert set(whole.metrics) == METRICS | {"num_tasks"}
    assert not (tmp_path / "evaluation_parts").exists()
    calls = []

    def cut(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return generate_batch(*args, **kwargs)

    monkeypatch.setattr(evaluation_module, "generate_batch", cut)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(*loaded, tasks, db, config, "sft")
    assert list(json.loads((tmp_path / "evaluation.json").read_text())) == ["base"]
    again = []
    monkeypatch.setattr(
        evaluation_module, "generate_batch",
        lambda *args, **kwargs: again.append(args) or generate_batch(*args, **kwargs),
    )
    second = evaluate_model(*loaded, tasks, db, config, "sft")
    assert len(again) == 1, "finished batches were decoded again"
    assert second.metrics == whole.metrics
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["base"] == written["sft"] == whole.metrics
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["base"] * 7 + ["sft"] * 7
    assert [row["task_id"] for row in rows[:7]] == [task.task_id for task in tasks]


def test_a_finished_stage_is_read_back(tmp_path, folder, loaded, db, monkeypatch):
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path))
    tasks = tiny_random.make_tasks(3)
    first = evaluate_model(*loaded, tasks, db, config, "base")
    monkeypatch.setattr(evaluation_module, "generate_batch", None)
    assert evaluate_model(*loaded, tasks, db, config, "base") == first
    with pytest.raises(RunError, match="other tasks"):
        evaluate_model(*loaded, tasks[:2], db, config, "base")


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_completions_cut_short_are_told_and_the_remedy_works(tmp_path, folder, loaded, db, keep):
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path))
    tasks = tiny_random.make_tasks(3)
    first = evaluate_model(*loaded, tasks, db, config, "base")
    path = tmp_path / "completions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    line = path.read_bytes().count(b"\n") + 1
    for stage in ("base", "sft"):
        with pytest.raises(RunError) as caught:
            evaluate_model(*loaded, tasks, db, config, stage)
        told = str(caught.value)
        assert told.startswith(f"{path}:{line}: not valid JSON (") and "\n" not in told
        assert "copy the file again, or delete it and evaluation.json" in told
    path.unlink()
    (tmp_path / "evaluation.json").unlink()
    assert evaluate_model(*loaded, tasks, db, config, "base") == first


def test_rare_line_ends_in_a_completion_are_read_back(tmp_path, folder, db):
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path))
    tasks = tiny_random.make_tasks(1)
    written = score_texts(tasks, [render_completion("a\u2028b\x85c")], db, config, "base")
    evaluation_module._write_evaluation(tmp_path, written, "completions.jsonl")
    assert evaluate_model(None, tiny_random.make_tokenizer(), tasks, db, config, "base") == written


def test_pairing_is_narrower_and_signed(folder, db):
    config = tiny_random.tiny_config(folder)
    tasks = tiny_random.make_tasks(30)
    gold = [render_completion(gold_completion(task)) for task in tasks]
    bad = [render_completion("no plan")] * 30
    worse = score_texts(tasks, gold[:10] + bad[10:], db, config, "sft")
    better = score_texts(tasks, gold[:20] + bad[20:], db, config, "sft_grpo")
    gain = compare_evaluations(worse, better, 500, seed=0)["exact_match_rate"]
    assert gain["value"] == pytest.approx(1 / 3)
    assert 0 < gain["low"] < gain["value"] < gain["high"] < 1
    none = compare_evaluations(better, better, 500, seed=0)["exact_match_rate"]
    assert none == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_table_and_differences_are_printed(tmp_path, folder, db, capsys):
    print_table(tmp_path)
    assert "no stage was evaluated yet" in capsys.readouterr().out
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path))
    tasks = tiny_random.make_tasks(4)
    gold = [render_completion(gold_completion(task)) for task in tasks]
    stages = [score_texts(tasks, gold, db, config, label) for label in ("base", "sft")]
    table = format_table({stage.label: stage.metrics for stage in stages})
    assert "exact_match_rate" in table and "1.000 [1.000, 1.000]" in table
    assert "4 held-out tasks" in table
    record_differences(stages, config)
    details = json.loads((tmp_path / "evaluation_details.json").read_text())
    assert details["differences"]["SFT minus base"]["db_match_rate"]["value"] == 0


def test_sample_of_tasks_is_stable():
    tasks = tiny_random.make_tasks(20)
    chosen = choose_tasks(tasks, 5, seed=1)
    assert chosen == choose_tasks(tasks, 5, seed=1) != choose_tasks(tasks, 5, seed=2)
    assert choose_tasks(tasks, 0, seed=1) == tasks == choose_tasks(tasks, 99, seed=1)


@pytest.mark.parametrize("num_trials", [1, 2])
def test_model_folder_is_evaluated(tmp_path, folder, loaded, db, num_trials):
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path))
    record = {"settings": json.loads(config.to_json())}
    (tmp_path / "config.json").write_text(json.dumps(record))
    save_adapter(*loaded, tmp_path / "final_model")
    tasks = tiny_random.make_tasks(3)
    result = evaluate_model_dir(
        model=str(tmp_path / "final_model"), tasks=tasks, db=db, output_dir=tmp_path / "out",
        num_trials=num_trials,
    )
    assert result == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(result) == {"model"} and result["model"]["num_tasks"] == 3
    rows = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    assert len(rows) == 3 * num_trials
