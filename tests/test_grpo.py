"""GRPO: rewards from one scoring, order of tasks, reference policy, resampling, a step that learns."""

from types import SimpleNamespace

import pytest
import resume_run
import tiny_random
import torch
from datasets import Dataset

from benchmarks.controls import make_random_rewards
from benchmarks.cpu_step import StepClock
from data_reader import Task, gold_completion, grpo_rows, plan_prompt
from gptoss.generation import Completion
from gptoss.load import load_model
from prompting.harmony import render_completion
from task_tester import score_completion
from training import rewards as rewards_module
from training.dynamic_sampling import DynamicSampler, Group
from training.grpo import build_grpo_trainer, count_steps, order_by_difficulty, run_grpo
from training.rewards import CompletionScorer, make_reward_functions, summarize_batch
from training.trainer import run_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grpo")


def batch_of(tokenizer, numbers: list[int], texts: list[str]) -> dict:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return {"completion_ids": ids, "task": numbers}


def test_rewards_come_from_one_scoring_of_each_completion(db, monkeypatch):
    tokenizer = tiny_random.make_tokenizer()
    first, second = tasks = tiny_random.make_tasks(2)
    scorer = CompletionScorer(tokenizer, db, tasks)
    tool_reward, outcome_reward = make_reward_functions(scorer)
    assert (tool_reward.__name__, outcome_reward.__name__) == ("tool_reward", "outcome_reward")
    calls = []

    def count(task, completion, store):
        calls.append(completion)
        return score_completion(task, completion, store)

    monkeypatch.setattr(rewards_module, "score_completion", count)
    gold = render_completion(gold_completion(first))
    texts = [gold, render_completion("no plan"), gold.removesuffix("<|return|>")[:-4], gold]
    batch = batch_of(tokenizer, [0, 0, 0, 1], texts)
    logged = {}
    shaped = tool_reward(**batch, log_metric=logged.__setitem__, trainer_state=None)
    outcome = outcome_reward(**batch, log_metric=logged.__setitem__, trainer_state=None)
    best = score_completion(first, gold_completion(first), db)
    assert shaped[0] == best.max_reward and outcome[0] == 1.0
    assert shaped[1] == shaped[2] == -1.0 and outcome[1] == outcome[2] == 0.0
    assert shaped[3] < best.max_reward and outcome[3] == 0.0
    assert len(calls) == len(texts) == scorer.num_scored
    assert logged["parse_failures/not_json"] == 0.5
    assert logged["rollouts/exact_match"] == 0.25
    assert 0 < logged["tools/find_user_id_by_email"] < 1


def test_random_rewards_of_the_control_know_nothing_of_the_completion(db):
    tokenizer = tiny_random.make_tokenizer()
    (task,) = tasks = tiny_random.make_tasks(1)
    tossed = make_random_rewards(1)(CompletionScorer(tokenizer, db, tasks))
    assert [reward.__name__ for reward in tossed] == ["tool_reward", "outcome_reward"]
    for text, share in ((gold_completion(task), 1.0), ("no plan", 0.0)):
        batch, logged = batch_of(tokenizer, [0] * 200, [render_completion(text)] * 200), {}
        rewards = tossed[0](**batch, log_metric=logged.__setitem__)
        assert set(rewards) == {0.0, 1.0} and 70 < sum(rewards) < 130
        assert logged["rollouts/exact_match"] == share


def test_invented_tools_share_one_column(db):
    task = tiny_random.make_tasks(1)[0]
    texts = [f'{{"tool_calls":[{{"name":"invented_{n}","arguments":{{}}}}]}}' for n in range(3)]
    metrics = summarize_batch([score_completion(task, text, db) for text in texts])
    assert [name for name in metrics if name.startswith("tools/")] == ["tools/unknown"]


def test_parts_and_parse_failures_are_logged_where_there_are_none(db):
    task = tiny_random.make_tasks(1)[0]
    good = summarize_batch([score_completion(task, gold_completion(task), db)])
    bad = summarize_batch([score_completion(task, "no plan", db)])
    for prefix in ("reward_parts/", "parse_failures/"):
        names = [name for name in good if name.startswith(prefix)]
        assert names == [name for name in bad if name.startswith(prefix)]
    assert good["parse_failures/not_json"] == 0.0 and bad["parse_failures/not_json"] == 1.0
    assert good["reward_parts/unparsable"] == 0.0 and bad["reward_parts/unparsable"] == -1.0
    assert good["reward_parts/action_name"] == 1.0 and bad["reward_parts/action_name"] == 0.0


