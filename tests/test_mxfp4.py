"""MXFP4: what transformers unpacks is what was packed, and no other scale would be nearer."""

import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss import mxfp4

VALUES = [*mxfp4.MAGNITUDES, *(-value for value in mxfp4.MAGNITUDES)]


def unpacked_by_transformers(weight: torch.Tensor) -> torch.Tensor:
    blocks, scales = mxfp4.quantize_experts(weight)
    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)


def test_representable_weights_come_back_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    choice = torch.randint(16, (3, 96, 64), generator=generator)
    values = torch.tensor(VALUES)[choice]
    # One power of two per block of 32 along the input dimension, as far apart as float32 allows.
    powers = torch.randint(-90, 90, (3, 3, 1, 64), generator=generator).float()
    weight = (values.reshape(3, 3, 32, 64) * 2.0 ** powers).reshape(3, 96, 64)
    back = unpacked_by_transformers(weight)
    assert torch.equal(back, weight)
    assert torch.equal(mxfp4.round_experts(weight), weight)
    assert torch.equal(unpacked_by_transformers(torch.zeros(1, 32, 5)), torch.zeros(1, 32, 5))


def test_layout_is_that_of_the_released_model():
    weight = torch.zeros(2, 64, 3)
    weight[1, 32, 2], weight[1, 33, 2] = 6.0, -0.5
    blocks, scales = mxfp4.quantize_experts(weight)
    assert (blocks.dtype, scales.dtype) == (torch.uint8, torch.uint8)
    assert (blocks.shape, scales.shape) == ((2, 3, 2, 16), (2, 3, 2))
    # First value in the lower half of the byte: 6 is code 7, -0.5 code 9, and 127 is a scale of 1.
    assert blocks[1, 2, 1, 0] == 0x97 and scales[1, 2, 1] == 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_unpacking_is_that_of_transformers(dtype):
    weight = torch.randn(4, 64, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    back = mxfp4.round_experts(weight)
    assert back.dtype == dtype
    assert torch.equal(back.float(), unpacked_by_transformers(weight))
    assert torch.equal(mxfp4.round_experts(back), back), "rounding twice changes nothing more"


@pytest.mark.parametrize(
    ("value", "nearest"),
    [(0.2, 0.0), (0.3, 0.5), (0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0),
     (2.6, 3.0), (3.5, 4.0), (5.0, 4.0), (5.1, 6.0), (-2.6, -3.0)],
)
def test_values_go_to_the_nearest_and_ties_to_the_even_code(value, nearest):
    # 6 and many small values pin the scale to 1.
    row = torch.tensor([[6.0, value, *[0.5, 1.5, 3.0] * 10]])
    assert mxfp4.dequantize(*mxfp4.quantize(row))[0, 1] == nearest


def blocks_of_all_kinds() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(400, 32, generator=generator)
    heavy = normal * torch.rand(400, 1, generator=generator).exp() ** 6
    one_large = 0.25 * torch.rand(400, 32, generator=generator)
    one_large[:, 0] = 4 + 4 * torch.rand(400, generator=generator)
    equal_small = torch.full((40, 32), 0.25)
    equal_small[:, 0] = torch.linspace(4, 8, 40)
    return torch.cat([normal, heavy, one_large, equal_small])


def test_no_other_scale_is_nearer():
    weight = blocks_of_all_kinds()
    error = (mxfp4.dequantize(*mxfp4.quantize(weight)) - weight).square().sum(-1)
    table = torch.tensor(VALUES)
    every = []
    for exponent in range(-12, 12):
        scale = 2.0 ** exponent
        distance = (weight[..., None] / scale - table).abs().amin(-1) * scale
        every.append(distance.square().sum(-1))
    every = torch.stack(every)
    torch.testing.assert_close(error, every.amin(0), rtol=1e-5, atol=1e-9)
    # All three candidates are needed: each is the only best one of some block.
    largest = torch.floor(torch.log2(weight.abs().amax(-1))).int() - 2
    chosen = every.argmin(0) - 12 - largest
    assert {-1, 0, 1} <= set(chosen.tolist())


def test_weights_that_cannot_be_packed_are_refused():
    with pytest.raises(ValueError, match="40 input columns are no multiple"):
        mxfp4.quantize(torch.zeros(2, 40))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            mxfp4.quantize(torch.full((1, 32), value))
