"""What the SFT and the GRPO stage share: trainer arguments, running with checkpoints, metrics.csv.

What only GRPO is given is in `monitor.py`.
"""

import copy
import csv
import math
import shutil
from pathlib import Path
from typing import Any

from tokenizers import processors
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

import configs
from accelerate import PartialState
from common.files import (
    disk_full_error,
    is_disk_full,
    latest_complete,
    mark_complete,
    remove_checkpoints,
    write_csv_atomic,
)
from gptoss.load import load_adapter, uses_unsloth
from gptoss.memory import free_memory
from gptoss.model_types import Model, Tokenizer
from training.trl_private import stay_on_cpu

UNSTEADY = ("num_tokens",)
"""Counters that TRL starts over at a resume; left out so that a resumed run's rows are the same."""


class CheckpointMarker(TrainerCallback):
    """Marks a checkpoint whole once every process has written its part."""

    def on_save(self, args: Arguments, state: State, control: Control, **_: Any) -> None:
        """Drop the copy of the reference adapter, then mark the folder."""
        processes = PartialState()
        processes.wait_for_everyone()
        if processes.is_main_process:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # With a second adapter in a subfolder transformers restores that one only and leaves
            # the trained adapter as it was. The reference is the SFT adapter, saved already.
            shutil.rmtree(folder / "ref", ignore_errors=True)
            mark_complete(folder)
        processes.wait_for_everyone()


