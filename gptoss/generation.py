"""Decode completions for a list of prompts, in batches of about the same length.

Left out on purpose: sampling for GRPO, which is the trainer's own (`grpo.py`).
"""

from collections.abc import Sequence
from typing import Any

import torch

from gptoss.engine import FastGenerate


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


class _SeededDraws:
    """Logits processor that turns the likeliest token into a draw, from one generator a row."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        # argmax(logit - log E) with E ~ Exp(1) is a draw from softmax(logits).
        return scores.float() / self._temperature - noise.clamp_(min=1e-30).log_().to(scores.device)


@torch.no_grad()
def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float | None = None,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Complete a batch of prompts.

    Args:
        model: A causal model whose `generation_config` holds the stop tokens.
        tokenizer: Its tokenizer, with a padding token.
        prompts: Token ids.
        max_new_tokens: Tokens per completion at most.
        temperature: Sampling temperature; None takes the likeliest token each time.
        seeds: One a prompt: what it draws does not depend on the prompts beside it (fast sampling
            on a GPU draws for all together). None draws from torch's own generator.

    Returns:
        Token ids of the completions, up to and including the stop token.
    """
    width = max(map(len, prompts))
    pad_id = tokenizer.pad_token_id
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None and (seeds is None or isinstance(model.generate, FastGenerate)):
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if seeds is not None:
            model.generate.row_seeds = list(seeds)
    elif temperature is not None:
        sampling["logits_processor"] = [_SeededDraws(seeds, temperature)]
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens, pad_token_id=pad_id, use_cache=True, **sampling,
    )
    model.train(was_training)
    stop_ids = model.generation_config.eos_token_id
    stops = set(stop_ids if isinstance(stop_ids, list) else [stop_ids])
    found = []
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row) - 1)
        found.append(row[:end + 1])
    return found


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float | None = None,
) -> list[str]:
    """Complete a batch of prompts, as `generate_ids` does.

    Args:
        model: A causal model whose `generation_config` holds the stop tokens.
        tokenizer: Its tokenizer, with a padding token.
        prompts: Texts with special tokens written out.
        max_new_tokens: Tokens per completion at most.
        temperature: Sampling temperature; None takes the likeliest token each time.

    Returns:
        Completions with special tokens, up to and including the stop token.
    """
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    found = generate_ids(model, tokenizer, rows, max_new_tokens, temperature)
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in found]
