"""One interface, three engines: the same completions, the adapter's present weights, the fallback."""

import math
import sys
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from accelerate import PartialState
from envs.retail import RetailDatabase
from gptoss import vllm_engine
from gptoss.generation import complete, engine_of
from gptoss.load import load_for_evaluation, load_model, merge_and_save
from gptoss.vllm_engine import RELEASED, VllmEngine, weights_for, write_adapter
from gptoss.weights import find_core
from tests import standin_vllm, tiny_random
from tests.test_model import randomize_lora
from tests.test_rollouts import make_stage
from training import importance
from training.grpo import build_grpo_trainer
from training.importance import MAX_WEIGHT, sampler_kl
from training.rewards import make_reward_functions
from training.trl_private import SharedPrefixTrainer, weigh_tokens

PROMPTS = [[1, 2, 3], list(range(150)), [1, 2, 3], [7]]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch):
    return standin_vllm.install(monkeypatch)


def load(tmp_path_factory: pytest.TempPathFactory, sampling: str, **changes):
    model, _ = load_model(make_stage(tmp_path_factory, sampling=sampling, **changes))
    torch.manual_seed(5)
    randomize_lora(model)
    return model.eval()


@pytest.mark.parametrize("reach", ["attention", "attention+experts"])
def test_the_engines_agree_on_texts_and_log_probabilities(tmp_path, tmp_path_factory, vllm, reach):
    found = {}
    for sampling in ("plain", "fast", "vllm"):
        model = load(tmp_path_factory, sampling, lora_reach=reach)
        found[sampling] = complete(model, PROMPTS, 12)
    assert isinstance(model.engine, VllmEngine)
    for sampling in ("fast", "vllm"):
        for ours, theirs in zip(found[sampling], found["plain"], strict=True):
            assert ours.ids == theirs.ids
            assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)
    # An adapter's file says the same as the slots.
    write_adapter(model, tmp_path)
    file, slots = load_file(tmp_path / "adapter_model.safetensors"), model.engine._llm.served.slots
    key = "base_model.model.model.layers.1."
    a, b = slots["model.layers.1.attn.o_proj"].factors[0]
    assert torch.allclose(file[f"{key}self_attn.o_proj.lora_B.weight"]
                          @ file[f"{key}self_attn.o_proj.lora_A.weight"], b @ a)
    experts = slots["model.layers.1.mlp.experts"].factors
    assert len(experts) == (2 if reach == "attention+experts" else 0)
    for (a, b), inner in zip(experts, ("base_layer.", ""), strict=False):
        flat_a, flat_b = (file[f"{key}mlp.experts.{inner}lora_{x}.weight"] for x in "AB")
        assert torch.equal(flat_a.reshape(a.shape), a)
        assert torch.equal(flat_b.reshape(*b.shape[1:], len(b)).permute(2, 0, 1), b)


@pytest.mark.parametrize("sampling", ["plain", "fast", "vllm"])
def test_log_probabilities_are_those_at_the_temperature(tmp_path_factory, vllm, sampling):
    model = load(tmp_path_factory, sampling)
    torch.manual_seed(0)
    for prompt, found in zip(PROMPTS, complete(model, PROMPTS, 6, 0.7), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + found.ids])).logits[0, len(prompt) - 1:-1]
        expected = (logits / 0.7).log_softmax(-1).gather(-1, torch.tensor(found.ids)[:, None])
        assert found.log_probs == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


def test_the_adapter_is_refreshed_when_it_changed_and_only_then(tmp_path_factory, vllm):
    model = load(tmp_path_factory, "vllm")
    before = complete(model, PROMPTS, 8)
    assert vllm.log[1:] == ["apply_model", "reset_prefix_cache", len(PROMPTS)]
    complete(model, PROMPTS, 8)
    assert vllm.log[4:] == [len(PROMPTS)], "what was read of the prompts is kept"
    with torch.no_grad():
        find_core(model).model.layers[1].mlp.experts.lora_B["default"].weight.normal_(std=0.5)
    after = complete(model, PROMPTS, 8)
    assert vllm.log[5:] == ["apply_model", "reset_prefix_cache", len(PROMPTS)]
    assert [one.log_probs for one in after] != [one.log_probs for one in before]
    with model.disable_adapter():
        base = complete(model, PROMPTS, 8)
        del model.engine
        assert [one.ids for one in base] == [one.ids for one in complete(model, PROMPTS, 8)]


