"""GRPO's log-probabilities with the prompt of a group read once, its completions behind it in one row.

A padded pass reads the prompt once per completion. Here a row is the prompt followed by the
completions of its group; attention keeps the completions apart, and the positions of each continue from
the prompt. Values and gradients are those of the padded pass up to rounding, so loss, clipping and
KL stay TRL's. transformers asks for a model's masks and its attention by name: under the names of
`trl_private.prepare_shared_prefix` it gets those of packed rows. What Unsloth's model needs is in
`unsloth_prefix.py`.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import selective_log_softmax, selective_log_softmax_and_entropy

from common.files import SettingsError
from gptoss.model_types import Model


@dataclass(frozen=True)
class PackedRows:
    """R groups, a row each: P columns of the prompt, padded, then M of packed completions.

    A group has at most G completions of at most C tokens; K is the tokens of all completions.
    """

    input_ids: torch.Tensor
    """`[R, P + M]`."""
    position_ids: torch.Tensor
    """`[R, P + M]`; those of each completion continue from the prompt's."""
    prompt_lengths: torch.Tensor
    """`[R]`."""
    width: int
    """P."""
    slots: torch.Tensor
    """`[R, G, C]`: where in the flat `[R * M]` each completion's tokens are; padding is 0."""
    packed: torch.Tensor
    """`[R, M]`: where in the flat `[R * G * C]` the token of a packed column is; padding is 0."""
    before: torch.Tensor
    """`[K]`: where in the flat `[R * (P + M)]` the token before each completion token is."""


@dataclass(frozen=True)
class PackedMask:
    """What one kind of layer attends to; passed to transformers as its attention mask."""

    rows: PackedRows
    prompts: torch.Tensor
    """Additive, `[1, 1, P, P]`: prompts are padded on the right, so causal is enough."""
    completions: torch.Tensor
    """Additive, `[R * G, 1, C, P + C]`: over the prompt and the completion itself."""


def pack_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, num_kept: int, groups: list[int]
) -> PackedRows:
    """Lay out each group as one row.

    Args:
        input_ids: `[B, width]`, prompts padded on the left, completions on the right.
        attention_mask: `[B, width]`, 0 on padding.
        num_kept: Columns of the completions.
        groups: Numbers of rows with the same prompt, in order.
    """
    kept = attention_mask[:, -num_kept:].bool()
    firsts = [sum(groups[:row]) for row in range(len(groups))]
    prompts = [input_ids[row, :-num_kept][attention_mask[row, :-num_kept].bool()] for row in firsts]
    lengths = [kept[first : first + size].sum(1).tolist()
               for first, size in zip(firsts, groups, strict=True)]
    width = max(map(len, prompts))
    num_columns = max(map(sum, lengths))
    longest = max(map(max, lengths))
    slots = torch.zeros(len(groups), max(groups), longest, dtype=torch.long)
    packed = torch.zeros(len(groups), num_columns, dtype=torch.long)
    completions, places, before = torch.zeros_like(packed), torch.zeros_like(packed), []
    for row, (prompt, sizes) in enumerate(zip(prompts, lengths, strict=True)):
        column, start = 0, row * (width + num_columns)
        for number, size in enumerate(sizes):
            columns, steps = torch.arange(column, column + size), torch.arange(size)
            slots[row, number, :size] = row * num_columns + columns
            packed[row, columns] = (row * max(groups) + number) * longest + steps
            places[row, columns] = len(prompt) + steps
            ids = input_ids[firsts[row] + number, -num_kept:]
            completions[row, columns] = ids[:size].cpu()
            # The token before a completion is the prompt's last one.
            before.append(start + width + columns - 1)
            before[-1][:1] = start + len(prompt) - 1
            column += size
    device = input_ids.device
    positions = torch.arange(width).expand(len(groups), -1)
    return PackedRows(
        torch.cat([pad_sequence(prompts, batch_first=True), completions.to(device)], 1),
        torch.cat([positions, places], 1).to(device),
        torch.tensor(list(map(len, prompts)), device=device), width,
        slots.to(device), packed.to(device), torch.cat(before).to(device),
    )


