"""The rollouts of GRPO, and dynamic sampling: zero-variance groups, which teach nothing, are replaced.

TRL trains such a group with loss 0 and says nothing. Here another task is drawn in its place and
sampled, a few rounds long, before the trainer sees the batch. Left out on purpose: dropping the
group without a replacement, which would shrink the batch and change the step size.
"""

import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from trl import GRPOTrainer

import configs
from data_reader import Task, plan_prompt
from gptoss.generation import complete
from prompting.plan_format import plan_format
from training.episode_rewards import EpisodeScorer
from training.rewards import CompletionScorer, weighted_reward
from training.task_store import TaskLookup

ZERO_VARIANCE = 1e-6
"""Rewards that differ by less count as equal."""
COLUMNS = ("prompt_ids", "completion_ids", "logprobs", "task")
"""What TRL is given of each group."""


class Group(NamedTuple):
    """The rollouts of one task."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    task: list[int]
    """The task's number, once per completion."""
    rewards: list[float]
    """What is compared within the group, per completion."""
    extra: Mapping[str, list] = {}
    """More columns for the trainer and the reward functions, a value per completion."""

    @property
    def has_variance(self) -> bool:
        """Whether the rewards differ, so that there are advantages other than 0."""
        return max(self.rewards) - min(self.rewards) > ZERO_VARIANCE


class DynamicSampler:
    """TRL's `rollout_func`: samples the batch, then replaces zero-variance groups.

    Whether a completion's group had variance, before and after, goes with it to the reward functions,
    which log the shares. All draws depend on the seed, the step and the place in the batch of all
    processes: a resumed run, and any number of processes, draw alike (completions on a CPU only).
    """

    def __init__(
        self, config: configs.RunConfig, scorer: "CompletionScorer | EpisodeScorer",
        rows: Dataset, tasks: Sequence[Task],
    ) -> None:
        """Keep the tasks to draw from, and the rows (`prompt` and `task`, its number) that the run shows."""
        # The trainer marks its interface for own rollouts experimental; the pinned version has it.
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
        self.config = config
        self.scorer = scorer
        self.lookup = TaskLookup(rows)
        self.tasks = tasks

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """Sample one batch.

        Args:
            prompts: One per completion; the completions of a group stand side by side.

        Returns:
            Token ids of prompts and completions, the task of each (the drawn one's where a group
            was replaced), and the fields that the reward functions log.
        """
        size = self.config.grpo.num_generations
        shown = [self.lookup[prompt] for prompt in prompts]
        first = trainer.accelerator.process_index * len(prompts) // size
        numbers = range(first, first + len(prompts) // size)
        name = f"{self.config.seed}/{trainer.state.global_step}"
        groups = self._sample(prompts, shown, trainer, [f"{name}/0/{n}" for n in numbers])
        useful_before = _useful(groups)
        for round_number in range(1, self.config.grpo.resample_rounds + 1):
            dead = [index for index, group in enumerate(groups) if not group.has_variance]
            if not dead:
                break
            names = [f"{name}/{round_number}/{numbers[index]}" for index in dead]
            drawn = [random.Random(name).randrange(len(self.tasks)) for name in names]
            fresh = self._sample(
                [text for text in self._prompts(drawn) for _ in range(size)],
                [number for number in drawn for _ in range(size)], trainer, names,
            )
            for index, group in zip(dead, fresh, strict=True):
                if group.has_variance:
                    groups[index] = group
        columns = [{name: getattr(g, name) for name in COLUMNS} | dict(g.extra) for g in groups]
        joined = {name: [value for part in columns for value in part[name]] for name in columns[0]}
        return joined | {"useful_before": useful_before, "useful_after": _useful(groups)}

    def _prompts(self, tasks: list[int]) -> list[str]:
        """Return the prompts of tasks by their numbers."""
        style, plans = self.config.data.prompt_style, plan_format(self.scorer.tokenizer)
        return [plan_prompt(self.tasks[number], style, plans) for number in tasks]

    def _sample(
        self, prompts: list[str], tasks: list[int], trainer: GRPOTrainer, names: Iterable[str]
    ) -> list[Group]:
        """Sample groups; the names of the groups seed the draws of their completions."""
        stage = self.config.grpo
        size = stage.num_generations
        prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
        seeds = None
        if trainer.model.device.type == "cpu":
            draws = [random.Random(name) for name in names]
            seeds = [draw.getrandbits(63) for draw in draws for _ in range(size)]
        completions = complete(
            trainer.model, prompt_ids, stage.max_completion_length, stage.temperature, seeds
        )
        completion_ids = [completion.ids for completion in completions]
        log_probs = [completion.log_probs for completion in completions]
        scores = self.scorer.score(tasks, completion_ids)
        rewards = [weighted_reward(stage, score) for score in scores]
        columns = (prompt_ids, completion_ids, log_probs, tasks, rewards)
        return [
            Group(*(column[start:start + size] for column in columns))
            for start in range(0, len(prompts), size)
        ]


def _useful(groups: list[Group]) -> list[bool]:
    """Say of each completion whether its group has variance."""
    return [group.has_variance for group in groups for _ in group.rewards]
