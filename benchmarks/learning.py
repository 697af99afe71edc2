"""One row of the comparison base / SFT / SFT+GRPO and its controls: train, evaluate, write the figures.

    python benchmarks/learning.py --model MODEL --method base
    python benchmarks/learning.py --model MODEL --method sft --seed 1
    python benchmarks/learning.py --model MODEL --method grpo --seed 1 --steps 80
    python benchmarks/learning.py --model MODEL --method random --seed 1 --steps 80
    python benchmarks/learning.py --model MODEL --method more-sft --seed 1
    python benchmarks/learning.py --model MODEL --method evaluate --of grpo --seed 1 --trials 4

Rows with the same seed share one SFT adapter; `--adapter FOLDER` gives one from elsewhere. `random` is GRPO
with rewards drawn by chance, `more-sft` goes on with SFT for as many minutes as `grpo` took. `--minutes`
ends any training by the clock, at a constant learning rate; with `--steps` at most, which then lay out
the schedule. `evaluate` trains nothing: it is one more row of
an adapter, sampled several times (`--trials`), or on the tasks of another store:

    python task_generator.py --data-dir STORE --num-tasks 6000 --seed 20 --output other.jsonl
    python benchmarks/learning.py --model MODEL --method evaluate --of grpo --seed 1 \\
        --set data.data_dir=STORE --set data.eval_dataset_path=other.jsonl

Every row has a run folder of its own; the same command goes on where it was stopped, and one that is done
is not repeated. `learning_rows.py` makes rows of RESULTS.md of them.
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

import training  # noqa: E402, F401, I001  (Unsloth, before anything that it patches)

import configs  # noqa: E402
from benchmarks.controls import finished_adapter, go_on, provenance  # noqa: E402
from common.files import read_json, write_json_atomic  # noqa: E402
from common.user_error import UserError  # noqa: E402
from gptoss.load import load_adapter  # noqa: E402
from prompting.plan_format import plan_format  # noqa: E402
from scoring.trials import estimate_pass_hat  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import Evaluation, complete_trials, score_texts  # noqa: E402
from training.trainer import MetricsTable  # noqa: E402

METHODS = ("base", "sft", "grpo", "random", "more-sft")
STAGES = {"sft": ("sft", "more-sft"), "grpo": ("grpo", "random")}
"""The methods that train by each stage."""
ADAPTERS = {
    "sft": "sft/adapter", "more-sft": "sft/adapter", "grpo": "final_model", "random": "final_model",
}
"""Where the adapter of a method lies in its run folder."""
LETTERS = {"plan": ("exact_match", "db_match"), "agent": ("success", "db_match")}
"""What a row keeps of each answer, by mode."""
MOST_STEPS_A_MINUTE = 300
"""Optimizer steps that no minute is enough for: what is laid out for `--minutes`."""
SEED_OF_MORE = 1000
"""Added to the seed of `more-sft`, so that its batches are others than those of SFT."""


def row_name(arguments: argparse.Namespace, method: str) -> str:
    """Return the name of a method's row: model, mode, method and seed."""
    words = [Path(arguments.model).name, *(["agent"] if arguments.mode == "agent" else []), method]
    return "-".join(words if method == "base" else [*words, str(arguments.seed)])


def name_of(arguments: argparse.Namespace, config: configs.RunConfig) -> str:
    """Return the name of the row that is asked for; of an evaluation, with its tasks and trials."""
    if arguments.method != "evaluate":
        return row_name(arguments, arguments.method)
    trials = f"-x{arguments.trials}" if arguments.trials > 1 else ""
    return f"{row_name(arguments, arguments.of)}-on-{Path(config.data.eval_dataset_path).stem}{trials}"


def row_config(arguments: argparse.Namespace) -> configs.RunConfig:
    """Return the settings of the row."""
    method = arguments.method
    # Without early stopping: it would hide the harm of a control by keeping SFT's adapter.
    steps: dict[str, Any] = {"grpo.early_stopping_patience": 0}
    for stage, methods in STAGES.items():
        steps[f"{stage}.max_steps"] = arguments.steps if method in methods else 0
        if method in methods and arguments.minutes and not arguments.steps:
            steps[f"{stage}.max_steps"] = math.ceil(arguments.minutes * MOST_STEPS_A_MINUTE)
            steps[f"{stage}.lr_scheduler_type"] = "constant_with_warmup"
    settings = {
        "model.model_name": arguments.model, "evaluation.num_tasks": arguments.num_tasks,
        "seed": arguments.seed + SEED_OF_MORE * (method == "more-sft"), "merge_model": False,
        "show_progress": False, "evaluation.greedy": arguments.trials == 1,
        "agent.num_trials": arguments.trials,
    }
    overrides = dict(text.split("=", 1) for text in arguments.overrides)
    preset = configs.get_preset(arguments.preset, arguments.mode, arguments.model)
    config = configs.with_overrides(preset, overrides | settings | steps)
    changes = {"output_dir": str(arguments.run_dir / name_of(arguments, config))}
    if method == "evaluate":
        # The store may be another: no file but that of the held-out tasks is read.
        changes |= {"data.dataset_path": config.data.eval_dataset_path, "data.grpo_dataset_path": ""}
    return configs.with_overrides(config, changes)


def begins_with(arguments: argparse.Namespace) -> Path | None:
    """Return the adapter that a row begins with; None is the base model.

    Raises:
        SystemExit: It is not there.
    """
    method = arguments.of if arguments.method == "evaluate" else "sft"
    if "base" in (method, arguments.method) or arguments.method == "sft":
        return None
    if arguments.adapter:
        if not (arguments.adapter / "adapter_config.json").is_file():
            sys.exit(f"error: {arguments.adapter}: no adapter_config.json; name an adapter's folder")
        return arguments.adapter
    folder = arguments.run_dir / row_name(arguments, method) / ADAPTERS[method]
    return finished_adapter(folder, f"run --method {method} --seed {arguments.seed} first")


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


