"""GPT-OSS forward passes made for sampling: a static cache and no host syncs.

The weights are the trained model's own tensors; the LoRA factors are copied by `refresh`, which
takes milliseconds, and are applied beside the base weights as in training, never merged into them.
The residual stream is float32, norms and softmax too, products run in `dtype`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from gptoss.model_types import Model
from gptoss.moe_kernels import PackedExperts, attend_one, grouped_dense, grouped_packed, unpack
from gptoss.weights import (
    KINDS,
    Experts,
    LoraFactors,
    base_linear,
    dense,
    find_core,
    linear_lora,
    router_linear,
)

PREFILL_SCORE_BYTES = 512 * 2**20
"""Memory of one block of attention scores while prompts are read."""
PACKED_MAX_ROWS = 48
"""Mean rows per expert up to which cards with slow memory read NF4 directly."""
FAST_MEMORY_GIB = 38
"""Cards from this size on have memory so fast that unpacking a layer first is quicker: on an H200
0.75 ms a projection against 1.05 ms, 2,711 tokens/s against 1,702 at 128 rows of 20 B."""


class _Lora:
    """Stacked copies of low-rank factors: `left` `[E, in, r]`, `right` `[E, r, out]` with scale."""

    def __init__(self, factors: LoraFactors, dtype: torch.dtype, device: torch.device) -> None:
        # Kernels multiply tiles of 16; ranks below are padded with zeros.
        self.rank = factors.rank if device.type == "cpu" else -(-factors.rank // 16) * 16
        count, num_in = len(factors.lefts), factors.lefts[0].shape[0]
        num_out = factors.rights[0].shape[1]
        self.left = torch.zeros(count, num_in, self.rank, dtype=dtype, device=device)
        self.right = torch.zeros(count, self.rank, num_out, dtype=dtype, device=device)

    @torch.no_grad()
    def copy(self, factors: LoraFactors) -> None:
        """Copy the factors' present values."""
        rank = factors.rank
        torch._foreach_copy_([left[:, :rank] for left in self.left], factors.lefts)
        torch._foreach_copy_([right[:rank] for right in self.right], factors.rights)
        self.right.mul_(factors.scale)


@dataclass
class _Linear:
    """One linear layer and its LoRA copy."""

    module: nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None
    lora: _Lora | None

    def refresh(self) -> None:
        """Copy the present LoRA values."""
        if self.lora is not None and (factors := linear_lora(self.module)) is not None:
            self.lora.copy(factors)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.weight, self.bias)
        if self.lora is not None:
            y = torch.addmm(y, x @ self.lora.left[0], self.lora.right[0])
        return y


