"""Load what a run saved and compare it with the model in memory, on the next token of real prompts.

The model in memory is asked first (`gptoss.load.logits_on`), so that it can be dropped before
the saved one is loaded: two of them do not fit on a small GPU.
"""

from dataclasses import replace
from pathlib import Path

import torch

from configs import ModelStage
from gptoss.load import (
    compare_logits,
    goes_to_gpu,
    load_for_evaluation,
    logits_on,
    memory_needed_gib,
)
from gptoss.memory import free_memory


def check_reload(
    reference: torch.Tensor, folder: str | Path | None, stage: ModelStage, prompts: list[str]
) -> dict[str, float]:
    """Load a saved adapter or merged model and compare it with the model that was saved.

    Args:
        reference: What `logits_on` gave, for these prompts, for the model in memory.
        folder: final_model/ (adapter) or merged_model/; None where none was written.

    Returns:
        `compare_logits` of the two. Merging rounds to 16 bits on a GPU, so the difference is exactly 0
        only for an adapter. Empty without a folder, and, said so, when the 16-bit weights of a merged
        model do not fit on this GPU.

    Raises:
        ModelError: The folder cannot be loaded.
    """
    if folder is None:
        return {}
    free_memory()
    stage = stage.without_vllm()
    is_adapter = (Path(folder) / "adapter_config.json").is_file()
    settings = stage if is_adapter else replace(
        stage, model_name=str(folder), load_in_4bit=False, offload_embedding=False
    )
    if goes_to_gpu(stage):
        needed = memory_needed_gib(settings)
        free = torch.cuda.mem_get_info()[0] / 2**30
        if needed > free:
            print(f"{folder}: not loaded again, {needed:.0f} GiB needed and {free:.0f} are free")
            return {}
    reloaded, tokenizer = load_for_evaluation(str(folder), settings)
    after = logits_on(reloaded, tokenizer, prompts)
    del reloaded
    free_memory()
    return compare_logits(reference, after)
