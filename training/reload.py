"""Load what a run saved and compare it with the model in memory, on the next token of real prompts.

Left out: comparing generated text. One rounding flips a greedy token; log-probabilities tell how far
two models are apart.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from configs import ModelStage
from training.model import compare_logits, load_for_evaluation, logits_on


def check_reload(
    model: Any, tokenizer: Any, folder: str | Path, stage: ModelStage, prompts: list[str]
) -> dict[str, float]:
    """Load a saved adapter or merged model and compare it with the model that was saved.

    Args:
        model: The model in memory.
        tokenizer: Its tokenizer.
        folder: final_model/ (adapter) or merged_model/.
        stage: The settings the model was loaded with.
        prompts: Texts with special tokens written out.

    Returns:
        `max_abs_diff` of the next token's log-probabilities and `same_top_token`, the share of
        prompts whose likeliest token is the same. Merging rounds to 16 bits on a GPU, so the
        difference is exactly 0 only for an adapter.

    Raises:
        ModelError: The folder cannot be loaded.
    """
    before = logits_on(model, tokenizer, prompts)
    is_adapter = (Path(folder) / "adapter_config.json").is_file()
    settings = stage if is_adapter else replace(stage, load_in_4bit=False)
    reloaded, reloaded_tokenizer = load_for_evaluation(str(folder), settings)
    after = logits_on(reloaded, reloaded_tokenizer, prompts)
    del reloaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return compare_logits(before, after)
