"""The embedded tiny GPT-OSS: what it is made of, its tokenizer and template, and how it is made."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GptOssForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import data_reader
from envs.retail import TOOL_SCHEMAS
from envs.retail.tools.call_form import call_finding
from prompting import harmony

MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "tiny-gpt-oss"
RELEASED_TOKENIZER = (
    MODEL_DIR.parents[2] / "shared" / "gpu" / "gptoss_tokenizer.json.gz"
)
MAX_BYTES = 20 * 2**20


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(
        MODEL_DIR, dtype=torch.float32, experts_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def pretrain() -> ModuleType:
    """The pre-training script as a module; its folder's name is no package name."""
    sys.path.insert(0, str(MODEL_DIR))
    import pretrain

    sys.path.remove(str(MODEL_DIR))
    return pretrain


def test_is_a_real_gpt_oss(model):
    config = model.config
    assert isinstance(model, GptOssForCausalLM)
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.num_local_experts > config.num_experts_per_tok >= 2
    assert config.num_key_value_heads < config.num_attention_heads
    attention = model.model.layers[0].self_attn
    assert attention.sinks.shape == (config.num_attention_heads,)
    assert attention.sliding_window == config.sliding_window
    assert model.model.layers[1].self_attn.sliding_window is None
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert config.head_dim == 64


def test_config_has_the_released_keys():
    """vLLM and llama.cpp read YaRN and the 16-bit weights from these."""
    settings = json.loads((MODEL_DIR / "config.json").read_text())
    assert settings["rope_theta"] == 150_000.0 and not settings["tie_word_embeddings"]
    assert settings["rope_scaling"] == {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False, "original_max_position_embeddings": 4096,
    }
    assert settings["max_position_embeddings"] == 131_072 and settings["dtype"] == "bfloat16"
    assert settings["experts_per_token"] == settings["num_experts_per_tok"]
    assert AutoConfig.from_pretrained(MODEL_DIR).rope_parameters == {
        "rope_theta": 150_000.0, **settings["rope_scaling"]
    }


def test_the_script_writes_the_config_that_ships(pretrain, tmp_path):
    pretrain_losses(pretrain, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    shipped = json.loads((MODEL_DIR / "config.json").read_text())
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "layer_types"}
    assert {k: v for k, v in written.items() if k not in sizes} == {
        k: v for k, v in shipped.items() if k not in sizes
    }


@pytest.mark.skipif(not RELEASED_TOKENIZER.is_file(), reason="the released tokenizer is not here")
def test_pre_tokenizer_is_the_released_one():
    released = json.loads(gzip.decompress(RELEASED_TOKENIZER.read_bytes()))
    ours = json.loads((MODEL_DIR / "tokenizer.json").read_text())
    assert ours["pre_tokenizer"] == released["pre_tokenizer"]
    assert ours["model"]["ignore_merges"] and released["model"]["ignore_merges"]


def test_every_weight_is_finite(model):
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_folder_is_small():
    files = [path for path in MODEL_DIR.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_the_base_of_agent_mode_is_the_same_model_with_other_weights(model):
    folder = MODEL_DIR.with_name("tiny-gpt-oss-agent")
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
    assert all((folder / name).read_bytes() == (MODEL_DIR / name).read_bytes() for name in names)
    settings = [json.loads((place / "config.json").read_text()) for place in (folder, MODEL_DIR)]
    assert settings[0] == settings[1]
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pairs = list(zip(other.parameters(), model.parameters(), strict=True))
    assert all(a.shape == b.shape and torch.isfinite(a).all() for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)
    files = [path for path in folder.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_stop_tokens(model, tokenizer):
    stops = tokenizer.convert_tokens_to_ids(list(harmony.STOP_TOKENS))
    assert model.generation_config.eos_token_id == stops
    assert tokenizer.eos_token == "<|return|>" and tokenizer.pad_token == "<|endoftext|>"
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("token", harmony.SPECIAL_TOKENS)
def test_special_tokens_are_single_ids(tokenizer, token):
    ids = tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3 and tokenizer.convert_ids_to_tokens(ids[1]) == token


def test_digits_are_single(tokenizer):
    tokens = tokenizer.tokenize("#W1234567 credit_card_7815826 10.99 zip 00501")
    assert all(len(token) == 1 for token in tokens if any(c.isdigit() for c in token))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  two  spaces\n\n\ttab ",
        "naïve Ö 日本語 😀 \u200b e\u0301",
        "O'Brien's “quote” — ok…",
        '{"a":["b"]}',
    ],
)
def test_tokenizer_round_trips(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "value", ["Kowalczyk", "ada.kowalczyk42@mail.example", "12 Oak Street", "#W1234567"]
)
def test_a_value_has_the_same_tokens_in_prose_and_in_json(tokenizer, value):
    """Copying is easy only when both places spell the value alike."""
    inside = tokenizer.tokenize(value)
    for text in (f"it is {value}, thanks", f'{{"key":"{value}"}}'):
        joined = "\0".join(tokenizer.tokenize(text))
        assert "\0".join(inside[:-1]) in joined


@pytest.mark.parametrize("tools", [None, list(TOOL_SCHEMAS.values())], ids=["plan", "tools"])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hi <b>'x' & \"y\"</b>\n é 😀"}],
        [{"role": "developer", "content": " Do it.\n"}, {"role": "user", "content": " Hi "}],
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "3"},
        ],
    ],
    ids=["user", "developer", "turns"],
)
def test_chat_template_equals_harmony(tokenizer, messages, tools):
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True
    )
    assert text == harmony.render_prompt(messages, tools)


