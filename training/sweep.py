"""Search for better settings: trials of the pipeline, compared on validation users.

The study (which trials there are, with which values) is an SQLite file in the output folder, and
each trial is a run folder of its own with checkpoints. So a sweep that was killed and is started
again with the same command keeps finished trials and takes the cut one up where it stopped; and
since each suggestion depends only on the trials before it, it ends as if it had not been killed.
While only `grpo` fields vary, SFT runs once and every trial starts from its adapter.
Left out on purpose: test tasks (they are for the final run), stopping a trial early on an
intermediate figure, and several trials at once, which on one GPU take as long as one by one.
"""

import argparse
import gc
import importlib.util
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import configs
from common.user_error import UserError
from training.sweep_space import Sweep, build_sweep_parser, sweep_from_arguments, typed_value

if TYPE_CHECKING:
    import optuna

__all__ = ["build_sweep_parser", "run_sweep"]
STAGE = "validation"
"""Name of the validation figures in a trial's evaluation.json."""
RESULTS = ("study.db", "trials", "shared", "trials.csv", "sweep.png")
"""What a sweep leaves, beside its lock."""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder, and this one out of what no sweep wrote."""
    from common.files import RunError
    from common.run_folder import LOCK_NAME, MODEL_MARKS, lock_folder

    known = (folder / "sweep.lock").exists()
    for name in (*MODEL_MARKS, LOCK_NAME, *(() if known else RESULTS)):
        if (folder / name).exists():
            raise RunError(f"{folder}: holds {name}, which no sweep wrote; choose another --output-dir")
    with lock_folder(folder, "sweep.lock"):
        yield


def open_study(sweep: Sweep) -> "optuna.Study":
    """Open the study in the output folder, or begin one with the base settings as first trial.

    Raises:
        RunError: The folder holds a sweep with other settings.
    """
    import optuna
    from sqlalchemy import URL

    from common.files import RunError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = URL.create("sqlite", database=str(sweep.folder / "study.db"))  # escapes what a path may hold
    study = optuna.create_study(
        storage=url.render_as_string(), study_name="sweep", direction="maximize", load_if_exists=True,
    )
    identity = json.loads(json.dumps(sweep.identity()))
    if "identity" not in study.user_attrs:
        study.set_user_attr("identity", identity)
    elif study.user_attrs["identity"] != identity:
        raise RunError(
            f"{sweep.folder}: holds a sweep with other settings, space or objective; take it up "
            "with the same ones or choose another --output-dir"
        )
    if not study.trials:
        values = {p.path: typed_value(sweep.base, p.path) for p in sweep.space}
        if all(parameter.contains(values[parameter.path]) for parameter in sweep.space):
            study.enqueue_trial(values)
    return study


def next_trial(study: "optuna.Study", sweep: Sweep) -> tuple[int, dict[str, Any]] | None:
    """Return number and values of the trial to run now: one that was cut short, or a new one.

    Returns:
        The trial; None when all of them are done.
    """
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
    seed = sweep.base.seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    trial = study.ask({p.path: p.distribution() for p in sweep.space})
    return trial.number, dict(trial.params)


def train_shared_sft(sweep: Sweep) -> None:
    """Train the SFT adapter that all trials start from, or take it up; it also checks the set-up.

    Raises:
        DatasetError: The task file cannot be used.
        DatabaseError: The store cannot be read.
        ModelError: The model cannot be loaded or trained.
        RunError: The folder cannot be used, or the disk is full.
    """
    from training import pipeline

    folder = sweep.folder / "shared"
    config = configs.with_overrides(sweep.base, {"output_dir": str(folder)})
    run = pipeline.prepare_run(config, resume=True)
    model, tokenizer = pipeline.load_run_model(run)
    if sweep.shares_sft:
        pipeline.train_sft(run, model, tokenizer)


def measure_trial(sweep: Sweep, number: int, values: dict[str, Any]) -> dict[str, float]:
    """Train with these values, or take the training up, and evaluate on the validation users.

    Args:
        values: Swept values by dotted name.

    Returns:
        `value`, `low` and `high` (95 % interval) of the objective.

    Raises:
        ConfigError: The values do not go together.
        ModelError: The model cannot be trained with them.
        RunError: The folder cannot be used, or the disk is full.
    """
    from common.files import build_folder, is_complete, remove_checkpoints
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


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_trial(sweep: Sweep, number: int, values: dict[str, Any]) -> dict[str, Any]:
    """Measure a trial and keep the result in its folder; a trial that has one is read back.

    Values that cannot be trained with (too large for the memory, too long for the model, NaN,
    fields that do not go together) make a failed trial, and the sweep goes on.

    Returns:
        `value`, `low`, `high` and `seconds` (of the last attempt), or `error`.

    Raises:
        RunError: The folder cannot be used, or the disk is full.
    """
    from common.files import (
        RunError,
        SettingsError,
        read_json,
        write_json_atomic,
        write_text_atomic,
    )
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
    _free_memory()
    write_json_atomic(path, {"values": values} | result)
    return result


def run_study(sweep: Sweep) -> int:
    """Run the trials that are not done, writing the table after each.

    Returns:
        The exit code: 0, or 1 when no trial came to a figure.

    Raises:
        DatasetError: The task file cannot be used.
        DatabaseError: The store cannot be read.
        ModelError: The model cannot be loaded.
        RunError: The folder cannot be used, or the disk is full.
    """
    import optuna

    from training.sweep_report import write_report

    with _locked(sweep.folder):
        study = open_study(sweep)
        found = next_trial(study, sweep)
        if found is not None:
            train_shared_sft(sweep)
            _free_memory()
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
            write_report(sweep, study)
            found = next_trial(study, sweep)
        return write_report(sweep, study, show=True)


def run_sweep(arguments: argparse.Namespace) -> int:
    """Run the sweep command.

    Args:
        arguments: What `build_sweep_parser` parsed.

    Returns:
        The exit code: 0 done, 1 data, model, folder or every trial failed, 2 wrong usage.
    """
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
