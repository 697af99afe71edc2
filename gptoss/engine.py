"""Fast sampling for GRPO and evaluation: a drop-in `generate` on top of `gptoss.decoder`.

`attach_fast_generate` replaces the model's `generate`, which is what TRL's trainer and
`generation.py` call, so nothing else changes: TRL still computes log-probabilities with its own
forward pass. Prompts that repeat (the group of one task) are read once, one decode step is a CUDA
graph, and a batch ends when its last row ends. Left out on purpose: beam search, penalties,
prompt caches that outlive a call on a GPU, whose memory the training step needs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gptoss.decoder import Cache, Decoder, Prefix

CHECK_EVERY_STEPS = 16
"""Decode steps between two checks whether every row has ended (a check waits for the GPU)."""
STREAM_EVERY_STEPS = 4
"""The same while a streamer waits for words, and on a CPU, where a check costs nothing."""
PREFILL_TOKENS = 4096
"""Prompt tokens read in one forward pass."""
ONE_THREAD_SIZE = 256
"""Hidden size up to which a CPU decodes on one thread: to wake another takes longer than its share. With
the small models that ship here a step of 16 rows takes 5 ms in place of 9 to 18, of 128 rows 20 to 34
in place of 25 to 42 (two cores); wider models gain by more threads."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float = 1.0
    """0.0 takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 is all of them."""
    top_p: float = 1.0
    """Only the likeliest tokens that hold this much probability; 1.0 is all of them."""
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0


class RowNoise:
    """Noise for the rows of a batch, each row from its own seed.

    There is a number for each token: logits that round differently in another batch then change a
    draw only where the two best tokens are nearly tied. One number per row, compared with
    cumulative probabilities, changes it 250 times as often.

    Args:
        seeds: One per row, 0 or more.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        # NumPy's are several times faster than torch's.
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def draw(self, vocabulary: int) -> torch.Tensor:
        """Return the next numbers, Exp(1), float64 `[B, vocabulary]`."""
        noise = np.empty((len(self._generators), vocabulary))
        for row, generator in zip(noise, self._generators, strict=True):
            generator.standard_exponential(out=row)
        return torch.from_numpy(noise)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only some rows."""
        self._generators = [self._generators[row] for row in rows]


