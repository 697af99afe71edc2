"""Log-probabilities of sampled tokens: by GRPO's update, by fast sampling, by a plain forward.

In float32 they are equal to rounding. In bfloat16 nearly tied experts are chosen by rounding, and
three implementations that round on their own come out apart; how far each is from float32 on the
same weights is what is compared. Used by `gpu_rollouts.py` and by tests/test_logprobs.py.
"""

import contextlib
import os
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from gptoss.decoder import Decoder
from gptoss.engine import FastGenerate

TOLERANCE_FACTOR = 1.5
"""The update and the sampler may be this many times as far from float32 in the mean as the model's
own plain forward is."""


def differences(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> dict[str, float]:
    """Return the largest, the 99th percentile and the mean absolute difference of two lists."""
    gap = (torch.cat(ours) - torch.cat(theirs)).abs().float()
    return {
        "max": round(gap.max().item(), 4), "p99": round(gap.quantile(0.99).item(), 4),
        "mean": round(gap.mean().item(), 5),
    }


class _Sampled(Exception):
    """The first batch of completions is there."""


def sample_batch(trainer: Any) -> dict[str, Any]:
    """Let a trainer sample once, without an update, and return what it made of the completions."""
    prepare = trainer._generate_and_score_completions
    batch: dict[str, Any] = {}

    def prepare_once(*args: Any, **kwargs: Any) -> None:
        batch.update(prepare(*args, **kwargs))
        raise _Sampled

    trainer._generate_and_score_completions = prepare_once
    with contextlib.suppress(_Sampled):
        trainer.train()
    return batch


@torch.no_grad()
def compare_logprobs(
    model: Any, fast: FastGenerate, trainer: Any, batch: dict[str, Any], rows: int = 4
) -> dict[str, Any]:
    """Compare log-probabilities of sampled tokens: update, sampler, plain forward, and float32.

    Args:
        model: The model.
        fast: Fast sampling over it.
        trainer: The trainer, whose own function gives what the update uses.
        batch: What the trainer made of one generate call.
        rows: Completions to compare.

    Returns:
        Differences, all at the sampling temperature and over the completions' tokens:
        `update_to_plain`, `sampler_to_plain`, `sampler_to_update`; `plain_to_plain_padded`, the
        plain forward once a row and once two rows at a time; and `update_to_exact`,
        `sampler_to_exact`, `plain_to_exact`, where exact is the same weights in float32.
    """
    prompts = [ids[mask.bool()] for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"])]
    completions = [
        ids[mask.bool()] for ids, mask in zip(batch["completion_ids"], batch["completion_mask"])
    ]
    prompts, completions = prompts[:rows], completions[:rows]
    sequences = [torch.cat(pair) for pair in zip(prompts, completions, strict=True)]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)[:rows]
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)[:rows]
    width = batch["completion_ids"].shape[1]
    found = trainer._get_per_token_logps_and_entropies(model, ids, mask, width, batch_size=rows)[0]
    # Unsloth moves each row's padding behind it and keeps as many columns more as the longest has.
    slack = found.shape[1] - width
    padding = (mask[:, : -width] == 0).sum(1).tolist()
    begins = [slack - count if slack else 0 for count in padding]
    update = [
        row[begin : begin + len(c)]
        for row, begin, c in zip(found, begins, completions, strict=True)
    ]

    def chosen(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        scaled = (logits.float() / trainer.temperature).log_softmax(-1)
        return scaled.gather(1, tokens[:, None])[:, 0]

    was_training = model.training
    model.eval()
    # Unsloth's forward leaves the logits out unless it is told otherwise.
    os.environ["UNSLOTH_RETURN_LOGITS"], os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1", "0"
    autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda)
    with autocast, torch.compiler.set_stance("force_eager"):
        plain = [
            chosen(model(input_ids=s[None]).logits[0, -len(c) - 1 : -1], c)
            for s, c in zip(sequences, completions, strict=True)
        ]
        half = rows // 2
        padded = [
            chosen(logits[len(p) - 1 :][: len(c)], c)
            for begin in (0, half)
            for logits, p, c in zip(
                model(input_ids=pad_sequence(sequences[begin : begin + half], True)).logits,
                prompts[begin : begin + half], completions[begin : begin + half],
            )
        ]
    os.environ["UNSLOTH_RETURN_LOGITS"] = "0"
    model.train(was_training)
    sampler = forced_logprobs(fast.decoder, prompts, completions, trainer.temperature)
    torch.set_float32_matmul_precision("highest")
    exact_decoder = Decoder(model, dtype=torch.float32)
    exact = forced_logprobs(exact_decoder, prompts, completions, trainer.temperature)
    return {
        "tokens": sum(map(len, completions)),
        "update_to_plain": differences(update, plain),
        "sampler_to_plain": differences(sampler, plain),
        "sampler_to_update": differences(sampler, update),
        "plain_to_plain_padded": differences(plain, padded),
        "update_to_exact": differences(update, exact),
        "sampler_to_exact": differences(sampler, exact),
        "plain_to_exact": differences(plain, exact),
    }


def within_tolerance(logprobs: dict[str, Any]) -> bool:
    """Say whether update and sampler are as close to float32 as the plain forward is."""
    limit = TOLERANCE_FACTOR * logprobs["plain_to_exact"]["mean"]
    return all(logprobs[f"{name}_to_exact"]["mean"] <= limit for name in ("update", "sampler"))


def forced_logprobs(
    decoder: Decoder, prompts: list[torch.Tensor], completions: list[torch.Tensor],
    temperature: float,
) -> list[torch.Tensor]:
    """Return the log-probabilities by which a decoder would have sampled given completions.

    Args:
        decoder: What computes the logits, a token at a time.
        prompts: Token ids, one tensor per row.
        completions: Token ids, one tensor per row.
        temperature: Sampling temperature.

    Returns:
        One float32 tensor per row, as long as its completion.
    """
    decoder.refresh()
    rows = torch.arange(len(prompts), device=decoder.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=decoder.device)
    targets = pad_sequence(completions, True)
    longest = int(lengths.max()) + targets.shape[1]
    cache = decoder.new_cache(len(prompts), -(-longest // 64) * 64)
    logits = decoder.prefill(pad_sequence(prompts, True), lengths, cache, rows, rows)
    columns = []
    for position, tokens in enumerate(targets.T):
        scaled = (logits / temperature).log_softmax(-1)
        columns.append(scaled.gather(1, tokens[:, None])[:, 0])
        logits = decoder.step(tokens, lengths + position, cache)
    decoder.free_scratch()
    found = torch.stack(columns, dim=1)
    return [row[: len(c)] for row, c in zip(found, completions, strict=True)]
