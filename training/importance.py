"""Correct GRPO for a sampler whose probabilities are not the trainer's: truncated importance sampling.

vLLM samples from MXFP4 weights by its own kernels, the update reads NF4. Each token's loss is
weighted by min(trainer's probability / sampler's probability, `MAX_WEIGHT`) (Ionides, 2008). TRL and
Unsloth do so for completions of their own vLLM; here they do it for those of the rollout function.
"""

import torch

MAX_WEIGHT = 2.0
"""Largest weight of a token: what the sampler finds far too unlikely does not rule the step."""


def sampler_kl(trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor) -> float:
    """Estimate the KL from the sampler to the trainer on the tokens that were sampled.

    Args:
        trained: The trainer's log-probabilities, in nats, `[B, T]`.
        sampled: The sampler's, likewise.
        mask: 1 on tokens that the sampler wrote, `[B, T]`.

    Returns:
        Nats a token, never negative: the mean of r - 1 - log r with r their ratio.
    """
    difference = (trained - sampled)[mask.bool()].float()
    return float((difference.exp() - 1 - difference).mean()) if difference.numel() else 0.0


def token_weights(
    trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return what each token's loss is multiplied by, `[B, T]`, 1 on padding; see `sampler_kl`."""
    return ((trained - sampled) * mask).exp().clamp(max=MAX_WEIGHT)


def completion_columns(values: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the columns of the completions, `[B, T]`, of values `[B, T]` or `[B, T + longest padding]`.

    Unsloth moves a row's padding from before the prompt to its end, and leaves in front of the
    completion as many columns as the row then lacks of the longest one's padding.
    """
    num_rows, width = batch["completion_mask"].shape
    longest = values.shape[1] - width
    if not longest:
        return values
    padding = (batch["prompt_mask"] == 0).sum(1, keepdim=True)
    columns = torch.arange(width, device=values.device).expand(num_rows, -1)
    return values.gather(1, longest - padding + columns)
