"""Turn what the learning benchmarks left into rows of RESULTS.md, one file each.

    python benchmarks/learning_rows.py outputs/learning/*.json --tasks WORDS --setting WORDS --machine WORDS
    python benchmarks/learning_rows.py outputs/cpu_default.json outputs/agent_1.json --tasks ...

Reads the results of learning.py, cpu_default.py, cpu_recipes.py and agent_learning.py, and a run folder
whose training was stopped before its evaluation (its validation evaluations alone). Paired differences
of learning.py's rows are computed here, from the letters that each row has for its tasks.
`results_page.py` makes the page of the rows.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.files import read_json, write_json_atomic  # noqa: E402
from scoring.metrics import RATIOS, Estimate, estimate_gains  # noqa: E402
from training.trainer import MetricsTable  # noqa: E402

ROWS = ROOT / "benchmarks" / "results" / "learning"
PAIRED = ("exact_match_rate", "db_match_rate", "success_rate", "violation_rate")
"""Metrics whose differences a row keeps, those that its mode has."""
SHOWN = (*PAIRED, "action_f1", "json_parse_success")
PLAN_PAIRED = PAIRED[:2]
VALIDATION = {"heldout/exact_match": "exact_match_rate", "heldout/db_match": "db_match_rate",
              "heldout/success": "success_rate"}
"""Column of metrics.csv to metric."""


def paired_difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Estimate]:
    """Return how much higher two rates are in one result of learning.py than in another."""
    scores = [
        [
            SimpleNamespace(task_id=place, exact_match=exact == "1", db_match=db == "1")
            for place, (exact, db) in enumerate(
                zip(result["exact_match"], result["db_match"], strict=True)
            )
        ]
        for result in (before, after)
    ]
    settings = after["settings"]
    return estimate_gains(
        *scores, {name: RATIOS[name] for name in PLAN_PAIRED},
        settings["evaluation"]["num_bootstrap"], settings["data"]["split_seed"],
    )[0]


def validation_curve(
    steps: list[dict[str, Any]], num_tasks: int, minutes: float | None = None
) -> list[dict[str, Any]]:
    """Return the validation evaluations of a training.

    Args:
        steps: Rows of metrics.csv.
        num_tasks: Validation tasks.
        minutes: What the training took, shared out evenly over its steps; None adds the rows' `step_time`.
    """
    last, seconds, points = max((row["step"] for row in steps), default=0), 0.0, []
    for row in steps:
        seconds += row.get("step_time", 0.0)
        at = seconds / 60 if minutes is None else minutes * row["step"] / last
        rates = {name: row[column] for column, name in VALIDATION.items() if column in row}
        if rates:
            points.append({"step": row["step"], "minutes": at, "num_tasks": num_tasks, **rates})
    return points


def shown(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics that the page shows."""
    return {name: metrics[name] for name in SHOWN if name in metrics}


def model_of(settings: dict[str, Any]) -> str:
    """Return the name of the model that settings load."""
    return Path(settings["model"]["model_name"]).name


