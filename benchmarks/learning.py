"""One row of the comparison base / SFT / SFT+GRPO and its controls: train, evaluate, write the figures.

    python benchmarks/learning.py --model MODEL --method base
    python benchmarks/learning.py --model MODEL --method sft --seed 1
    python benchmarks/learning.py --model MODEL --method grpo --seed 1 --steps 80
    python benchmarks/learning.py --model MODEL --method random --seed 1 --steps 80
    python benchmarks/learning.py --model MODEL --method more-sft --seed 1

Rows with the same seed share one SFT adapter. `random` is GRPO with rewards drawn by chance, `more-sft`
goes on with SFT for as many minutes as `grpo` took. `--minutes` ends any training by the clock, at a
constant learning rate. Every row has a run folder of its own; the same command goes on where it was
stopped, and one that is done is not repeated. `learning_rows.py` makes rows of RESULTS.md of them.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from benchmarks.controls import go_on, sft_adapter  # noqa: E402
from common.files import read_json, write_json_atomic  # noqa: E402
from gptoss.load import load_adapter  # noqa: E402
from training import pipeline  # noqa: E402
from training.trainer import MetricsTable  # noqa: E402

METHODS = ("base", "sft", "grpo", "random", "more-sft")
STAGES = {"sft": ("sft", "more-sft"), "grpo": ("grpo", "random")}
"""The methods that train by each stage."""
MOST_STEPS_A_MINUTE = 300
"""Optimizer steps that no minute is enough for: what is laid out for `--minutes`."""
SEED_OF_MORE = 1000
"""Added to the seed of `more-sft`, so that its batches are others than those of SFT."""


def row_name(arguments: argparse.Namespace, method: str) -> str:
    """Return the name of a row: model, method and seed."""
    seed = "" if method == "base" else f"-{arguments.seed}"
    return f"{Path(arguments.model).name}-{method}{seed}"


def row_config(arguments: argparse.Namespace) -> configs.RunConfig:
    """Return the settings of the row."""
    method = arguments.method
    # Without early stopping: it would hide the harm of a control by keeping SFT's adapter.
    steps: dict[str, Any] = {"grpo.early_stopping_patience": 0}
    for stage, methods in STAGES.items():
        steps[f"{stage}.max_steps"] = arguments.steps if method in methods else 0
        if method in methods and arguments.minutes:
            steps[f"{stage}.max_steps"] = math.ceil(arguments.minutes * MOST_STEPS_A_MINUTE)
            steps[f"{stage}.lr_scheduler_type"] = "constant_with_warmup"
    settings = {
        "model.model_name": arguments.model, "evaluation.num_tasks": arguments.num_tasks,
        "seed": arguments.seed + SEED_OF_MORE * (method == "more-sft"), "merge_model": False,
        "show_progress": False, "output_dir": str(arguments.run_dir / row_name(arguments, method)),
    }
    overrides = dict(text.split("=", 1) for text in arguments.overrides)
    preset = configs.get_preset(arguments.preset, model_name=arguments.model)
    return configs.with_overrides(preset, overrides | settings | steps)


def end_training_after(minutes: float) -> None:
    """Give every trainer from now on a callback that ends training by the clock."""
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    end = time.perf_counter() + 60 * minutes

    class Clock(TrainerCallback):
        """Ends training once the time is over."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            """Compare the time."""
            control.should_training_stop |= time.perf_counter() > end
            return control

    DEFAULT_CALLBACKS.append(Clock())


def row_path(arguments: argparse.Namespace, method: str) -> Path:
    """Return the file of a row's figures."""
    return arguments.results / f"{row_name(arguments, method)}.json"


def train(
    run: pipeline.Run, model: Any, tokenizer: Any, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train as the method says; return steps, minutes and what was logged."""
    method = arguments.method
    if method == "base":
        return {}
    started = time.perf_counter()
    if arguments.minutes:
        end_training_after(arguments.minutes)
    if method == "sft":
        pipeline.train_sft(run, model, tokenizer)
    else:
        go_on(run, model, tokenizer, method)
    minutes = (time.perf_counter() - started) / 60
    stage = "sft" if method in STAGES["sft"] else "grpo"
    rows = MetricsTable(run.folder / "metrics.csv").stage_rows(stage, sys.maxsize)
    last = max((int(row["step"]) for row in rows), default=0)
    return {"steps": last, "train_minutes": minutes, "curve": rows}


def main() -> None:
    """Train and evaluate one row."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="hub name or folder of the base model")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="optimizer steps (those of the preset)")
    parser.add_argument("--minutes", type=float, help="of training (more-sft: those of the row grpo)")
    parser.add_argument("--num-tasks", type=int, default=1000, help="held-out tasks (1,000)")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "outputs" / "learning")
    parser.add_argument("--results", type=Path, default=ROOT / "outputs" / "learning")
    arguments = parser.parse_args()
    path = row_path(arguments, arguments.method)
    if path.exists():
        print(f"{path}: is done")
        return
    started = time.perf_counter()
    if arguments.method == "more-sft" and not (arguments.minutes or arguments.steps):
        arguments.minutes = read_json(row_path(arguments, "grpo"), {}).get("train_minutes")
        if arguments.minutes is None:
            sys.exit(f"error: {row_path(arguments, 'grpo')}: missing; give --minutes or run grpo first")
    adapter = None
    if arguments.method not in ("base", "sft"):
        source = arguments.run_dir / row_name(arguments, "sft")
        adapter = sft_adapter(source, f"run --method sft --seed {arguments.seed} first")
    config = row_config(arguments)
    run = pipeline.prepare_run(config, resume=True)
    model, tokenizer = pipeline.load_run_model(run)
    if adapter:
        load_adapter(model, adapter)
    figures = train(run, model, tokenizer, arguments)
    label = {"base": "base", "sft": "sft", "more-sft": "sft"}.get(arguments.method, "sft_grpo")
    begun = time.perf_counter()
    evaluation = pipeline.evaluate_stage(run, model, tokenizer, label)
    now = time.perf_counter()
    written = sum(len(tokenizer(row["raw"])["input_ids"]) for row in evaluation.completions)
    figures = {
        "command": " ".join(["python", *sys.argv]), "model": Path(arguments.model).name,
        "method": arguments.method, "seed": arguments.seed, "git_hash": pipeline.git_hash(),
        "versions": pipeline.package_versions(), "minutes": (now - started) / 60,
        "evaluation_minutes": (now - begun) / 60, "evaluation_tokens": written,
        "metrics": evaluation.metrics, "parse_failures": evaluation.parse_failures,
        # One letter a task, in their order: both by it is how rows are paired.
        "exact_match": "".join("01"[score.exact_match] for score in evaluation.scores),
        "db_match": "".join("01"[score.db_match] for score in evaluation.scores),
        **figures, "settings": json.loads(config.to_json()),
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, figures)
    shown = {name: round(evaluation.metrics[name]["value"], 3) for name in (
        "exact_match_rate", "db_match_rate", "action_f1", "json_parse_success", "mean_reward"
    )}
    print(f"{path.stem}: {shown} in {figures['minutes']:.1f} minutes")


if __name__ == "__main__":
    main()
