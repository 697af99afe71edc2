"""One process of a run that several share: `start_ranks` forks them, each writes what it did.

Nothing of a launcher is needed but the variables that torchrun sets; forking spares the imports.
"""

import gc
import json
import os
import socket
from pathlib import Path

import resume_run
from accelerate.state import AcceleratorState, GradientState
from trl import GRPOTrainer, SFTTrainer

import configs
from accelerate import PartialState
from training import evaluation
from training.rewards import CompletionScorer, RewardFunction

TRAINERS = GRPOTrainer, SFTTrainer  # TRL loads them when they are named: here, once for all forks
OTHERS_UMASK = 0o027
"""Files of processes other than the first have no rights for others: it shows who made a file."""


def start_ranks(config: configs.RunConfig, log_dir: Path, world_size: int) -> list[int]:
    """Fork the processes of a run; each writes `rank-<n>.jsonl` and `rank-<n>.txt`.

    Args:
        config: The settings.
        log_dir: Takes what the processes did and printed.
        world_size: How many.

    Returns:
        Their process ids.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log_dir.mkdir(parents=True, exist_ok=True)
    gc.collect()
    gc.freeze()  # or each collection in each child walks all that the imports made
    process_ids = []
    for rank in range(world_size):
        process_id = os.fork()
        if not process_id:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            values = (rank, rank, world_size, "localhost", port)
            # Left unset, accelerate gives each process a thread for every core.
            os.environ["OMP_NUM_THREADS"] = "1"
            if world_size > 1:
                os.environ.update(zip(names, map(str, values), strict=True))
            resume_run.be_child(log_dir / f"rank-{rank}.txt", lambda: run_rank(config, log_dir))
        process_ids.append(process_id)
    gc.unfreeze()
    return process_ids


def run_rank(config: configs.RunConfig, log_dir: Path) -> None:
    """Do one process's part of a run and note each completion it samples and each it evaluates."""
    # The parent may have been a process of its own before.
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        os.umask(OTHERS_UMASK)
    log = open(log_dir / f"rank-{rank}.jsonl", "a", encoding="utf-8", buffering=1)

    def make_noting_rewards(scorer: CompletionScorer) -> list[RewardFunction]:
        original, outcome_reward = resume_run.make_spread_rewards(scorer)

        def tool_reward(completion_ids, task, trainer_state, **kwargs):
            for number, ids in zip(task, completion_ids, strict=True):
                row = {"step": trainer_state.global_step, "task": number, "ids": list(ids)}
                log.write(json.dumps(row) + "\n")
            return original(
                completion_ids=completion_ids, task=task, trainer_state=trainer_state, **kwargs
            )

        return [tool_reward, outcome_reward]

    generate = evaluation.generate_batch

    def noting_generate(model, tokenizer, prompts, *args):
        log.write(json.dumps({"evaluated": prompts}) + "\n")
        return generate(model, tokenizer, prompts, *args)

    evaluation.generate_batch = noting_generate
    resume_run.run(config, make_noting_rewards)
