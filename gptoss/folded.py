"""Sampling for other models than GPT-OSS: the adapter folded in, and a group's prompt held once.

A LoRA layer computes its update beside the weight, three small kernels a layer for every token. For the
time of one `generate` call the update is added to the weight itself; afterwards the weights are what they
were, bit for bit. `HeldPromptGenerate` also reads and holds the prompt of a group once for all of its
rows, and on a GPU replays a decode step as a CUDA graph. Left out: penalties, beams, and models whose
attention does more to its scores than scale them.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from gptoss.model_types import Model
from gptoss.weights import add_lora, find_causal_lm, is_packed, linear_lora

ATTENTION = "held_prompt"
"""Name of `_attend` among transformers' implementations."""
PROMPTS_PER_PASS = 16
"""Prompts read in one forward pass."""
CHECK_EVERY_STEPS = 16
"""Decode steps between two checks whether every row has ended (a check waits for the GPU)."""


@contextlib.contextmanager
@torch.no_grad()
def folded_adapter(model: Model) -> Iterator[None]:
    """Fold the active adapter into the linear layers of a model, and take it out again."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    layers = [layer for layer in layers if not is_packed(layer.get_base_layer().weight)]
    kept = []
    for layer in layers:
        weight, lora = layer.get_base_layer().weight, linear_lora(layer)
        if lora is None:
            continue
        kept.append((layer, weight, weight.data))
        weight.data = add_lora(weight.data.T[None], lora)[0].T.contiguous()
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, weight, data in kept:
            weight.data, layer._disable_adapters = data, False


class FoldedGenerate:
    """A `generate` with the call shape of transformers, the adapter folded in while it samples."""

    def __init__(self, model: Model) -> None:
        self._model, self._generate = model, model.generate

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Sample as the model's own `generate` does."""
        with folded_adapter(self._model):
            return self._generate(*args, **settings)


class HeldPromptGenerate(FoldedGenerate):
    """The same, with the prompt of a group held once, and CUDA graphs."""

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, max_new_tokens: int,
        logits_processor: Sequence[Callable] = (), pad_token_id: int = 0, do_sample: bool = False,
        **settings: Any,
    ) -> torch.Tensor:
        """Take the likeliest token each time, after the logits processors; `[B, L + n]` token ids.

        Prompts are padded on the left. A streamer, and sampling by transformers, go to the model's own
        `generate`.
        """
        if do_sample or settings.get("streamer") is not None:
            return super().__call__(
                input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens,
                logits_processor=list(logits_processor), do_sample=do_sample, **settings,
            )
        core = find_causal_lm(self._model)
        AttentionInterface.register(ATTENTION, _attend)
        usual = core.config._attn_implementation
        core.set_attn_implementation(ATTENTION)
        try:
            with folded_adapter(self._model), torch.no_grad():
                return _Rows(core, input_ids, attention_mask, max_new_tokens).decode(
                    logits_processor, pad_token_id
                )
        finally:
            core.set_attn_implementation(usual)
            _reading.clear()


_reading: list["_Rows"] = []
"""The rows that are decoded at present, for `_attend`."""