class _Projection:
    """One expert projection of one layer, in whichever form its weights are kept."""

    def __init__(self, experts: Experts, kind: str, resident: bool, decoder: "Decoder") -> None:
        self._experts, self._kind, self._decoder = experts, kind, decoder
        packed = experts.packed(kind)
        self.packed = None
        if packed is not None and not resident and decoder.device.type == "cuda":
            self.packed = PackedExperts(packed)
        self.weight = experts.weight(kind, decoder.dtype) if resident else None
        self.bias = experts.bias(kind).to(decoder.dtype).contiguous()
        factors = experts.lora(kind)
        self.lora = None if factors is None else _Lora(factors, decoder.dtype, decoder.device)

    def refresh(self) -> None:
        """Copy the present LoRA values."""
        if self.lora is not None and (factors := self._experts.lora(self._kind)) is not None:
            self.lora.copy(factors)

    def __call__(self, x: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Multiply rows `[S, in]` sorted by expert."""
        hidden = right = None
        if self.lora is not None:
            hidden, right = grouped_dense(x, self.lora.left, starts), self.lora.right
        if self.packed is None:
            weight = self.weight
            if weight is None:
                weight = self._experts.weight(self._kind, self._decoder.dtype)
        elif x.shape[0] <= self._decoder.packed_rows * self.packed.num_experts:
            return grouped_packed(x, self.packed, starts, self.bias, hidden, right)
        else:
            scratch = self._decoder.scratch(self.packed)
            weight = unpack(self.packed, scratch).transpose(1, 2).to(x.dtype)
        return grouped_dense(x, weight, starts, self.bias, hidden, right)


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: nn.Module, kind: str, resident: bool, decoder: "Decoder") -> None:
        attention = layer.self_attn
        self.window = decoder.window if kind == "sliding_attention" else None
        self.norm1, self.norm2 = layer.input_layernorm, layer.post_attention_layernorm
        self.q, self.k, self.v, self.o = (
            decoder.linear(attention.get_submodule(f"{name}_proj")) for name in "qkvo"
        )
        self.sinks = attention.sinks.detach().float()
        router = router_linear(layer.mlp.router)
        dtype = torch.promote_types(router.weight.dtype, decoder.dtype)
        self.router = _Linear(
            router, router.weight.detach().to(dtype), router.bias.detach().to(dtype), None
        )
        experts = Experts(layer.mlp.experts)
        self.num_experts, self.limit, self.alpha = experts.num_experts, experts.limit, experts.alpha
        self.gate_up, self.down = (_Projection(experts, kind, resident, decoder) for kind in KINDS)

    def refresh(self) -> None:
        """Copy the present LoRA values of every projection."""
        for part in (self.q, self.k, self.v, self.o, self.gate_up, self.down):
            part.refresh()


@dataclass
class Cache:
    """Keys and values of `rows` sequences; sliding layers keep a ring of the last tokens."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    capacity: int

    def take(self, rows: torch.Tensor) -> "Cache":
        """Return a cache of some rows."""
        keys, values = ([x[rows] for x in part] for part in (self.keys, self.values))
        return Cache(keys, values, self.capacity)


@dataclass
class Prefix:
    """One sequence's tokens and their keys and values, kept between calls; empty at first."""

    ids: list[int] = field(default_factory=list)
    keys: list[torch.Tensor] = field(default_factory=list)
    """Of each layer `[kv_heads, slots, D]`."""
    values: list[torch.Tensor] = field(default_factory=list)

    def is_of(self, ids: Sequence[int]) -> bool:
        """Tell whether a longer sequence begins with these tokens."""
        return 0 < len(self.ids) < len(ids) and list(ids[: len(self.ids)]) == self.ids

    def save(self, ids: list[int], cache: Cache, row: int) -> None:
        """Keep the tokens whose keys and values a row of a cache holds."""
        self.ids = ids
        self.keys, self.values = (
            [x[row, :, : len(ids)].clone() for x in part] for part in (cache.keys, cache.values)
        )

    def load(self, cache: Cache, row: int) -> None:
        """Write the keys and values into a row of a cache."""
        for part, kept in ((cache.keys, self.keys), (cache.values, self.values)):
            for to, x in zip(part, kept, strict=True):
                to[row, :, : x.shape[1]] = x


class Decoder:
    """Prefill and one-token steps over the weights of a loaded GPT-OSS.

    Attributes:
        device: Where everything runs.
        dtype: Type of products and caches: bfloat16 on a GPU, the weights' own on a CPU.
        hidden_size: Width of the residual stream.
    """

    def __init__(self, model: Model, resident: bool = False, dtype: torch.dtype | None = None) -> None:
        """Prepare a decoder of a GPT-OSS, with or without LoRA, in any layout of `gptoss.weights`.

        Args:
            resident: Keep unpacked copies of 4-bit experts (38 GiB for 20 B parameters), which
                large batches read faster than packed ones.
            dtype: Another type of products and caches. float32 is slow, and what the rounding of
                bfloat16 is measured against.

        Raises:
            ValueError: The weights are float16, whose range these passes do not guard.
        """
        core = find_core(model)
        if core.lm_head.weight.dtype == torch.float16:
            raise ValueError("fast sampling needs bfloat16 or float32 weights, these are float16")
        config = core.config
        self.device = core.lm_head.weight.device
        usual = torch.bfloat16 if self.device.type == "cuda" else core.lm_head.weight.dtype
        self.dtype = dtype or usual
        self.window = config.sliding_window
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.top_k = config.head_dim, config.num_experts_per_tok
        self.hidden_size = config.hidden_size
        self.scale = self.head_dim**-0.5
        self.packed_rows = PACKED_MAX_ROWS
        if self.device.type == "cuda" and (
            self.dtype == torch.float32
            or torch.cuda.mem_get_info()[1] > FAST_MEMORY_GIB * 2**30
        ):
            self.packed_rows = 0
        self._rotary = core.model.rotary_emb
        self._scratch: dict[torch.Size, torch.Tensor] = {}
        self._eps = config.rms_norm_eps
        self._embedding = core.model.embed_tokens.weight.detach().to(self.device)
        self._norm = core.model.norm
        self._head = _Linear(core.lm_head, dense(core.lm_head.weight).to(self.dtype), None, None)
        # Without 4-bit packing the experts are views of the model's own tensors.
        packed = Experts(core.model.layers[0].mlp.experts).packed(KINDS[0]) is not None
        self._layers = [
            _Layer(layer, kind, resident or not packed, self)
            for layer, kind in zip(core.model.layers, config.layer_types, strict=True)
        ]
        self._tables = self._rotary_tables(config.max_position_embeddings)

    def linear(self, module: nn.Module) -> _Linear:
        """Wrap a linear layer that may carry LoRA."""
        base, factors = base_linear(module), linear_lora(module)
        lora = None if factors is None else _Lora(factors, self.dtype, self.device)
        bias = None if base.bias is None else base.bias.detach().to(self.dtype)
        return _Linear(module, dense(base.weight).to(self.dtype), bias, lora)

    def scratch(self, packed: PackedExperts) -> torch.Tensor:
        """Return the shared buffer `[E, out, in]` that one layer's experts are unpacked into."""
        shape = torch.Size((packed.num_experts, packed.num_out, packed.num_in))
        if shape not in self._scratch:
            # bfloat16 whatever `dtype` is: it is the type that 4-bit weights stand for.
            self._scratch[shape] = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return self._scratch[shape]

    def free_scratch(self) -> None:
        """Give the unpacking buffers back."""
        self._scratch.clear()

    def refresh(self) -> None:
        """Copy the adapter's present values; call before sampling after a training step."""
        for layer in self._layers:
            layer.refresh()

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """Allocate a cache for sequences of up to `capacity` tokens."""
        keys, values = [], []
        for layer in self._layers:
            slots = capacity if layer.window is None else layer.window
            shape = (rows, self.num_kv_heads, slots, self.head_dim)
            keys.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
            values.append(torch.zeros(shape, dtype=self.dtype, device=self.device))
        return Cache(keys, values, capacity)

    def _rotary_tables(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        length = min(length, 32768)  # 8 MiB a table; far above any max_seq_length here
        like = torch.zeros(1, dtype=self.dtype, device=self.device)
        positions = torch.arange(length, device=self.device)[None]
        cos, sin = self._rotary(like, positions)
        return cos[0].to(self.dtype), sin[0].to(self.dtype)

    def _rms(self, hidden: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self._eps)
        return (normed * norm.weight).to(self.dtype)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate `[T, heads, D]` by the positions `[T]`."""
        cos, sin = (table[positions][:, None] for table in self._tables)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def _qkv(
        self, layer: _Layer, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self._rms(hidden, layer.norm1)
        q = layer.q(x).view(-1, self.num_heads, self.head_dim)
        k = layer.k(x).view(-1, self.num_kv_heads, self.head_dim)
        v = layer.v(x).view(-1, self.num_kv_heads, self.head_dim)
        return self._rotate(q, positions), self._rotate(k, positions), v

    def _experts(self, layer: _Layer, hidden: torch.Tensor) -> torch.Tensor:
        """Run the routed experts on `[T, H]`; the result is float32."""
        x = self._rms(hidden, layer.norm2)
        logits = functional.linear(
            x.to(layer.router.weight.dtype), layer.router.weight, layer.router.bias
        )
        top, chosen = torch.topk(logits, self.top_k, dim=-1)
        weights = top.softmax(-1)
        ordered, order = torch.sort(chosen.flatten(), stable=True)
        bounds = torch.arange(layer.num_experts + 1, device=x.device)
        starts = torch.searchsorted(ordered, bounds).to(torch.int32)
        gate_up = layer.gate_up(x[order // self.top_k], starts).float()
        gate = gate_up[:, ::2].clamp(max=layer.limit)
        up = gate_up[:, 1::2].clamp(-layer.limit, layer.limit)
        glu = (gate * torch.sigmoid(gate * layer.alpha)) * (up + 1)
        out = layer.down(glu.to(self.dtype), starts)
        # Back to token order by a gather, as sums by index_add are not reproducible on a GPU.
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0], device=order.device)
        per_token = out[back].view(-1, self.top_k, out.shape[-1]).float()
        return (per_token * weights[..., None].float()).sum(1)

    @torch.no_grad()
    def prefill(
        self, ids: torch.Tensor, lengths: torch.Tensor, cache: Cache, rows: torch.Tensor,
        sources: torch.Tensor,
    ) -> torch.Tensor:
        """Read prompts once and fill the cache rows of all their completions.

        Args:
            ids: `[P, L]` distinct prompts, padded on the right.
            lengths: `[P]` tokens of each.
            rows: `[R]` cache rows to fill.
            sources: `[R]` which prompt each of them starts from.

        Returns:
            Logits after each prompt, float32 `[P, vocabulary]`.
        """
        count, length = ids.shape
        positions = torch.arange(length, device=self.device).repeat(count)
        hidden = self._embedding[ids.flatten()].float()
        for index, layer in enumerate(self._layers):
            q, k, v = self._qkv(layer, hidden, positions)
            q, k, v = (x.view(count, length, -1, self.head_dim).transpose(1, 2) for x in (q, k, v))
            self._fill(cache, index, layer, k, v, lengths, rows, sources)
            hidden = hidden + layer.o(self._attend_all(layer, q, k, v)).float()
            hidden = hidden + self._experts(layer, hidden)
        return self._last_logits(hidden, lengths)

    def _last_logits(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the logits after each row's last token, float32 `[P, vocabulary]`."""
        rows = torch.arange(len(lengths), device=self.device)
        last = hidden.view(len(lengths), -1, hidden.shape[-1])[rows, lengths - 1]
        return self._head(self._rms(last, self._norm)).float()

    def _fill(
        self, cache: Cache, index: int, layer: _Layer, k: torch.Tensor, v: torch.Tensor,
        lengths: torch.Tensor, rows: torch.Tensor, sources: torch.Tensor,
    ) -> None:
        """Write prompt keys and values `[P, kv_heads, L, D]` into the cache rows."""
        if layer.window is None:
            cache.keys[index][rows, :, : k.shape[2]] = k[sources]
            cache.values[index][rows, :, : v.shape[2]] = v[sources]
            return
        held = _held(lengths, layer.window).clamp(min=0)
        at = held[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        cache.keys[index][rows] = k.gather(2, at)[sources]
        cache.values[index][rows] = v.gather(2, at)[sources]

    def _attend_all(
        self, layer: _Layer, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attend causally over whole prompts, in blocks of queries; `[P * L, heads * D]`."""
        count, heads, length, dim = q.shape
        kv_heads = k.shape[1]
        group = heads // kv_heads
        step = max(1, PREFILL_SCORE_BYTES // (count * heads * length * 4))
        sinks = layer.sinks.view(1, kv_heads, group, 1, 1)
        blocks = []
        for begin in range(0, length, step):
            end = min(begin + step, length)
            first = 0 if layer.window is None else max(0, begin - layer.window + 1)
            keys, values = k[:, :, first:end], v[:, :, first:end]
            queries = q[:, :, begin:end].reshape(count, kv_heads, -1, dim)
            scores = (queries @ keys.transpose(2, 3)).float() * self.scale
            scores = scores.view(count, kv_heads, group, end - begin, end - first)
            at = torch.arange(begin, end, device=self.device)[:, None]
            to = torch.arange(first, end, device=self.device)
            hidden = to > at
            if layer.window is not None:
                hidden = hidden | (to <= at - layer.window)
            scores.masked_fill_(hidden, float("-inf"))
            weights = _weights(scores, sinks).to(values.dtype)
            out = weights.view(count, kv_heads, -1, end - first) @ values
            blocks.append(out.view(count, heads, end - begin, dim))
        return torch.cat(blocks, dim=2).transpose(1, 2).reshape(count * length, heads * dim)

    @torch.no_grad()
    def extend(
        self, ids: torch.Tensor, lengths: torch.Tensor, cache: Cache, rows: torch.Tensor,
        starts: torch.Tensor,
    ) -> torch.Tensor:
        """Read more tokens behind those that cache rows hold.

        Args:
            ids: `[R, L]` tokens, padded on the right.
            lengths: `[R]` tokens of each.
            rows: `[R]` cache rows.
            starts: `[R]` tokens that they hold.

        Returns:
            Logits after each row's last token, float32 `[R, vocabulary]`.
        """
        count, length = ids.shape
        positions = starts[:, None] + torch.arange(length, device=self.device)
        # Padding behind a long row may lie beyond the model's last position.
        rotated = positions.flatten().clamp(max=len(self._tables[0]) - 1)
        hidden = self._embedding[ids.flatten()].float()
        for index, layer in enumerate(self._layers):
            q, k, v = self._qkv(layer, hidden, rotated)
            q, k, v = (x.view(count, length, -1, self.head_dim).transpose(1, 2) for x in (q, k, v))
            keys, values = cache.keys[index][rows], cache.values[index][rows]
            held = torch.cat([_held(starts, keys.shape[2]), positions], dim=1)
            attended = self._attend_more(
                layer, q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2), positions, held
            )
            newest = _held(starts + lengths, keys.shape[2]) - starts[:, None]
            at = newest.clamp(min=0)[:, None, :, None].expand_as(keys)
            is_new = (newest >= 0)[:, None, :, None]
            cache.keys[index][rows] = torch.where(is_new, k.gather(2, at), keys)
            cache.values[index][rows] = torch.where(is_new, v.gather(2, at), values)
            hidden = hidden + layer.o(attended).float()
            hidden = hidden + self._experts(layer, hidden)
        return self._last_logits(hidden, lengths)

    def _attend_more(
        self, layer: _Layer, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        positions: torch.Tensor, held: torch.Tensor,
    ) -> torch.Tensor:
        """Attend from positions `[R, L]` over keys at positions `held` `[R, S + L]`, below 0: none."""
        count, heads, length, dim = q.shape
        queries = q.reshape(count, k.shape[1], -1, dim)
        scores = (queries @ k.transpose(2, 3)).float() * self.scale
        at, to = positions[:, :, None], held[:, None]
        hidden = (to < 0) | (to > at)
        if layer.window is not None:
            hidden |= to <= at - layer.window
        scores = scores.view(count, k.shape[1], -1, length, k.shape[2])
        scores.masked_fill_(hidden[:, None, None], float("-inf"))
        weights = _weights(scores, layer.sinks.view(1, k.shape[1], -1, 1, 1)).to(v.dtype)
        out = (weights.view(*queries.shape[:3], -1) @ v).view(count, heads, length, dim)
        return out.transpose(1, 2).reshape(count * length, heads * dim)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Feed one token per row.

        Args:
            tokens: `[B]`.
            positions: `[B]`, the position of each, which is its number of cached tokens.

        Returns:
            Logits of the next token, float32 `[B, vocabulary]`.
        """
        rows = torch.arange(tokens.shape[0], device=self.device)
        hidden = self._embedding[tokens].float()
        lengths = (positions + 1).to(torch.int32)
        for index, layer in enumerate(self._layers):
            q, k, v = self._qkv(layer, hidden, positions)
            slots, filled = positions, lengths
            if layer.window is not None:
                slots, filled = positions % layer.window, lengths.clamp(max=layer.window)
            keys, values = cache.keys[index], cache.values[index]
            keys[rows, :, slots] = k
            values[rows, :, slots] = v
            attended = attend_one(q.contiguous(), keys, values, layer.sinks, filled, self.scale)
            hidden = hidden + layer.o(attended).float()
            hidden = hidden + self._experts(layer, hidden)
        return self._head(self._rms(hidden, self._norm)).float()


def _weights(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Return attention weights of scores, changed in place, beside sinks that go nowhere."""
    top = torch.maximum(scores.amax(-1, keepdim=True), sinks)
    weights = scores.sub_(top).exp_()
    return weights / (weights.sum(-1, keepdim=True) + (sinks - top).exp())


def _held(lengths: torch.Tensor, slots: int) -> torch.Tensor:
    """Return the position in each slot of a ring, `[R, slots]`, below 0 where there is none.

    Slot s holds the last position p < length with p % slots == s.
    """
    last = lengths[:, None] - 1
    return last - (last - torch.arange(slots, device=lengths.device)) % slots
