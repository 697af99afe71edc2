"""How much of GRPO's sampling teaches: groups with spread by resample rounds, and the best adapter.

    python benchmarks/learning_signal.py

A short SFT of the small model, then from that same adapter: a few GRPO steps for each number of
resample rounds (share of completions in groups whose rewards differ, seconds of a step), and one
longer run at a high learning rate, whose last adapter is compared with the one that early stopping
restores, on the held-out tasks of the test split. Says nothing about the 20B model: how many groups
are dead depends on how sharp the policy is.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from common.files import read_json, write_json_atomic  # noqa: E402
from gptoss.load import load_adapter  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import Evaluation, compare_evaluations  # noqa: E402
from training.monitor import BEST_NAME  # noqa: E402
from training.trainer import MetricsTable  # noqa: E402

ROUNDS = (0, 1, 2)
SHOWN = ("exact_match_rate", "db_match_rate", "mean_reward", "json_parse_success")


def open_run(arguments: argparse.Namespace, name: str, overrides: dict[str, Any]) -> pipeline.Run:
    """Open a run folder whose SFT adapter is the one that all of the runs share."""
    settings = {
        "output_dir": str(arguments.run_dir / name), "show_progress": False, "merge_model": False,
        "sft.max_steps": arguments.sft_steps, "grpo.per_device_train_batch_size": 16,
        "grpo.gradient_accumulation_steps": 2, "grpo.save_steps": 1000, "grpo.eval_steps": 0,
        "grpo.early_stopping_patience": 0, "evaluation.num_tasks": arguments.num_tasks,
    }
    config = configs.with_overrides(configs.get_preset("cpu"), settings | overrides)
    run = pipeline.prepare_run(config)
    if name != "sft":
        (run.folder / "sft").mkdir(exist_ok=True)
        adapter = (arguments.run_dir / "sft" / "sft" / "adapter").resolve()
        (run.folder / "sft" / "adapter").symlink_to(adapter)
    return run


def measure_rounds(arguments: argparse.Namespace, rounds: int) -> dict[str, float]:
    """Train a few steps with this many resample rounds; return the means over the steps.

    Returns:
        Shares of completions in groups with spread (0.0 none, 1.0 all), as drawn and as trained on,
        and seconds of a step, rollouts and looks at metrics included.
    """
    overrides = {"grpo.resample_rounds": rounds, "grpo.max_steps": arguments.steps}
    run = open_run(arguments, f"rounds-{rounds}", overrides)
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    started = time.perf_counter()
    pipeline.train_grpo(run, model, tokenizer)
    seconds = time.perf_counter() - started
    rows = MetricsTable(run.folder / "metrics.csv").stage_rows("grpo", arguments.steps)
    # Groups are of one size, so the share of groups is the share of completions.
    trained = fmean(1 - row["frac_reward_zero_std"] for row in rows)
    drawn = fmean(row["resampling/useful_before"] for row in rows) if rounds else trained
    return {
        "useful_as_drawn": drawn, "useful_as_trained": trained,
        "seconds_per_step": seconds / arguments.steps, "steps": arguments.steps,
    }


def shown(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of an evaluation that the benchmark records."""
    return {name: evaluation.metrics[name] for name in SHOWN}


def measure_best_restored(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train past the best step; evaluate the last adapter and the one that would be restored."""
    overrides = {
        "grpo.max_steps": arguments.long_steps, "grpo.eval_steps": arguments.long_steps // 4,
        "grpo.num_eval_tasks": 64, "grpo.learning_rate": arguments.learning_rate,
        "grpo.resample_rounds": 0,
    }
    run = open_run(arguments, "best-restored", overrides)
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    pipeline.train_grpo(run, model, tokenizer)
    last = pipeline.evaluate_stage(run, model, tokenizer, "sft_grpo")
    folder = run.folder / BEST_NAME
    load_adapter(model, folder)
    # Under a label of its own: a stage that is evaluated already would be read from its file.
    restored = pipeline.evaluate_stage(run, model, tokenizer, "restored")
    rows = MetricsTable(run.folder / "metrics.csv").stage_rows("grpo", arguments.long_steps)
    names = ("heldout/db_match", "heldout/exact_match")
    return {
        "learning_rate": arguments.learning_rate,
        "looks": [{n: row[n] for n in ("step", *names)} for row in rows if names[0] in row],
        "restored_step": read_json(folder / "step.json", {})["step"],
        "last": shown(last), "restored": shown(restored),
        "restored_minus_last_paired": compare_evaluations(
            last, restored, run.config.evaluation.num_bootstrap, run.config.data.split_seed
        ),
    }


def main() -> None:
    """Measure both and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=ROOT / "outputs" / "learning_signal")
    parser.add_argument("--sft-steps", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="GRPO steps per resample setting")
    parser.add_argument("--long-steps", type=int, default=8, help="GRPO steps past the best")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of the longer run")
    parser.add_argument("--num-tasks", type=int, default=96, help="held-out tasks")
    default = ROOT / "benchmarks" / "results" / "learning_signal.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    started = time.perf_counter()
    run = open_run(arguments, "sft", {})
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    sft = pipeline.evaluate_stage(run, model, tokenizer, "sft")
    figures = {
        "command": " ".join(["python", *sys.argv]),
        "sft_steps": arguments.sft_steps,
        "completions_per_step": run.config.grpo.completions_per_step,
        "num_generations": run.config.grpo.num_generations,
        "seed": run.config.seed,
        "num_tasks": arguments.num_tasks,
        "sft": shown(sft),
        "resample_rounds": {str(n): measure_rounds(arguments, n) for n in ROUNDS},
        "early_stopping": measure_best_restored(arguments),
    }
    figures["seconds"] = time.perf_counter() - started
    write_json_atomic(arguments.output, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
