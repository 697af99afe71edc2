"""Watching: metrics.csv, sample rollouts, each warning, and the plots that read the files."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import resume_run
import tiny_random
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from data_reader import gold_completion
from gptoss.load import load_model
from prompting.harmony import render_completion
from training import trainer as stage_module
from training.grpo import run_grpo
from training.plots import plot_all
from training.rewards import CompletionScorer
from training.trainer import MetricsTable, RunLogger
from training.warning_rules import RULES, find_warnings


class CutAfter(TrainerCallback):
    """Ends the process's training as Ctrl-C does, once a step and its checkpoint are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def watched(tmp_path_factory, db):
    """Folder of a GRPO run of 6 steps with held-out looks and early stopping switched on."""
    folder = tmp_path_factory.mktemp("watched")
    config = tiny_random.tiny_config(
        folder, grpo__eval_steps=2, grpo__num_eval_tasks=3, grpo__early_stopping_patience=3,
        grpo__max_steps=9,
    )
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(12)
    run_grpo(model, tokenizer, tasks, db, config, validation_tasks=tasks[:4])
    return folder / "run"


def read_rows(folder) -> list[dict]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_keeps_rows_and_forgets_what_is_trained_again(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.add("sft", 1, {"loss": 0.5})
    table.add("sft", 2, {"loss": 0.25, "entropy": 1.0})
    table.add("grpo", 1, {"reward": -1.0})
    table.add("grpo", 1, {"heldout/db_match": 0.5})
    again = MetricsTable(tmp_path / "metrics.csv")
    assert again.rows == table.rows
    assert again.stage_rows("grpo", 9) == [{"step": 1, "reward": -1, "heldout/db_match": 0.5}]
    again.forget_after("sft", 1)
    again.add("sft", 2, {"loss": 0.125})
    rows = MetricsTable(tmp_path / "metrics.csv").stage_rows("sft", 9)
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.125}]


def test_a_run_leaves_its_metrics(watched):
    rows = read_rows(watched)
    assert [(row["stage"], row["step"]) for row in rows] == [("grpo", str(n)) for n in range(7)]
    looks = [row["step"] for row in rows if row["heldout/db_match"]]
    assert looks == ["0", "2", "4", "6"]
    for name in ("kl_to_sft", "entropy", "frac_reward_zero_std", "parse_failures/empty",
                 "completions/mean_length", "rewards/outcome_reward/mean"):
        assert name in rows[0], name


def test_early_stopping_keeps_the_best_adapter(watched):
    look = json.loads((watched / "best_adapter" / "step.json").read_text())
    assert look == {"step": 0, "db_match": 0.0, "exact_match": 0.0}


def test_the_best_look_s_adapter_ends_in_the_model(tmp_path, db, monkeypatch):
    config = tiny_random.tiny_config(
        tmp_path, grpo__max_steps=6, grpo__eval_steps=2, grpo__num_eval_tasks=3,
        grpo__early_stopping_patience=9, grpo__learning_rate=1e-2,
    )
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(12)
    figures = (figure for figure in (0.1, 0.5, 0.3, 0.5) for _ in range(3))

    def made_up(*_):
        figure = next(figures)
        return SimpleNamespace(db_match=figure, exact_match=figure)

    monkeypatch.setattr("training.monitor.score_completion", made_up)
    run_grpo(
        model, tokenizer, tasks, db, config, validation_tasks=tasks[:4],
        make_rewards=resume_run.make_spread_rewards,
    )
    best = tmp_path / "run" / "best_adapter"
    assert json.loads((best / "step.json").read_text())["step"] == 2
    kept = load_file(best / "adapter_model.safetensors")
    last = load_file(tmp_path / "run" / "checkpoint-6" / "adapter_model.safetensors")
    found = get_peft_model_state_dict(model)
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert any(not torch.equal(last[name], kept[name]) for name in kept)


def test_a_best_adapter_that_is_gone_is_made_again_from_where_the_run_goes_on(
    tmp_path, db, monkeypatch
):
    config = tiny_random.tiny_config(
        tmp_path, grpo__max_steps=4, grpo__eval_steps=2, grpo__num_eval_tasks=3,
        grpo__early_stopping_patience=9,
    )
    tasks = tiny_random.make_tasks(12)
    model, tokenizer = load_model(config.model)
    save = stage_module.run_trainer

    def cut(trainer, resume):
        trainer.add_callback(CutAfter(3))
        save(trainer, resume)

    monkeypatch.setattr("training.grpo.run_trainer", cut)
    with pytest.raises(KeyboardInterrupt):
        run_grpo(model, tokenizer, tasks, db, config, validation_tasks=tasks[:4])
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run" / "best_adapter")
    model, tokenizer = load_model(config.model)
    run_grpo(model, tokenizer, tasks, db, config, validation_tasks=tasks[:4], resume=True)
    look = json.loads((tmp_path / "run" / "best_adapter" / "step.json").read_text())
    assert look["step"] == 3


