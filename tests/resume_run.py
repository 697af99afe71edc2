"""One small run for the kill tests: every stage, a reward that has spread, a digest of the result.

The random model never earns a reward from the store, so its advantages would all be 0 and GRPO would
change nothing; a made-up reward over token ids gives the optimizer something to move by.
"""

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import tiny_random

import configs
from training import pipeline
from training.rewards import CompletionScorer, RewardFunction, make_reward_functions

MakeRewards = Callable[[CompletionScorer], list[RewardFunction]]
RESULTS = (
    "sft/adapter/adapter_model.safetensors", "final_model/adapter_model.safetensors",
    "best_adapter/adapter_model.safetensors", "best_adapter/step.json",
    "evaluation.json", "completions.jsonl", "evaluation_details.json",
)


def make_spread_rewards(scorer: CompletionScorer) -> list[RewardFunction]:
    """Return reward functions named as the real ones, the first one over the token ids."""
    original, outcome_reward = make_reward_functions(scorer)

    def tool_reward(completion_ids: list[list[int]], **kwargs: object) -> list[float]:
        original(completion_ids=completion_ids, **kwargs)
        return [len(set(ids)) / 4 + ids[0] % 7 / 3 for ids in completion_ids]

    return [tool_reward, outcome_reward]


def resume_config(folder: Path, **overrides: object) -> configs.RunConfig:
    """Return the settings of the run: three epochs of SFT, several generations of GRPO."""
    settings = {
        "sft__max_steps": -1, "sft__num_train_epochs": 2.0, "sft__learning_rate": 1e-2,
        "sft__per_device_train_batch_size": 8, "sft__save_steps": 1,
        "grpo__max_steps": 6, "grpo__learning_rate": 1e-2, "grpo__save_steps": 1,
        "grpo__generation_batch_size": 16, "grpo__eval_steps": 2, "grpo__num_eval_tasks": 3,
        "grpo__resample_rounds": 1, "grpo__max_gold_probability": 0.95,
    }
    return tiny_random.tiny_config(folder, **(settings | overrides))


def run(config: configs.RunConfig, make_rewards: MakeRewards = make_spread_rewards) -> None:
    """Run every stage, resuming what the folder holds."""
    prepared = pipeline.prepare_run(config, resume=True)
    model, tokenizer = pipeline.load_run_model(prepared)
    evaluations = [pipeline.evaluate_stage(prepared, model, tokenizer, "base")]
    pipeline.train_sft(prepared, model, tokenizer)
    evaluations.append(pipeline.evaluate_stage(prepared, model, tokenizer, "sft"))
    pipeline.train_grpo(prepared, model, tokenizer, make_rewards=make_rewards)
    evaluations.append(pipeline.evaluate_stage(prepared, model, tokenizer, "sft_grpo"))
    pipeline.record_differences(evaluations, config)


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file of the result, timings left out."""
    found = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in RESULTS if (folder / name).exists()
    }
    rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    keep = [i for i, name in enumerate(rows[0].split(",")) if name != "step_time"]
    table = [",".join(row.split(",")[i] for i in keep) for row in rows]
    found["metrics.csv"] = hashlib.sha256("\n".join(table).encode()).hexdigest()
    return found


def start(config: configs.RunConfig, log_path: Path) -> int:
    """Fork a process that does the run; everything is imported already, so it starts at once.

    Args:
        config: The settings.
        log_path: Takes what the process prints.

    Returns:
        Its process id.
    """
    process_id = os.fork()
    if not process_id:
        be_child(log_path, lambda: run(config))
    return process_id


def be_child(log_path: Path, work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked process and end it; what it prints goes to a file."""
    code = 1
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill(process_id: int) -> int:
    """Kill a process as `kill -9` does; return its wait status."""
    os.kill(process_id, signal.SIGKILL)
    return os.waitpid(process_id, 0)[1]
