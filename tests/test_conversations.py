"""Conversations as tokens: what SFT trains, and that an agent's context is what training saw."""

from collections import Counter
from pathlib import Path

import pytest
import tiny_random
from transformers import AutoTokenizer

import configs
from agent.conversation import Limits
from agent.trajectories import play_gold
from common.user_error import UserError
from data_reader import read_tasks
from gptoss.generation import Completion
from prompting.agent import BRIEF_INSTRUCTIONS
from prompting.dialogue import HarmonyFormat, render_turn
from training import conversations
from training.agent_evaluation import conversation_limits, play_all, start_conversation
from training.conversations import IGNORED, RolloutPolicy, agent_rows, conversation_row

ROOT = Path(__file__).resolve().parent.parent
FORMAT = HarmonyFormat(style="brief")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / configs.TINY_MODEL_PATH)


@pytest.fixture(scope="module")
def tasks():
    return read_tasks(ROOT / "dataset.jsonl")[:40]


@pytest.fixture(scope="module")
def talks(tasks, db):
    return [row["messages"] for _, row in play_gold(tasks, db, 0)]


@pytest.mark.parametrize("style", ["brief", "full"])
def test_the_loss_sees_the_agents_turns_and_nothing_else(tokenizer, talks, style):
    format = HarmonyFormat(style=style)
    for messages in talks:
        row = conversation_row(tokenizer, messages, format)
        pairs = list(zip(row["input_ids"], row["labels"], strict=True))
        trained = tokenizer.decode([label for _, label in pairs if label != IGNORED])
        turns = [m for m in messages if m["role"] == "assistant"]
        written = ["".join(render_turn(m)).replace("<|end|>", "<|return|>") for m in turns]
        assert trained == "".join(written)
        assert trained.count("<|return|>") + trained.count("<|call|>") == len(turns)
        hidden = tokenizer.decode([token for token, label in pairs if label == IGNORED])
        heard = Counter(m["role"] for m in messages[: messages.index(turns[-1])])
        assert hidden.count("<|start|>user") == heard["user"]
        assert hidden.count("to=assistant") == heard["tool"]
        assert "<|channel|>final" not in hidden and "<|channel|>analysis" not in trained