def test_curriculum_goes_from_easy_to_hard_in_the_first_pass():
    levels = ["hard", "easy", "medium", "easy"]
    tasks = [Task("q", [{"name": "n", "arguments": {}}], "f", f"t{n}", tags={"difficulty": level})
             for n, level in enumerate(levels)]
    order = order_by_difficulty(tasks, 8, seed=0)
    assert [levels[n] for n in order[:4]] == ["easy", "easy", "medium", "hard"]
    assert sorted(order[4:]) == [0, 1, 2, 3]
    assert order_by_difficulty(tasks, 6, seed=0) == order[:6]


def test_the_curriculum_is_what_the_trainer_shows(folder, db):
    config = tiny_random.tiny_config(folder, grpo__curriculum=True, grpo__max_steps=4)
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(20)
    trainer = build_grpo_trainer(model, tokenizer, tasks, db, config, [], make_reward_functions)
    wanted = order_by_difficulty(tasks, 8, config.seed)
    assert trainer.train_dataset["task"][:] == list(wanted)
    assert trainer.train_dataset["prompt"][0] == plan_prompt(tasks[wanted[0]], config.data.prompt_style)


def test_tasks_of_one_generate_call_are_of_like_length(folder, db):
    config = tiny_random.tiny_config(folder, grpo__max_steps=10, grpo__generation_batch_size=16)
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(20)
    trainer = build_grpo_trainer(model, tokenizer, tasks, db, config, [], make_reward_functions)
    lengths = [len(prompt) for prompt in trainer.train_dataset["prompt"]]
    calls = [lengths[start:start + 4] for start in range(0, len(lengths), 4)]
    assert len(calls) == 5
    assert max(max(call) - min(call) for call in calls) < max(lengths) - min(lengths)
    assert len(set(trainer.train_dataset["prompt"])) == 20, "one pass shows every task once"


def test_tasks_of_one_generate_call_are_mixed_on_request(folder, db):
    settings = {"grpo__max_steps": 10, "grpo__generation_batch_size": 16}
    tasks = tiny_random.make_tasks(20)

    def spread(**more):
        config = tiny_random.tiny_config(folder, **settings, **more)
        model, tokenizer = load_model(config.model)
        trainer = build_grpo_trainer(model, tokenizer, tasks, db, config, [], make_reward_functions)
        lengths = [len(prompt) for prompt in trainer.train_dataset["prompt"]]
        calls = [lengths[start:start + 4] for start in range(0, len(lengths), 4)]
        return sorted(lengths), sum(max(call) - min(call) for call in calls)

    sorted_lengths, narrow = spread()
    mixed_lengths, wide = spread(grpo__group_by_length=False)
    assert mixed_lengths == sorted_lengths, "the same tasks"
    assert wide > 2 * narrow


def test_steps_of_an_epoch(folder):
    stage = tiny_random.tiny_config(folder, grpo__max_steps=-1, grpo__num_train_epochs=3.0).grpo
    assert stage.completions_per_step == 8 and stage.num_generations == 4
    assert count_steps(stage, num_rows=10) == 15
    assert count_steps(stage, num_rows=10, world_size=2) == 8


def test_router_loss_is_off_and_the_reference_is_the_sft_adapter(folder, db):
    config = tiny_random.tiny_config(folder)
    model, tokenizer = load_model(config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    tasks = tiny_random.make_tasks(8)
    trainer = build_grpo_trainer(model, tokenizer, tasks, db, config, [], make_reward_functions)
    assert not trainer.aux_loss_enabled
    assert trainer.reward_func_names == ["tool_reward", "outcome_reward"]
    reference = {n: p for n, p in model.named_parameters() if ".ref." in n and "lora_B" in n}
    assert reference and all((p == 0.01).all() for p in reference.values())
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".ref." in n)


