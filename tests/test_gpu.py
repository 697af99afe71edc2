"""What only a GPU can show: kernels against their plain torch form, 4-bit weights, Unsloth's trainer.

Run on a machine with an NVIDIA GPU and requirements.txt: `pytest tests/test_gpu.py`.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import pytest
import torch
from safetensors.torch import load_file
from tiny_random import make_tasks, make_tokenizer

from benchmarks.logprobs import TOLERANCE_FACTOR
from configs import ModelStage, get_preset, with_overrides
from envs.retail import RetailDatabase
from gptoss import moe_kernels, nf4
from gptoss.merge import write_merged
from gptoss.preflight import list_weight_files
from gptoss.weights import find_core
from training import shared_prefix
from training.grpo import build_grpo_trainer
from training.importance import completion_columns
from training.trl_private import SharedPrefixTrainer

try:
    import bitsandbytes
except ImportError:
    bitsandbytes = None

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU is visible"),
    pytest.mark.skipif(bitsandbytes is None, reason="bitsandbytes is not installed"),
    pytest.mark.skipif(moe_kernels.triton is None, reason="triton is not installed"),
]

E, K, N = 32, 2880, 5760
"""Experts and shape of GPT-OSS 20B's larger expert projection."""


def make_packed(num_out: int = N) -> moe_kernels.PackedExperts:
    functional = bitsandbytes.functional
    weights = []
    for _ in range(E):
        weight = (torch.randn(num_out, K, device="cuda") * 0.02).bfloat16()
        packed, state = functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        packed.quant_state = state
        weights.append(packed)
    return moe_kernels.PackedExperts(weights)


def unpacked(packed: moe_kernels.PackedExperts) -> torch.Tensor:
    rows = [
        bitsandbytes.functional.dequantize_4bit(weight, weight.quant_state)
        for weight in packed.weights
    ]
    return torch.stack(rows).bfloat16()


@pytest.fixture(scope="module")
def packed() -> moe_kernels.PackedExperts:
    torch.manual_seed(0)
    return make_packed()


