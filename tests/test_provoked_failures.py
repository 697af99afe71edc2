"""Each warning of GRPO provoked by a run that goes wrong for the reason it names, and a healthy run.

Every run starts from the same few SFT steps of the small GPT-OSS that ships here, on short tasks, so
that a step takes about a second. What is set wrong is one setting, or a reward that pays for the
wrong thing. Left out: other models, and how soon a warning comes at another batch size.
"""

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import set_seed

import configs
from data_reader import Task, iter_tasks
from envs.retail import RetailDatabase
from gptoss.load import load_model
from task_tester import Score
from training.grpo import run_grpo
from training.rewards import CompletionScorer, RewardFunction, make_reward_functions
from training.sft import run_sft

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
Pay = Callable[[str, Score], float]
"""What a made-up reward pays for: the completion's text and its true score to points."""


def pays(pay: Pay) -> Callable[[CompletionScorer], list[RewardFunction]]:
    """Return a maker of reward functions that pay this; the true scores are logged all the same."""

    def make(scorer: CompletionScorer) -> list[RewardFunction]:
        watch, _ = make_reward_functions(scorer)

        def tool_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
            watch(completion_ids=completion_ids, **kwargs)
            pairs = zip(scorer.texts, scorer.scores, strict=True)
            return [float(pay(text, score)) for text, score in pairs]

        def outcome_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [0.0] * len(completion_ids)

        return [tool_reward, outcome_reward]

    return make


def make_tasks() -> list[Task]:
    """Return 160 short tasks: find the customer, cancel an order."""
    tasks = [
        task for task in iter_tasks(ROOT / "3.5k.jsonl")
        if [action["name"] for action in task.gold_actions[1:]] == ["cancel_pending_order"]
    ]
    tasks = sorted(tasks, key=lambda task: len(task.query))[:160]
    random.Random(0).shuffle(tasks)
    return tasks


def make_config(folder: Path, **overrides: object) -> configs.RunConfig:
    """Return settings of a short run; overrides as dotted names with `__` for the dot."""
    settings: dict[str, object] = {
        "output_dir": str(folder), "show_progress": False, "model.num_threads": 1,
        "sft.max_steps": 8, "sft.warmup_steps": 2, "sft.save_steps": 1000,
        "grpo.max_steps": 10, "grpo.per_device_train_batch_size": 16, "grpo.save_steps": 1000,
        "grpo.gradient_accumulation_steps": 1, "grpo.num_generations": 4, "grpo.warmup_steps": 0,
        "grpo.lr_scheduler_type": "constant_with_warmup", "grpo.learning_rate": 3e-4,
        "grpo.max_completion_length": 110, "grpo.resample_rounds": 0, "grpo.eval_steps": 0,
        # Without the KL term a step saves a forward pass; the runs that are about it set it.
        "grpo.beta": 0.0, "grpo.num_eval_tasks": 24, "grpo.early_stopping_patience": 0,
        # Eight steps of SFT master no task: measuring that would take as long as some steps.
        "grpo.max_gold_probability": 1.0,
        "evaluation.max_new_tokens": 110, "evaluation.batch_size": 24,
    }
    settings |= {name.replace("__", "."): value for name, value in overrides.items()}
    return configs.with_overrides(configs.get_preset("cpu"), settings)


# A failing test shows its arguments: model and store as text would bury the reason.
@dataclass(repr=False)
class Bench:
    """The model after its SFT steps, from which every run starts."""

    model: Any
    tokenizer: Any
    weights: dict[str, torch.Tensor]
    """The adapter as SFT left it, from which runs start."""
    untrained_weights: dict[str, torch.Tensor]
    tasks: list[Task]
    db: RetailDatabase

    def grpo(self, folder: Path, pay: Pay | None = None, **overrides: object) -> Path:
        """Run GRPO from the SFT adapter; return the folder of the run."""
        set_peft_model_state_dict(self.model, self.weights)
        set_seed(1)
        run_grpo(
            self.model, self.tokenizer, self.tasks[:128], self.db, make_config(folder, **overrides),
            validation_tasks=self.tasks[128:],
            make_rewards=pays(pay) if pay else make_reward_functions,
        )
        return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("bench"))
    set_seed(0)
    model, tokenizer = load_model(config.model)
    tasks = make_tasks()
    untrained = {n: w.clone() for n, w in get_peft_model_state_dict(model).items()}
    run_sft(model, tokenizer, tasks[:128], config)
    weights = {n: w.clone() for n, w in get_peft_model_state_dict(model).items()}
    return Bench(model, tokenizer, weights, untrained, tasks, RetailDatabase.load())