def attention_mask_of(rows: PackedRows, window: int | None, dtype: torch.dtype) -> PackedMask:
    """Return what a kind of layer attends to: `window` tokens, None for all; scores are of type `dtype`."""
    device = rows.slots.device
    count, size, longest = rows.slots.shape
    columns = torch.arange(rows.width, device=device)
    steps = torch.arange(longest, device=device)

    def additive(distance: torch.Tensor) -> torch.Tensor:
        """Hide what comes later and what lies before the window; distances are query - key."""
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        mask = torch.zeros(distance.shape, dtype=dtype, device=device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]

    ends = rows.prompt_lengths[:, None, None]
    # Columns of padding count as later than everything.
    to_prompt = (ends + steps[:, None] - columns).masked_fill(columns >= ends, -1)
    to_itself = (steps[:, None] - steps).expand(count, -1, -1)
    completions = additive(torch.cat([to_prompt, to_itself], 2))
    causal = (columns[:, None] - columns)[None]
    return PackedMask(rows, additive(causal), completions.repeat_interleave(size, 0))


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return values `[A, B, ...]` at places in the flat `[A * B]`, in the index's shape.

    Indexing would do the same, but threads add up its gradients in no fixed order: two runs with one
    seed would differ.
    """
    flat = values.flatten(0, 1)
    return flat.index_select(0, index.flatten()).unflatten(0, index.shape)


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: PackedMask | torch.Tensor | None,
    attention: Callable[..., tuple[torch.Tensor, Any]], **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of a model, over packed rows where a `PackedMask` says so.

    Args:
        query: `[R, heads, P + M, D]`.
        key: `[R, kv_heads, P + M, D]`; values alike.
        attention_mask: Packed rows; anything else goes to `attention` as it is.
        attention: Attends with a dense mask; called as transformers calls its implementations.

    Returns:
        `[R, P + M, heads, D]`, and None in place of the weights.
    """
    if not isinstance(attention_mask, PackedMask):
        return attention(module, query, key, value, attention_mask, **settings)
    rows, width = attention_mask.rows, attention_mask.rows.width
    size = rows.slots.shape[1]
    prompt = [x[:, :, :width] for x in (query, key, value)]
    read, _ = attention(module, *prompt, attention_mask.prompts, **settings)
    own_query, own_key, own_value = (
        take(x[:, :, width:].transpose(1, 2), rows.slots.flatten(0, 1)).transpose(1, 2)
        for x in (query, key, value)
    )
    keys, values = (
        torch.cat([before.repeat_interleave(size, 0), own], 2)
        for before, own in zip(prompt[1:], (own_key, own_value), strict=True)
    )
    written, _ = attention(
        module, own_query, keys, values, attention_mask.completions, **settings
    )
    return torch.cat([read, take(written, rows.packed)], 1), None


def attend_eagerly(
    module: nn.Module, *args: torch.Tensor, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend as the model's own file has it written out: with GPT-OSS's sinks, Gemma 2's soft caps."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **settings)


Scores = tuple[torch.Tensor, torch.Tensor | None]
"""Log-probabilities, and entropies where they were asked for, of K tokens, `[K]`; nats."""
Score = Callable[[Model, PackedRows, torch.Tensor, float, bool], Scores]
"""Scores packed rows: model, rows, the K tokens, temperature, with entropies."""


def log_probabilities(
    model: Model, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_kept: int,
    groups: list[int], temperature: float, with_entropy: bool, score: Score,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the log-probability, and the entropy, of each completion token.

    Args:
        model: With or without wrappers; what comes next is as for `pack_rows`.
        temperature: Divides the logits.
        with_entropy: Compute entropies, without gradient.
        score: Runs the model, such as `score_tokens`.

    Returns:
        Two `[B, num_kept]`, 0 on padding; nats. None without entropies.
    """
    rows = pack_rows(input_ids, attention_mask, num_kept, groups)
    kept = attention_mask[:, -num_kept:].bool()
    values = score(model, rows, input_ids[:, -num_kept:][kept], temperature, with_entropy)
    return tuple(
        None if part is None
        else part.new_zeros(kept.shape).masked_scatter(kept, part) for part in values
    )


_scored: list[Callable[[int | None], PackedMask]] = []
"""Makes the mask of the rows that `score_tokens` scores at present, for a window; else empty."""


def packed_mask(
    usual: Callable[..., torch.Tensor | None], *args: Any, local_size: int | None = None, **settings: Any
) -> PackedMask | torch.Tensor | None:
    """Return what a model asks transformers for as the mask of its layers of one kind.

    Args:
        usual: Makes the mask while no packed rows are scored.
        args: As transformers passes them.
        local_size: Tokens that sliding layers see; None sees all.
        settings: As transformers passes them.
    """
    if _scored:
        return _scored[0](local_size)
    return usual(*args, **({} if local_size is None else {"local_size": local_size}), **settings)


def score_tokens(
    core: Model, model: Model, rows: PackedRows, chosen: torch.Tensor, temperature: float,
    with_entropy: bool,
) -> Scores:
    """Score packed rows by a model of transformers that attends by `attend`; see `Score`.

    Args:
        core: The causal model inside `model`.
        model: As `Score` has it, and so on.

    Raises:
        SettingsError: The model asked for no mask: it would have read the rows as plain ones.
    """
    head = core.get_output_embeddings()
    make_mask = functools.cache(functools.partial(attention_mask_of, rows, dtype=head.weight.dtype))

    def keep_completions(_: nn.Module, arguments: tuple[torch.Tensor]) -> torch.Tensor:
        return take(arguments[0], rows.before)[None]

    # The model's own `logits_to_keep` takes one choice of columns for all rows.
    hook = head.register_forward_pre_hook(keep_completions)
    _scored[:] = [make_mask]
    try:
        logits = model(
            input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False
        ).logits
    finally:
        hook.remove()
        _scored.clear()
    if not make_mask.cache_info().currsize:
        raise SettingsError(
            f"{type(core).__name__} makes its own masks; use --set grpo.shared_prefix=false"
        )
    return score_logits(logits[0], chosen, temperature, with_entropy)


def score_logits(
    logits: torch.Tensor, chosen: torch.Tensor, temperature: float, with_entropy: bool
) -> Scores:
    """Score the K chosen tokens, `[K]`, by their logits, `[K, vocabulary]`; see `Scores`."""
    if with_entropy:
        logps, entropies = selective_log_softmax_and_entropy(
            logits[None], chosen[None], entropy_requires_grad=False, temperature=temperature
        )
        return logps[0], entropies[0]
    return selective_log_softmax(logits[None], chosen[None], temperature=temperature)[0], None