def sorted_rows(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows and the first row of each expert; some experts get none."""
    experts = torch.randint(0, E - 3, (num_rows,), device="cuda").sort().values
    bounds = torch.arange(E + 1, device="cuda")
    starts = torch.searchsorted(experts, bounds).to(torch.int32)
    return torch.randn(num_rows, K, device="cuda").bfloat16(), starts


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result.double() - expected).norm() / expected.norm()).item()


def test_unpacking_is_bit_exact(packed):
    out = torch.full((E, N, K), float("nan"), dtype=torch.bfloat16, device="cuda")
    assert torch.equal(moe_kernels.unpack(packed, out), unpacked(packed))


@pytest.mark.parametrize("num_rows", [4, 64, 512, 1024, 3000])
@pytest.mark.parametrize("with_lora", [False, True])
def test_grouped_products(packed, num_rows: int, with_lora: bool):
    torch.manual_seed(num_rows)
    x, starts = sorted_rows(num_rows)
    bias = torch.randn(E, N, device="cuda").bfloat16()
    hidden = right = None
    if with_lora:
        hidden = torch.randn(num_rows, 16, device="cuda").bfloat16()
        right = torch.randn(E, 16, N, device="cuda").bfloat16()
    weight = unpacked(packed).transpose(1, 2)
    as_double = [None if t is None else t.double() for t in (bias, hidden, right)]
    expected = moe_kernels.grouped_reference(x.double(), weight.double(), starts, *as_double)
    arguments = (starts, bias, hidden, right)
    assert relative_error(moe_kernels.grouped_packed(x, packed, *arguments), expected) < 5e-3
    assert relative_error(moe_kernels.grouped_dense(x, weight, *arguments), expected) < 5e-3
    result = moe_kernels._grouped_dense_triton(x, weight, *arguments)
    assert relative_error(result, expected) < 5e-3


@pytest.mark.parametrize("dim", [48, 64])
@pytest.mark.parametrize("capacity", [128, 2048])
def test_attention_of_one_token(capacity: int, dim: int):
    """GPT-OSS's heads are 64 wide; those of the model that ships here 48, no power of two."""
    torch.manual_seed(0)
    batch, heads, kv_heads = 5, 64, 8
    query = torch.randn(batch, heads, dim, device="cuda").bfloat16()
    keys = torch.randn(batch, kv_heads, capacity, dim, device="cuda").bfloat16()
    values = torch.randn_like(keys)
    sinks = torch.randn(heads, device="cuda")
    lengths = torch.tensor([1, 63, 64, 65, capacity], dtype=torch.int32, device="cuda")
    result = moe_kernels.attend_one(query, keys, values, sinks, lengths, dim**-0.5)
    expected = moe_kernels.attend_reference(
        query.double(), keys.double(), values.double(), sinks, lengths, dim**-0.5
    )
    assert relative_error(result, expected) < 5e-3


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """A checkpoint of 2 small layers in transformers' layout, 16 bit."""
    from transformers import GptOssConfig, GptOssForCausalLM

    tokenizer = make_tokenizer()
    config = GptOssConfig(
        num_hidden_layers=2, hidden_size=256, intermediate_size=256, head_dim=64,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=4,
        vocab_size=len(tokenizer), sliding_window=128, initializer_range=0.05,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fused") / "base"
    GptOssForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_packing_keeps_each_expert_to_nf4_rounding(fused):
    packed_dir = nf4.pack_checkpoint(fused)
    dense = load_file(str(list_weight_files(fused)[0]))
    tensors = load_file(str(list_weight_files(packed_dir)[0]))
    for kind in ("gate_up_proj", "down_proj"):
        for number in range(8):
            key = f"model.layers.1.mlp.experts.{kind}s.{number}.weight"
            state = {k[len(key) + 1:]: v for k, v in tensors.items() if k.startswith(key + ".")}
            state = bitsandbytes.functional.QuantState.from_dict(state, device="cuda")
            weight = bitsandbytes.functional.dequantize_4bit(tensors[key].cuda(), state)
            wanted = dense[f"model.layers.1.mlp.experts.{kind}"][number].T.cuda()
            # NF4 with blocks of 64 leaves about 9 % of a normal weight's size as error.
            assert 0.01 < relative_error(weight, wanted.double()) < 0.12
    with pytest.raises(AssertionError):
        assert relative_error(weight.flip(0), wanted.double()) < 0.12


def test_a_packed_checkpoint_answers_like_the_16_bit_one(fused):
    from gptoss.load import load_model, logits_on

    prompts = ["<|start|>user<|message|>cancel #W12", "Hello, order 7 of mine"]
    stage = ModelStage(model_name=str(fused), sampling="plain", offload_embedding=False)
    model, tokenizer = load_model(replace(stage, load_in_4bit=False), trainable=False)
    wanted = logits_on(model, tokenizer, prompts)
    del model
    model, tokenizer = load_model(stage, trainable=False)
    found = logits_on(model, tokenizer, prompts)
    # Rounding to NF4 leaves 0.97 to 0.99 here; random experts, as Unsloth fills in for this layout
    # by itself, 0.37 to 0.54.
    correlation = torch.corrcoef(torch.stack([wanted.flatten(), found.flatten()]))[0, 1]
    assert correlation > 0.9


PROMPTS, COMPLETIONS = (300, 171), (40, 3, 25, 60, 1, 33, 12, 50)
"""Tokens of two groups; the window of a sliding layer is 128."""
NUM_BATCHES = 6
"""In bfloat16 one token at another expert can rule the error of a batch."""


def make_batch(
    pad_id: int, seed: int
) -> tuple[list[tuple[list[int], list[int]]], dict[str, torch.Tensor]]:
    """Return rows of prompt and completion, and the batch that a trainer makes of them."""
    draws = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, 256, (count,), generator=draws).tolist()

    rows = [(prompt, tokens(n)) for prompt in map(tokens, PROMPTS) for n in COMPLETIONS]
    width, longest = max(PROMPTS), max(COMPLETIONS)
    parts = {
        "prompt_ids": [[pad_id] * (width - len(p)) + p for p, _ in rows],
        "prompt_mask": [[0] * (width - len(p)) + [1] * len(p) for p, _ in rows],
        "completion_ids": [c + [pad_id] * (longest - len(c)) for _, c in rows],
        "completion_mask": [[1] * len(c) + [0] * (longest - len(c)) for _, c in rows],
        "num_items_in_batch": sum(len(c) for _, c in rows),
    }
    batch = {name: torch.tensor(values) for name, values in parts.items()}
    return rows, batch | {"advantages": torch.randn(len(rows), generator=draws)}


def score_batch(trainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
    """Return the log-probabilities of a pass without gradient, and the gradients of an update."""
    model = trainer.model
    batch = {name: value.to(model.device) for name, value in batch.items()}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    model.train()
    with torch.no_grad():
        logps = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, batch["completion_ids"].shape[1], batch_size=len(ids)
        )[0]
    logps = completion_columns(logps, batch)[batch["completion_mask"].bool()]
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(model, batch).backward()
    gradients = {n: p.grad.cpu().float() for n, p in model.named_parameters() if p.requires_grad}
    return logps.cpu(), gradients


def errors_against_float32(model, tokenizer, config, folder, monkeypatch) -> dict[str, tuple]:
    """Return the mean error of log-probabilities and the median relative one of gradients.

    Of the padded pass, the shared one, and "wrong", the shared one without the sliding window.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in find_core(model).model.layers:
            layer.self_attn.sinks.normal_()
    write_merged(model, folder / "base", torch.float32)  # the adapter is still nothing
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    batches = [make_batch(tokenizer.pad_token_id, seed) for seed in range(NUM_BATCHES)]
    found = {}
    for name in ("padded", "shared", "wrong"):
        stage = replace(config.grpo, shared_prefix=name != "padded")
        trainer = build_grpo_trainer(
            model, tokenizer, make_tasks(8), RetailDatabase.load(), replace(config, grpo=stage), []
        )
        assert isinstance(trainer, SharedPrefixTrainer) == (name != "padded")
        if name == "wrong":
            mask_of = shared_prefix.attention_mask_of
            monkeypatch.setattr(
                shared_prefix, "attention_mask_of",
                lambda rows, window, dtype: mask_of(rows, None, dtype),
            )
        found[name] = [score_batch(trainer, batch) for _, batch in batches]
    lora = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
    case = {
        "base": str(folder / "base"), "lora": lora, "temperature": config.grpo.temperature,
        "batches": [(rows, batch["advantages"].tolist()) for rows, batch in batches],
        "scale": config.model.lora_alpha / config.model.lora_rank,
    }
    torch.save(case, folder / "case.pt")
    script = Path(__file__).parent / "plain_reference.py"
    subprocess.run(
        [sys.executable, script, folder / "case.pt", folder / "found.pt"], check=True, cwd=folder
    )
    exact = torch.load(folder / "found.pt")
    errors = {}
    for name, results in found.items():
        apart, relative = [], []
        for (logps, gradients), one in zip(results, exact, strict=True):
            apart.append((logps - one["logps"]).abs().mean().item())
            flat = [torch.cat([g[key].flatten() for key in lora]) for g in (gradients, one["gradients"])]
            relative.append(relative_error(flat[0], flat[1].double()))
        errors[name] = fmean(apart), median(relative)
        print(f"{name}: log-probabilities {errors[name][0]:.5f} nats, gradient {errors[name][1]:.4f} "
              f"({', '.join(f'{value:.4f}' for value in relative)})")
    return errors


@pytest.mark.parametrize("reach", ["attention", "attention+experts"])
def test_a_shared_prefix_is_as_near_to_float32_as_the_padded_pass(fused, tmp_path, monkeypatch, reach):
    from gptoss.load import load_model

    config = with_overrides(get_preset("80gb"), {
        "model.model_name": str(fused), "model.sampling": "plain", "model.lora_reach": reach,
        "grpo.per_device_train_batch_size": 16, "grpo.gradient_accumulation_steps": 1,
        "grpo.generation_batch_size": 0, "grpo.resample_rounds": 0, "output_dir": str(tmp_path),
        "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
    })
    model, tokenizer = load_model(config.model)
    errors = errors_against_float32(model, tokenizer, config, tmp_path, monkeypatch)
    # The median of a few heavy-tailed errors is less sure than the mean over thousands of tokens.
    assert errors["shared"][0] <= TOLERANCE_FACTOR * errors["padded"][0]
    assert errors["shared"][1] <= 2 * errors["padded"][1]
    assert errors["wrong"][0] > 2 * errors["shared"][0], "an error in the masks shows"
    assert errors["wrong"][1] > 2 * errors["shared"][1]
