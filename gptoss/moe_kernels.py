"""Grouped matrix products over experts and one-token attention, for decoding without host syncs.

On a GPU they are Triton kernels that a CUDA graph can record, one of them reading NF4 weights as
they are stored (4.25 bits a weight instead of 16). On a CPU, and as the reference that the tests
compare with, the same functions run in plain torch.
"""

from dataclasses import dataclass, field

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU build of torch comes without it
    triton = None

NF4_BLOCK = 64
"""Weights that share one scale in an NF4 tensor (bitsandbytes' default)."""


@dataclass
class PackedExperts:
    """Addresses of NF4 weights, one `[out, in]` tensor per expert, for kernels to read."""

    weights: list[torch.Tensor]
    """bitsandbytes Params4bit; held so that the addresses stay valid."""
    num_in: int = field(init=False)
    num_out: int = field(init=False)
    table: torch.Tensor = field(init=False)
    """int64 `[4, E]`: addresses of packed weights, scales, scales of scales, their code book."""
    offsets: torch.Tensor = field(init=False)
    """float32 `[E]`: added to every unpacked scale."""
    code: torch.Tensor = field(init=False)
    """float32 `[16]`: the NF4 code book."""

    def __post_init__(self) -> None:
        states = [weight.quant_state for weight in self.weights]
        first = states[0]
        for state in states:
            if not state.nested or state.blocksize != NF4_BLOCK or state.quant_type != "nf4":
                raise ValueError("packed experts must be NF4, blocks of 64, double quantized")
        self.num_out, self.num_in = first.shape
        device = self.weights[0].device
        rows = [
            [weight.data.data_ptr() for weight in self.weights],
            [state.absmax.data_ptr() for state in states],
            [state.state2.absmax.data_ptr() for state in states],
            [state.state2.code.data_ptr() for state in states],
        ]
        self.table = torch.tensor(rows, dtype=torch.int64, device=device)
        self.offsets = torch.tensor(
            [float(state.offset) for state in states], dtype=torch.float32, device=device
        )
        self.code = first.code.to(device, torch.float32).contiguous()

    @property
    def num_experts(self) -> int:
        """Number of experts E."""
        return len(self.weights)