def test_memory_and_adapter_settings_reach_vllm(tmp_path_factory, vllm):
    load(tmp_path_factory, "vllm", vllm_kv_gib=2.5, sampling_rows=9, lora_reach="attention")
    settings = vllm.log[0]
    assert settings["kv_cache_memory_bytes"] == 2.5 * 2**30 and settings["max_num_seqs"] == 9
    assert settings["max_lora_rank"] == 8 and settings["max_loras"] == 1
    assert settings["lora_target_modules"] == ["qkv_proj", "o_proj"]
    assert settings["compilation_config"]["cudagraph_capture_sizes"] == [1, 2, 4, 8, 9]


def test_without_vllm_one_line_says_so_and_fast_sampling_is_used(
    tmp_path_factory, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    model = load(tmp_path_factory, "vllm")
    lines = [line for line in capsys.readouterr().out.splitlines() if "vllm" in line]
    assert len(lines) == 1 and "pip install vllm==0.26.0; fast sampling is used" in lines[0]
    fast = load(tmp_path_factory, "fast")
    assert complete(model, PROMPTS, 8) == complete(fast, PROMPTS, 8)
    assert not engine_of(model).differs


def test_a_vllm_that_does_not_start_is_one_line_too(tmp_path_factory, vllm, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("Free memory on device is less than desired\nand a second line")

    monkeypatch.setattr(vllm, "__init__", fail)
    load(tmp_path_factory, "vllm")
    assert ("model.sampling=vllm: vLLM does not start: Free memory on device is less than desired; "
            "fast sampling is used\n") in capsys.readouterr().out


def test_several_processes_use_fast_sampling(tmp_path_factory, vllm, monkeypatch, capsys):
    state = PartialState()
    monkeypatch.setattr(state, "num_processes", 2)
    monkeypatch.setattr(vllm_engine, "PartialState", lambda: state)
    model = load(tmp_path_factory, "vllm")
    assert "one process only, here are 2; fast sampling is used" in capsys.readouterr().out
    assert not engine_of(model).differs


def test_which_weights_vllm_loads(tmp_path, tmp_path_factory):
    stage = make_stage(tmp_path_factory)
    assert weights_for(stage) == stage.model_name
    for name in ("unsloth/gpt-oss-20b", "openai/gpt-oss-20b", "unsloth/gpt-oss-20b-unsloth-bnb-4bit"):
        assert weights_for(make_stage(tmp_path_factory, model_name=name)) == RELEASED
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    packed = make_stage(tmp_path_factory, model_name=str(tmp_path))
    with pytest.raises(ValueError, match="export --format mxfp4"):
        weights_for(packed)
    given = make_stage(tmp_path_factory, model_name=str(tmp_path), vllm_model="outputs/mxfp4_model")
    assert weights_for(given) == "outputs/mxfp4_model"


def test_a_merged_model_is_not_sampled_from_the_weights_of_its_base(
    tmp_path, tmp_path_factory, vllm
):
    stage = make_stage(tmp_path_factory, sampling="vllm")
    stage = replace(stage, vllm_model=stage.model_name)
    model, tokenizer = load_model(stage)
    randomize_lora(model)
    expected = complete(model, PROMPTS, 8)
    merge_and_save(model, tokenizer, tmp_path, stage)
    merged, _ = load_for_evaluation(str(tmp_path), stage)
    assert isinstance(merged.engine, VllmEngine) and "enable_lora" not in vllm.log[-1]
    assert [one.ids for one in complete(merged, PROMPTS, 8)] == [one.ids for one in expected]


def test_kl_of_the_sampler_by_hand():
    trained, sampled = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-1.5, -2.0, 0.0]])
    mask = torch.tensor([[1, 1, 0]])
    assert sampler_kl(trained, sampled, mask) == pytest.approx((math.exp(0.5) - 1 - 0.5) / 2)
    assert sampler_kl(sampled, sampled, mask) == sampler_kl(trained, sampled, 0 * mask) == 0.0