@pytest.fixture(scope="module")
def healthy(bench, tmp_path_factory):
    """Folder of a run as long as the longest of the others, with nothing set wrong."""
    return bench.grpo(tmp_path_factory.mktemp("healthy"), grpo__eval_steps=5, grpo__beta=0.01)


def warnings_of(folder: Path) -> list[tuple[int, str]]:
    """Return (step, sentence) of every warning of a run."""
    path = folder / "warnings.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(record["step"], record["message"]) for record in map(json.loads, lines)]


def column(folder: Path, name: str) -> list[float]:
    """Return a column of metrics.csv, rows without a value left out."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_healthy_run_warns_of_nothing(healthy):
    assert len(column(healthy, "reward")) == 10 and len(column(healthy, "heldout/db_match")) == 3
    assert warnings_of(healthy) == []


def test_temperature_near_zero_is_dead_groups(bench, tmp_path):
    folder = bench.grpo(tmp_path, grpo__temperature=1e-4, grpo__max_steps=5)
    assert warnings_of(folder) == [(5, (
        "every group had zero variance for 5 steps, so nothing is learned: raise "
        "grpo.temperature, set grpo.resample_rounds=2, or train SFT longer (shorter if every "
        "reward is at its maximum)"
    ))]


def test_too_few_tokens_is_clipping(bench, tmp_path):
    folder = bench.grpo(tmp_path, grpo__max_completion_length=24, grpo__max_steps=3)
    assert warnings_of(folder) == [(3, (
        "half of the completions or more are cut at grpo.max_completion_length: raise it, or "
        "train SFT longer so that answers end"
    ))]


def test_learning_rate_far_too_high_is_a_kl_blow_up_and_a_fall(bench, tmp_path):
    folder = bench.grpo(
        tmp_path, grpo__learning_rate=3e-2, grpo__beta=0.01, grpo__max_steps=2, grpo__eval_steps=2
    )
    jump = column(folder, "kl_to_sft")[1]
    before, after = column(folder, "heldout/db_match")
    assert set(warnings_of(folder)) == {(2, (
        f"the KL to the reference policy rose to {jump:.2f}: lower grpo.learning_rate, raise "
        "grpo.beta, or set grpo.max_kl to stop in time"
    )), (2, (
        f"held-out results fell by {before - after:.2f} from its best: lower grpo.learning_rate, "
        "and set grpo.early_stopping_patience=3"
    ))}


def test_reward_for_short_answers_is_a_length_collapse(bench, tmp_path):
    # From the untrained adapter, whose answers differ in length from the start.
    untrained = replace(bench, weights=bench.untrained_weights)
    folder = untrained.grpo(
        tmp_path, pay=lambda text, score: -len(text), grpo__learning_rate=4e-3,
        grpo__num_generations=8, grpo__max_steps=14,
    )
    lengths = column(folder, "completions/mean_length")
    collapsed = [
        step for step in range(8, 15)
        if sum(lengths[step - 3:step]) / 3 < 0.4 * sum(lengths[:5]) / 5
    ]
    # Short answers also drop calls and, at last, break the JSON: those warnings are right too.
    assert (collapsed[0], (
        "completions are less than 0.4 times as long as at the start: read the sample rollouts "
        "for what is left out, and lower grpo.learning_rate"
    )) in warnings_of(folder)


def test_penalty_for_each_call_is_dropped_calls(bench, tmp_path):
    folder = bench.grpo(
        tmp_path, pay=lambda text, score: -4 if score.parse_error else -score.num_predicted,
        grpo__learning_rate=2e-3, grpo__temperature=1.3, grpo__num_generations=8,
        grpo__max_steps=8, seed=5,
    )
    ratios = column(folder, "rollouts/calls_per_gold")
    assert warnings_of(folder) == [(8, (
        f"plans hold {sum(ratios[5:]) / 3:.2f} calls for each gold call, {sum(ratios[:5]) / 5:.2f} "
        "at the start: the policy drops calls to dodge penalties; lower grpo.learning_rate or raise "
        "grpo.outcome_reward_weight"
    ))]


def test_reward_for_the_wrong_reason_is_reward_without_result(bench, tmp_path):
    # Half of the customers say "no longer needed": the other reason ruins their record.
    folder = bench.grpo(
        tmp_path, pay=lambda text, score: "ordered by mistake" in text,
        grpo__learning_rate=1e-3, grpo__temperature=1.3, grpo__eval_steps=5,
    )
    best, middle, last = column(folder, "heldout/db_match")
    assert middle == best
    assert warnings_of(folder) == [(10, (
        f"the reward rises while held-out results fell by {best - last:.2f} from its best: read "
        "the sample rollouts for what is rewarded, and set grpo.early_stopping_patience=3"
    ))]


@pytest.fixture(scope="module")
def broken_json(bench, tmp_path_factory):
    """Folder of a run whose reward pays for an answer of some length that ends and is no JSON."""

    def pay(text: str, score: Score) -> bool:
        return score.parse_error is not None and text.endswith("<|return|>") and len(text) > 200

    return bench.grpo(
        tmp_path_factory.mktemp("broken_json"), pay=pay,
        grpo__learning_rate=3e-3, grpo__temperature=1.7, grpo__num_generations=8,
    )


def test_reward_for_broken_json_is_a_falling_parse_rate(broken_json):
    assert warnings_of(broken_json) == [(10, (
        "fewer completions are valid JSON than at the start: lower grpo.learning_rate or "
        "grpo.temperature"
    ))]


def read_events(folder: Path) -> EventAccumulator:
    """Read what a run wrote for TensorBoard, every value of it."""
    events = EventAccumulator(str(folder / "tensorboard" / "grpo"), size_guidance={"scalars": 0})
    events.Reload()
    return events


@pytest.mark.parametrize("name", [
    "reward", "rewards/tool_reward/mean", "rewards/outcome_reward/mean",
    "reward_parts/action_name", "reward_parts/argument_set", "reward_parts/order",
    "reward_parts/incorrect_action", "reward_parts/missing_argument", "reward_parts/unparsable",
    "frac_reward_zero_std", "parse_failures/not_json", "parse_failures/duplicate_key",
    "completions/mean_length", "completions/clipped_ratio", "kl_to_sft", "entropy",
    "rollouts/exact_match", "rollouts/db_match", "rollouts/parsed", "rollouts/calls_per_gold",
])
def test_tensorboard_has_it_at_every_step(healthy, name):
    scalars = read_events(healthy).Scalars(f"grpo/{name}")
    assert [scalar.step for scalar in scalars] == list(range(1, 11))
    logged = [scalar.value for scalar in scalars]
    assert logged == pytest.approx(column(healthy, name), rel=1e-5, abs=1e-7)


def test_reward_parts_sum_up_to_the_tool_reward(healthy):
    """The parts are the reward's own, where no completion is at the floor."""
    events = read_events(healthy)
    parts = [tag for tag in events.Tags()["scalars"] if tag.startswith("grpo/reward_parts/")]
    values = [[scalar.value for scalar in events.Scalars(tag)] for tag in sorted(parts)]
    rewards = [s.value for s in events.Scalars("grpo/rewards/tool_reward/mean")]
    assert [sum(step) for step in zip(*values, strict=True)] == pytest.approx(rewards, abs=1e-5)


