"""One way to sample for all callers: prompts of token ids in, completions with log-probabilities out.

GRPO, evaluation and the agent's turns call `complete` and do not know what samples: transformers'
generate, `gptoss.engine` or `gptoss.vllm_engine`, whichever `load_model` put on the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gptoss.decoder import Prefix
from gptoss.engine import FastGenerate, RowNoise


@dataclass(frozen=True)
class Completion:
    """What was sampled for one prompt."""

    ids: list[int]
    """Up to and including the stop token."""
    log_probs: list[float]
    """Nats of each token, at the sampling temperature (at 1 for the likeliest token)."""


class Engine(Protocol):
    """What samples; the adapter's present weights are used in every call."""

    differs: bool
    """Whether its probabilities differ from the trainer's by more than rounding."""
    mean_entropy: float | None
    """Nats per token of the last call that sampled, at its temperature; None if unknown."""

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int,
        temperature: float | None = None, seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Complete prompts, see `complete`."""


def split_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Group prompts of about the same length, so that little padding is computed.

    Args:
        lengths: Tokens of each prompt.
        batch_size: Prompts per batch at most.

    Returns:
        Indices of the prompts of each batch; depends on the arguments alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[start:start + batch_size] for start in range(0, len(order), batch_size)]


class _Draws:
    """Logits processor that turns the likeliest token into a draw, and notes its log-probability."""

    def __init__(self, temperature: float | None, seeds: Sequence[int] | None) -> None:
        self._temperature = temperature
        self._noise = RowNoise(seeds) if seeds else None
        self.log_probs: list[torch.Tensor] = []

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = scores = scores.float() / (self._temperature or 1.0)
        if self._temperature:
            if self._noise:
                noise = self._noise.draw(scores.shape[-1]).to(scores.device)
            else:
                noise = torch.empty_like(scores).exponential_().clamp_(min=1e-30)
            # argmax(logit - log E) with E ~ Exp(1) is a draw from softmax(logits).
            drawn = scores - noise.log_()
        chosen = drawn.argmax(-1, keepdim=True)
        self.log_probs.append(scores.log_softmax(-1).gather(-1, chosen)[:, 0])
        return drawn


class ModelEngine:
    """The model's own `generate`: transformers', or fast sampling where that is attached."""

    differs = False

    def __init__(self, model: Any) -> None:
        """Sample from a model whose `generation_config` holds the stop and padding tokens."""
        self._model = model

    @property
    def mean_entropy(self) -> float | None:
        """As fast sampling measures it; transformers' generate does not."""
        return getattr(self._model.generate, "mean_entropy", None)

    @torch.no_grad()
    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int,
        temperature: float | None = None, seeds: Sequence[int] | None = None,
        prefixes: Sequence[Prefix] = (),
    ) -> list[Completion]:
        """Complete prompts, see `complete`."""
        model = self._model
        width, pad_id = max(map(len, prompts)), model.generation_config.pad_token_id
        ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        fast = model.generate if isinstance(model.generate, FastGenerate) else None
        draws = _Draws(temperature, seeds)
        sampling: dict[str, Any] = {"do_sample": False}
        if fast:
            fast.prefixes = prefixes
        if fast is None:
            sampling["logits_processor"] = [draws]
        elif temperature:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            fast.row_seeds = seeds and list(seeds)
        was_training = model.training
        model.eval()
        output = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens, pad_token_id=pad_id, use_cache=True, **sampling,
        )
        model.train(was_training)
        log_probs = fast.log_probs if fast else torch.stack(draws.log_probs, dim=1)
        stop_ids = model.generation_config.eos_token_id
        stops = set(stop_ids if isinstance(stop_ids, list) else [stop_ids])
        found = []
        for row, values in zip(output[:, width:].tolist(), log_probs.tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in stops), len(row) - 1)
            found.append(Completion(row[:end + 1], values[:end + 1]))
        return found


def engine_of(model: Any) -> Engine:
    """Return what samples for a model."""
    return getattr(model, "engine", None) or ModelEngine(model)


def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float | None = None,
    seeds: Sequence[int] | None = None,
    prefixes: Sequence[Prefix] = (),
) -> list[Completion]:
    """Complete prompts with the model's present weights, by the engine it has.

    Args:
        model: A causal model as `load_model` returns it.
        prompts: Token ids; equal ones are read once where the engine can.
        max_new_tokens: Tokens per completion at most.
        temperature: Sampling temperature; None takes the likeliest token each time.
        seeds: One a prompt: what it draws does not depend on the prompts beside it (fast sampling
            on a GPU draws for all together). None draws from the engine's own generator.
        prefixes: One a prompt, for one whose beginning an earlier call with the same weights has
            read: fast sampling on a CPU reads the rest alone, and then keeps this prompt and its
            completion in it.

    Returns:
        One completion a prompt.
    """
    engine = engine_of(model)
    more = (prefixes,) if isinstance(engine, ModelEngine) else ()
    return engine.complete(prompts, max_new_tokens, temperature, seeds, *more)


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float | None = None,
) -> list[str]:
    """Complete a batch of texts.

    Args:
        model: A causal model whose `generation_config` holds the stop tokens.
        tokenizer: Its tokenizer.
        prompts: Texts with special tokens written out.
        max_new_tokens: Tokens per completion at most.
        temperature: Sampling temperature; None takes the likeliest token each time.

    Returns:
        Completions with special tokens, up to and including the stop token.
    """
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    found = complete(model, rows, max_new_tokens, temperature)
    return [tokenizer.decode(one.ids, skip_special_tokens=False) for one in found]
