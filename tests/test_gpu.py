"""What only a GPU can show: kernels against their plain torch form, and sampling at 4-bit.

Run on a machine with an NVIDIA GPU and requirements.txt: `pytest tests/test_gpu.py`.
"""

import pytest
import torch

from training import kernels

try:
    import bitsandbytes
except ImportError:
    bitsandbytes = None

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU is visible"),
    pytest.mark.skipif(bitsandbytes is None, reason="bitsandbytes is not installed"),
    pytest.mark.skipif(kernels.triton is None, reason="triton is not installed"),
]

E, K, N = 32, 2880, 5760
"""Experts and shape of GPT-OSS 20B's larger expert projection."""


def make_packed(num_out: int = N) -> kernels.PackedExperts:
    functional = bitsandbytes.functional
    weights = []
    for _ in range(E):
        weight = (torch.randn(num_out, K, device="cuda") * 0.02).bfloat16()
        packed, state = functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        packed.quant_state = state
        weights.append(packed)
    return kernels.PackedExperts(weights)


def unpacked(packed: kernels.PackedExperts) -> torch.Tensor:
    rows = [
        bitsandbytes.functional.dequantize_4bit(weight, weight.quant_state)
        for weight in packed.weights
    ]
    return torch.stack(rows).bfloat16()


@pytest.fixture(scope="module")
def packed() -> kernels.PackedExperts:
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
    assert torch.equal(kernels.unpack(packed, out), unpacked(packed))


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
    expected = kernels.grouped_reference(x.double(), weight.double(), starts, *as_double)
    arguments = (starts, bias, hidden, right)
    assert relative_error(kernels.grouped_packed(x, packed, *arguments), expected) < 5e-3
    assert relative_error(kernels.grouped_dense(x, weight, *arguments), expected) < 5e-3
    result = kernels._grouped_dense_triton(x, weight, *arguments)
    assert relative_error(result, expected) < 5e-3


@pytest.mark.parametrize("capacity", [128, 2048])
def test_attention_of_one_token(capacity: int):
    torch.manual_seed(0)
    batch, heads, kv_heads, dim = 5, 64, 8, 64
    query = torch.randn(batch, heads, dim, device="cuda").bfloat16()
    keys = torch.randn(batch, kv_heads, capacity, dim, device="cuda").bfloat16()
    values = torch.randn_like(keys)
    sinks = torch.randn(heads, device="cuda")
    lengths = torch.tensor([1, 63, 64, 65, capacity], dtype=torch.int32, device="cuda")
    result = kernels.attend_one(query, keys, values, sinks, lengths, dim**-0.5)
    expected = kernels.attend_reference(
        query.double(), keys.double(), values.double(), sinks, lengths, dim**-0.5
    )
    assert relative_error(result, expected) < 5e-3
