"""Keep GPU memory within bounds where Unsloth's own estimate leaves the experts out.

Left out on purpose: changes to Unsloth itself; a setting of its trainer is set for one call.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def report_peak(doing: str) -> Iterator[None]:
    """Print the peak of GPU memory of what is done inside; nothing without a GPU.

    Args:
        doing: What is done, as in "SFT".
    """
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    yield
    used, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    print(f"{doing}: peak of GPU memory {used / 2**30:.1f} GiB, {held / 2**30:.1f} reserved")


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
