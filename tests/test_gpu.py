"""What only a GPU can show: kernels against their plain torch form, and sampling at 4-bit.

Run on a machine with an NVIDIA GPU and requirements.txt: `pytest tests/test_gpu.py`.
"""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_random import make_tokenizer

from configs import ModelStage
from gptoss import moe_kernels, nf4
from gptoss.preflight import list_weight_files

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