def choose_tokens(
    logits: torch.Tensor, sampling: Sampling, noise: RowNoise | None = None
) -> torch.Tensor:
    """Choose the next token of each row.

    Args:
        logits: Float32 `[B, vocabulary]`; changed in place.
        sampling: Temperature and truncation.
        noise: Source of each row's draw; None uses torch's own generator.

    Returns:
        `[B]` token ids.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    logits.div_(sampling.temperature)
    if sampling.top_k:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits.masked_fill_(logits < kth, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(logits, dtype=torch.bool)
        dropped.scatter_(1, order, before >= sampling.top_p)
        logits.masked_fill_(dropped, float("-inf"))
    # argmax(logit - log E) with E ~ Exp(1) is a draw from softmax(logits), without a host sync.
    if noise is not None:
        return (logits.softmax(-1) / noise.draw(logits.shape[-1])).argmax(-1)
    noise = torch.empty_like(logits).exponential_()
    return logits.sub_(noise.clamp_(min=1e-30).log_()).argmax(-1)


class _Batch:
    """The rows of one decode loop: tokens so far, cache, and which rows have ended."""

    def __init__(
        self, decoder: Decoder, prompts: Sequence[tuple[int, ...]], capacity: int,
        sampling: Sampling, seeds: Sequence[int] | None, prefixes: Sequence[Prefix],
    ) -> None:
        device, rows = decoder.device, len(prompts)
        self._prompts, self._prefixes = prompts, prefixes
        self._decoder, self._sampling = decoder, sampling
        is_seeded = seeds is not None and device.type == "cpu"
        self._noise = RowNoise(seeds) if is_seeded else None
        self.cache: Cache = decoder.new_cache(rows, capacity)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.rows = torch.arange(rows, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        shape = (rows, sampling.max_new_tokens)
        self.output = torch.full(shape, sampling.pad_id, dtype=torch.long, device=device)
        self._stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(shape, device=device)
        self.entropy = torch.zeros((), device=device)
        self.num_tokens = torch.zeros((), dtype=torch.long, device=device)

    def accept(self, logits: torch.Tensor) -> None:
        """Choose a token per row and record it; ended rows get padding."""
        scores = (logits / (self._sampling.temperature or 1.0)).log_softmax(-1)
        if self._sampling.temperature:
            live = ~self.ended
            self.entropy -= ((scores.exp() * scores).sum(-1) * live).sum()
            self.num_tokens += live.sum()
        chosen = choose_tokens(logits, self._sampling, self._noise)
        self.log_probs[self.rows, self.column] = scores.gather(-1, chosen[:, None])[:, 0]
        chosen = torch.where(self.ended, self._sampling.pad_id, chosen)
        self.output[self.rows, self.column] = chosen
        self.ended |= (chosen[:, None] == self._stops).any(-1)
        self.tokens.copy_(chosen)
        self.column += 1

    def step(self) -> None:
        """Decode one token per row."""
        logits = self._decoder.step(self.tokens, self.positions, self.cache)
        self.positions += ~self.ended
        self.accept(logits)

    def save(self, places: torch.Tensor) -> None:
        """Save the tokens read of some rows to their prefixes; an ended row's up to its end."""
        for place in places.tolist() if self._prefixes else ():
            row = int(self.rows[place])
            ids = [*self._prompts[row], *self.output[row].tolist()][: int(self.positions[place])]
            self._prefixes[row].save(ids, self.cache, place)

    def drop_ended(self) -> None:
        """Drop the rows that have ended once they are a quarter; not possible under a graph."""
        live = (~self.ended).nonzero()[:, 0]
        if len(live) > 0.75 * len(self.ended):
            return
        self.save(self.ended.nonzero()[:, 0])
        self.rows, self.tokens, self.positions, self.ended = (
            x[live] for x in (self.rows, self.tokens, self.positions, self.ended)
        )
        if self._noise is not None:
            self._noise.keep(live.tolist())
        self.cache = self.cache.take(live)

    def stream(self, streamer: Any, begin: int, end: int) -> int:
        """Pass the first row's tokens from `begin` on to a streamer; return where the next begin."""
        row = self.output[0, :end].cpu()
        stops = torch.isin(row, self._stops.cpu()).nonzero()
        end = int(stops[0]) + 1 if len(stops) else end
        for token in row[begin:end]:
            streamer.put(token[None])
        return end

    def state(self) -> tuple[torch.Tensor, ...]:
        """Return what a step changes besides the cache, to undo warm-up steps."""
        return (
            self.tokens, self.positions, self.ended, self.column, self.output, self.log_probs,
            self.entropy, self.num_tokens,
        )


