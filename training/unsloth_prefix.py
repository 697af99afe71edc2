"""A group's prompt read once under Unsloth, by what its GPT-OSS lets through.

Unsloth's attention makes its own masks in training and drops those it is given. Each layer gets a
forward that attends over packed rows where it is called with `packed`, and is Unsloth's
otherwise. The pass ends at the hidden states: the logits of 1,536 tokens over 201,088 words are
1.2 GB in float32, so they are made a few tokens at a time. Left out: several processes,
where Unsloth goes around the wrapper that adds up gradients.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb

from gptoss.model_types import Model
from gptoss.weights import find_core
from training import shared_prefix
from training.shared_prefix import PackedMask, PackedRows, Scores, attend, score_logits, take

HEAD_TOKENS = 512
"""Tokens whose logits are made at once."""
LAYER_PARTS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "sinks", "scaling", "head_dim", "num_key_value_groups",
    "layer_type",
)
"""What an attention layer must have."""


class PackedForward:
    """The forward of one attention layer: over packed rows, or as it was."""

    def __init__(self, layer: nn.Module) -> None:
        """Remember the layer's own forward.

        Raises:
            ValueError: The layer is not one of transformers' GPT-OSS.
        """
        missing = [name for name in LAYER_PARTS if not hasattr(layer, name)]
        if missing:
            raise ValueError(f"{type(layer).__name__} has no {missing[0]}")
        self.layer, self.own = layer, layer.forward

    def __call__(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: Any = None, *others: Any, packed: dict[str, PackedMask] | None = None,
        **settings: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; `packed` holds a mask for each layer type, the rest is as the layer's own."""
        if packed is None:
            return self.own(hidden_states, position_embeddings, attention_mask, *others, **settings)
        layer, shape = self.layer, hidden_states.shape[:-1]
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
            for project in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        mixed, _ = attend(
            layer, query, key, value, packed[layer.layer_type], attend_fused, scaling=layer.scaling
        )
        return layer.o_proj(mixed.reshape(*shape, -1)), None


def attend_fused(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    mask: torch.Tensor, scaling: float,
) -> tuple[torch.Tensor, None]:
    """Attention of GPT-OSS by torch's fused kernels, which know no sinks and round in float32.

    The sink of a head is one more key, whose value is 0: in a further dimension of heads every query
    holds the sink, that key 1, and the others 0.

    Args:
        query: `[B, heads, Q, D]`.
        key: `[B, kv_heads, K, D]`; values alike.
        mask: Additive, `[B or 1, 1, Q, K]`.
        scaling: Multiplies the scores.

    Returns:
        `[B, Q, heads, D]`, and None in place of the weights.
    """
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    # Kernels want a multiple of 8 in the size of heads.
    query, key = (nn.functional.pad(x, (0, 8)) for x in (query, key))
    further = torch.zeros(query.shape[-1], dtype=query.dtype, device=query.device)
    further[-8] = 1
    query = query + (module.sinks / scaling)[:, None, None].to(query.dtype) * further
    key = torch.cat([key, further.expand(*key.shape[:2], 1, -1)], 2)
    value = nn.functional.pad(value, (0, 0, 0, 1))
    mask = nn.functional.pad(mask, (0, 1)).to(query.dtype)
    # Of the fused kernels one takes masks and a value of another size for sure.
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
    return mixed.transpose(1, 2), None


def add_packed_attention(model: Model) -> None:
    """Let each attention layer attend over packed rows as well; once a model.

    Raises:
        ValueError: A layer is not what this was written for; the model is left as it was.
    """
    layers = [layer.self_attn for layer in find_core(model).model.layers]
    added = [
        PackedForward(layer) for layer in layers if not isinstance(layer.forward, PackedForward)
    ]
    for forward in added:
        forward.layer.forward = forward


def score_in_parts(
    model: Model, rows: PackedRows, chosen: torch.Tensor, temperature: float, with_entropy: bool,
) -> Scores:
    """Score packed rows by a model with `add_packed_attention`, a few tokens at a time; see `Score`."""
    core = find_core(model)
    masks = {
        kind: shared_prefix.attention_mask_of(rows, window, core.lm_head.weight.dtype)
        for kind, window in (
            ("full_attention", None), ("sliding_attention", core.config.sliding_window)
        )
    }
    # As mask, too: Unsloth and transformers then build none of their own.
    hidden = core.model(
        input_ids=rows.input_ids, attention_mask=masks, position_ids=rows.position_ids,
        use_cache=False, packed=masks,
    ).last_hidden_state

    def score(part: torch.Tensor, ids: torch.Tensor) -> Scores:
        logits = core.lm_head(part.to(core.lm_head.weight.dtype)).float()
        return score_logits(logits, ids, temperature, with_entropy)

    logps, entropies = zip(*(
        checkpoint(score, part, ids, use_reentrant=False)
        for part, ids in zip(
            take(hidden, rows.before).split(HEAD_TOKENS), chosen.split(HEAD_TOKENS), strict=True
        )
    ), strict=True)
    return torch.cat(logps), torch.cat(entropies) if with_entropy else None
