"""The default run on a CPU with three seeds, and what else its minutes could have been spent on.

    python benchmarks/cpu_default.py

Says what SFT and GRPO of the `cpu` preset reach, and whether GRPO's part is more than noise: beside it
GRPO with random rewards for as many steps, and SFT continued for as many seconds as GRPO took, both
from the first seed's SFT adapter. Held-out tasks are new ones of the test customers, more than the
shipped file has. A killed benchmark goes on where it was.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
from benchmarks.cpu_recipes import measure  # noqa: E402
from common.files import read_json, write_json_atomic  # noqa: E402
from task_generator import main as generate_tasks  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import compare_evaluations  # noqa: E402
from training.run_data import load_tasks  # noqa: E402
from training.sft import count_steps  # noqa: E402

NUM_DRAFTS, DRAFT_SEED = 8000, 90210
"""Tasks generated for evaluation; the test customers' are about a sixth of them."""


def run_seed(seed: int, config: configs.RunConfig, folder: Path) -> dict[str, Any]:
    """Run the stages of the preset with a seed; return its row. A row that is done is read back."""
    config = replace(config, seed=seed, output_dir=str(folder / f"seed-{seed}"))
    row_path = folder / f"seed-{seed}.json"
    if row := read_json(row_path, {}):
        return row
    seconds = read_json(folder / f"seed-{seed}.seconds.json", {})

    def timed(name: str, function: Any, *arguments: Any) -> Any:
        begun = time.monotonic()
        result = function(*arguments)
        # Of a stage that was killed, what the two starts took.
        seconds[name] = round(seconds.get(name, 0) + time.monotonic() - begun, 1)
        write_json_atomic(folder / f"seed-{seed}.seconds.json", seconds)
        return result

    run = pipeline.prepare_run(config, resume=True)
    model, tokenizer = pipeline.load_run_model(run)
    timed("sft", pipeline.train_sft, run, model, tokenizer)
    before = timed("evaluation", pipeline.evaluate_stage, run, model, tokenizer, "sft")
    timed("grpo", pipeline.train_grpo, run, model, tokenizer)
    after = timed("evaluation", pipeline.evaluate_stage, run, model, tokenizer, "sft_grpo")
    run.lock.close()
    difference = compare_evaluations(
        before, after, config.evaluation.num_bootstrap, config.data.split_seed
    )
    row = {
        "seed": seed, "seconds": round(sum(seconds.values()), 1), "seconds_by_stage": seconds,
        "num_tasks": before.metrics["num_tasks"],
        "sft_exact": before.metrics["exact_match_rate"],
        "grpo_exact": after.metrics["exact_match_rate"],
        "sft_db": before.metrics["db_match_rate"], "grpo_db": after.metrics["db_match_rate"],
        "diff_exact": difference["exact_match_rate"], "diff_db": difference["db_match_rate"],
    }
    write_json_atomic(row_path, row)
    return row


def run_control(kind: str, config: configs.RunConfig, folder: Path, row: dict) -> dict[str, Any]:
    """Go on from the SFT adapter of a seed by `kind`, as long as its GRPO took."""
    seed, seconds = row["seed"], row["seconds_by_stage"]
    source, output = folder / f"seed-{seed}", folder / f"{kind}-{seed}"
    if found := read_json(output / "recipe.json", {}):
        return found
    num_rows = len(load_tasks(config)[0])
    steps = count_steps(config.sft, num_rows) * seconds["grpo"] / seconds["sft"]
    more = replace(config.sft, max_steps=max(1, round(steps)))
    return measure(source, kind, replace(
        config, seed=seed, output_dir=str(output),
        sft=more if kind == "more-sft" else config.sft,
        # Without early stopping: it would hide harm by keeping the adapter that SFT left.
        grpo=replace(config.grpo, early_stopping_patience=0),
    ))


def main() -> None:
    """Run the seeds and the controls; write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="3407,7,11", help="comma-separated")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "outputs" / "cpu_default")
    parser.add_argument("--num-drafts", type=int, default=NUM_DRAFTS)
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    default = ROOT / "benchmarks" / "results" / "cpu_default.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    folder, held_out = arguments.work_dir, arguments.work_dir / "held_out.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not held_out.exists():
        words = f"--num-tasks {arguments.num_drafts} --seed {DRAFT_SEED} --output".split()
        generate_tasks([*words, str(held_out)])
    config = configs.with_overrides(configs.get_preset("cpu"), {
        "data.eval_dataset_path": str(held_out), "evaluation.num_tasks": 0,
        "show_progress": False, "merge_model": False,
        **dict(text.split("=", 1) for text in arguments.set),
    })
    figures: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]), "cores": os.cpu_count(), "seeds": [],
        "controls": {},
    }
    for seed in map(int, arguments.seeds.split(",")):
        figures["seeds"].append(run_seed(seed, config, folder))
        write_json_atomic(arguments.output, figures)
    for kind in ("random", "more-sft"):
        found = run_control(kind, config, folder, figures["seeds"][0])
        figures["controls"][kind.replace("-", "_")] = {
            "train_seconds": found["train_seconds"], "after": found["after"],
            "diff_exact": found["difference"]["exact_match_rate"],
            "diff_db": found["difference"]["db_match_rate"],
        }
        write_json_atomic(arguments.output, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
