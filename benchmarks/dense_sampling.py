"""Tokens per second of sampling from a model that is no GPT-OSS: transformers, adapter folded in, prompt held.

    python benchmarks/dense_sampling.py --model MODEL

Groups of eight completions on real prompts of the full style, as GRPO samples them, without stop tokens;
and how many greedy tokens are the same until two ways first differ (16-bit rounding parts them late).
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from common.files import write_json_atomic  # noqa: E402
from data_reader import plan_prompt, read_tasks  # noqa: E402
from gptoss.folded import FoldedGenerate, HeldPromptGenerate  # noqa: E402
from gptoss.generation import complete  # noqa: E402
from gptoss.load import load_model  # noqa: E402
from prompting.plan_format import plan_format  # noqa: E402

WAYS = {"transformers": None, "folded": FoldedGenerate, "held_prompt": HeldPromptGenerate}


def common_part(one: list[int], other: list[int]) -> float:
    """Return the share of tokens before two rows first differ; 1.0 is all of them."""
    same = next((i for i, pair in enumerate(zip(one, other, strict=True)) if len(set(pair)) > 1), len(one))
    return same / len(one)


def main() -> None:
    """Measure each way and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--size", type=int, default=8, help="completions of a group")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/dense_sampling.json")
    arguments = parser.parse_args()
    config = configs.get_preset("small-dense")
    stage = configs.with_overrides(config, {
        "model.model_name": arguments.model, "model.sampling": "plain",
    }).model
    model, tokenizer = load_model(stage)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.generation_config.eos_token_id = [len(tokenizer)]  # no row ends
    plans = plan_format(tokenizer)
    tasks = read_tasks(ROOT / "3.5k.jsonl")[: arguments.groups]
    prompts = [tokenizer(plan_prompt(task, "full", plans))["input_ids"] for task in tasks]
    rows = [prompt for prompt in prompts for _ in range(arguments.size)]
    figures = {"rows": len(rows), "tokens_a_row": arguments.tokens, "device": str(model.device)}
    if torch.cuda.is_available():
        figures["device"] = torch.cuda.get_device_name(0)
    greedy = {}
    for name, way in WAYS.items():
        vars(model).pop("generate", None)
        if way:
            model.generate = way(model)
        greedy[name] = [row.ids for row in complete(model, rows[:: arguments.size], arguments.tokens)]
        started = time.perf_counter()
        complete(model, rows, arguments.tokens, 1.0)
        seconds = time.perf_counter() - started
        figures[name] = {
            "seconds": seconds, "tokens_per_s": len(rows) * arguments.tokens / seconds,
            "same_until_parted": sum(
                map(common_part, greedy[name], greedy["transformers"])
            ) / len(prompts),
        }
        print(name, json.dumps(figures[name]), flush=True)
    figures["command"] = " ".join(["python", *sys.argv])
    write_json_atomic(arguments.output, figures)


if __name__ == "__main__":
    main()
