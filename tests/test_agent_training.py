"""Agent mode trained: GRPO over whole episodes, its signals and warnings, and runs that are killed."""

import csv
import functools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import resume_run
import tiny_random
import torch

import configs
from agent import ScriptedCustomer, play, scripted_policy
from agent.conversation import Conversation
from agent.policies import ScriptedPolicy, oracle
from common.user_error import UserError
from data_reader import DatasetError, read_tasks
from gptoss.load import load_model
from training import agent_evaluation, evaluation, pipeline, run_data
from training.conversations import Context
from training.episode_rewards import EpisodeScorer, make_episode_rewards, summarize_episodes
from training.grpo import build_grpo_trainer
from training.pipeline import prepare_run
from training.warning_rules import RULES, find_warnings

NAMES = (
    "episodes/success", "episodes/violations", "episodes/turns", "episodes/calls",
    "episodes/tokens", "episodes/environment_share", "episodes/left_before_confirmation",
    "reward_parts/success", "reward_parts/progress", "reward_parts/violation",
    "reward_parts/wrong_write", "reward_parts/refused_call", "endings/turn_limit",
    "turn_failures/cut_off", "rollouts/reward_share", "frac_reward_zero_std",
    "resampling/useful_before", "rewards/episode_reward/mean",
)


def agent_config(folder, **overrides):
    settings = {
        "mode": "agent", "model__max_seq_length": 2048, "agent__max_turn_tokens": 12,
        "agent__max_turns": 4, "grpo__temperature": 1.0, "grpo__shared_prefix": False,
    }
    return tiny_random.tiny_config(folder, **settings | overrides)


def make_spread_rewards(scorer):
    """Return a reward with variance: the random model never earns the real one."""
    (original,) = make_episode_rewards(scorer)

    def episode_reward(completion_ids, **given):
        original(completion_ids=completion_ids, **given)
        return [len(set(ids)) / 4 + ids[0] % 7 / 3 for ids in completion_ids]

    return [episode_reward]


# -- signals and warnings ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks():
    tasks = read_tasks("dataset.jsonl")[:60]
    return [t for t in tasks if t.gold_actions[-1]["name"] == "cancel_pending_order"] + tasks[:10]


def play_with(policy, tasks, db):
    """Return rollouts of a scripted policy, a token of the model for each of its turns."""
    talks = [Conversation(task, db, ScriptedCustomer(task, 0)) for task in tasks]
    play(talks, policy)
    scorer = EpisodeScorer(db, tasks)
    return [scorer.score(talk, Context([0] * 9, [0, 1, 0] * 3)) for talk in talks]


def warnings_of(policy, tasks, db):
    row = summarize_episodes(play_with(policy, tasks, db))
    return {finding.kind for finding in find_warnings([{"step": n, **row} for n in range(4)])}


def test_the_oracle_earns_all_and_warns_of_nothing(tasks, db):
    rollouts = play_with(scripted_policy("oracle"), tasks, db)
    found = summarize_episodes(rollouts)
    assert found["episodes/success"] == found["rollouts/reward_share"] == 1.0
    assert found["episodes/violations"] == 0 and found["episodes/writes_per_gold"] == 1.0
    assert found["episodes/calls_per_success"] == found["episodes/calls"] > 2
    assert found["episodes/environment_share"] == pytest.approx(2 / 3)
    assert found["endings/customer_satisfied"] + found["endings/transferred"] == 1.0
    assert found["reward_parts/success"] == 1.0 and found["reward_parts/progress"] == 0.2
    assert warnings_of(scripted_policy("oracle"), tasks, db) == set()


@pytest.mark.parametrize("policy, kinds", [
    (scripted_policy("nothing"), {"talks_for_ever", "never_writes"}),
    (scripted_policy("transfer"), {"always_transfers", "never_writes"}),
    (ScriptedPolicy(lambda talk: oracle(talk, asks=False)), {"confirms_nothing"}),
], ids=["talks for ever", "always transfers", "confirms nothing"])
def test_a_policy_that_went_wrong_is_warned_of(tasks, db, policy, kinds):
    assert warnings_of(policy, tasks, db) == kinds
    assert kinds <= RULES.keys()