class FastGenerate:
    """A `generate` with the call shape of transformers.

    Attributes:
        decoder: The forward passes.
        max_rows: Rows decoded at once; more are decoded in turn.
        use_graphs: Record decode steps as CUDA graphs.
        row_seeds: Seeds of the next call's rows, one each: a row's draws then do not depend on the
            other rows, so processes that share a batch draw what one process would. CPU only, as
            a CUDA graph draws for all rows at once; None uses torch's own generator.
        prefixes: One for each of the next call's rows: the tokens it holds are not read again, and
            after the call it holds the whole row. CPU only.
        mean_entropy: Nats per token of the last call that sampled, at its temperature; greedy
            calls do not change it.
        log_probs: Nats of the last call's tokens `[B, n]`, at its temperature and before top_k and
            top_p; undefined after a stop token.
    """

    def __init__(
        self, model: Any, max_rows: int = 128, resident: bool = False,
        use_graphs: bool | None = None,
    ) -> None:
        """Prepare sampling; see `attach_fast_generate`."""
        self._model = model
        self.replaced = model.__dict__.get("generate")
        self.decoder = Decoder(model, resident=resident)
        self.max_rows = max_rows
        on_gpu = self.decoder.device.type == "cuda"
        self.use_graphs = on_gpu if use_graphs is None else use_graphs
        self.row_seeds: list[int] | None = None
        self.prefixes: Sequence[Prefix] = ()
        self.mean_entropy: float | None = None
        self.log_probs: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
        generation_config: Any = None, **overrides: Any,
    ) -> torch.Tensor:
        """Sample a completion for every row.

        Args:
            input_ids: `[B, L]` prompts, padded on the left.
            attention_mask: `[B, L]`, 0 on padding.
            generation_config: transformers' settings; the model's own when None.
            **overrides: Settings that replace those of the config. A `streamer` gets the tokens of a
                single row a few at a time, as they are decoded.

        Returns:
            `[B, L + n]` prompts and completions, padded on the right after a stop token.
        """
        streamer = overrides.pop("streamer", None)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        sampling = self._sampling(generation_config, overrides)
        seeds, self.row_seeds = self.row_seeds, None
        prefixes, self.prefixes = self.prefixes, ()
        if self.decoder.device.type != "cpu":
            prefixes = ()
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self.decoder.refresh()
        prompts = [
            tuple(row[mask.bool()].tolist())
            for row, mask in zip(input_ids.cpu(), attention_mask.cpu(), strict=True)
        ]
        # Sorted, so that a batch holds equal prompts, which are read once, and similar lengths.
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), prompts[row]))
        width = sampling.max_new_tokens
        completions = input_ids.new_full((len(prompts), width), sampling.pad_id)
        log_probs = torch.zeros(len(prompts), width)
        used, num_tokens, entropy = 0, 0, 0.0
        for begin in range(0, len(order), self.max_rows):
            part = order[begin : begin + self.max_rows]
            some = None if seeds is None else [seeds[row] for row in part]
            kept = [prefixes[row] for row in part] if prefixes else []
            batch, length = self._decode([prompts[row] for row in part], sampling, some, streamer, kept)
            rows = torch.tensor(part, device=input_ids.device)
            completions[rows] = batch.output.to(input_ids.device)
            log_probs[part] = batch.log_probs.cpu()
            used = max(used, length)
            num_tokens += int(batch.num_tokens)
            entropy += float(batch.entropy)
        self.log_probs = log_probs[:, :used]
        if num_tokens:
            self.mean_entropy = entropy / num_tokens
        if streamer is not None:
            streamer.end()
        self.decoder.free_scratch()
        return torch.cat([input_ids, completions[:, :used]], dim=1)

    @torch.no_grad()
    def next_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits after a prompt `[L]` of token ids, float32 `[vocabulary]`."""
        decoder = self.decoder
        decoder.refresh()
        row = torch.zeros(1, dtype=torch.long, device=decoder.device)
        length = torch.full((1,), len(ids), device=decoder.device)
        cache = decoder.new_cache(1, len(ids))
        logits = decoder.prefill(ids.to(decoder.device)[None], length, cache, row, row)
        decoder.free_scratch()
        return logits[0]

    def _sampling(self, config: Any, overrides: dict[str, Any]) -> Sampling:
        config = self._model.generation_config if config is None else config
        values = {**config.to_dict(), **overrides}
        stops = values["eos_token_id"]
        if stops is None:
            stops = self._model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list | tuple) else [stops]
        greedy = not values.get("do_sample")
        temperature = 1.0 if values.get("temperature") is None else values["temperature"]
        return Sampling(
            max_new_tokens=values["max_new_tokens"],
            temperature=0.0 if greedy else float(temperature),
            top_k=values.get("top_k") or 0,
            top_p=1.0 if values.get("top_p") is None else values["top_p"],
            stop_ids=tuple(stop for stop in stops if stop is not None),
            pad_id=values["pad_token_id"] or 0,
        )

    def _decode(
        self, prompts: list[tuple[int, ...]], sampling: Sampling, seeds: Sequence[int] | None,
        streamer: Any, prefixes: Sequence[Prefix],
    ) -> tuple[_Batch, int]:
        """Sample one batch; return it and the number of its output columns in use."""
        longest = max(map(len, prompts))
        # Whole blocks of 64 slots, as the attention kernel reads them.
        capacity = -(-(longest + sampling.max_new_tokens) // 64) * 64
        batch = _Batch(self.decoder, prompts, capacity, sampling, seeds, prefixes)
        batch.accept(self._read(prompts, batch, prefixes))
        step, done = batch.step, 1
        on_cpu = self.decoder.device.type == "cpu"
        if self.use_graphs and sampling.max_new_tokens > 2:
            step = record_step(batch)
        streamed = 0
        while True:
            if streamer is not None:
                streamed = batch.stream(streamer, streamed, done)
            if done == sampling.max_new_tokens or bool(batch.ended.all()):
                batch.save(torch.arange(len(batch.rows)))
                return batch, done
            if on_cpu:
                batch.drop_ended()
            every = STREAM_EVERY_STEPS if on_cpu or streamer is not None else CHECK_EVERY_STEPS
            steps = min(every, sampling.max_new_tokens - done)
            with _one_thread(on_cpu and self.decoder.hidden_size <= ONE_THREAD_SIZE):
                for _ in range(steps):
                    step()
            done += steps

    def _read(
        self, prompts: list[tuple[int, ...]], batch: _Batch, prefixes: Sequence[Prefix]
    ) -> torch.Tensor:
        """Read what the prefixes do not hold of the prompts; return logits `[rows, vocabulary]`."""
        known = [row for row, prefix in enumerate(prefixes) if prefix.is_of(prompts[row])]
        others = [row for row in range(len(prompts)) if row not in known]
        if not known:
            return self._prefill(prompts, batch, others)
        parts = [self._prefill([prompts[row] for row in others], batch, others)] if others else []
        known.sort(key=lambda row: len(prompts[row]) - len(prefixes[row].ids))
        per_pass = max(1, PREFILL_TOKENS // (len(prompts[known[-1]]) - len(prefixes[known[-1]].ids)))
        for begin in range(0, len(known), per_pass):
            some = known[begin : begin + per_pass]
            more = [prompts[row][len(prefixes[row].ids):] for row in some]
            ids = torch.tensor([[*new, *[0] * (len(more[-1]) - len(new))] for new in more])
            for row in some:
                prefixes[row].load(batch.cache, row)
            rows, lengths, starts = map(torch.tensor, (
                some, [len(new) for new in more], [len(prefixes[row].ids) for row in some]
            ))
            parts.append(self.decoder.extend(ids, lengths, batch.cache, rows, starts))
            batch.positions[rows] = starts + lengths
        return torch.cat(parts)[torch.tensor(others + known).argsort()]

    def _prefill(
        self, prompts: list[tuple[int, ...]], batch: _Batch, rows: Sequence[int]
    ) -> torch.Tensor:
        """Read each distinct prompt of some rows once; return the rows' logits `[R, vocabulary]`."""
        device = self.decoder.device
        places = torch.tensor(rows, device=device)
        distinct = list(dict.fromkeys(prompts))
        index = {prompt: number for number, prompt in enumerate(distinct)}
        source = torch.tensor([index[prompt] for prompt in prompts], device=device)
        per_pass = max(1, PREFILL_TOKENS // len(distinct[-1]))
        parts = []
        for begin in range(0, len(distinct), per_pass):
            some = distinct[begin : begin + per_pass]
            lengths = torch.tensor([len(prompt) for prompt in some], device=device)
            width = len(some[-1])
            ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in some], device=device)
            mine = ((source >= begin) & (source < begin + len(some))).nonzero()[:, 0]
            sources = source[mine] - begin
            parts.append(self.decoder.prefill(ids, lengths, batch.cache, places[mine], sources))
            batch.positions[places[mine]] = lengths[sources]
        return torch.cat(parts)[source]


