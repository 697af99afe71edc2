"""Attention of GPT-OSS on a CPU, by torch's flash kernel, which knows no sinks.

Written out, as transformers has it, a layer keeps several `[B, heads, T, T]`, which take most of a training
step on long rows. The kernel also returns the logarithm of its softmax's sum, in which a sink is one
more term: with it the output shrinks, and the kernel's backward pass is right once it is given the whole
sum and the shrunk output. Queries are taken in blocks, each over the keys that it can see. The
kernel's two operators are private to torch: check this module when its pin moves.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward, repeat_kv

CPU_ATTENTION = "cpu_sinks"
"""The name of this attention among transformers' implementations."""
BLOCK_QUERIES = 128
"""Queries in a block: of 64 to 768 the fastest for 300 to 1,536 tokens, with and without a window."""
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def register_cpu_attention() -> str:
    """Let transformers find this attention; return its name."""
    AttentionInterface.register(CPU_ATTENTION, attend_with_sinks)
    AttentionMaskInterface.register(CPU_ATTENTION, eager_mask)
    return CPU_ATTENTION


def attend_with_sinks(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor, scaling: float, dropout: float = 0.0,
    sliding_window: int | None = None, **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as transformers' `eager_attention_forward` of GPT-OSS does, up to rounding.

    Args:
        module: A layer with `sinks`, `[heads]`.
        query: `[B, heads, Q, D]`.
        key: `[B, kv_heads, K, D]`; values alike.
        attention_mask: Additive, `[B or 1, 1, Q, K]`, never None; with as many keys as queries it is
            causal.
        dropout: Of the attention weights; only the written-out attention has it.
        sliding_window: Keys that a query can see, itself included; None is all before it.

    Returns:
        `[B, Q, heads, D]`, and None in place of the weights.
    """
    if dropout:
        return eager_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **settings
        )
    key, value = (repeat_kv(x, module.num_key_value_groups) for x in (key, value))
    mixed = _SinkAttention.apply(
        query, key, value, module.sinks, attention_mask, scaling, sliding_window
    )
    return mixed.transpose(1, 2).contiguous(), None


def _blocks(num_queries: int, num_keys: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of queries, each with the keys that it can see."""
    if num_queries != num_keys:
        # Keys of a cache come before: the mask alone says which are seen.
        yield slice(0, num_queries), slice(0, num_keys)
        return
    for first in range(0, num_queries, BLOCK_QUERIES):
        end = min(first + BLOCK_QUERIES, num_queries)
        yield slice(first, end), slice(max(0, first + 1 - window) if window else 0, end)


class _SinkAttention(torch.autograd.Function):
    """Attention with the gradients of queries, keys, values and sinks."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor,
        mask: torch.Tensor, scaling: float, window: int | None,
    ) -> torch.Tensor:
        mixed = torch.empty_like(query)
        # The logarithm of each softmax's sum, with the sink.
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        blocks = list(_blocks(query.shape[2], key.shape[2], window))
        for rows, columns in blocks:
            part, seen = _forward(
                query[:, :, rows], key[:, :, columns], value[:, :, columns],
                attn_mask=mask[:, :, rows, columns], scale=scaling,
            )
            sums[:, :, rows] = torch.logaddexp(seen, sinks.float()[:, None].expand_as(seen))
            mixed[:, :, rows] = part * (seen - sums[:, :, rows]).exp()[..., None]
        ctx.save_for_backward(query, key, value, sinks, mask, mixed, sums)
        ctx.blocks, ctx.scaling = blocks, scaling
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = gradient.contiguous()
        query, key, value, sinks, mask, mixed, sums = ctx.saved_tensors
        of_query = torch.zeros_like(query)
        # A key has gradients from many blocks: their sum is rounded once.
        of_key, of_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        for rows, columns in ctx.blocks:
            parts = _backward(
                gradient[:, :, rows], query[:, :, rows], key[:, :, columns], value[:, :, columns],
                mixed[:, :, rows], sums[:, :, rows], 0.0, False,
                attn_mask=mask[:, :, rows, columns], scale=ctx.scaling,
            )
            of_query[:, :, rows] = parts[0]
            of_key[:, :, columns] += parts[1]
            of_value[:, :, columns] += parts[2]
        of_sinks = None
        if ctx.needs_input_grad[3]:
            share = (sinks.float()[:, None] - sums).exp()
            of_sinks = -(share * (gradient * mixed).sum(3)).sum((0, 2)).to(sinks.dtype)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), of_sinks, None, None, None