def from_learning(path: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read a result of learning.py; the row `sft` of its seed lies beside it."""
    settings, method, minutes = result["settings"], result["method"], result.get("train_minutes")
    row = {
        "model": result["model"], "mode": settings["mode"], "method": method, "seed": result["seed"],
        "num_tasks": result["metrics"]["num_tasks"], "metrics": shown(result["metrics"]),
        "train_minutes": minutes, "steps": result.get("steps"),
        "evaluation_tokens": result["evaluation_tokens"], "command": result["command"],
    }
    if method not in ("base", "sft"):
        before = read_json(path.with_name(f"{result['model']}-sft-{result['seed']}.json"), {})
        row["minus_sft"] = paired_difference(before, result)
    stage = settings["grpo"]
    row["curve"] = validation_curve(result.get("curve", []), stage["num_eval_tasks"], minutes)
    if method in ("grpo", "random"):
        batch = stage["per_device_train_batch_size"] * stage["gradient_accumulation_steps"]
        row["completions"] = result["steps"] * batch
    yield row


def of_difference(found: dict[str, Any]) -> dict[str, Estimate]:
    """Return the differences of cpu_default.py by metric."""
    return {"exact_match_rate": found["diff_exact"], "db_match_rate": found["diff_db"]}


def from_cpu_default(path: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read a result of cpu_default.py; its folder has the run folders of the seeds, `seed-7` and so on."""
    common = {"model": "tiny-gpt-oss", "mode": "plan", "command": result["command"]}
    for seed in result["seeds"]:
        run = path.with_suffix("") / f"seed-{seed['seed']}"
        stages = read_json(run / "evaluation.json", {})
        minutes = {name: seconds / 60 for name, seconds in seed["seconds_by_stage"].items()}
        for method, stage in (("sft", "sft"), ("grpo", "sft_grpo")):
            rates = {"exact_match_rate": seed[f"{method}_exact"], "db_match_rate": seed[f"{method}_db"]}
            row = common | {
                "method": method, "seed": seed["seed"], "num_tasks": seed["num_tasks"],
                "metrics": shown(stages.get(stage, {}) | rates), "train_minutes": minutes[method],
            }
            if method == "grpo":
                row["minus_sft"] = of_difference(seed)
            yield row
    for kind, found in result["controls"].items():
        yield common | {
            "method": kind.replace("_", "-"), "seed": result["seeds"][0]["seed"],
            "num_tasks": result["seeds"][0]["num_tasks"], "metrics": shown(found["after"]),
            "train_minutes": found["train_seconds"] / 60,
            "minus_sft": of_difference(found),
        }


def from_recipe(path: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read a recipe.json of cpu_recipes.py: the SFT that it began from, and what came of it."""
    settings = result["settings"]
    common = {
        "model": model_of(settings), "mode": settings["mode"], "seed": result["seed"],
        "num_tasks": result["num_tasks"],
        "command": f"python benchmarks/cpu_recipes.py --kind {result['kind']} --run RUN",
    }
    yield common | {"method": "sft", "metrics": shown(result["sft"])}
    yield common | {
        "method": result["kind"], "metrics": shown(result["after"]), "minus_sft": result["difference"],
        "train_minutes": result["train_seconds"] / 60,
    }


def from_agent(path: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read a result of agent_learning.py: the first command's three stages, or a control's last one."""
    settings, seconds = result["settings"], result["seconds"]
    what = re.fullmatch(r"agent_learning_(.+)_\d+", path.stem).group(1)
    command = f"python benchmarks/agent_learning.py --seed {settings['seed']}"
    command += "" if what == "main" else f" --control {what}"
    common = {
        "model": model_of(settings), "mode": settings["mode"], "seed": settings["seed"], "command": command,
    }
    methods = {"base": "base", "sft": "sft", "sft_grpo": "grpo"} if what == "main" else {"sft_grpo": what}
    for stage, method in methods.items():
        metrics = result["rates"][stage]
        row = common | {"method": method, "num_tasks": metrics["num_tasks"], "metrics": shown(metrics)}
        trained = seconds.get("SFT" if method in ("sft", "more-sft") else "GRPO")
        if method != "base":
            row["train_minutes"] = trained / 60
        if stage == "sft_grpo":
            row["minus_sft"] = {k: v for k, v in result["difference"].items() if k in PAIRED}
        # More SFT is one schedule over the whole time there, from the base model.
        yield row | ({"begins_with": "base"} if method == "more-sft" else {})


def from_stopped_run(path: Path, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read the validation evaluations of a run folder whose GRPO has no evaluation at its end."""
    settings = config["settings"]
    steps = MetricsTable(path / "metrics.csv").stage_rows("grpo", sys.maxsize)
    yield {
        "model": model_of(settings), "mode": settings["mode"], "method": "grpo", "seed": settings["seed"],
        "metrics": {}, "steps": int(steps[-1]["step"]),
        "train_minutes": sum(row.get("step_time", 0.0) for row in steps) / 60,
        "curve": validation_curve(steps, settings["grpo"]["num_eval_tasks"]),
        "command": "python benchmarks/cpu_recipes.py --run RUN",
    }


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of a result file or of a stopped run's folder."""
    if path.is_dir():
        yield from from_stopped_run(path, read_json(path / "config.json", {}))
        return
    result = read_json(path, {})
    kinds = {"method": from_learning, "seeds": from_cpu_default, "kind": from_recipe, "rates": from_agent}
    for key, read in kinds.items():
        if key in result:
            yield from read(path, result)
            return
    sys.exit(f"error: {path}: no result of learning, cpu_default, cpu_recipes or agent_learning.py")


def plain_command(command: str, options: list[str]) -> str:
    """Return a command as a reader would type it: without folders of the machine, with options it lacks."""
    words = [Path(word).name if word.startswith("/") else word for word in shlex.split(command)]
    for option in ("--run-dir", "--results", "--work-dir", "--output", "--output-dir"):
        while option in words:
            place = words.index(option)
            del words[place:place + 2]
    return " ".join([*words[:2], *options, *words[2:]])


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--setting", required=True, help="what the rows share, the words of their heading")
    parser.add_argument("--tasks", required=True, help="what the held-out tasks are")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--note", default="", help="what a reader must know of these rows")
    parser.add_argument("--options", default="", help="options that the recorded commands lack")
    parser.add_argument("--output", type=Path, default=ROWS)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    shared = {"setting": arguments.setting, "tasks": arguments.tasks, "machine": arguments.machine,
              "note": arguments.note}
    for path in arguments.results:
        for row in rows_of(path):
            row |= shared
            row["command"] = plain_command(row["command"], shlex.split(arguments.options))
            if row["method"] == "base":
                del row["seed"]
            words = [row.get(key, "") for key in ("model", "mode", "setting", "method", "seed")]
            name = re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")
            write_json_atomic(arguments.output / f"{name}.json", row)
            print(name)


if __name__ == "__main__":
    main()