def test_the_columns_of_completions_when_padding_was_moved_to_the_end():
    # Prompts of 3, 1 and 2 tokens before completions of 2, padded on the left; moved, their tokens
    # are p p p c c, p c c . . and p p c c . of which the last 2 + 2 columns are kept.
    batch = {"prompt_mask": torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
             "completion_mask": torch.ones(3, 2)}
    kept = torch.tensor([[2, 3, 10, 11], [20, 21, 0, 0], [2, 30, 31, 0]])
    expected = torch.tensor([[10, 11], [20, 21], [30, 31]])
    assert torch.equal(importance.completion_columns(kept, batch), expected)
    assert torch.equal(importance.completion_columns(expected, batch), expected)


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_tokens_are_weighed_by_how_likely_they_are_to_the_trainer(
    tmp_path, vllm, monkeypatch, shared_prefix
):
    """The sampler claims every token twice, and every third a hundredth, as likely as it is."""
    config = tiny_random.tiny_config(
        tmp_path, model__sampling="vllm", grpo__shared_prefix=shared_prefix, grpo__beta=0.0,
        grpo__max_completion_length=6,
    )
    model, tokenizer = load_model(config.model)
    claimed = VllmEngine.complete

    def shifted(self, *arguments):
        found = claimed(self, *arguments)
        for one in found:
            for place in range(len(one.log_probs)):
                one.log_probs[place] += math.log(0.01 if place % 3 == 2 else 2.0)
        return found

    monkeypatch.setattr(VllmEngine, "complete", shifted)
    trainer = build_grpo_trainer(
        model, tokenizer, tiny_random.make_tasks(8), RetailDatabase.load(), config, [],
        make_reward_functions,
    )
    batch = trainer._generate_and_score_completions(
        [trainer.train_dataset[n // 4] for n in range(8)]
    )
    weights, mask = batch["importance_sampling_ratio"], batch["completion_mask"].bool()
    expected = torch.tensor([0.5, 0.5, MAX_WEIGHT] * 2)[: mask.shape[1]].expand(mask.shape)
    assert torch.allclose(weights[mask], expected[mask], atol=1e-3)
    logged = trainer._metrics["train"]
    assert logged["sampling/sampling_logp_difference/mean"][0] > 0.6
    assert logged["sampling/kl"][0] > 0.1


def test_where_the_trainer_leaves_the_weights_out_they_are_added(monkeypatch):
    """Unsloth's keeps them to its own loss, which is not used with a shared prefix."""
    trainer = object.__new__(SharedPrefixTrainer)
    trainer.model, trainer._metrics = torch.nn.Linear(1, 1), {"train": defaultdict(list)}
    batch = {
        "completion_mask": torch.tensor([[1, 1, 1, 0]]), "prompt_mask": torch.ones(1, 2),
        "old_per_token_logps": torch.tensor([[-1.0, -2.0, -1.0, 0.0]]),
        "sampling_per_token_logps": torch.tensor([[-1.0, -1.0, -3.0, -9.0]]),
    }
    trainer._generate_and_score_completions = lambda inputs: batch
    weigh_tokens(trainer)
    weights = trainer._generate_and_score_completions([])["importance_sampling_ratio"]
    assert weights.tolist()[0] == pytest.approx([1.0, math.exp(-1), MAX_WEIGHT, 1.0])
    assert trainer._metrics["train"]["sampling/sampling_logp_difference/mean"] == [1.0]
