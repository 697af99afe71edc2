"""Correct GRPO for a sampler whose probabilities are not the trainer's: truncated importance sampling.

vLLM samples from MXFP4 weights by its own kernels, the update reads NF4. Each token's loss is
weighted by min(trainer's probability / sampler's probability, `MAX_WEIGHT`) (Ionides, 2008). TRL and
Unsloth both do so for completions of their own vLLM; here they do it for those of the rollout
function. Left out on purpose: weights of whole sequences.
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