def test_a_row_is_the_prompt_of_the_last_turn_and_that_turn(tokenizer, talks):
    for messages in talks:
        last = max(n for n, m in enumerate(messages) if m["role"] == "assistant")
        text = FORMAT.render(messages[:last], {}) + "".join(render_turn(messages[last]))
        row = conversation_row(tokenizer, messages, FORMAT)
        assert row["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert BRIEF_INSTRUCTIONS in text


def test_several_calls_in_a_message_are_refused(tokenizer, talks):
    messages = [dict(message) for message in talks[0]]
    messages[1]["tool_calls"] = messages[1]["tool_calls"] * 2
    with pytest.raises(ValueError, match="message 1: holds 2 calls"):
        conversation_row(tokenizer, messages, FORMAT)
    with pytest.raises(ValueError, match="no turn"):
        conversation_row(tokenizer, messages[:1], FORMAT)


class Puppet:
    """Stands in for a model: writes the turns of recorded conversations."""

    def __init__(self, tokenizer, scripts):
        self.tokenizer, self.scripts, self.prompts = tokenizer, scripts, []

    def __call__(self, model, prompts, max_new_tokens, temperature, seeds, prefixes):
        self.prompts.append([len(prompt) for prompt in prompts])
        texts = [self.scripts[tuple(prompt)] for prompt in prompts]
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [Completion(ids, [-0.5] * len(ids)) for ids in rows]


def scripts_of(tokenizer, talks):
    scripts = {}
    for messages in talks:
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = FORMAT.render(messages[:number], {})
                ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                text = "".join(render_turn(message)).replace("<|end|>", "<|return|>")
                scripts[tuple(ids)] = text
    return scripts


def play(tokenizer, tasks, db, monkeypatch, talks, seed=0, **limits):
    puppet = Puppet(tokenizer, scripts_of(tokenizer, talks))
    monkeypatch.setattr(conversations, "complete", puppet)
    limits = {"max_turn_tokens": 200, "max_context": 8192} | limits
    policy = RolloutPolicy(None, tokenizer, FORMAT, **limits)
    config = configs.get_preset("cpu", "agent")
    seeds = [row["seed"] for _, row in play_gold(tasks, db, seed)]
    played = [
        start_conversation(task, db, config, customer_seed, 0)
        for task, customer_seed in zip(tasks, seeds, strict=True)
    ]
    play_all(played, policy)
    return played, policy, puppet


def test_a_played_context_is_the_row_that_sft_trains(tokenizer, tasks, talks, db, monkeypatch):
    played, policy, puppet = play(tokenizer, tasks, db, monkeypatch, talks)
    stop = tokenizer.convert_tokens_to_ids("<|return|>")
    for talk, messages in zip(played, talks, strict=True):
        assert [m["content"] for m in talk.messages] == [m["content"] or "" for m in messages]
        row, context = conversation_row(tokenizer, messages, FORMAT), policy.context(talk)
        # The last turn ends as it was sampled, earlier ones as history has them.
        assert context.ids[:-1] == row["input_ids"][:-1] and context.ids[-1] == row["labels"][-1]
        masked = [n for n, bit in enumerate(context.mask) if not bit]
        unlabelled = [
            n for n, label in enumerate(row["labels"])
            if label == IGNORED or label == stop and n < len(row["labels"]) - 1
        ]
        assert masked == unlabelled
        assert context.log_probs == [-0.5 * bit for bit in context.mask]
    # All open conversations advance together.
    assert [len(sizes) for sizes in puppet.prompts] == sorted(
        (len(sizes) for sizes in puppet.prompts), reverse=True
    )


def test_a_conversation_beyond_the_context_ends_alone(tokenizer, tasks, talks, db, monkeypatch):
    played, policy, _ = play(tokenizer, tasks, db, monkeypatch, talks, max_context=700)
    endings = Counter(talk.termination for talk in played)
    assert endings["policy_error"] and endings["customer_satisfied"]
    for talk in played:
        is_full = policy.context(talk).failures["context_full"] > 0
        assert is_full == (talk.termination == "policy_error")
        assert len(policy.context(talk).ids) <= 700 or is_full


def config_of(tmp_path, **overrides):
    settings = {"mode": "agent", "model__max_seq_length": 1024, "agent__max_turn_tokens": 50}
    return tiny_random.tiny_config(tmp_path, **settings | overrides)


def test_rows_of_a_run_fit_the_model_and_come_from_its_training_tasks(
    tokenizer, tasks, db, tmp_path, capsys
):
    config = config_of(tmp_path, agent__customers_per_task=2)
    rows = agent_rows(tokenizer, tasks, db, config)
    lengths = [len(row["input_ids"]) for row in rows]
    assert max(lengths) <= 1024 and 20 < len(rows) < 80
    shown = capsys.readouterr().out
    assert f"SFT on {len(rows)} conversations; {80 - len(rows)} are longer" in shown
    with pytest.raises(UserError, match="none of 80 conversations .* fits into"):
        agent_rows(tokenizer, tasks, db, config_of(
            tmp_path, agent__customers_per_task=2, model__max_seq_length=60,
            agent__max_turn_tokens=20,
        ))


def test_a_file_of_conversations_is_trained_on_where_its_tasks_are(
    tokenizer, tasks, db, tmp_path
):
    import task_generator

    path = tmp_path / "t.jsonl"
    words = ["--tasks", str(ROOT / "dataset.jsonl"), "--output", str(path)]
    task_generator.main(["trajectories", *words])
    config = config_of(tmp_path, agent__trajectories_path=str(path), model__max_seq_length=8192)
    assert len(agent_rows(tokenizer, tasks, db, config)) == len(tasks)
    damaged = path.read_text().replace("Yes, ", "Hm, ")
    path.write_text(damaged)
    with pytest.raises(UserError, match=r"t\.jsonl:\d+: violation"):
        agent_rows(tokenizer, tasks, db, config)


def test_limits_hold_the_turns_of_the_settings():
    config = configs.with_overrides(configs.get_preset("cpu", "agent"), {"agent.max_turns": 3})
    assert conversation_limits(config) == Limits(max_turns=3, max_calls=3, max_tokens=16_384)
