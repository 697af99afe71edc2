"""Fast sampling against transformers' generate on a CPU, with the model that ships here.

    python benchmarks/cpu_sampling.py

Writes benchmarks/results/cpu_sampling.json. CPU seconds are counted, not wall-clock seconds, so
that other jobs on the machine do not blur the comparison; greedy completions must be equal.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
from data_reader import plan_prompt, read_tasks  # noqa: E402
from gptoss.engine import attach_fast_generate, detach_fast_generate  # noqa: E402
from gptoss.load import load_model  # noqa: E402

NUM_TOKENS = 96
OUTPUT = ROOT / "benchmarks" / "results" / "cpu_sampling.json"


def main() -> None:
    """Measure both ways at two batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    config = configs.with_overrides(
        configs.get_preset("cpu"), {"model.num_threads": 1, "model.sampling": "plain"}
    )
    model, tokenizer = load_model(config.model)
    model.eval()
    tasks = read_tasks(ROOT / "3.5k.jsonl")[:16]
    figures: dict[str, dict] = {}
    for num_tasks in (4, 16):
        prompts = [plan_prompt(task, "brief") for task in tasks[:num_tasks] for _ in range(8)]
        batch = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        row = figures[f"{len(prompts)} rows"] = {"tokens_per_row": NUM_TOKENS}
        outputs = {}
        for way in ("plain", "fast"):
            if way == "fast":
                attach_fast_generate(model)
            for sampling in ("sampled", "greedy"):
                begin = time.process_time()
                outputs[way] = model.generate(
                    **inputs, max_new_tokens=NUM_TOKENS, do_sample=sampling == "sampled",
                    temperature=1.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=[10**6],
                )
                row[f"{way}_{sampling}_cpu_s"] = round(time.process_time() - begin, 2)
        detach_fast_generate(model)
        row["greedy_rows_equal"] = (outputs["plain"] == outputs["fast"]).all(1).sum().item()
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
