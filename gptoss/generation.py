"""Decode completions for a list of prompts, in batches of about the same length.

Left out on purpose: sampling for GRPO, which is the trainer's own (`grpo.py`).
"""

from typing import Any

import torch


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


@torch.no_grad()
def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float | None = None,
) -> list[str]:
    """Complete a batch of prompts.

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
    width = max(map(len, rows))
    pad_id = tokenizer.pad_token_id
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    sampling = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens, pad_token_id=pad_id, use_cache=True, **sampling,
    )
    model.train(was_training)
    stop_ids = model.generation_config.eos_token_id
    stops = set(stop_ids if isinstance(stop_ids, list) else [stop_ids])
    texts = []
    for row in output[:, width:].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row) - 1)
        texts.append(tokenizer.decode(row[:end + 1], skip_special_tokens=False))
    return texts
