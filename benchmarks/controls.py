"""The ways to go on from an SFT adapter that the comparisons share: GRPO and its two controls.

Random rewards are drawn like a coin: a gain that came from training on its own samples, or from a
lenient evaluation, would show up there as well. More SFT spends the same time on the gold answers.
"""

import functools
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.files import is_complete
from training import pipeline
from training.episode_rewards import EpisodeScorer, make_episode_rewards
from training.rewards import CompletionScorer, RewardFunction, make_reward_functions

KINDS = ("grpo", "random", "more-sft")


def make_random_rewards(
    seed: int,
) -> Callable[[CompletionScorer | EpisodeScorer], list[RewardFunction]]:
    """Return a maker of reward functions that toss a coin; the true scores are logged all the same.

    Args:
        seed: Seed of the coin.

    Returns:
        A function from the scorer of either mode to functions with its own rewards' names, each of
        which returns 0.0 or 1.0 for a completion.
    """
    coin = random.Random(seed)

    def tossed(watch: RewardFunction) -> RewardFunction:
        @functools.wraps(watch)
        def toss(completion_ids: list[list[int]], **given: Any) -> list[float]:
            watch(completion_ids=completion_ids, **given)
            return [float(coin.random() < 0.5) for _ in completion_ids]

        return toss

    def make(scorer: CompletionScorer | EpisodeScorer) -> list[RewardFunction]:
        if isinstance(scorer, EpisodeScorer):
            return [tossed(watch) for watch in make_episode_rewards(scorer)]
        return [tossed(watch) for watch in make_reward_functions(scorer)]

    return make


def provenance(model: Any) -> dict[str, str]:
    """Return what a result says of itself: the command of this process, and where the model is."""
    cores = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    on_gpu = model.device.type == "cuda"
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"one {torch.cuda.get_device_name()}" if on_gpu else cores,
    }


def finished_adapter(folder: Path, remedy: str) -> Path:
    """Return the adapter that a stage left in a run folder, or exit with one line that says the remedy."""
    if not is_complete(folder):
        sys.exit(f"error: {folder}: no finished adapter; {remedy}")
    return folder


def go_on(run: pipeline.Run, model: Any, tokenizer: Any, kind: str) -> None:
    """Train a model that holds an SFT adapter further, within the run's settings.

    Args:
        run: A run folder of its own, whose stage is not trained yet.
        kind: One of `KINDS`; "more-sft" trains on the tasks of SFT. Its run needs another seed than
            SFT's, so that its batches are others.
    """
    if kind == "more-sft":
        pipeline.train_sft(run, model, tokenizer)
    else:
        rewards = make_random_rewards(run.config.seed) if kind == "random" else None
        pipeline.train_grpo(run, model, tokenizer, make_rewards=rewards)
