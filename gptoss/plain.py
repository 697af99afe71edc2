"""Load a complete model with transformers alone and return its next-token logits.

`gptoss/export.py` runs this file as a program: where a GPU is, the process that exports has
Unsloth's patches in transformers, and users load an exported model without them. So nothing of this
project is imported here.
"""

import json
import sys
from pathlib import Path

import torch


@torch.no_grad()
def plain_logits(folder: str, prompts: list[str]) -> torch.Tensor:
    """Return the next-token logits of each prompt by a model folder, as `gptoss.load.logits_on` does.

    Experts may be in 16 or 32 bits or in MXFP4.

    Raises:
        OSError: The folder holds no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, settings = AutoConfig.from_pretrained(folder), {}
    if getattr(config, "quantization_config", None):
        # Without the package `kernels` transformers would unpack all the same, with a warning.
        settings["quantization_config"] = Mxfp4Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=config.dtype, device_map={"": device}, attn_implementation="eager", **settings
    )
    # Experts come out of MXFP4 in bfloat16, which holds them exactly; one dtype for all of them.
    model = model.to(config.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        rows.append(model(input_ids=ids.to(device)).logits[0, -1].float().cpu())
    return torch.stack(rows)


if __name__ == "__main__":
    model_dir, prompts_path, output_path = sys.argv[1:]
    found = plain_logits(model_dir, json.loads(Path(prompts_path).read_text(encoding="utf-8")))
    torch.save(found, output_path)