class _Rows:
    """B rows in P groups of G equal prompts each, L columns wide, that may grow by T tokens."""

    def __init__(
        self, core: Model, input_ids: torch.Tensor, attention_mask: torch.Tensor, capacity: int
    ) -> None:
        self.core, self.input_ids, device = core, input_ids, input_ids.device
        sizes = set(find_groups(input_ids, attention_mask))
        self.size = sizes.pop() if len(sizes) == 1 else 1
        self.ids, self.valid = input_ids[:: self.size], attention_mask[:: self.size].bool()
        self.capacity, self.is_prompt = capacity, True
        self.prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.parts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.lengths = attention_mask.sum(1)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(len(input_ids), 1, dtype=torch.long, device=device)
        window = getattr(core.config.get_text_config(), "sliding_window", None)
        self.windows = {None, window}
        self.masks: dict[int | None, torch.Tensor] = {}
        # Its shape tells transformers to build no mask of its own; `_attend` does not read it.
        self.no_mask = torch.zeros(1, 1, 1, 1, device=device)
        _reading[:] = [self]

    def decode(self, processors: Sequence[Callable], pad_id: int) -> torch.Tensor:
        """Read the prompts, then decode until every row has ended or is full."""
        logits, stops = self._read(), self.core.generation_config.eos_token_id
        stops = torch.tensor(stops, device=self.tokens.device).flatten()
        ended = torch.zeros_like(self.tokens[:, 0], dtype=torch.bool)
        step, chosen, on_gpu = self._step, [], self.tokens.is_cuda
        every = CHECK_EVERY_STEPS if on_gpu else 1
        for number in range(1, self.capacity + 1):
            for process in processors:
                logits = process(self.input_ids, logits)
            tokens = torch.where(ended, pad_id, logits.argmax(-1))
            chosen.append(tokens)
            ended |= torch.isin(tokens, stops)
            if number == self.capacity or (number % every == 0 and bool(ended.all())):
                break
            if number == 1 and on_gpu:
                step = self._record()
            self.tokens[:, 0] = tokens
            logits = step()
        return torch.cat([self.input_ids, torch.stack(chosen, 1)], 1)

    def _read(self) -> torch.Tensor:
        """Read each group's prompt; returns the logits after it, `[B, vocabulary]`."""
        logits = []
        for begin in range(0, len(self.ids), PROMPTS_PER_PASS):
            valid = self.valid[begin : begin + PROMPTS_PER_PASS]
            count = torch.arange(valid.shape[1], device=valid.device)
            distance = count[:, None] - count
            for window in self.windows:
                seen = (distance >= 0) & (distance < (window or len(count)))
                # Padding sees itself: a row of nothing would be no number.
                self.masks[window] = (seen & valid[:, None] | (distance == 0))[:, None]
            places = (valid.cumsum(1) - 1).clamp_(min=0)
            logits.append(self._forward(self.ids[begin : begin + PROMPTS_PER_PASS], places))
        for layer, parts in self.parts.items():
            keys, values = zip(*parts, strict=True)
            self.prompts[layer] = torch.cat(keys), torch.cat(values)
            shape = (len(self.tokens), keys[0].shape[1], self.capacity, keys[0].shape[3])
            self.own[layer] = keys[0].new_zeros(shape), keys[0].new_zeros(shape)
        self.parts.clear()
        self.is_prompt = False
        return torch.cat(logits).repeat_interleave(self.size, 0)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.core(
            input_ids=ids, position_ids=positions, attention_mask=self.no_mask, use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]

    def _step(self) -> torch.Tensor:
        """Decode one token a row; returns the next logits."""
        device, width = self.tokens.device, self.ids.shape[1]
        place = (self.lengths + self.step)[:, None]
        valid = self.valid.repeat_interleave(self.size, 0)
        own = torch.arange(self.capacity, device=device)
        distance = torch.cat([
            place - (valid.cumsum(1) - 1), (self.step - own).expand(len(self.tokens), -1)
        ], 1)
        seen = torch.cat([valid, (own <= self.step).expand(len(self.tokens), -1)], 1)
        for window in self.windows:
            hidden = ~seen | (distance >= (window or width + self.capacity + 1))
            self.masks[window] = torch.zeros(hidden.shape, device=device).masked_fill_(
                hidden, float("-inf")
            )[:, None, None]
        logits = self._forward(self.tokens, place)
        self.step += 1
        return logits

    def _record(self) -> Callable[[], torch.Tensor]:
        """Record a decode step as a CUDA graph; the returned function replays it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()  # fills library workspaces before recording
        torch.cuda.current_stream().wait_stream(side)
        self.step.zero_()  # the warm-up is undone: its cache slot is written again
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


def find_groups(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> list[int]:
    """Return how many rows in a run have the same prompt, by ids and mask `[B, P]`; they sum to B."""
    same = (prompt_ids[1:] == prompt_ids[:-1]) & (prompt_mask[1:] == prompt_mask[:-1])
    starts = [0, *((~same.all(1)).nonzero()[:, 0] + 1).tolist(), len(prompt_ids)]
    return [end - start for start, end in pairwise(starts)]


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any,
    scaling: float | None = None, sliding_window: int | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the rows in `_reading`: within a prompt, or of one token a row to all before it.

    Args:
        query: `[P, heads, L, D]` or `[B, heads, 1, D]`.
        key: `[P, kv_heads, L, D]` or `[B, kv_heads, 1, D]`, of these tokens alone; values alike.
        scaling: Factor of the scores; None is 1 / sqrt(D).
        sliding_window: Tokens that this layer sees; None sees all.

    Returns:
        `[P, L, heads, D]` or `[B, 1, heads, D]`, and None in place of the weights.
    """
    [rows], layer = _reading, module.layer_idx
    mask = rows.masks[sliding_window]
    if rows.is_prompt:
        rows.parts.setdefault(layer, []).append((key, value))
        # Repeated keys go to a kernel that holds no L x L scores; `enable_gqa` with a mask does not.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return found.transpose(1, 2).contiguous(), None
    (prompt_keys, prompt_values), (keys, values) = rows.prompts[layer], rows.own[layer]
    keys.index_copy_(2, rows.step, key)
    values.index_copy_(2, rows.step, value)
    count, size, kv_heads = len(prompt_keys), rows.size, key.shape[1]

    def by_group(x: torch.Tensor) -> torch.Tensor:
        """`[B, kv_heads, heads / kv_heads, N]` to `[P, kv_heads, G * heads / kv_heads, N]`."""
        return x.unflatten(0, (count, size)).transpose(1, 2).flatten(2, 3)

    def by_row(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (size, -1)).transpose(1, 2).flatten(0, 1)

    query = query[:, :, 0].unflatten(1, (kv_heads, -1))
    to_prompt = by_row(by_group(query) @ prompt_keys.transpose(2, 3))
    scores = torch.cat([to_prompt, query @ keys.transpose(2, 3)], -1).float()
    weights = (scores * (scaling or query.shape[-1] ** -0.5) + mask).softmax(-1).to(query.dtype)
    first, second = weights.split([to_prompt.shape[-1], rows.capacity], -1)
    found = by_row(by_group(first) @ prompt_values) + second @ values
    return found.flatten(1, 2)[:, None], None
