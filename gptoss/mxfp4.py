"""Round weights to MXFP4, the 4-bit format in which GPT-OSS was released, and unpack them again.

A block of 32 neighbours along the input dimension shares one power of two; each value is one of 15
(0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) times it. Format: OCP Microscaling Formats (MX)
Specification 1.0; layout of the tensors: `openai/gpt-oss-20b`.
"""

import torch

BLOCK = 32
"""Values that share one scale."""
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of a code say; the fourth is the sign."""
EXPONENT_BIAS = 127
"""A scale byte b means 2 ** (b - 127)."""
CONFIG = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ],
}
"""`quantization_config` of the released model: experts are packed, the rest stays in 16 bits."""
BITS_PER_VALUE = 4 + 8 / BLOCK

# Smallest exponent that is used: far below any weight, far above float32's subnormal numbers.
_SMALLEST_EXPONENT = -100


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the rows of a matrix to MXFP4 with the least squared error of every block.

    Args:
        weight: Floating point, shape `[rows, columns]`; columns is the input dimension.

    Returns:
        Blocks, uint8 `[rows, columns / 32, 16]`, two values a byte, the first in the lower half; and
        scales, uint8 `[rows, columns / 32]`.

    Raises:
        ValueError: The columns are no multiple of 32, or a value is not finite.
    """
    rows, columns = weight.shape
    if columns % BLOCK:
        raise ValueError(f"MXFP4 packs 32 neighbours: {columns} input columns are no multiple")
    values = weight.float().reshape(rows, columns // BLOCK, BLOCK)
    largest = values.abs().amax(-1, keepdim=True)
    if not torch.isfinite(largest).all():
        raise ValueError("a weight is not finite; MXFP4 cannot hold it")
    # The largest value of a block, over its scale, is at least 4 and below 8 with this exponent.
    exponent = torch.frexp(largest).exponent - 3
    exponent = exponent.clamp(_SMALLEST_EXPONENT, EXPONENT_BIAS)
    best, least = exponent, _squared_error(values, exponent)
    # Only these two others can be better. Larger by one: 7 to 8 rounds to 8 and not to 6. Smaller
    # by one: the largest value is cut to save the many small ones. Larger by two loses small values
    # for nothing; smaller by two costs the largest more than 31 others can gain.
    for step in (1, -1):
        other = (exponent + step).clamp(_SMALLEST_EXPONENT, EXPONENT_BIAS)
        error = _squared_error(values, other)
        best = torch.where(error < least, other, best)
        least = torch.minimum(error, least)
    codes = _codes(values / _power_of_two(best))
    pairs = codes.reshape(rows, columns // BLOCK, BLOCK // 2, 2)
    blocks = pairs[..., 0] | (pairs[..., 1] << 4)
    return blocks, (best + EXPONENT_BIAS).to(torch.uint8).squeeze(-1)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)


def _nearest(scaled: torch.Tensor) -> torch.Tensor:
    """Return the nearest of the 15 values; a tie goes to the even code, as in the hardware."""
    size = scaled.abs()
    fine, middle, coarse = (size * 2).round() / 2, size.round(), (size / 2).round() * 2
    rounded = torch.where(size < 2, fine, torch.where(size < 4, middle, coarse))
    return rounded.clamp(max=MAGNITUDES[-1]).copysign(scaled)


def _squared_error(values: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    scale = _power_of_two(exponent)
    return (_nearest(values / scale) * scale - values).square().sum(-1, keepdim=True)


def _codes(scaled: torch.Tensor) -> torch.Tensor:
    nearest = _nearest(scaled)
    # Twice a magnitude is a whole number up to 12, the place of its code in this table.
    table = torch.zeros(13, dtype=torch.uint8, device=scaled.device)
    for code, magnitude in enumerate(MAGNITUDES):
        table[int(2 * magnitude)] = code
    return table[(nearest.abs() * 2).int()] | (torch.signbit(nearest).to(torch.uint8) << 3)


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the float32 matrix `[rows, columns]` that `quantize` packed."""
    table = torch.tensor([*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)], device=blocks.device)
    codes = torch.stack([blocks & 15, blocks >> 4], dim=-1).int()
    values = table[codes].flatten(-2) * _power_of_two(scales.int()[..., None] - EXPONENT_BIAS)
    return values.flatten(-2)


def quantize_experts(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round expert weights `[E, in, out]`, as transformers holds them, one expert at a time to bound memory.

    Returns:
        Blocks `[E, out, in / 32, 16]` and scales `[E, out, in / 32]`, both uint8.

    Raises:
        ValueError: As `quantize`.
    """
    packed = [quantize(expert.T) for expert in weight]
    return torch.stack([blocks for blocks, _ in packed]), torch.stack([s for _, s in packed])


def round_experts(weight: torch.Tensor) -> torch.Tensor:
    """Return expert weights `[E, in, out]` as they come back from MXFP4, in their own dtype."""
    rounded = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for index, expert in enumerate(weight):
        rounded[index] = dequantize(*quantize(expert.T)).T
    return rounded