def train(
    run: pipeline.Run, model: Any, tokenizer: Any, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train as the method says; return steps, minutes and what was logged."""
    method = arguments.method
    if method in ("base", "evaluate"):
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
    # Of GRPO that goes on after a stop, the steps before it count, too.
    minutes = max(minutes, sum(row.get("step_time", 0.0) for row in rows) / 60)
    return {"steps": last, "train_minutes": minutes, "curve": rows}


def evaluate(run: pipeline.Run, model: Any, tokenizer: Any, label: str, trials: int) -> Evaluation:
    """Evaluate on the held-out tasks; plans that are sampled several times have `pass_hat_k`, too."""
    config = run.config
    if trials == 1 or config.mode == "agent":
        return pipeline.evaluate_stage(run, model, tokenizer, label)
    parts_dir = run.folder / "evaluation_parts"
    texts = complete_trials(model, tokenizer, run.test, config, trials, parts_dir)
    found = score_texts(run.test * trials, texts, run.db, config, label, plan_format(tokenizer))
    found.metrics["pass_hat_k"] = estimate_pass_hat(
        found.scores, lambda score: score.db_match, config.evaluation.num_bootstrap, config.data.split_seed
    )
    return found


def letters_of(evaluation: Evaluation, mode: str, tasks: list[Any]) -> dict[str, str]:
    """Return one letter an answer, by task and trial: rows are paired by them."""
    places = {task.task_id: place for place, task in enumerate(tasks)}
    scores = sorted(evaluation.scores, key=lambda score: places[score.task_id])
    return {name: "".join("01"[getattr(score, name)] for score in scores) for name in LETTERS[mode]}


def make_row(arguments: argparse.Namespace) -> None:
    """Train and evaluate the row, or say that it is done."""
    started = time.perf_counter()
    if arguments.method == "more-sft" and not (arguments.minutes or arguments.steps):
        of_grpo = arguments.results / f"{row_name(arguments, 'grpo')}.json"
        arguments.minutes = read_json(of_grpo, {}).get("train_minutes")
        if arguments.minutes is None:
            sys.exit(f"error: {of_grpo}: missing; give --minutes or run grpo first")
    config = row_config(arguments)
    folder, method = Path(config.output_dir), arguments.of or arguments.method
    path = arguments.results / f"{folder.name}.json"
    if path.exists():
        print(f"{path}: is done")
        return
    adapter = begins_with(arguments)
    run = pipeline.prepare_run(config, resume=True)
    model, tokenizer = pipeline.load_run_model(run)
    if adapter:
        load_adapter(model, adapter)
    figures = train(run, model, tokenizer, arguments)
    label = {"base": "base", "sft": "sft", "more-sft": "sft"}.get(method, "sft_grpo")
    begun = time.perf_counter()
    evaluation = evaluate(run, model, tokenizer, label, arguments.trials)
    now = time.perf_counter()
    figures = {
        **provenance(model), "model": Path(arguments.model).name, "method": method, "seed": arguments.seed,
        "num_trials": arguments.trials, "trained": arguments.method != "evaluate",
        "git_hash": pipeline.git_hash(), "versions": pipeline.package_versions(),
        "minutes": (now - started) / 60, "evaluation_minutes": (now - begun) / 60,
        "evaluation_tokens": sum(
            row["num_tokens"] if "num_tokens" in row else len(tokenizer(row["raw"])["input_ids"])
            for row in evaluation.completions
        ),
        "metrics": evaluation.metrics, "parse_failures": evaluation.parse_failures,
        **letters_of(evaluation, config.mode, run.test), **figures,
        "settings": json.loads(config.to_json()),
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, figures)
    shown = {
        name: round(evaluation.metrics[name]["value"], 3) for name in (
            "exact_match_rate", "success_rate", "db_match_rate", "action_f1", "json_parse_success",
            "mean_reward",
        ) if name in evaluation.metrics
    }
    print(f"{path.stem}: {shown} in {figures['minutes']:.1f} minutes")
    if adapter:
        print(f"it began with the adapter {adapter}")
    if arguments.method in ADAPTERS:
        print(f"its own adapter: {folder / ADAPTERS[arguments.method]}")


def main() -> None:
    """Read the options and make the row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="hub name or folder of the base model")
    parser.add_argument("--method", required=True, choices=(*METHODS, "evaluate"))
    parser.add_argument("--of", choices=METHODS, help="whose adapter `evaluate` takes")
    parser.add_argument("--mode", default="plan", choices=configs.MODES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="optimizer steps (those of the preset)")
    parser.add_argument("--minutes", type=float, help="of training (more-sft: those of the row grpo)")
    parser.add_argument("--adapter", type=Path, help="adapter to begin with; of evaluate, the evaluated one")
    parser.add_argument("--num-tasks", type=int, default=1000, help="held-out tasks (1,000)")
    parser.add_argument("--trials", type=int, default=1, help="answers a task; above 1 they are sampled")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "outputs" / "learning")
    parser.add_argument("--results", type=Path, default=ROOT / "outputs" / "learning")
    arguments = parser.parse_args()
    if (arguments.method == "evaluate") != bool(arguments.of):
        parser.error("--of goes with --method evaluate: name the method whose adapter is evaluated")
    if arguments.trials < 1 or (arguments.trials > 1 and arguments.method != "evaluate"):
        parser.error("--trials is 1 or more, and above 1 with --method evaluate only")
    try:
        make_row(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