def test_tensorboard_has_rewards_by_name_and_rollouts_as_text(watched):
    events = EventAccumulator(str(watched / "tensorboard" / "grpo"))
    events.Reload()
    tags = events.Tags()
    assert "grpo/rewards/tool_reward/mean" in tags["scalars"]
    assert "grpo/rewards/outcome_reward/mean" in tags["scalars"]
    assert "rollouts/best/text_summary" in tags["tensors"]
    text = events.Tensors("rollouts/best/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "reward -1" in text and "parse error" in text


def test_dead_groups_are_warned_of_once(watched):
    records = [json.loads(line) for line in (watched / "warnings.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "dead_groups"] == [5]


def test_rollout_shows_query_calls_results_and_parts(db):
    task = tiny_random.make_tasks(2)[1]
    text = render_completion(gold_completion(task))
    tokenizer = tiny_random.make_tokenizer()
    scorer = CompletionScorer(tokenizer, db, [task])
    scorer.score([0], [tokenizer(text, add_special_tokens=False)["input_ids"]])
    shown = scorer.describe(0)
    assert task.query in shown and text in shown
    assert "find_user_id_by_email" in shown and "ok:" in shown and task.user_id in shown
    assert "action_name" in shown and "outcome 1" in shown


def steps(**columns: list[float]) -> list[dict]:
    names = {name.replace("__", "/"): values for name, values in columns.items()}
    length = max(map(len, names.values()))
    return [{"step": n, **{k: v[n] for k, v in names.items() if n < len(v)}} for n in range(length)]


CASES = {
    "dead_groups": (
        steps(frac_reward_zero_std=[0.2] + [1.0] * 5), steps(frac_reward_zero_std=[1.0] * 4 + [0.9])
    ),
    "clipping": (
        steps(completions__clipped_ratio=[0.1, 0.6, 0.5, 0.7]),
        steps(completions__clipped_ratio=[0.6, 0.6, 0.4]),
    ),
    "length_collapse": (
        steps(completions__mean_length=[80.0] * 5 + [20.0] * 3),
        steps(completions__mean_length=[80.0] * 5 + [50.0] * 3),
    ),
    "dropped_calls": (
        steps(rollouts__calls_per_gold=[1.0] * 5 + [0.7] * 3),
        steps(rollouts__calls_per_gold=[1.0] * 5 + [0.8] * 3),
    ),
    "kl_blow_up": (
        # A rise that no two steps show; a policy that soon is as far as it stays.
        steps(kl_to_sft=[0.05 * n for n in range(1, 30)]), steps(kl_to_sft=[0.2] * 10 + [0.9])
    ),
    "reward_without_result": (
        steps(reward=[1.0] * 5 + [2.0] * 7, heldout__db_match=[0.5] * 6 + [0.4] * 6),
        steps(reward=[1.0] * 5 + [2.0] * 7, heldout__db_match=[0.5] * 6 + [0.47] * 6),
    ),
    "result_falls": (
        steps(reward=[1.0] * 12, heldout__db_match=[0.5] * 6 + [0.3] * 6),
        steps(reward=[1.0] * 12, heldout__db_match=[0.5] * 6 + [0.4] * 6),
    ),
    "parse_rate_falls": (
        steps(rollouts__parsed=[0.9] * 5 + [0.7] * 5), steps(rollouts__parsed=[0.9] * 5 + [0.85] * 5)
    ),
    "sampler_apart": (
        steps(sampling__kl=[0.01, 0.1, 0.2, 0.1]), steps(sampling__kl=[0.9, 0.01, 0.2, 0.05]),
    ),
    "cut_turns": (
        steps(turn_failures__cut_off=[0.1, 0.5, 0.9, 0.6]), steps(turn_failures__cut_off=[0.9, 0.9, 0.1]),
    ),
    "context_full": (
        steps(turn_failures__context_full=[0.1, 0.5, 0.9, 0.6]),
        steps(turn_failures__context_full=[0.9, 0.9, 0.1], turn_failures__cut_off=[0.1] * 3,
              completions__clipped_ratio=[0.9] * 3),
    ),
    "talks_for_ever": tuple(
        steps(endings__turn_limit=[0.2, *last], endings__call_limit=[0.1] * 4,
              endings__customer_gave_up=[0.2] * 4)
        for last in ([0.2, 0.3, 0.2], [0.3, 0.1, 0.3])
    ),
    "never_writes": (
        steps(episodes__writes_per_gold=[0.9, 0.05, 0.0, 0.09]),
        steps(episodes__writes_per_gold=[0.0, 0.0, 0.2]),
    ),
    "always_transfers": (
        steps(episodes__needless_transfers=[0.0, 0.5, 0.9, 0.6]),
        steps(episodes__needless_transfers=[0.9, 0.9, 0.1]),
    ),
    "confirms_nothing": (
        steps(episodes__unconfirmed_writes=[0.0, 0.5, 1.0, 0.6]),
        steps(episodes__unconfirmed_writes=[1.0, 0.4, 0.6]),
    ),
}


def test_a_jump_of_the_kl_is_a_blow_up_as_well():
    assert find_warnings(steps(kl_to_sft=[0.01] * 10 + [0.9]))
    assert not find_warnings(steps(kl_to_sft=[0.01] * 10 + [0.09]))


@pytest.mark.parametrize("kind", RULES)
def test_each_warning_comes_when_it_should_and_only_then(kind):
    bad, good = CASES[kind]
    found = find_warnings(bad)
    assert [finding.kind for finding in found] == [kind]
    message = found[0].message
    assert "\n" not in message and any(w in message for w in ("grpo.", "model.", "SFT"))
    assert find_warnings(good) == []


def test_plots_are_made_from_files(watched, tmp_path):
    curves = ["loss.png", "rewards.png", "health.png"]
    assert [path.name for path in plot_all(watched)] == curves
    drawn = {path.name: path.read_bytes() for path in plot_all(watched)}
    # A run without GRPO, as with grpo.max_steps=0, has its plots too; the notebook shows each.
    empty = {path.name: path.read_bytes() for path in plot_all(tmp_path)}
    assert list(empty) == curves
    assert all(empty[name] != drawn[name] for name in curves)


def test_evaluation_plots(tmp_path, db):
    from training.evaluation import _write_evaluation, score_texts

    tasks = tiny_random.make_tasks(4)
    config = tiny_random.tiny_config(tmp_path)
    for label in ("base", "sft", "sft_grpo"):
        texts = [render_completion(gold_completion(task)) for task in tasks]
        texts[0] = render_completion("no plan")
        _write_evaluation(tmp_path, score_texts(tasks, texts, db, config, label), "completions.jsonl")
    names = [path.name for path in plot_all(tmp_path)]
    assert names[-2:] == ["evaluation.png", "failures.png"]
    notebook = Path(__file__).resolve().parent.parent / "gpt_oss_20b_tau_bench_rl_training.ipynb"
    shown = re.findall(r'Image\(plots_dir / \\"(\w+\.png)', notebook.read_text(encoding="utf-8"))
    assert shown and set(shown) <= set(names)


def test_kl_guard_stops_the_run(tmp_path, db):
    # Without a warm-up, whose first step would leave the policy where it was.
    config = tiny_random.tiny_config(
        tmp_path, grpo__max_kl=1e-9, grpo__learning_rate=1e-2, grpo__warmup_steps=0
    )
    model, tokenizer = load_model(config.model)
    run_grpo(model, tokenizer, tiny_random.make_tasks(8), db, config,
             make_rewards=resume_run.make_spread_rewards)
    assert [row["step"] for row in read_rows(tmp_path / "run")] == ["1", "2"]
    record = json.loads((tmp_path / "run" / "warnings.jsonl").read_text().splitlines()[0])
    assert (record["kind"], record["step"]) == ("kl_guard", 2)


def test_the_kl_is_named_by_its_reference_or_left_out(tmp_path, monkeypatch):
    state = type("State", (), {"global_step": 1, "max_steps": 4, "is_world_process_zero": True})
    for number, (beta, unsloth, wanted) in enumerate([
        (0.01, False, {"kl_to_sft": "0.5"}), (0.01, True, {"kl_to_base": "0.5"}), (0.0, True, {}),
    ]):
        folder = tmp_path / str(number)
        config = tiny_random.tiny_config(folder, grpo__beta=beta)
        monkeypatch.setattr("training.trainer.uses_unsloth", lambda stage: unsloth)
        logger = RunLogger(config, "grpo")
        logger.on_train_begin(None, state, None)
        logger.record({"kl": 0.5, "loss": 1.0}, 1)
        row = MetricsTable(folder / "run" / "metrics.csv").rows[0]
        assert row == {"stage": "grpo", "step": "1", "loss": "1.0"} | wanted
