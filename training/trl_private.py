"""Every private name of TRL's and transformers' trainers that is used here, for the pinned versions.

When a pin in requirements.txt moves, this is the module to check against the new release.
"""

import math
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import AttentionInterface, AttentionMaskInterface, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from trl import GRPOTrainer, SFTTrainer
from trl.trainer.utils import split_tensor_dict

from gptoss.cpu_attention import CPU_ATTENTION, attend_with_sinks
from gptoss.folded import find_groups
from gptoss.model_types import Model
from gptoss.weights import find_causal_lm
from training.importance import completion_columns, sampler_kl, token_weights
from training.shared_prefix import (
    Score,
    attend,
    attend_eagerly,
    log_probabilities,
    packed_mask,
    score_tokens,
)
from training.unsloth_prefix import add_packed_attention, score_in_parts


class OrderedSftTrainer(SFTTrainer):
    """TRL's trainer with the rows in a given order, one pass: a resume skips to where it was."""

    def __init__(self, order: Sequence[int], **settings: Any) -> None:
        self._order = order
        super().__init__(**settings)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sequence[int]:
        return self._order


PACKED = "shared_prefix_"
"""What goes before the name of a usual implementation whose attention reads packed rows as well."""
USUAL = {
    "eager": (attend_eagerly, eager_mask), "sdpa": (sdpa_attention_forward, sdpa_mask),
    CPU_ATTENTION: (attend_with_sinks, eager_mask),
}
"""Attention and mask of transformers by implementation, those that take a dense mask."""
LAYER_TYPES = {"full_attention", "sliding_attention"}


def prepare_shared_prefix(model: Model, under_unsloth: bool) -> Score:
    """Let a model attend over packed rows as well, and return what scores completions with them.

    All else that the model is used for stays as it is.

    Raises:
        ValueError: The model, or under Unsloth the trainer, is not what this was written for.
    """
    core = find_causal_lm(model)
    if under_unsloth:
        if core.config.model_type != "gpt_oss":
            raise ValueError("under Unsloth it is for GPT-OSS alone")
        if not hasattr(GRPOTrainer, "_compute_loss"):
            raise ValueError("Unsloth's trainer lacks TRL's _compute_loss")
        add_packed_attention(model)
        return score_in_parts
    name = type(core).__name__
    usual = core.config._attn_implementation.removeprefix(PACKED)
    other = set(getattr(core.config.get_text_config(), "layer_types", None) or ()) - LAYER_TYPES
    if other or core._is_stateful:
        raise ValueError(f"{name} has layers of {', '.join(sorted(other)) or 'a state'}")
    if not core._supports_attention_backend or usual not in USUAL:
        raise ValueError(f"{name} attends by {usual}, which cannot be replaced")
    attention, mask = USUAL[usual]
    AttentionInterface.register(PACKED + usual, partial(attend, attention=attention))
    AttentionMaskInterface.register(PACKED + usual, partial(packed_mask, mask))
    core.set_attn_implementation(PACKED + usual)
    return partial(score_tokens, core)


class SharedPrefixTrainer(GRPOTrainer):
    """The trainer with shared prompts, and with groups kept whole when completions are shuffled.

    Under Unsloth `GRPOTrainer` is Unsloth's, made of TRL's source; the loss is TRL's there, too.
    """

    def __init__(self, score: Score, **settings: Any) -> None:
        """Remember what scores completions; see TRL's for the settings."""
        self._score = score
        super().__init__(**settings)

    def compute_loss(
        self, model: Model, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return TRL's loss, which asks for log-probabilities where Unsloth's makes its own."""
        return self._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model: Model, input_ids: torch.Tensor, attention_mask: torch.Tensor,
        logits_to_keep: int, batch_size: int | None = None, compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        width = input_ids.shape[1] - logits_to_keep
        parts = []
        for begin in range(0, len(input_ids), batch_size or len(input_ids)):
            part = slice(begin, begin + (batch_size or len(input_ids)))
            ids, mask = input_ids[part], attention_mask[part]
            groups = find_groups(ids[:, :width], mask[:, :width])
            with self.accelerator.autocast():
                parts.append(log_probabilities(
                    model, ids, mask, logits_to_keep, groups, self.temperature, compute_entropy,
                    self._score,
                ))
        logps, entropies = zip(*parts, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _prepare_inputs(self, generation_batch: list[dict] | dict) -> dict[str, Any]:
        """As TRL's, but groups are shuffled, not completions."""
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            count = len(batch["prompt_ids"])
            order = torch.randperm(count // self.num_generations)
            rows = torch.arange(count).view(-1, self.num_generations)[order].flatten()
            batch = {name: value[rows] if value.ndim else value for name, value in batch.items()}
            self._buffered_inputs = split_tensor_dict(batch, steps)
        return self._buffered_inputs[self._step % steps]


def weigh_tokens(trainer: GRPOTrainer) -> None:
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
        trained = completion_columns(batch["old_per_token_logps"], batch)
        sampled = batch["sampling_per_token_logps"]
        metrics = trainer._metrics[mode]
        metrics["sampling/kl"].append(sampler_kl(trained, sampled, mask))
        if isinstance(trainer, SharedPrefixTrainer) and "importance_sampling_ratio" not in batch:
            # Unsloth's trainer leaves the weights to its own loss.
            batch["importance_sampling_ratio"] = token_weights(trained, sampled, mask)
            difference = (trained - sampled)[mask.bool()].abs().mean()
            metrics["sampling/sampling_logp_difference/mean"].append(difference.item())
        return batch

    trainer._generate_and_score_completions = prepare_and_log


def limit_forward_rows(trainer: GRPOTrainer, rows: int) -> None:
    """Compute the log-probabilities of sampled completions a few rows at a time, as in training.

    Unsloth sizes that pass by the logits and hidden states alone. Experts need four times the rows
    (one per routed expert) at twice the width, which does not fit where its estimate just does.
    """
    compute = trainer._get_per_token_logps_and_entropies

    def compute_in_parts(model: Model, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        trainer.args.unsloth_grpo_mini_batch = math.ceil(len(input_ids) / rows)
        try:
            return compute(model, input_ids, *args, **kwargs)
        finally:
            # The pass with gradients sizes itself by its own, smaller batch.
            trainer.args.unsloth_grpo_mini_batch = None

    trainer._get_per_token_logps_and_entropies = compute_in_parts


def stay_on_cpu(arguments: TrainingArguments) -> None:
    """Name the CPU "cpu": under torchrun accelerate numbers it, and torch.load knows no "cpu:0"."""
    arguments._setup_devices = torch.device("cpu")