def test_a_run_moves_the_adapter_and_logs_each_reward(folder, db):
    config = tiny_random.tiny_config(folder, grpo__learning_rate=1e-2, grpo__max_steps=3)
    model, tokenizer = load_model(config.model)
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    run_grpo(model, tokenizer, tiny_random.make_tasks(8), db, config,
             make_rewards=resume_run.make_spread_rewards)
    after = dict(model.named_parameters())
    assert any(not after[name].equal(value) for name, value in before.items())
    assert list(model.peft_config) == ["default"], "the reference adapter is left behind"
    columns = (folder / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("rewards/tool_reward/mean", "rewards/outcome_reward/mean", "kl_to_sft", "entropy",
                 "frac_reward_zero_std", "completions/clipped_ratio", "rollouts/parsed"):
        assert name in columns


def test_a_step_is_timed_by_part(folder, db):
    config = tiny_random.tiny_config(folder / "timed", grpo__max_steps=2, grpo__beta=0.01)
    model, tokenizer = load_model(config.model)
    trainer = build_grpo_trainer(
        model, tokenizer, tiny_random.make_tasks(8), db, config, [], make_reward_functions
    )
    clock = StepClock(trainer)
    run_trainer(trainer, resume=False)
    assert len(clock.steps) == 2
    for step in clock.steps:
        parts = [step[f"{part}_s"] for part in ("sampling", "reference", "update")]
        assert min(parts) > 0 and sum(parts) < step["step_s"]


def test_equal_rewards_change_nothing_but_for_the_kl(folder, db):
    config = tiny_random.tiny_config(folder, grpo__max_steps=2, grpo__beta=0.0,
                                     grpo__learning_rate=1e-2)
    model, tokenizer = load_model(config.model)
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}

    def constant(scorer):
        _, outcome_reward = make_reward_functions(scorer)

        def tool_reward(completion_ids, **_):
            return [1.0] * len(completion_ids)

        return [tool_reward, outcome_reward]

    run_grpo(model, tokenizer, tiny_random.make_tasks(8), db, config, make_rewards=constant)
    for name, value in before.items():
        assert dict(model.named_parameters())[name].equal(value)


class FakeTrainer:
    """Stands in for TRL's trainer and the engine: completions are written down beforehand."""

    def __init__(self, tokenizer, answers: dict[str, list[str]]) -> None:
        self.processing_class = tokenizer
        self.answers = answers
        self.accelerator = SimpleNamespace(process_index=0)
        self.state = SimpleNamespace(global_step=0)
        self.model = SimpleNamespace(device=torch.device("cpu"), engine=self)

    def complete(self, prompts, max_new_tokens, temperature, seeds) -> list[Completion]:
        found = []
        for index, ids in enumerate(prompts):
            text = self.answers[self.processing_class.decode(ids)][index % 2]
            ids = self.processing_class(text)["input_ids"]
            found.append(Completion(ids, [-0.5] * len(ids)))
        return found


def test_groups_without_spread_are_replaced(folder, db):
    config = tiny_random.tiny_config(folder, grpo__num_generations=2, grpo__resample_rounds=8)
    tokenizer = tiny_random.make_tokenizer()
    tasks = tiny_random.make_tasks(4)
    rows = list(grpo_rows(tasks, "brief"))
    prompts = [row["prompt"] for row in rows]
    bad = render_completion("no plan")
    answers = {p: [bad, bad] for p in prompts}
    answers[prompts[0]] = [render_completion(gold_completion(tasks[0])), bad]
    scorer = CompletionScorer(tokenizer, db, tasks)
    shown = Dataset.from_list(rows[:2])
    resampler = DynamicSampler(config, scorer, shown, tasks)
    trainer = FakeTrainer(tokenizer, answers)
    batch = [prompt for prompt in prompts[:2] for _ in range(2)]
    output = resampler(batch, trainer)
    assert output["useful_before"] == [True, True, False, False]
    assert output["useful_after"] == [True] * 4
    logged: dict[str, float] = {}
    fields = {key: output[key] for key in ("completion_ids", "task", "useful_before", "useful_after")}
    tool_reward, _ = make_reward_functions(CompletionScorer(tokenizer, db, tasks))
    tool_reward(log_metric=logged.__setitem__, **fields)
    assert logged["resampling/useful_before"] == 0.5 and logged["resampling/useful_after"] == 1.0
    assert output["task"] == [0] * 4, "the dead group's task is the drawn one's"
    assert tokenizer.decode(output["prompt_ids"][2]) == prompts[0]
    assert output["logprobs"] == [[-0.5] * len(ids) for ids in output["completion_ids"]]
    again = DynamicSampler(config, CompletionScorer(tokenizer, db, tasks), shown, tasks)
    assert again(batch, FakeTrainer(tokenizer, answers)) == output


def test_spread_of_a_group():
    assert Group([], [], [], [], [1.0, 0.0]).has_variance
    assert not Group([], [], [], [], [0.3, 0.3]).has_variance
