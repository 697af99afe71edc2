"""The run from end to end, in steps that the notebook and train_script.py call alike.

Every step first reads what the run folder holds: a step that is done is read back, one that was
cut short goes on from its last whole checkpoint. So a killed run started again with `resume` takes
the same way to the same result.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import set_seed

import configs
from accelerate import PartialState
from common import versions
from common.files import (
    RunError,
    SettingsError,
    build_folder,
    disk_full_error,
    is_complete,
    is_disk_full,
    read_json,
    real_path,
    write_json_atomic,
)
from common.run_folder import artifacts, check_new_run, is_run, lock_run
from data_reader import Task
from envs.retail import RetailDatabase
from gptoss.load import (
    check_merge_space,
    load_adapter,
    load_model,
    memory_guard,
    merge_and_save,
    save_adapter,
)
from gptoss.memory import changed_fields, keeps_the_steps, report_peak, smaller_setting
from gptoss.model_card import write_model_cards
from gptoss.model_types import Model, Tokenizer
from training.conversations import agent_rows
from training.evaluation import Evaluation, evaluate_model, print_table, record_differences
from training.fit import describe_long_tasks, run_demands
from training.grpo import MakeRewards, run_grpo
from training.run_data import (
    Content,
    check_content,
    describe_content,
    load_grpo_tasks,
    load_tasks,
)
from training.sft import run_sft

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """A prepared run: its settings, folder, tasks and store."""

    config: configs.RunConfig
    """The settings, also in config.json."""
    folder: Path
    """Where everything is written."""
    resume: bool
    """Whether to resume from steps that were done or begun."""
    train: Sequence[Task]
    """Tasks of SFT; they stay on disk."""
    grpo_train: Sequence[Task]
    """Tasks of GRPO, of the same users; they are those of SFT when no file of their own is set."""
    validation: Sequence[Task]
    """Tasks of other users, watched during training."""
    test: Sequence[Task]
    """Held-out tasks of users that are in no training task; the same at every stage."""
    db: RetailDatabase
    """The store."""
    lock: TextIO | None = None
    """The folder's lock, held on the main process for as long as the run is kept."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result."""
    found = {name: versions.installed(name) for name in versions.COMPONENTS}
    return {"python": platform.python_version()} | {name: v for name, v in found.items() if v}


def git_hash() -> str:
    """Return the commit of the code, with "+changes" when files differ, "" without git."""
    if shutil.which("git") is None:
        return ""
    words = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    found = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return found.stdout.strip()


def prepare_run(config: configs.RunConfig, resume: bool = False) -> Run:
    """Read the data, open the run folder and write config.json into it.

    An earlier run in the folder is resumed with `resume`; without, it is moved to
    `<folder>.earlier-<n>`.

    Raises:
        DatasetError: A task file is missing, faulty or too small.
        DatabaseError: The store cannot be read.
        RunError: The folder cannot be written or holds a run with other settings or on other data,
            or a package has a version that is known not to work.
        SettingsError: Agent mode is asked of another model than GPT-OSS.
    """
    if broken := versions.find_broken(versions.has_gpu_stack()):
        raise RunError(broken)
    if config.mode == "agent" and not configs.is_gpt_oss(config.model.model_name):
        raise SettingsError(
            "mode=agent trains GPT-OSS only; train plans, or play conversations with another model by "
            "task_tester.py evaluate --mode agent"
        )
    if config.model.num_threads:
        torch.set_num_threads(config.model.num_threads)
    if not config.show_progress:
        import datasets
        import transformers

        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    # The first one made decides for the whole process whether there is a GPU.
    state = PartialState(cpu=config.model.device == "cpu")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise RunError(
            "FSDP splits the model, which every process needs whole here: launch with "
            "accelerate/ddp_<n>.yaml or torchrun, see docs/MULTI_GPU.md"
        )
    train, validation, test, db = load_tasks(config)
    grpo_train = load_grpo_tasks(config, train, db)
    folder = Path(config.output_dir)
    lock = _open_folder(config, folder, resume, db) if state.is_main_process else None
    state.wait_for_everyone()
    return Run(config, folder, resume, train, grpo_train, validation, test, db, lock)