def test_chat_template_takes_effort_and_date(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=True,
        reasoning_effort="high",
        date="2026-01-02",
    )
    assert text == harmony.render_prompt(messages, reasoning="high", date="2026-01-02")


def test_chat_template_of_a_training_row_ends_with_the_completion(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": "{}"}], tokenize=False
    )
    assert text == harmony.render_prompt(messages) + harmony.render_completion("{}")


def test_chat_template_refuses_control_tokens(tokenizer):
    with pytest.raises(Exception, match="control token <|end|>"):
        tokenizer.apply_chat_template([{"role": "user", "content": "<|end|>"}], tokenize=False)


def test_brief_prompt_is_short(tokenizer):
    task = data_reader.Task(query="x", gold_actions=[], gold_final="", task_id="t")
    prompt = harmony.render_prompt(data_reader.plan_messages(task, style="brief"))
    assert len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) < 120


def test_corpus_is_deterministic_and_well_formed(pretrain):
    first, second = pretrain.make_corpus(3), pretrain.make_corpus(3)
    names = set()
    for _ in range(300):
        prompt, answer = first.example()
        assert (prompt, answer) == second.example()
        assert prompt.endswith("<|start|>assistant") and answer.endswith("<|return|>")
        final = harmony.parse_completion(answer).final
        if final.startswith('{"tool_calls"'):
            names |= {call["name"] for call in json.loads(final)["tool_calls"]}
    assert names == set(TOOL_SCHEMAS)


def test_conversations_are_deterministic_and_train_the_agents_turns(pretrain):
    first, second = pretrain.make_corpus(3, 1.0), pretrain.make_corpus(3, 1.0)
    names = set()
    for _ in range(200):
        segments = first.segments()
        assert segments == second.segments()
        assert segments[-1] == ("<|return|>", True)
        for text, is_trained in segments[:-1]:
            is_turn = text.startswith(("<|channel|>commentary to=functions.", "<|channel|>final"))
            assert is_trained == is_turn
            for call in harmony.parse_completion(text).tool_calls if is_trained else ():
                names.add(call["name"])
                assert call_finding(call) == ""
    # No talk lists product types or thinks aloud.
    assert names == set(TOOL_SCHEMAS) - {"list_all_product_types", "think"}


def test_corpus_never_uses_the_shipped_store(pretrain):
    from envs.retail import RetailDatabase

    shipped = RetailDatabase.load()
    users, orders, _ = sys.modules["corpus_tokens"].load_store()
    assert not set(users) & set(shipped.users) and not set(orders) & set(shipped.orders)


def test_dense_experts_equal_the_stock_ones(pretrain, model):
    layer = model.model.layers[0].mlp
    states = torch.randn(7, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, weights, indices = layer.router(states)
        dense = pretrain.dense_experts(layer.experts, states, indices, weights)
        torch.testing.assert_close(dense, layer.experts(states, indices, weights))
    assert "dense" not in ALL_EXPERTS_FUNCTIONS


TINY = [
    "--hidden",
    "32",
    "--intermediate",
    "32",
    "--layers",
    "2",
    "--head-dim",
    "16",
    "--device",
    "cpu",
    "--batch-tokens",
    "1024",
    "--pool-size",
    "24",
    "--eval-batches",
    "1",
    "--warmup-steps",
    "3",
    "--log-every",
    "4",
    "--learning-rate",
    "1e-2",
]


def pretrain_losses(pretrain: ModuleType, output: Path) -> list[float]:
    arguments = [
        "train",
        "--tokenizer",
        str(MODEL_DIR),
        "--output",
        str(output),
        "--max-steps",
        "12",
    ]
    assert pretrain.main([*arguments, *TINY]) == 0
    rows = [json.loads(line) for line in (output / "pretrain_log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "lr" in row]


def test_pretraining_lowers_the_loss_and_repeats_itself(pretrain, tmp_path):
    losses = pretrain_losses(pretrain, tmp_path / "one")
    assert losses == pretrain_losses(pretrain, tmp_path / "two")
    assert losses[-1] < losses[0] < 2 * math.log(3072)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert isinstance(reloaded, GptOssForCausalLM)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["train", "--tokenizer", "nowhere", "--output", "x", "--max-steps", "1"],
            "tokenizer.json is missing",
        ),
        (
            ["train", "--tokenizer", str(MODEL_DIR), "--output", "x"],
            "exactly one of --max-seconds and --max-steps",
        ),
        (
            [
                "train",
                "--tokenizer",
                str(MODEL_DIR),
                "--output",
                "x",
                "--max-steps",
                "1",
                "--layers",
                "3",
            ],
            "even",
        ),
    ],
)
def test_usage_errors_are_one_clear_line(pretrain, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        pretrain.main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_script_runs_on_its_own(tmp_path):
    """Starts the script as a user does, with background data workers (imports torch thrice)."""
    arguments = [
        "train",
        "--tokenizer",
        str(MODEL_DIR),
        "--output",
        str(tmp_path),
        "--max-steps",
        "3",
    ]
    command = [sys.executable, str(MODEL_DIR / "pretrain.py"), *arguments, *TINY, "--workers", "1"]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
