"""Keep GPU memory within bounds where Unsloth's own estimate leaves the experts out.

Left out on purpose: changes to Unsloth itself; a setting of its trainer is set for one call.
"""

import math
from typing import Any


def limit_forward_rows(trainer: Any, rows: int) -> None:
    """Compute the log-probabilities of sampled completions a few rows at a time.

    Unsloth sizes that pass by the logits and hidden states alone. Experts need four times the rows
    (one per routed expert) at twice the width, which does not fit where its estimate just does.

    Args:
        trainer: Unsloth's GRPOTrainer.
        rows: Completions per forward pass, as in training.
    """
    compute = trainer._get_per_token_logps_and_entropies

    def compute_in_parts(model: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        trainer.args.unsloth_grpo_mini_batch = math.ceil(len(input_ids) / rows)
        try:
            return compute(model, input_ids, *args, **kwargs)
        finally:
            # The pass with gradients sizes itself by its own, smaller batch.
            trainer.args.unsloth_grpo_mini_batch = None

    trainer._get_per_token_logps_and_entropies = compute_in_parts