def _open_folder(
    config: configs.RunConfig, folder: Path, resume: bool, db: RetailDatabase
) -> TextIO:
    path, content = folder / "config.json", describe_content(config, db)
    before = configs.read_settings(path) if resume else None
    if resume and path.exists() and before is None:
        raise RunError(f"{path}: records no run to resume; choose another --output-dir")
    if before is None and not is_run(folder):
        check_new_run(folder)
    lock = lock_run(folder)
    if before is not None:
        _resume_settings(path, before, config, content)
        return lock
    if path.exists():
        _set_aside(config, real_path(folder))
    settings = json.loads(config.to_json())
    write_json_atomic(path, {
        "settings": settings, "versions": package_versions(), "git_hash": git_hash(),
        "hashes": content,
    })
    return lock


def _resume_settings(
    path: Path, before: configs.RunConfig, config: configs.RunConfig, content: Content
) -> None:
    """Refuse settings and data of another run; record settings that only change memory use."""
    changed = changed_fields(before, config)
    for name, (old, new) in changed.items():
        if not keeps_the_steps(name, before, config):
            raise RunError(
                f"{path.parent}: was started with {name}={old!r}, not {new!r}; resume with the "
                "same settings or choose another --output-dir"
            )
    facts = read_json(path, {})
    check_content(path.parent, facts.get("hashes", {}), content)
    if not changed:
        return
    print("resumed with", ", ".join(f"{n}={new} (was {old})" for n, (old, new) in changed.items()))
    # Batches of a cut evaluation differ by their number alone.
    shutil.rmtree(path.parent / "evaluation_parts", ignore_errors=True)
    facts["changed_on_resume"] = [*facts.get("changed_on_resume", []), changed]
    write_json_atomic(path, facts | {"settings": json.loads(config.to_json())})


def _set_aside(config: configs.RunConfig, folder: Path) -> None:
    """Move the files of an earlier run to a folder beside this one."""
    found = artifacts(folder)
    data = config.data
    inputs = (data.dataset_path, data.grpo_dataset_path, data.eval_dataset_path, data.data_dir,
              config.agent.trajectories_path)
    for name in (config.model.model_name, *inputs):
        place = real_path(name or "")
        if any(path in (place, *place.parents) for path in found):
            raise RunError(f"{name}: lies in the earlier run of {folder}; choose another --output-dir")
    if found == [folder / "config.json"]:
        # It came to nothing, as when the model was not found: there is nothing to keep.
        found[0].unlink()
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.earlier-{number}")).exists():
        number += 1
    try:
        aside.mkdir()
        for path in found:
            place = aside / path.relative_to(folder)
            place.parent.mkdir(exist_ok=True)
            shutil.move(path, place)
    except OSError as error:
        raise RunError(
            f"{aside}: the earlier run cannot be moved there ({error.strerror}); choose another "
            "--output-dir"
        ) from error
    print(f"{folder} held an earlier run; it is in {aside} now")


def load_run_model(run: Run) -> tuple[Model, Tokenizer]:
    """Load the base model with a fresh adapter, and check that every task fits into it.

    The adapter's weights follow the run's seed.

    Raises:
        ModelError: The model is missing or does not fit this machine, or the disk has no room for
            the merged model at the end.
        SettingsError: Tasks are too long.
    """
    set_seed(run.config.seed)
    model, tokenizer = load_model(run.config.model)
    # In agent mode a conversation that outgrows the model ends, and one for SFT is left out.
    if run.config.mode == "plan":
        demands = run_demands(run.config, run.train, run.grpo_train, run.validation, run.test)
        if problem := describe_long_tasks(demands, model, tokenizer, run.config):
            raise SettingsError(problem)
    merged_dir = run.folder / "merged_model"
    if run.config.merge_model and not is_complete(merged_dir):
        check_merge_space(model, merged_dir, run.config.model)
    return model, tokenizer


