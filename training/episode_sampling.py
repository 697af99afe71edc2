"""Rollouts of GRPO in agent mode: whole conversations, those of a group with the same customer.

TRL's `rollout_func` gets tasks and returns each conversation as one row: the prompt up to the first
turn, then everything else, with `env_mask` 0 on tokens that the model did not write. All open
conversations of a batch advance together. Left out: the reward (`episode_rewards.py`).
"""

import random
from collections.abc import Iterable

from trl import GRPOTrainer

from training.agent_evaluation import play_all, rollout_policy, start_conversation
from training.conversations import Context
from training.dynamic_sampling import DynamicSampler, Group


class EpisodeSampler(DynamicSampler):
    """TRL's `rollout_func` in agent mode; replaces zero-variance groups as its base does.

    Its scorer is an `EpisodeScorer`.
    """

    def _prompts(self, tasks: list[int]) -> list[str]:
        """Return nothing for each: an episode's prompt depends on its customer."""
        return [""] * len(tasks)

    def _sample(
        self, prompts: list[str], tasks: list[int], trainer: GRPOTrainer, names: Iterable[str]
    ) -> list[Group]:
        """Play groups; a group's name seeds its customer and the draws of its agents."""
        size = self.config.grpo.num_generations
        draws = [random.Random(name) for name in names]
        customers = [draw.getrandbits(32) for draw in draws]
        talks = [
            start_conversation(
                self.scorer.find_task(task), self.scorer.db, self.config,
                customers[number // size], draws[number // size].getrandbits(32),
            )
            for number, task in enumerate(tasks)
        ]
        policy = rollout_policy(
            trainer.model, trainer.processing_class, self.config, self.config.grpo.temperature,
            self.config.model.sampling_rows,
        )
        play_all(talks, policy)
        contexts = [policy.context(talk) for talk in talks]
        rollouts = [self.scorer.score(*pair) for pair in zip(talks, contexts, strict=True)]
        rows = [_row(context, trainer.processing_class.eos_token_id) for context in contexts]
        groups = []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            prompt_ids, completion_ids, log_probs, masks = map(list, zip(*rows[part], strict=True))
            episodes = rollouts[part]
            groups.append(Group(
                prompt_ids, completion_ids, log_probs, tasks[part],
                [episode.score.reward for episode in episodes],
                {"env_mask": masks, "episode": episodes},
            ))
        return groups


def _row(context: Context, stop_id: int) -> tuple[list, list, list, list]:
    """Return prompt, completion, log-probabilities and mask; without a turn a stop that bears no loss.

    What follows the model's last token is left out.
    """
    start, end = context.num_prompt, len(context.mask)
    while end > start and not context.mask[end - 1]:
        end -= 1
    if start == end:
        return context.ids[:start], [stop_id], [0.0], [0]
    part = slice(start, end)
    return context.ids[:start], context.ids[part], context.log_probs[part], context.mask[part]
