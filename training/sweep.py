"""Search for better settings: trials of the pipeline, compared on validation users.

The study (which trials there are, with which values) is an SQLite file in the output folder, and
each trial is a run folder of its own with checkpoints. A sweep that was killed and is started again
with the same command keeps finished trials and resumes the one that was cut short; and since each
suggestion depends only on the trials before it, it ends as if it had not been killed. While only
`grpo` fields vary, SFT runs once and every trial starts from its adapter.
Test tasks are for the final run.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import sys
import time
import traceback
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import configs
from common.files import (
    RunError,
    SettingsError,
    build_folder,
    is_complete,
    read_json,
    remove_checkpoints,
    write_csv_atomic,
    write_json_atomic,
    write_text_atomic,
)
from common.run_folder import LOCK_NAME, MODEL_MARKS, lock_folder
from common.user_error import UserError
from training.sweep_space import Sweep, build_sweep_parser, sweep_from_arguments, typed_value

if TYPE_CHECKING:
    import optuna

__all__ = ["build_sweep_parser", "run_sweep"]
STAGE = "validation"
"""Name of the validation figures in a trial's evaluation.json."""
RESULTS = ("study.db", "trials", "shared", "trials.csv", "sweep.png")
"""What a sweep leaves, beside its lock."""
Row = dict[str, Any]


def _locked(folder: Path) -> TextIO:
    """Keep a second process out of the folder, and this one out of what no sweep wrote."""
    known = (folder / "sweep.lock").exists()
    for name in (*MODEL_MARKS, LOCK_NAME, *(() if known else RESULTS)):
        if (folder / name).exists():
            raise RunError(
                f"{folder}: holds {name}, which no sweep wrote; choose another --output-dir"
            )
    return lock_folder(folder, "sweep.lock")


def open_study(sweep: Sweep) -> "optuna.Study":
    """Open the study in the output folder, or begin one with the base settings as first trial.

    Raises:
        RunError: The folder holds a sweep with other settings.
    """
    import optuna
    from sqlalchemy import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = URL.create("sqlite", database=str(sweep.folder / "study.db"))  # escapes what a path may hold
    study = optuna.create_study(
        storage=url.render_as_string(), study_name="sweep", direction="maximize", load_if_exists=True,
    )
    identity = json.loads(json.dumps(sweep.identity()))
    if study.user_attrs.get("identity", identity) != identity:
        raise RunError(
            f"{sweep.folder}: holds a sweep with other settings, space or objective; resume it "
            "with the same ones or choose another --output-dir"
        )
    study.set_user_attr("identity", identity)
    if not study.trials:
        values = {p.path: typed_value(sweep.base, p.path) for p in sweep.space}
        if all(parameter.contains(values[parameter.path]) for parameter in sweep.space):
            study.enqueue_trial(values)
    return study


def next_trial(study: "optuna.Study", sweep: Sweep) -> tuple[int, dict[str, Any]] | None:
    """Return number and values of the trial to run now, one that was cut short first; None at the end."""
    import optuna

    states = optuna.trial.TrialState
    done = 0
    for trial in study.get_trials(deepcopy=False):
        if trial.state == states.RUNNING and len(trial.params) == len(sweep.space):
            return trial.number, dict(trial.params)
        if trial.state == states.RUNNING:
            # Killed while its values were drawn: nothing was trained with them.
            study.tell(trial.number, state=states.PRUNED)
        done += trial.state in (states.COMPLETE, states.FAIL)
    if done >= sweep.num_trials:
        return None
    # A sampler of its own for each trial: after a resume the same draws follow.
    study.sampler = optuna.samplers.TPESampler(seed=sweep.base.seed + len(study.trials))
    trial = study.ask({p.path: p.distribution() for p in sweep.space})
    return trial.number, dict(trial.params)