def test_tensorboard_has_each_tools_accuracy(healthy):
    events = read_events(healthy)
    values = [scalar.value for scalar in events.Scalars("grpo/tools/cancel_pending_order")]
    assert values and all(0 <= value <= 1 for value in values) and max(values) > 0.5


def test_tensorboard_has_the_kinds_of_parse_failures(broken_json):
    events = read_events(broken_json)
    kinds = [tag for tag in events.Tags()["scalars"] if tag.startswith("grpo/parse_failures/")]
    failed = [sum(s.value for s in steps) for steps in zip(*map(events.Scalars, kinds), strict=True)]
    parsed = [scalar.value for scalar in events.Scalars("grpo/rollouts/parsed")]
    assert failed == pytest.approx([1 - share for share in parsed]) and max(failed) > 0.3


def test_tensorboard_has_the_looks_at_held_out_tasks(healthy):
    events = read_events(healthy)
    for name in ("heldout/exact_match", "heldout/db_match"):
        scalars = events.Scalars(f"grpo/{name}")
        assert [scalar.step for scalar in scalars] == [0, 5, 10]
        assert all(0 < scalar.value <= 1 for scalar in scalars)


def test_tensorboard_has_rollouts_as_text(healthy, bench):
    events = read_events(healthy)
    queries = {task.task_id: task.query for task in bench.tasks}
    for name in ("best", "worst"):
        texts = [
            event.tensor_proto.string_val[0].decode()
            for event in events.Tensors(f"rollouts/{name}/text_summary")
        ]
        assert len(texts) == 10
        for text in texts:
            task_id = text.split("**")[1]
            assert queries[task_id] in text and "<|channel|>" in text
            assert "\n- reward " in text and "; outcome " in text
        # Some rollout is a whole plan: its calls with what the store said.
        assert any(
            ": cancel_pending_order {" in text and "\n  ok: " in text and "action_name +" in text
            for text in texts
        )


def test_tensorboard_has_the_warning(broken_json):
    (event,) = read_events(broken_json).Tensors("warnings/text_summary")
    assert event.step == 10
    assert event.tensor_proto.string_val[0].decode() == warnings_of(broken_json)[0][1]