if triton is not None:

    @triton.jit
    def _nf4_scale(table, offsets, expert, block, mask, num_experts):
        """Unpack the scales of NF4 blocks: code2[q] * scale2 + offset."""
        scales = tl.load(table + num_experts + expert).to(tl.pointer_type(tl.uint8))
        scales2 = tl.load(table + 2 * num_experts + expert).to(tl.pointer_type(tl.float32))
        code2 = tl.load(table + 3 * num_experts + expert).to(tl.pointer_type(tl.float32))
        quantized = tl.load(scales + block, mask=mask, other=0).to(tl.int32)
        outer = tl.load(scales2 + block // 256, mask=mask, other=0.0)
        return tl.load(code2 + quantized) * outer + tl.load(offsets + expert)

    @triton.jit
    def _unpack_kernel(table, offsets, code, out, num_bytes, num_experts, BLOCK: tl.constexpr):
        """Write NF4 weights of one expert as floats; two weights a byte, the high half first."""
        expert = tl.program_id(1).to(tl.int64)
        packed = tl.load(table + expert).to(tl.pointer_type(tl.uint8))
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = at < num_bytes
        pair = tl.load(packed + at, mask=mask, other=0).to(tl.int32)
        scale = _nf4_scale(table, offsets, expert, at // 32, mask, num_experts)
        high = (tl.load(code + (pair >> 4)) * scale).to(out.dtype.element_ty)
        low = (tl.load(code + (pair & 15)) * scale).to(out.dtype.element_ty)
        both = tl.reshape(tl.join(high, low), (2 * BLOCK,))
        to = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
        tl.store(out + expert * 2 * num_bytes + to, both, mask=to < 2 * num_bytes)

    @triton.jit
    def _finish_tile(
        acc, out, bias, hidden, right, expert, rows, rows_ok, cols, cols_ok, num_cols,
        RANK: tl.constexpr,
    ):
        """Add bias and low-rank update to a `[cols, rows]` tile and store it transposed."""
        if RANK > 0:
            r = tl.arange(0, RANK)
            h_at = hidden + rows[None, :] * RANK + r[:, None]
            h = tl.load(h_at, mask=rows_ok[None, :], other=0.0)
            b_at = right + (expert * RANK + r[None, :]) * num_cols + cols[:, None]
            b = tl.load(b_at, mask=cols_ok[:, None], other=0.0)
            acc = tl.dot(b, h, acc)
        if bias is not None:
            acc += tl.load(bias + expert * num_cols + cols, mask=cols_ok, other=0.0)[:, None]
        to = out + rows[None, :] * num_cols + cols[:, None]
        tl.store(to, acc.to(out.dtype.element_ty), mask=cols_ok[:, None] & rows_ok[None, :])

    @triton.jit
    def _packed_kernel(
        x, table, offsets, code, starts, out, bias, hidden, right, num_cols, num_in, num_experts,
        RANK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    ):
        """One block of columns of one expert, over all of its rows; weights unpacked on the way.

        `x` holds the even columns in its first half and the odd ones in its second, so that the
        two halves of a packed byte meet their inputs without shuffling.
        """
        expert = tl.program_id(1).to(tl.int64)
        begin = tl.load(starts + expert)
        end = tl.load(starts + expert + 1)
        packed = tl.load(table + expert).to(tl.pointer_type(tl.uint8))
        cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
        cols_ok = cols < num_cols
        half = num_in // 2
        k = tl.arange(0, 32)
        for row in range(begin, end, ROWS):
            rows = (row + tl.arange(0, ROWS)).to(tl.int64)
            rows_ok = rows < end
            acc = tl.zeros((COLS, ROWS), dtype=tl.float32)
            for block in range(0, num_in // 64):
                at = cols[:, None].to(tl.int64) * half + block * 32 + k[None, :]
                pair = tl.load(packed + at, mask=cols_ok[:, None], other=0).to(tl.int32)
                scale_at = cols.to(tl.int64) * (num_in // 64) + block
                scale = _nf4_scale(table, offsets, expert, scale_at, cols_ok, num_experts)
                high = (tl.load(code + (pair >> 4)) * scale[:, None]).to(x.dtype.element_ty)
                low = (tl.load(code + (pair & 15)) * scale[:, None]).to(x.dtype.element_ty)
                x_at = x + rows[None, :] * num_in + block * 32 + k[:, None]
                even = tl.load(x_at, mask=rows_ok[None, :], other=0.0)
                odd = tl.load(x_at + half, mask=rows_ok[None, :], other=0.0)
                acc = tl.dot(high, even, acc)
                acc = tl.dot(low, odd, acc)
            _finish_tile(acc, out, bias, hidden, right, expert, rows, rows_ok, cols, cols_ok,
                         num_cols, RANK)

    @triton.jit
    def _dense_kernel(
        x, weight, starts, out, bias, hidden, right, num_cols, num_in, stride_e, stride_k, stride_n,
        RANK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STEP: tl.constexpr,
    ):
        """The same over floating-point weights `[E, in, out]` of any strides."""
        expert = tl.program_id(1).to(tl.int64)
        begin = tl.load(starts + expert)
        end = tl.load(starts + expert + 1)
        cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
        cols_ok = cols < num_cols
        step = tl.arange(0, STEP)
        for row in range(begin, end, ROWS):
            rows = (row + tl.arange(0, ROWS)).to(tl.int64)
            rows_ok = rows < end
            acc = tl.zeros((COLS, ROWS), dtype=tl.float32)
            for k0 in range(0, num_in, STEP):
                k = k0 + step
                k_ok = k < num_in
                w_at = weight + expert * stride_e + k[None, :] * stride_k
                w = tl.load(w_at + cols[:, None] * stride_n,
                            mask=cols_ok[:, None] & k_ok[None, :], other=0.0)
                x_at = x + rows[None, :] * num_in + k[:, None]
                x_tile = tl.load(x_at, mask=rows_ok[None, :] & k_ok[:, None], other=0.0)
                acc = tl.dot(w, x_tile, acc)
            _finish_tile(acc, out, bias, hidden, right, expert, rows, rows_ok, cols, cols_ok,
                         num_cols, RANK)

    @triton.jit
    def _attention_kernel(
        query, keys, values, sinks, lengths, out, capacity, scale, num_kv_heads,
        GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Attention of one token per row over its cache, all query heads of one key head."""
        pid = tl.program_id(0).to(tl.int64)
        head = pid % num_kv_heads
        length = tl.load(lengths + pid // num_kv_heads)
        g = tl.arange(0, GROUP_PAD)
        d = tl.arange(0, DIM_PAD)
        g_ok = g < GROUP
        d_ok = (d < DIM)[None, :]
        q_at = (pid * GROUP + g[:, None]) * DIM + d[None, :]
        q_ok = g_ok[:, None] & d_ok
        q = tl.load(query + q_at, mask=q_ok, other=0.0)
        # The sink is one more logit with no value: it starts the running maximum and sum.
        top = tl.load(sinks + head * GROUP + g, mask=g_ok, other=0.0).to(tl.float32)
        total = tl.full((GROUP_PAD,), 1.0, dtype=tl.float32)
        acc = tl.zeros((GROUP_PAD, DIM_PAD), dtype=tl.float32)
        base = pid * capacity * DIM
        for start in range(0, length, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            ok = slot < length
            at = base + slot[:, None] * DIM + d[None, :]
            key = tl.load(keys + at, mask=ok[:, None] & d_ok, other=0.0)
            score = tl.dot(q, tl.trans(key)) * scale
            score = tl.where(ok[None, :], score, float("-inf"))
            new_top = tl.maximum(top, tl.max(score, axis=1))
            weight = tl.exp(score - new_top[:, None])
            shrink = tl.exp(top - new_top)
            total = total * shrink + tl.sum(weight, axis=1)
            value = tl.load(values + at, mask=ok[:, None] & d_ok, other=0.0)
            acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None])
            top = new_top
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + q_at, result, mask=q_ok)


def runs_kernels(x: torch.Tensor) -> bool:
    """Whether the kernels take this tensor: 16-bit on a GPU. They would round float32 to TF32."""
    return x.device.type == "cuda" and x.dtype != torch.float32


def _rows_per_tile(num_rows: int, num_experts: int) -> int:
    """Pick the tile height: 16 rows were five times slower than 32 on an H200, even half empty."""
    return 32 if num_rows <= 48 * num_experts else 64


def unpack(packed: PackedExperts, out: torch.Tensor) -> torch.Tensor:
    """Unpack NF4 experts into `out`, shape `[E, out, in]`, bit for bit as bitsandbytes does."""
    num_bytes = packed.num_out * packed.num_in // 2
    grid = (triton.cdiv(num_bytes, 1024), packed.num_experts)
    _unpack_kernel[grid](
        packed.table, packed.offsets, packed.code, out, num_bytes, packed.num_experts, BLOCK=1024,
        enable_fp_fusion=False,  # code2 * scale2 + offset rounds twice in bitsandbytes
    )
    return out


def grouped_packed(
    x: torch.Tensor, packed: PackedExperts, starts: torch.Tensor, bias: torch.Tensor,
    hidden: torch.Tensor | None, right: torch.Tensor | None,
) -> torch.Tensor:
    """Multiply rows sorted by expert with NF4 weights that are never written out.

    Args:
        x: Rows `[S, in]`, sorted by expert.
        starts: int32 `[E + 1]`, first row of each expert.
        bias: `[E, out]`.
        hidden: `[S, r]`, rows times the left LoRA factor; None without LoRA.
        right: `[E, r, out]`, scaled right LoRA factor; None without LoRA.

    Returns:
        `[S, out]` in the type of `x`.
    """
    num_rows = x.shape[0]
    split = x.view(num_rows, packed.num_in // 2, 2).transpose(1, 2).contiguous()
    out = torch.empty(num_rows, packed.num_out, dtype=x.dtype, device=x.device)
    # 32 rows and 128 columns were the fastest of nine tiles on an H200, at 512 and 1,024 rows.
    grid = (triton.cdiv(packed.num_out, 128), packed.num_experts)
    _packed_kernel[grid](
        split, packed.table, packed.offsets, packed.code, starts, out, bias, hidden, right,
        packed.num_out, packed.num_in, packed.num_experts,
        RANK=0 if hidden is None else hidden.shape[1], ROWS=32, COLS=128,
        num_warps=4, num_stages=3, enable_fp_fusion=False,
    )
    return out


def grouped_dense(
    x: torch.Tensor, weight: torch.Tensor, starts: torch.Tensor,
    bias: torch.Tensor | None = None, hidden: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply rows sorted by expert with weights `[E, in, out]`; arguments as `grouped_packed`."""
    num_experts, num_in, num_out = weight.shape
    if not runs_kernels(x):
        return grouped_reference(x, weight, starts, bias, hidden, right)
    if x.shape[0] >= 64 * num_experts and torch.cuda.get_device_capability(x.device)[0] == 9:
        # CUTLASS's grouped product is several times faster on Hopper once tiles are full.
        out = torch._grouped_mm(x, weight, offs=starts[1:])
        if hidden is not None:
            out += torch._grouped_mm(hidden, right, offs=starts[1:])
        if bias is not None:
            out += bias[_expert_of_row(starts, x.shape[0])]
        return out
    return _grouped_dense_triton(x, weight, starts, bias, hidden, right)


def _grouped_dense_triton(
    x: torch.Tensor, weight: torch.Tensor, starts: torch.Tensor, bias: torch.Tensor | None,
    hidden: torch.Tensor | None, right: torch.Tensor | None,
) -> torch.Tensor:
    num_experts, num_in, num_out = weight.shape
    out = torch.empty(x.shape[0], num_out, dtype=x.dtype, device=x.device)
    cols = min(64, max(16, triton.next_power_of_2(num_out)))
    _dense_kernel[(triton.cdiv(num_out, cols), num_experts)](
        x, weight, starts, out, bias, hidden, right, num_out, num_in, *weight.stride(),
        RANK=0 if hidden is None else hidden.shape[1],
        ROWS=_rows_per_tile(x.shape[0], num_experts), COLS=cols, STEP=64, num_warps=4, num_stages=3,
    )
    return out


def _expert_of_row(starts: torch.Tensor, num_rows: int) -> torch.Tensor:
    rows = torch.arange(num_rows, device=starts.device, dtype=starts.dtype)
    return torch.searchsorted(starts[1:], rows, right=True)


def grouped_reference(
    x: torch.Tensor, weight: torch.Tensor, starts: torch.Tensor, bias: torch.Tensor | None,
    hidden: torch.Tensor | None, right: torch.Tensor | None,
) -> torch.Tensor:
    """Plain torch form of the grouped products, one expert at a time."""
    bounds = starts.tolist()
    out = x.new_empty(x.shape[0], weight.shape[2])
    for expert, (begin, end) in enumerate(zip(bounds, bounds[1:])):
        if begin == end:
            continue
        y = x[begin:end] @ weight[expert]
        if hidden is not None:
            y = y + hidden[begin:end] @ right[expert]
        out[begin:end] = y if bias is None else y + bias[expert]
    return out


def attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor,
    lengths: torch.Tensor, scale: float,
) -> torch.Tensor:
    """Attention of one new token per row over its cache.

    Args:
        query: `[B, heads, D]`.
        keys: Cache `[B, kv_heads, capacity, D]`; values alike.
        sinks: `[heads]`, the logit that takes attention nowhere.
        lengths: int32 `[B]`, filled slots of each row.

    Returns:
        `[B, heads * D]`.
    """
    batch, heads, dim = query.shape
    kv_heads, capacity = keys.shape[1:3]
    group = heads // kv_heads
    if not runs_kernels(query):
        return attend_reference(query, keys, values, sinks, lengths, scale)
    out = torch.empty_like(query)
    _attention_kernel[(batch * kv_heads,)](
        query, keys, values, sinks, lengths, out, capacity, scale, kv_heads,
        GROUP=group, GROUP_PAD=max(16, triton.next_power_of_2(group)), DIM=dim,
        DIM_PAD=max(16, triton.next_power_of_2(dim)), BLOCK=64,
        num_warps=4, num_stages=2,
    )
    return out.view(batch, heads * dim)


def attend_reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor,
    lengths: torch.Tensor, scale: float,
) -> torch.Tensor:
    """Plain torch form of `attend_one`."""
    batch, heads, dim = query.shape
    # Slots that no row has filled yet cost as much as others.
    filled = slice(int(lengths.max()) if query.device.type == "cpu" else None)
    keys, values = keys[:, :, filled], values[:, :, filled]
    kv_heads, capacity = keys.shape[1:3]
    grouped = query.view(batch, kv_heads, heads // kv_heads, dim)
    scores = (grouped @ keys.transpose(2, 3)).float() * scale
    filled = torch.arange(capacity, device=query.device) < lengths[:, None]
    scores = scores.masked_fill(~filled[:, None, None, :], float("-inf"))
    sink = sinks.float().view(1, kv_heads, -1, 1).expand(batch, -1, -1, 1)
    weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    return (weights.to(values.dtype) @ values).reshape(batch, heads * dim)
