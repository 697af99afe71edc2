"""Turn what the learning benchmarks left into rows of RESULTS.md, one file each.

    python benchmarks/learning_rows.py outputs/learning/*.json
    python benchmarks/learning_rows.py outputs/agent_learning/*.json --setting "150 SFT steps, 20 GRPO steps"

Setting (the heading that rows share), tasks, machine and note come from the result; the options put
other words in their place. Reads the results of learning.py, cpu_default.py, cpu_recipes.py and
agent_learning.py, and a run folder whose training was stopped before its evaluation (its validation
evaluations alone). Paired differences of learning.py's rows are computed here, from the letters that
each row has for its tasks. `results_page.py` makes the page of the rows.
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

from benchmarks.results_page import METHODS  # noqa: E402
from common.files import read_json, write_json_atomic  # noqa: E402
from scoring.metrics import Estimate, estimate_gains  # noqa: E402
from training.trainer import MetricsTable  # noqa: E402

ROWS = ROOT / "benchmarks" / "results" / "learning"
PAIRED = ("exact_match_rate", "db_match_rate", "success_rate", "violation_rate")
"""Metrics whose differences a row keeps, those that its mode has."""
SHOWN = (*PAIRED, "action_f1", "json_parse_success", "pass_hat_k")
LETTERS = {
    "exact_match": "exact_match_rate", "success": "success_rate", "db_match": "db_match_rate",
}
"""What a result of learning.py has a letter for in each answer, and its metric."""
VALIDATION = {"heldout/exact_match": "exact_match_rate", "heldout/db_match": "db_match_rate",
              "heldout/success": "success_rate"}
"""Column of metrics.csv to metric."""


def paired_difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Estimate]:
    """Return how much higher the rates are in one result of learning.py than in another."""
    names, trials = [name for name in LETTERS if name in after], after.get("num_trials", 1)
    scores = [
        [
            SimpleNamespace(task_id=place // trials, right=[letter == "1" for letter in letters])
            for place, letters in enumerate(zip(*(result[name] for name in names), strict=True))
        ]
        for result in (before, after)
    ]
    settings = after["settings"]
    return estimate_gains(
        *scores,
        {LETTERS[name]: lambda s, n=number: (s.right[n], 1) for number, name in enumerate(names)},
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
    found = {name: metrics[name] for name in SHOWN if name in metrics}
    if len(found.get("pass_hat_k", ())) == 1:
        del found["pass_hat_k"]  # of one trial it is the rate again
    return found


def model_of(settings: dict[str, Any]) -> str:
    """Return the name of the model that settings load."""
    return Path(settings["model"]["model_name"]).name


def described(settings: dict[str, Any]) -> dict[str, str]:
    """Return what settings say of a row's setting and tasks."""
    data = settings["data"]
    tasks = f"tasks of the test customers in {Path(data['eval_dataset_path']).name}"
    store = f", store {Path(data['data_dir']).name}" if data.get("data_dir") else ""
    return {"setting": f"preset {settings['preset']}", "tasks": tasks + store}


def note_of(result: dict[str, Any]) -> str:
    """Return how the row of a result of learning.py was trained; nothing of one that was not."""
    method, steps = result["method"], result.get("steps")
    if not steps:
        return ""
    on_plans = method in ("sft", "more-sft")
    stage = result["settings"]["sft" if on_plans else "grpo"]
    size = stage["per_device_train_batch_size"] * stage["gradient_accumulation_steps"]
    return (
        f"{METHODS[method]}, seed {result['seed']}: {steps} steps of {size} "
        f"{'gold answers' if on_plans else 'completions'} at {stage['learning_rate']:g}."
    )


def from_learning(path: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read a result of learning.py; the row `sft` of its seed lies beside it."""
    settings, method, minutes = result["settings"], result["method"], result.get("train_minutes")
    row = {
        "model": result["model"], "mode": settings["mode"], "method": method, "seed": result["seed"],
        "num_tasks": result["metrics"]["num_tasks"], "metrics": shown(result["metrics"]),
        "train_minutes": minutes, "steps": result.get("steps"),
        "evaluation_tokens": result["evaluation_tokens"], "command": result["command"],
        "machine": result.get("machine"), "note": note_of(result), **described(settings),
    }
    if not result.get("trained", True):
        trials = result["num_trials"]
        answers = f", {trials} answers a task" if trials > 1 else ""
        row["again"] = f"evaluated on {Path(settings['data']['eval_dataset_path']).stem}{answers}"
        row["setting"] += f", {row['again']}"
    if method not in ("base", "sft"):
        name = path.name.replace(f"-{method}-{result['seed']}", f"-sft-{result['seed']}")
        before = read_json(path.with_name(name), None)
        if before is None:
            sys.exit(f"error: {path.with_name(name)}: missing; {path.name} is compared with it, task by task")
        row["minus_sft"] = paired_difference(before, result)
    stage = settings["grpo"]
    row["curve"] = validation_curve(result.get("curve", []), stage["num_eval_tasks"], minutes)
    if method in ("grpo", "random") and result.get("trained", True):
        batch = stage["per_device_train_batch_size"] * stage["gradient_accumulation_steps"]
        row["completions"] = result["steps"] * batch
    yield row


def of_difference(found: dict[str, Any]) -> dict[str, Estimate]:
    """Return the differences of cpu_default.py by metric."""
    return {"exact_match_rate": found["diff_exact"], "db_match_rate": found["diff_db"]}


def from_cpu_default(path: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read a result of cpu_default.py; its folder has the run folders of the seeds, `seed-7` and so on."""
    common = {
        "model": "tiny-gpt-oss", "mode": "plan", "command": result["command"], "setting": "preset cpu",
        "machine": f"{result['cores']} CPU cores",
        "tasks": "new tasks of the test customers, made by the command",
    }
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
        "num_tasks": result["num_tasks"], "command": result["command"], "machine": result["machine"],
        **described(settings),
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
    common = {
        "model": model_of(settings), "mode": settings["mode"], "seed": settings["seed"],
        "command": result["command"], "machine": result["machine"], **described(settings),
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
        "command": "python benchmarks/cpu_recipes.py --run RUN", **described(settings),
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
            try:
                yield from read(path, result)
            except KeyError as error:
                sys.exit(f"error: {path}: lacks {error}; make it again with the present script")
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
    parser.add_argument("--setting", help="what the rows share, the words of their heading")
    parser.add_argument("--tasks", help="what the held-out tasks are")
    parser.add_argument("--machine")
    parser.add_argument("--note", help="what a reader must know of these rows")
    parser.add_argument("--options", default="", help="options of a stopped run's command, not recorded")
    parser.add_argument("--output", type=Path, default=ROWS)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    words = {name: getattr(arguments, name) for name in ("setting", "tasks", "machine", "note")}
    given = {name: text for name, text in words.items() if text is not None}
    for path in arguments.results:
        for row in rows_of(path):
            row = {"note": ""} | row | given
            if not row.get("machine"):
                sys.exit(f"error: {path}: does not say on what machine it was made; give --machine WORDS")
            row["command"] = plain_command(row["command"], shlex.split(arguments.options))
            if row["method"] == "base":
                del row["seed"]
            words = [row.get(key, "") for key in ("model", "mode", "setting", "method", "seed")]
            name = re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")
            write_json_atomic(arguments.output / f"{name}.json", row)
            print(name)


if __name__ == "__main__":
    main()