@contextlib.contextmanager
def _one_thread(applies: bool) -> Iterator[None]:
    """Run torch on one CPU thread, where it applies."""
    if not applies:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def record_step(batch: _Batch) -> Callable[[], None]:
    """Record one decode step as a CUDA graph; the returned function replays it."""
    saved = [tensor.clone() for tensor in batch.state()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        batch.step()  # compiles kernels and fills library workspaces before recording
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch.step()
    # Recording runs nothing. The warm-up step is undone; its cache slot will be written again.
    for tensor, value in zip(batch.state(), saved, strict=True):
        tensor.copy_(value)
    return graph.replay


def attach_fast_generate(
    model: Any, max_rows: int = 128, resident: bool = False, use_graphs: bool | None = None
) -> FastGenerate:
    """Replace `model.generate` by the fast one.

    Args:
        model: GPT-OSS as `load_model` returns it.
        max_rows: Completions decoded at once; more are decoded in turn.
        resident: Keep unpacked 16-bit experts beside 4-bit ones (38 GiB more for 20 B parameters).
        use_graphs: CUDA graphs; None uses them on a GPU.

    Returns:
        The new `generate`; `detach_fast_generate` restores the old one.

    Raises:
        ValueError: The weights are in float16, whose range the fast path does not guard.
    """
    generate = FastGenerate(model, max_rows, resident, use_graphs)
    model.generate = generate
    return generate


def detach_fast_generate(model: Any) -> None:
    """Restore the model's earlier `generate`."""
    replaced = model.generate.replaced
    del model.generate
    if replaced is not None:
        model.generate = replaced