def train_shared_sft(sweep: Sweep) -> None:
    """Train the SFT adapter that all trials start from, or restore it; this checks the set-up too."""
    from training import pipeline

    folder = sweep.folder / "shared"
    config = configs.with_overrides(sweep.base, {"output_dir": str(folder)})
    run = pipeline.prepare_run(config, resume=True)
    model, tokenizer = pipeline.load_run_model(run)
    if sweep.shares_sft:
        pipeline.train_sft(run, model, tokenizer)


def measure_trial(sweep: Sweep, number: int, values: dict[str, Any]) -> dict[str, float]:
    """Train with the swept values, or resume the training, and evaluate on the validation users.

    Returns:
        `value`, `low` and `high` (95 % interval) of the objective.
    """
    from training import pipeline
    from training.evaluation import choose_tasks, evaluate_model

    config = sweep.trial_config(number, values)
    run = pipeline.prepare_run(config, resume=True)
    adapter = Path("sft") / "adapter"
    if sweep.shares_sft and not is_complete(run.folder / adapter):
        shared = sweep.folder / "shared" / adapter
        build_folder(
            run.folder / adapter, lambda part: shutil.copytree(shared, part, dirs_exist_ok=True)
        )
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    pipeline.train_grpo(run, model, tokenizer)
    tasks = choose_tasks(run.validation, config.evaluation.num_tasks, config.data.split_seed)
    evaluation = evaluate_model(model, tokenizer, tasks, run.db, config, STAGE)
    for folder in (run.folder, run.folder / "sft"):
        remove_checkpoints(folder, only_incomplete=False)
    return dict(evaluation.metrics[sweep.objective])


def run_trial(sweep: Sweep, number: int, values: dict[str, Any]) -> dict[str, Any]:
    """Measure a trial and keep the result in its folder; a trial that has one is read back.

    Values that cannot be trained with (too large for the memory, too long for the model, NaN,
    fields that do not go together) make a failed trial, and the sweep continues.

    Returns:
        `value`, `low`, `high` and `seconds` (of the last attempt), or `error`.

    Raises:
        RunError: The folder cannot be used, or the disk is full.
    """
    from gptoss.memory import free_memory
    from gptoss.preflight import ModelError

    path = sweep.trial_dir(number) / "trial.json"
    if path.exists():
        return read_json(path, {})
    started = time.monotonic()
    try:
        result = measure_trial(sweep, number, values)
        result["seconds"] = round(time.monotonic() - started, 1)
    except (RuntimeError, ModelError, configs.ConfigError) as error:
        if isinstance(error, RunError) and not isinstance(error, SettingsError):
            raise
        write_text_atomic(path.with_name("error.txt"), traceback.format_exc())
        result = {"error": str(error).partition("\n")[0]}
    free_memory()
    write_json_atomic(path, {"values": values} | result)
    return result


def run_study(sweep: Sweep) -> int:
    """Run the trials that are not done, writing the table after each.

    Returns:
        The exit code: 0, or 1 when no trial came to a figure.
    """
    import optuna

    from gptoss.memory import free_memory

    with _locked(sweep.folder):
        study = open_study(sweep)
        found = next_trial(study, sweep)
        if found is not None:
            train_shared_sft(sweep)
            free_memory()
        while found is not None:
            number, values = found
            print(f"trial {number}: " + ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else
                                                  f"{k}={v}" for k, v in values.items()))
            result = run_trial(sweep, number, values)
            if "error" in result:
                print(f"trial {number} failed: {result['error']}")
                study.tell(number, state=optuna.trial.TrialState.FAIL)
            else:
                print(f"trial {number}: {sweep.objective} {result['value']:.4f}")
                study.tell(number, result["value"])
            write_trials(sweep, study)
            found = next_trial(study, sweep)
        rows = write_trials(sweep, study)
        done = [row for row in rows if row["state"] == "done"]
        best = max(done, key=lambda row: row[sweep.objective], default=None)  # the earliest of equals
        print(format_rows(sweep, rows, best))
        if best is None:
            return 1
        plot_rows(sweep, done)
        # The best of many is partly luck on these tasks, so its figure is not the one to report.
        print(f"best: trial {best['trial']}; this trains with its values and gives the figure to "
              f"report, on the test users:\n{train_command(sweep, best)}")
        return 0


