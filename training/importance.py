"""Correct GRPO for a sampler whose probabilities are not the trainer's: truncated importance sampling.

vLLM samples from MXFP4 weights by its own kernels, the update reads NF4. Each token's loss is
weighted by min(trainer's probability / sampler's probability, `MAX_WEIGHT`) (Ionides, 2008). TRL and
Unsloth both do so for completions of their own vLLM; here they do it for those of the rollout
function. Left out on purpose: weights of whole sequences.
"""

from types import SimpleNamespace
from typing import Any

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


def weigh_tokens(trainer: Any) -> None:
    """Make a trainer weigh tokens, and log how far its sampler is from it as `sampling/kl`.

    Args:
        trainer: TRL's or Unsloth's GRPOTrainer, whose rollout function returns log-probabilities.
    """
    # Both read these at every step; vLLM itself is run by the rollout function's engine.
    trainer.use_vllm, trainer.vllm_mode = True, "engine"
    trainer.vllm_generation, trainer._last_loaded_step = SimpleNamespace(sync_weights=bool), -1
    prepare = trainer._generate_and_score_completions

    def prepare_and_log(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = prepare(inputs)
        mode = "train" if trainer.model.training else "eval"
        # In a conversation the model wrote a part of the completion alone.
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        kl = sampler_kl(batch["old_per_token_logps"], batch["sampling_per_token_logps"], mask)
        trainer._metrics[mode]["sampling/kl"].append(kl)
        return batch

    trainer._generate_and_score_completions = prepare_and_log