def _save_stage_adapter(run: Run, model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    state = PartialState()
    if state.is_main_process:
        build_folder(folder, lambda part: save_adapter(model, tokenizer, part))
    state.wait_for_everyone()


def evaluate_stage(run: Run, model: Model, tokenizer: Tokenizer, stage: str) -> Evaluation:
    """Evaluate the model as it is now on the run's held-out tasks, or read the evaluation back.

    Args:
        stage: "base", "sft" or "sft_grpo".

    Raises:
        ModelError: The GPU's memory is too small for the batch.
        RunError: The disk is full, or the folder's evaluation is of other tasks.
    """
    try:
        remedy = smaller_setting(run.config, "evaluation")
        with memory_guard("evaluation", remedy), report_peak("evaluation"):
            return evaluate_model(model, tokenizer, run.test, run.db, run.config, stage)
    except OSError as error:
        if is_disk_full(error, run.folder):
            raise disk_full_error(run.folder) from error
        raise


def train_sft(run: Run, model: Model, tokenizer: Tokenizer) -> Path:
    """Run the SFT stage, or restore its result; return the folder of its adapter.

    Args:
        model: Model with a fresh adapter; holds the SFT adapter afterwards.

    Raises:
        ModelError: The GPU's memory is too small for the batch.
        RunError: A row is too long, or the disk is full.
        DatasetError: In agent mode the conversations cannot be used.
    """
    folder = run.folder / "sft" / "adapter"
    if is_complete(folder):
        load_adapter(model, folder)
        return folder
    rows = None
    if run.config.mode == "agent" and run.config.sft.max_steps:
        rows = agent_rows(tokenizer, run.train, run.db, run.config)
    with memory_guard("SFT", smaller_setting(run.config, "SFT")), report_peak("SFT"):
        run_sft(model, tokenizer, run.train, run.config, resume=run.resume, rows=rows)
    _save_stage_adapter(run, model, tokenizer, folder)
    return folder


def train_grpo(
    run: Run, model: Model, tokenizer: Tokenizer, make_rewards: MakeRewards | None = None
) -> Path:
    """Run the GRPO stage, or restore its result; the adapter goes to final_model/, which is returned.

    Args:
        model: Model with the SFT adapter; holds the final adapter afterwards.
        make_rewards: Makes other reward functions than the mode's own, for controls and tests.

    Raises:
        ModelError: The GPU's memory is too small for the batch.
        RunError: A prompt is too long, or the disk is full.
    """
    folder = run.folder / "final_model"
    if is_complete(folder):
        load_adapter(model, folder)
        return folder
    with memory_guard("GRPO", smaller_setting(run.config, "GRPO")), report_peak("GRPO"):
        run_grpo(
            model, tokenizer, run.grpo_train, run.db, run.config,
            validation_tasks=run.validation, resume=run.resume, make_rewards=make_rewards,
        )
    _save_stage_adapter(run, model, tokenizer, folder)
    return folder


def save_merged(run: Run, model: Model, tokenizer: Tokenizer) -> Path | None:
    """Write merged_model/, the final adapter folded into the weights; the model is left as it is.

    Returns:
        The folder; None, with nothing written, when `merge_model` is off.
    """
    folder = run.folder / "merged_model"
    state = PartialState()
    if not run.config.merge_model:
        return None
    if state.is_main_process and not is_complete(folder):
        build_folder(
            folder, lambda part: merge_and_save(model, tokenizer, part, run.config.model)
        )
    if state.is_main_process:
        write_model_cards(run.folder)
    state.wait_for_everyone()
    return folder


def finish_run(run: Run, evaluations: list[Evaluation]) -> list[Path]:
    """Write the paired differences and the plots, and print the table of the stages, given in their order."""
    from training.plots import plot_all

    record_differences(evaluations, run.config)
    if not PartialState().is_main_process:
        return []
    write_model_cards(run.folder)
    paths = plot_all(run.folder)
    print_table(run.folder)
    return paths


def run_pipeline(config: configs.RunConfig, resume: bool = False) -> dict[str, Any]:
    """Run everything: evaluate, SFT, evaluate, GRPO, evaluate, save, plot; return evaluation.json.

    Raises:
        DatasetError: The task file cannot be used.
        DatabaseError: The store cannot be read.
        ModelError: The model cannot be loaded, trained or saved.
        RunError: The run folder cannot be used, or the disk is full.
    """
    run = prepare_run(config, resume)
    model, tokenizer = load_run_model(run)
    evaluations = [evaluate_stage(run, model, tokenizer, "base")]
    train_sft(run, model, tokenizer)
    evaluations.append(evaluate_stage(run, model, tokenizer, "sft"))
    train_grpo(run, model, tokenizer)
    evaluations.append(evaluate_stage(run, model, tokenizer, "sft_grpo"))
    save_merged(run, model, tokenizer)
    finish_run(run, evaluations)
    return read_json(run.folder / "evaluation.json", {})