def test_reward_and_verdict_are_the_evaluations(tasks, db):
    from scoring.episode import score_episode

    rollouts = play_with(scripted_policy("all-tools"), tasks, db)
    (reward,) = make_episode_rewards(scorer := EpisodeScorer(db, tasks))
    logged = {}
    rewards = reward(episode=rollouts, log_metric=logged.__setitem__, useful_after=[True, False])
    assert rewards == [
        score_episode(r.task, r.messages, db, r.score.termination).reward for r in rollouts
    ]
    assert logged["resampling/useful_after"] == 0.5 and logged["episodes/success"] == 0.0
    assert scorer.scores == [r.score for r in rollouts]
    shown = scorer.describe(0)
    assert "customer  " in shown and "call      find_user_id" in shown and "- reward " in shown


# -- the trainer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, db):
    config = agent_config(
        tmp_path_factory.mktemp("trainer"), grpo__per_device_train_batch_size=8,
        grpo__gradient_accumulation_steps=1, grpo__num_generations=4,
    )
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(12)
    return build_grpo_trainer(model, tokenizer, tasks, db, config, [], make_spread_rewards)


def sample(trainer):
    prompts = [row["prompt"] for row in trainer.train_dataset.select(range(2)) for _ in range(4)]
    return trainer.rollout_func(prompts, trainer)


def test_a_group_has_one_task_and_one_customer(trainer):
    output = sample(trainer)
    openings = [rollout.messages[0]["content"] for rollout in output["episode"]]
    assert len(set(openings[:4])) == len(set(openings[4:])) == 1 and openings[0] != openings[4]
    assert output["task"][:4] == [output["task"][0]] * 4 and output["task"][0] != output["task"][4]
    assert len({tuple(ids) for ids in output["completion_ids"][:4]}) > 1


def test_the_mask_marks_what_the_model_wrote(trainer):
    tokenizer, output = trainer.processing_class, sample(trainer)
    rows = zip(output["completion_ids"], output["env_mask"], output["episode"], strict=True)
    for ids, mask, rollout in rows:
        assert len(ids) == len(mask)
        given = tokenizer.decode([i for i, bit in zip(ids, mask, strict=True) if not bit])
        heard = [m["content"] for m in rollout.messages[1:] if m["role"] == "user"]
        turns = sum(m["role"] == "assistant" for m in rollout.messages)
        # The customer's last words, behind the last turn, are in no prompt.
        assert all(text in given for text in heard[: turns - 1])
        assert sum(mask) <= 12 * turns
        assert rollout.num_tokens - rollout.num_environment_tokens == sum(mask)


def test_draws_depend_on_step_and_place_alone(trainer):
    first, again = sample(trainer), sample(trainer)
    assert first["completion_ids"] == again["completion_ids"]


def test_environment_tokens_bear_no_gradient(trainer):
    """The loss's gradient reaches the logits of the model's own tokens, and no others."""
    ids, mask, length = [[5, 6, 7, 8, 9, 10]] * 2, [[1, 1, 0, 0, 1, 1], [1, 0, 0, 1, 1, 1]], 6
    batch = {
        "prompt_ids": torch.tensor([[1, 2, 3]] * 2), "prompt_mask": torch.ones(2, 3, dtype=torch.long),
        "completion_ids": torch.tensor(ids), "completion_mask": torch.ones(2, 6, dtype=torch.long),
        "tool_mask": torch.tensor(mask), "advantages": torch.tensor([1.0, -1.0]),
        "num_items_in_batch": torch.tensor(8),
    }
    model = trainer.model
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: (logits.retain_grad(), seen.append(logits))[1]
    )
    try:
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(model, dict(batch, ref_per_token_logps=torch.zeros(2, 6)))
        loss.backward()
    finally:
        hook.remove()
    # The last logits but one predict the last token: those of a completion are one place before it.
    before = seen[-1].grad.abs().sum(-1)[:, -length - 1:-1]
    own = torch.tensor(mask).bool()
    assert (before[own] > 0).all() and (before[~own] == 0).all()
    model.zero_grad()