class MetricsTable:
    """metrics.csv: one row per stage and logged step, a column per metric."""

    def __init__(self, path: Path) -> None:
        """Read the rows of an earlier part of the run, if there is one."""
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                self.rows = [{k: v for k, v in r.items() if v} for r in csv.DictReader(file)]

    def forget_after(self, stage: str, step: int) -> None:
        """Drop the rows of a stage beyond a step: they are trained again after a resume."""
        self.rows = [r for r in self.rows if r["stage"] != stage or int(r["step"]) <= step]

    def stage_rows(self, stage: str, last_step: int) -> list[dict[str, float]]:
        """Return the rows of a stage up to a step as numbers, oldest first."""
        rows = [r for r in self.rows if r["stage"] == stage and int(r["step"]) <= last_step]
        numbers = [{k: float(v) for k, v in row.items() if k != "stage"} for row in rows]
        return sorted(numbers, key=lambda row: row["step"])

    def add(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        """Add figures to the row of a step and write the file."""
        key = {"stage": stage, "step": str(step)}
        row = next((r for r in self.rows if key.items() <= r.items()), None)
        if row is None:
            row = dict(key)
            self.rows.append(row)
        row.update({name: repr(float(value)) for name, value in metrics.items()})
        write_csv_atomic(self.path, self.rows)


def name_of_kl(config: configs.RunConfig) -> str | None:
    """Return the KL's metric name, which says the reference policy; None when no KL is computed.

    TRL keeps a copy of the adapter as SFT left it, Unsloth takes the base model. With `beta` 0 both
    log a KL of 0 that nothing measured.
    """
    if not config.grpo.beta:
        return None
    return "kl_to_base" if uses_unsloth(config.model) else "kl_to_sft"


class RunLogger(TrainerCallback):
    """Writes each log row to metrics.csv and TensorBoard, and a few of them to the screen."""

    def __init__(self, config: configs.RunConfig, stage: str) -> None:
        """Remember where to write; the stage is "sft" or "grpo"."""
        self.folder = Path(config.output_dir)
        self.stage = stage
        self.prints = not config.show_progress
        self.kl_name = name_of_kl(config)
        self.table: MetricsTable | None = None
        self.writer: SummaryWriter | None = None

    def on_train_begin(self, args: Arguments, state: State, control: Control, **_: Any) -> None:
        """Open the files, without the rows that a resume trains again."""
        if not state.is_world_process_zero:
            return
        self.table = MetricsTable(self.folder / "metrics.csv")
        self.table.forget_after(self.stage, state.global_step)
        folder = self.folder / "tensorboard" / self.stage
        self.writer = SummaryWriter(str(folder), purge_step=state.global_step + 1)

    def on_log(self, args: Arguments, state: State, control: Control, logs: dict, **_: Any) -> None:
        """Write one row."""
        if "train_runtime" not in logs:
            self.record(logs, state.global_step)
        every = max(1, math.ceil(state.max_steps / args.logging_steps / 12)) * args.logging_steps
        if self.table and self.prints and "loss" in logs and state.global_step % every == 0:
            shown = ("loss", "reward", "rollouts/db_match", "kl" if self.kl_name else "entropy")
            figures = "  ".join(f"{n} {logs[n]:.4g}" for n in shown if logs.get(n) is not None)
            print(f"{self.stage} step {state.global_step}/{state.max_steps}  {figures}")

    def record(self, metrics: dict[str, Any], step: int) -> None:
        """Write figures under a step; only the main process does."""
        if self.table is None or self.writer is None:
            return
        figures = {
            (self.kl_name if name == "kl" else name): value for name, value in metrics.items()
            if isinstance(value, int | float) and name not in UNSTEADY
            and (name != "kl" or self.kl_name)
        }
        self.table.add(self.stage, step, figures)
        for name, value in figures.items():
            self.writer.add_scalar(f"{self.stage}/{name}", value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Write a text to TensorBoard; only the main process does."""
        if self.writer is not None:
            self.writer.add_text(name, text, step)

    def on_train_end(self, args: Arguments, state: State, control: Control, **_: Any) -> None:
        """Close the files."""
        if self.writer is not None:
            self.writer.close()


def common_arguments(
    config: configs.RunConfig, stage: configs.SftStage | configs.GrpoStage, output_dir: Path,
    model: Model,
) -> dict[str, Any]:
    """Return the arguments that `SFTConfig` and `GRPOConfig` both take; the model tells the compute type."""
    on_cpu = model.device.type == "cpu"
    half = config.model.dtype == "float16"
    return {
        "output_dir": str(output_dir),
        "max_steps": stage.max_steps,
        "per_device_train_batch_size": stage.per_device_train_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "learning_rate": stage.learning_rate,
        "warmup_steps": stage.warmup_steps,
        "lr_scheduler_type": stage.lr_scheduler_type,
        "max_grad_norm": stage.max_grad_norm,
        "logging_steps": stage.logging_steps,
        "save_strategy": "steps",
        "save_steps": round_up(stage.save_steps, checkpoint_unit(stage)),
        "save_total_limit": stage.save_total_limit,
        "seed": config.seed,
        # TRL turns bf16 on by itself, which costs a factor of 1.4 to 2.2 on a CPU.
        "bf16": not on_cpu and not half,
        "fp16": not on_cpu and half,
        "use_cpu": on_cpu,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": not config.show_progress,
        # `RunLogger` writes metrics.csv and TensorBoard, under one set of names.
        "report_to": "none",
        # TRL adds the router's load-balancing loss by default; the router is frozen under LoRA, and
        # the term would move the adapter away from the task.
        "router_aux_loss_coef": 0.0,
        # Without Unsloth every adapter weight gets a gradient in every step. With it an expert that
        # no token was sent to may get none, and DDP would wait for it: Unsloth decides.
        "ddp_find_unused_parameters": None if uses_unsloth(config.model) else False,
    }


def count_steps(
    stage: configs.SftStage | configs.GrpoStage, num_rows: int, world_size: int = 1
) -> int:
    """Return the optimizer steps of a stage: `max_steps`, or what its epochs come to."""
    if stage.max_steps >= 0:
        return stage.max_steps
    rows_per_step = world_size * stage.per_device_train_batch_size * stage.gradient_accumulation_steps
    if isinstance(stage, configs.GrpoStage):
        rows_per_step /= stage.num_generations
    return math.ceil(stage.num_train_epochs * num_rows / rows_per_step)


def checkpoint_unit(stage: configs.SftStage | configs.GrpoStage) -> int:
    """Return the number of steps that a checkpoint must be a multiple of.

    Between two generate calls TRL keeps sampled completions in memory only, and between two log
    rows the sums behind them, so a checkpoint in between could not be resumed to the same result.
    """
    if isinstance(stage, configs.GrpoStage):
        return math.lcm(stage.steps_per_generation, stage.logging_steps)
    return stage.logging_steps


def world_size() -> int:
    """Return the number of processes of this run, 1 without torchrun."""
    return PartialState().num_processes


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return math.ceil(value / unit) * unit


def text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, or a copy of one that begins every text with a token of its own.

    TRL tokenizes prompts as any text, and they hold all their special tokens already.
    """
    if not tokenizer("")["input_ids"]:
        return tokenizer
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    return bare


def run_trainer(trainer: Trainer, resume: bool) -> dict[str, float]:
    """Train, going on from the newest whole checkpoint when asked to.

    Args:
        resume: False starts over and deletes the stage's checkpoints.

    Returns:
        The trainer's closing figures; none when the newest checkpoint is where training had ended.

    Raises:
        ModelError: The checkpoint's adapter does not fit the model.
        RunError: The disk is full; the last whole checkpoint is named.
    """
    folder = Path(trainer.args.output_dir)
    processes = PartialState()
    if processes.is_main_process:
        remove_checkpoints(folder, only_incomplete=resume)
    processes.wait_for_everyone()
    checkpoint = latest_complete(folder) if resume else None
    if checkpoint:
        # The trainer would pass over an adapter's missing and unknown tensors.
        load_adapter(trainer.model, checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
            # Early stopping or the KL guard ended it, and the trainer would take one step more.
            trainer.state = state
            return {}
    # TRL's card says nothing true of this model, and replaces a README.md of the run's folder.
    trainer.create_model_card = lambda *_, **__: None
    if trainer.args.device.type == "cpu":
        stay_on_cpu(trainer.args)
    # They print every log row; `RunLogger` prints a few.
    trainer.remove_callback(PrinterCallback)
    if trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
    try:
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, RuntimeError) as error:
        if is_disk_full(error, folder):
            raise disk_full_error(folder) from error
        raise
    # The optimizer's memory, and under torchrun the hooks of the wrapper around the model, would
    # otherwise stay while the next stage trains the same model.
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    free_memory()
    return dict(output.metrics)
