"""What the SFT and the GRPO stage share: trainer arguments, and running with checkpoints."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState

import configs
from accelerate import PartialState
from common.files import (
    disk_full_error,
    is_disk_full,
    latest_complete,
    remove_checkpoints,
)
from gptoss.load import load_adapter, uses_unsloth
from gptoss.memory import free_memory
from gptoss.model_types import Model


def common_arguments(
    config: configs.RunConfig,
    stage: configs.SftStage | configs.GrpoStage,
    output_dir: Path,
    model: Model,
) -> dict[str, Any]:
    """Return the arguments that both of TRL's configurations take.

    Args:
        output_dir: Where its checkpoints go.
        model: Tells the compute type.

    Returns:
        Keyword arguments of `SFTConfig` or `GRPOConfig`.
    """
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
        # metrics.csv and TensorBoard are written by `callbacks.RunLogger`, under one set of names.
        "report_to": "none",
        # TRL adds the router's load-balancing loss by default; the router is frozen under LoRA, and
        # the term would move the adapter away from the task.
        "router_aux_loss_coef": 0.0,
        # Without Unsloth every adapter weight gets a gradient in every step. With it an expert that
        # no token was sent to may get none, and DDP would wait for it: Unsloth decides.
        "ddp_find_unused_parameters": None if uses_unsloth(config.model) else False,
    }


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
        # Under torchrun accelerate numbers the CPU too, and torch.load knows no place "cpu:0".
        trainer.args._setup_devices = torch.device("cpu")
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
