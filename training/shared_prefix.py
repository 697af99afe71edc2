"""GRPO's log-probabilities with the prompt of a group read once, its completions behind it in one row.

A padded pass reads the prompt once per completion. Here a row is the prompt followed by the
completions of its group; masks keep the completions apart, and each one's positions go on from the
prompt. Values and gradients are those of the padded pass up to rounding, so loss, clipping and KL stay TRL's.
Left out on purpose: Unsloth, whose trainer computes log-probabilities its own way.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer
from trl.trainer.utils import (
    selective_log_softmax,
    selective_log_softmax_and_entropy,
    split_tensor_dict,
)

from gptoss.weights import find_core

PROMPT, PADDING = 0, -1
"""Owners of tokens that are no completion's; the completions of a row are numbered from 1."""


@dataclass(frozen=True)
class PackedRows:
    """Completions of R groups, one row of at most S tokens each; K completion tokens in all."""

    input_ids: torch.Tensor
    """`[R, S]`."""
    position_ids: torch.Tensor
    """`[R, S]`; each completion's go on from the prompt's."""
    owners: torch.Tensor
    """`[R, S]`: `PROMPT`, the number of a completion, or `PADDING`."""
    before: torch.Tensor
    """`[K]`: where in the flat `[R * S]` the token before each completion token is."""


def find_groups(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> list[int]:
    """Return how many rows in a run have the same prompt.

    Args:
        prompt_ids: `[B, P]`.
        prompt_mask: `[B, P]`.

    Returns:
        Lengths of the runs; they sum to B.
    """
    same = (prompt_ids[1:] == prompt_ids[:-1]) & (prompt_mask[1:] == prompt_mask[:-1])
    starts = [0, *((~same.all(1)).nonzero()[:, 0] + 1).tolist(), len(prompt_ids)]
    return [end - start for start, end in zip(starts, starts[1:], strict=False)]


def pack_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, num_kept: int, groups: list[int]
) -> PackedRows:
    """Lay out each group as one row: its prompt, then its completions, without their padding.

    Args:
        input_ids: `[B, P + num_kept]`, prompts padded on the left, completions on the right.
        attention_mask: `[B, P + num_kept]`, 0 on padding.
        num_kept: Columns of the completions.
        groups: Numbers of rows with the same prompt, in order.
    """
    width = input_ids.shape[1] - num_kept
    lengths = attention_mask[:, width:].sum(1).tolist()
    rows, positions, owners, before, start = [], [], [], [], 0
    for group in groups:
        prompt = input_ids[start, :width][attention_mask[start, :width].bool()]
        size = len(prompt)
        parts, places, marks = [prompt], [torch.arange(size)], [torch.full((size,), PROMPT)]
        offsets, at = [], size
        for number, length in enumerate(lengths[start : start + group], start=1):
            parts.append(input_ids[start + number - 1, width : width + length])
            places.append(torch.arange(size, size + length))
            marks.append(torch.full((length,), number))
            # The first token of a completion follows the prompt's last one.
            offsets.append(torch.arange(at - 1, at + length - 1))
            offsets[-1][:1] = size - 1
            at += length
        rows.append(torch.cat(parts))
        positions.append(torch.cat(places))
        owners.append(torch.cat(marks))
        before.append(torch.cat(offsets))
        start += group
    longest = max(map(len, rows))
    flat = torch.cat([offset + row * longest for row, offset in enumerate(before)])
    pad = dict(batch_first=True)
    device = input_ids.device
    return PackedRows(
        pad_sequence(rows, **pad), pad_sequence(positions, **pad).to(device),
        pad_sequence(owners, **pad, padding_value=PADDING).to(device), flat.to(device),
    )


def attention_masks(
    rows: PackedRows, window: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return additive masks `[R, 1, S, S]` by layer type, as transformers' GPT-OSS takes them.

    Args:
        rows: The layout.
        window: Tokens that a sliding layer sees.
        dtype: Type of the scores.
    """
    owner, position = rows.owners, rows.position_ids
    asks, gives = owner[:, :, None], owner[:, None, :]
    distance = position[:, :, None] - position[:, None, :]
    seen = ((gives == asks) | (gives == PROMPT)) & (distance >= 0)
    return {
        name: torch.zeros(part.shape, dtype=dtype, device=part.device)
        .masked_fill_(~part, torch.finfo(dtype).min)[:, None]
        for name, part in (
            ("full_attention", seen), ("sliding_attention", seen & (distance < window))
        )
    }


def log_probabilities(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_kept: int,
    groups: list[int], temperature: float, with_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the log-probability, and the entropy, of each completion token.

    Args:
        model: GPT-OSS of transformers, with or without wrappers.
        input_ids: As `pack_rows`.
        attention_mask: As `pack_rows`.
        num_kept: As `pack_rows`.
        groups: As `pack_rows`.
        temperature: Divides the logits.
        with_entropy: Compute entropies, without gradient.

    Returns:
        Two `[B, num_kept]`, 0 on padding; nats. None without entropies.
    """
    rows = pack_rows(input_ids, attention_mask, num_kept, groups)
    core = find_core(model)
    masks = attention_masks(rows, core.config.sliding_window, core.lm_head.weight.dtype)

    def keep_completions(_: Any, arguments: tuple[torch.Tensor]) -> torch.Tensor:
        return arguments[0].flatten(0, 1)[rows.before][None]

    # The model's own `logits_to_keep` takes one choice of columns for all rows.
    hook = core.lm_head.register_forward_pre_hook(keep_completions)
    try:
        logits = model(
            input_ids=rows.input_ids, attention_mask=masks, position_ids=rows.position_ids,
            use_cache=False,
        ).logits
    finally:
        hook.remove()
    kept = attention_mask[:, -num_kept:].bool()
    chosen = input_ids[:, -num_kept:][kept][None]
    if with_entropy:
        values = selective_log_softmax_and_entropy(
            logits, chosen, entropy_requires_grad=False, temperature=temperature
        )
    else:
        values = selective_log_softmax(logits, chosen, temperature=temperature), None
    return tuple(
        None if part is None
        else part.new_zeros(kept.shape).masked_scatter(kept, part) for part in values
    )


class SharedPrefixTrainer(GRPOTrainer):
    """TRL's trainer with shared prompts, and with groups kept whole when completions are shuffled."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor,
        logits_to_keep: int, batch_size: int | None = None, compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        width = input_ids.shape[1] - logits_to_keep
        parts = []
        for begin in range(0, len(input_ids), batch_size or len(input_ids)):
            part = slice(begin, begin + (batch_size or len(input_ids)))
            ids, mask = input_ids[part], attention_mask[part]
            groups = find_groups(ids[:, :width], mask[:, :width])
            parts.append(log_probabilities(
                model, ids, mask, logits_to_keep, groups, self.temperature, compute_entropy
            ))
        logps, entropies = zip(*parts, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """As TRL's, but groups are shuffled, not completions."""
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            count = len(batch["prompt_ids"])
            order = torch.randperm(count // self.num_generations)
            rows = torch.arange(count).view(-1, self.num_generations)[order].flatten()
            batch = {
                name: value[rows] if value.ndim else value for name, value in batch.items()
            }
            self._buffered_inputs = split_tensor_dict(batch, steps)
        return self._buffered_inputs[self._step % steps]