# -- whole runs --------------------------------------------------------------------------------

RESULTS = (*resume_run.RESULTS, "trajectories.jsonl")


def run_config(folder, **overrides):
    settings = {
        "sft__max_steps": 4, "sft__learning_rate": 1e-2, "sft__save_steps": 1,
        "grpo__max_steps": 4, "grpo__learning_rate": 1e-2, "grpo__save_steps": 1,
        "grpo__eval_steps": 2, "grpo__num_eval_tasks": 3, "grpo__resample_rounds": 1,
        "evaluation__batch_size": 2, "evaluation__greedy": False, "evaluation__temperature": 1.0,
    }
    return agent_config(folder, **settings | overrides)


def start(config, log_path):
    process_id = os.fork()
    if not process_id:
        resume_run.be_child(log_path, lambda: resume_run.run(config, make_spread_rewards))
    return process_id


def digests(folder):
    found = resume_run.digests(folder)
    found["trajectories.jsonl"] = (folder / "trajectories.jsonl").read_text(encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Settings, metrics, digests and seconds of a run that nothing kills; it lies in `left_alone/`."""
    folder = tmp_path_factory.mktemp("whole")
    config, started = run_config(folder), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        train = functools.partial(pipeline.train_grpo, make_rewards=make_spread_rewards)
        patch.setattr(pipeline, "train_grpo", train)
        metrics = pipeline.run_pipeline(config)
    seconds = time.monotonic() - started
    found = digests(folder / "run")
    shutil.move(folder / "run", folder / "left_alone")
    return config, metrics, found, seconds


@pytest.mark.slow
def test_a_run_leaves_metrics_episodes_and_paired_differences(left_alone):
    config, metrics, _, _ = left_alone
    run = Path(config.output_dir).with_name("left_alone")
    assert set(metrics) == {"base", "sft", "sft_grpo"}
    assert {"success_rate", "db_match_rate", "pass_hat_k"} <= metrics["sft"].keys()
    details = json.loads((run / "evaluation_details.json").read_text())
    assert "success_rate" in details["differences"]["SFT+GRPO minus SFT"]
    rows = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["base"] * 6 + ["sft"] * 6 + ["sft_grpo"] * 6
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file) if row["stage"] == "grpo"]
    assert all(table[-1][name] for name in NAMES)
    assert table[0]["heldout/success"] and not (run / "sft" / "rows").exists()
    assert {path.name for path in (run / "plots").iterdir()} == {
        "loss.png", "rewards.png", "health.png", "evaluation.png", "failures.png",
    }
    assert "| success |" in (run / "final_model" / "README.md").read_text()


@pytest.mark.slow
def test_killed_agent_runs_end_bitwise_equal(left_alone, tmp_path):
    config, _, expected, seconds = left_alone
    run = Path(config.output_dir)
    draws = random.Random(0)
    # Early kills fall into SFT, which has begun to leave checkpoints; then those in GRPO.
    for stage, mark in (("sft", "sft/checkpoint-1"), ("grpo", "best_adapter"), ("grpo", "checkpoint-1")):
        process_id = start(config, tmp_path / "killed.txt")
        while not (run / mark).exists():
            assert not os.waitpid(process_id, os.WNOHANG)[0], f"ended before {stage}"
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.05) * seconds)
        resume_run.kill(process_id)
    assert os.waitpid(start(config, tmp_path / "killed.txt"), 0)[1] == 0
    assert digests(run) == expected


@pytest.mark.slow
def test_a_run_killed_inside_its_evaluations_ends_bitwise_equal(left_alone, tmp_path, monkeypatch):
    """In a batch, behind one, and between the rows and evaluation.json."""
    config, _, expected, _ = left_alone
    run, log_path = Path(config.output_dir), tmp_path / "log.txt"
    shutil.rmtree(run, ignore_errors=True)
    for stage, owner, name, num_parts in (
        ("base", Conversation, "step", 1), ("sft", agent_evaluation, "write_json_atomic", 2),
        ("sft_grpo", evaluation, "write_json_atomic", 3),
    ):
        parts_dir = run / "evaluation_parts" / stage

        def die(*args, wrapped=getattr(owner, name), parts_dir=parts_dir, num_parts=num_parts):
            if len(list(parts_dir.glob("*.json"))) == num_parts:
                os.kill(os.getpid(), signal.SIGKILL)
            return wrapped(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die)
            process_id = start(config, log_path)
        assert os.waitpid(process_id, 0)[1] == signal.SIGKILL, log_path.read_text()
    assert os.waitpid(start(config, log_path), 0)[1] == 0
    assert digests(run) == expected


def test_a_damaged_file_of_conversations_is_named_before_time_is_spent(tmp_path):
    path = tmp_path / "t.jsonl"
    config = agent_config(tmp_path, agent__trajectories_path=str(path))
    with pytest.raises(DatasetError, match="t.jsonl: cannot be read"):
        prepare_run(config)
    path.write_text('{"task_id": "tiny-0", "messages": 1}\n')
    with pytest.raises(DatasetError, match=r"t.jsonl:1: messages"):
        prepare_run(config)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_other_conversations(tmp_path):
    path = tmp_path / "t.jsonl"
    row = {"task_id": "tiny-0", "messages": [{"role": "user", "content": "Hi"}]}
    path.write_text(json.dumps(row) + "\n")
    config = agent_config(tmp_path, agent__trajectories_path=str(path))
    prepare_run(config)
    path.write_text((json.dumps(row) + "\n") * 2)
    with pytest.raises(UserError, match="t.jsonl .* changed"):
        prepare_run(config, resume=True)


def test_a_run_is_not_resumed_with_other_customers(tmp_path, monkeypatch, capsys):
    config = agent_config(tmp_path)
    record = prepare_run(config).folder / "config.json"
    prepare_run(config, resume=True)
    assert capsys.readouterr().out == ""
    with monkeypatch.context() as patch:
        patch.setattr(run_data, "customers_hash", lambda: "other")
        with pytest.raises(UserError) as error:
            prepare_run(config, resume=True)
    assert str(error.value).endswith(
        "was started with other data: the scripted customers (other content in their code) changed; resume "
        "with the same data, at the commit in its config.json (git_hash), or choose another --output-dir"
    )
    # An earlier version did not record them: the run goes on and says so.
    facts = json.loads(record.read_text())
    del facts["hashes"]["the scripted customers"]
    record.write_text(json.dumps(facts))
    prepare_run(config, resume=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("does not record the scripted customers; resumed without a comparison")


def test_settings_of_agent_mode_are_sized_and_checked():
    config = configs.get_preset("cpu", "agent")
    assert config.mode == "agent" and config.agent.max_turn_tokens < config.model.max_seq_length
    with pytest.raises(configs.ConfigError, match="run.mode is 'chat'"):
        configs.with_overrides(config, {"mode": "chat"})
    with pytest.raises(configs.ConfigError, match="agent.max_turns is 0"):
        configs.with_overrides(config, {"agent.max_turns": 0})
    with pytest.raises(configs.ConfigError, match="agent.max_turn_tokens"):
        configs.with_overrides(config, {"agent.max_turn_tokens": 5000})
    for name in ("t4", "24gb", "80gb"):
        assert configs.get_preset(name, "agent").model.max_seq_length == 8192


def test_runs_from_before_are_read_as_plan_mode():
    config = configs.get_preset("cpu")
    settings = json.loads(config.to_json())
    del settings["agent"], settings["mode"]
    assert configs.from_dict(settings) == config


def test_the_base_of_agent_mode_is_played_as_it_is_trained():
    config = configs.config_of_model(configs.TINY_AGENT_MODEL_PATH)
    assert config == configs.get_preset("cpu", "agent")
    assert configs.config_of_model(configs.TINY_MODEL_PATH) == configs.get_preset("cpu")


def test_the_command_line_takes_the_mode():
    import train_script

    arguments = train_script.parse_arguments(["--preset", "cpu", "--mode", "agent"])
    assert configs.config_from_arguments(arguments) == configs.get_preset("cpu", "agent")