def run_sweep(arguments: argparse.Namespace) -> int:
    """Run the sweep command; return 0 when done, 1 for data, model or folder, 2 for wrong usage."""
    if importlib.util.find_spec("optuna") is None:
        print("error: optuna is missing: pip install optuna==5.0.0", file=sys.stderr)
        return 1
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise configs.ConfigError("a sweep runs in one process; start it without torchrun")
        sweep = sweep_from_arguments(arguments)
    except configs.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DatabaseError as StudyError

    try:
        return run_study(sweep)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except (StudyError, StorageInternalError) as error:
        # Once the study is open, Optuna wraps what the database says.
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        print(
            f"error: {sweep.folder / 'study.db'}: cannot be used ({getattr(cause, 'orig', cause)}); "
            "free some space, restore the file, or choose another --output-dir", file=sys.stderr,
        )
    return 1


# -- what a sweep leaves beside its trials -----------------------------------------------------


def write_trials(sweep: Sweep, study: "optuna.Study") -> list[Row]:
    """Write trials.csv: a row for each trial that is done, in their order; return the rows."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name in ("COMPLETE", "FAIL"):
            result = read_json(sweep.trial_dir(trial.number) / "trial.json", {})
            rows.append({
                "trial": trial.number, "state": "failed" if "error" in result else "done",
                sweep.objective: result.get("value"), "low": result.get("low"),
                "high": result.get("high"),
                **{parameter.path: trial.params[parameter.path] for parameter in sweep.space},
                "seconds": result.get("seconds"), "error": result.get("error"),
            })
    write_csv_atomic(sweep.folder / "trials.csv", rows)
    return rows


def train_command(sweep: Sweep, row: Row) -> str:
    """Return the command that trains with the values of a row."""
    words = ["python", "train_script.py", *sweep.words]
    for parameter in sweep.space:
        words += ["--set", f"{parameter.path}={row[parameter.path]}"]
    return shlex.join(words)


def format_rows(sweep: Sweep, rows: list[Row], best: Row | None) -> str:
    """Return the rows as a text table, the best one marked."""
    widths = {parameter.path: max(len(parameter.path), 10) for parameter in sweep.space}
    head = "  ".join(name.rjust(width) for name, width in widths.items())
    lines = [f"  trial  {sweep.objective:>26}  {head}"]
    for row in rows:
        figure = "failed"
        if row["state"] == "done":
            figure = f"{row[sweep.objective]:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        cells = "  ".join(
            (f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name])).rjust(width)
            for name, width in widths.items()
        )
        lines.append(f"{'*' if row is best else ' '} {row['trial']:5d}  {figure:>26}  {cells}")
    return "\n".join(lines)


def plot_rows(sweep: Sweep, done: list[Row]) -> None:
    """Write sweep.png: the best value so far, and the objective over each swept field."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * (1 + len(sweep.space)), 3.2), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(sweep.space), sharey=True, squeeze=False)[0]
    values = [row[sweep.objective] for row in done]
    numbers = [row["trial"] for row in done]
    first.step(numbers, list(accumulate(values, max)), where="post", color="C1", label="best so far")
    first.plot(numbers, values, "o", markersize=4)
    first.set(xlabel="trial", ylabel=f"{sweep.objective} (validation)")
    first.legend()
    for axis, parameter in zip(others, sweep.space, strict=True):
        settings = [row[parameter.path] for row in done]
        if parameter.kind == "choice":
            settings = [str(value) for value in settings]
            axis.xaxis.update_units([str(value) for value in parameter.choices])
        axis.plot(settings, values, "o", markersize=4)
        axis.set_xlabel(parameter.path)
        if parameter.kind == "log":
            axis.set_xscale("log")
    path = sweep.folder / "sweep.png"
    temporary = path.with_name("sweep.tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
