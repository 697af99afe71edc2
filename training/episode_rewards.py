"""The reward of whole episodes in GRPO, and what is logged about a batch of them.

The reward is `scoring.episode`'s, the same that the evaluation reports: success decides, its other
parts never lift a failure above a success.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from statistics import fmean
from typing import get_args

from agent.conversation import Conversation, Message, Termination
from agent.examples import describe_conversation, describe_score
from data_reader import Task
from envs.retail import WRITE_TOOLS, RetailDatabase
from prompting.dialogue import ReplyFailure
from scoring.episode import EpisodeScore, EpisodeWeights, score_episode
from scoring.transcript import replay
from training.conversations import Context
from training.rewards import RewardFunction, log_batch


@dataclass(frozen=True)
class Rollout:
    """One episode of a batch, scored."""

    task: Task
    messages: list[Message]
    score: EpisodeScore
    num_writes: int
    """Accepted calls that change the store."""
    num_tokens: int
    """Tokens of the whole conversation, prompt included."""
    num_environment_tokens: int
    """Those of them that the model did not write."""
    failures: Counter[str]
    """Turns that could not be read, by kind."""


class EpisodeScorer:
    """Scores episodes, and keeps the last batch, `rollouts`, for those who watch."""

    def __init__(self, db: RetailDatabase, tasks: Sequence[Task]) -> None:
        """Keep the store, never changed, and the training tasks by the numbers of `data_reader.grpo_rows`."""
        self.db = db
        self.rollouts: list[Rollout] = []
        self.find_task = lru_cache(maxsize=65536)(tasks.__getitem__)

    @property
    def scores(self) -> list[EpisodeScore]:
        """Scores of the last batch."""
        return [rollout.score for rollout in self.rollouts]

    def score(self, talk: Conversation, context: Context) -> Rollout:
        """Score an ended conversation, whose tokens are the context's."""
        found = score_episode(talk.task, talk.messages, self.db, talk.termination)
        calls = replay(talk.messages, self.db).calls
        num_writes = sum(call.ok and call.name in WRITE_TOOLS for call in calls)
        return Rollout(
            talk.task, talk.messages, found, num_writes, len(context.ids),
            context.mask.count(0), context.failures,
        )

    def describe(self, index: int) -> str:
        """Return an episode of the last batch as readable text."""
        rollout = self.rollouts[index]
        return "\n".join([
            f"**{rollout.task.task_id}** {rollout.task.instruction or rollout.task.query}", "",
            "```", describe_conversation(rollout.messages), "```", "",
            f"- {describe_score(rollout.score)}", f"- ended: {rollout.score.termination}",
        ])


def summarize_episodes(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return what is logged about a batch of at least one episode.

    Means per episode of success, violations, turns, calls and tokens; calls for each success and changes for
    each that gold makes (where there is one); shares of environment tokens, of hand-overs that gold does not
    make, of changes without a yes (where there is a change), of customers who left before a confirmation;
    the reward as a share of its maximum; its parts (`reward_parts/*`), endings (`endings/*`) and unreadable
    turns (`turn_failures/*`).
    """
    scores, count = [rollout.score for rollout in rollouts], len(rollouts)
    endings = Counter(score.termination for score in scores)
    num_writes = sum(rollout.num_writes for rollout in rollouts)
    num_gold = sum(a["name"] in WRITE_TOOLS for r in rollouts for a in r.task.gold_actions)
    num_calls, num_successes = sum(s.num_calls for s in scores), sum(s.success for s in scores)
    needless = sum(
        r.score.termination == "transferred"
        and all(a["name"] != "transfer_to_human_agents" for a in r.task.gold_actions)
        for r in rollouts
    )
    metrics = {
        "episodes/success": num_successes / count,
        "episodes/violations": fmean(len(score.violations) for score in scores),
        "episodes/turns": fmean(score.num_turns for score in scores),
        "episodes/calls": num_calls / count,
        "episodes/tokens": fmean(rollout.num_tokens for rollout in rollouts),
        "episodes/environment_share": (
            sum(r.num_environment_tokens for r in rollouts) / sum(r.num_tokens for r in rollouts)
        ),
        "episodes/left_before_confirmation": endings["customer_left_before_confirmation"] / count,
        "episodes/needless_transfers": needless / count,
        "rollouts/reward_share": fmean(score.reward / score.max_reward for score in scores),
    }
    if num_successes:
        metrics["episodes/calls_per_success"] = num_calls / num_successes
    if num_gold:
        metrics["episodes/writes_per_gold"] = num_writes / num_gold
    if num_writes:
        unconfirmed = sum(v.kind == "unconfirmed_write" for s in scores for v in s.violations)
        metrics["episodes/unconfirmed_writes"] = unconfirmed / num_writes
    # Every name each time: the trainer averages over the batches in which a name was logged.
    for part in fields(EpisodeWeights):
        if part.name != "worst_penalty":
            metrics[f"reward_parts/{part.name}"] = fmean(s.parts[part.name] for s in scores)
    for ending in get_args(Termination):
        metrics[f"endings/{ending}"] = endings[ending] / count
    for kind in (*get_args(ReplyFailure), "context_full"):
        metrics[f"turn_failures/{kind}"] = sum(r.failures[kind] for r in rollouts) / count
    return metrics


def make_episode_rewards(scorer: EpisodeScorer) -> list[RewardFunction]:
    """Return `episode_reward`, a list of one; TRL logs it under its name, and the scorer keeps the batch."""

    def episode_reward(
        episode: list[Rollout], log_metric: Callable[[str, float], None], **given: object
    ) -> list[float]:
        """Return each episode's reward: 1.2 for a clean success, -0.5 at worst."""
        scorer.rollouts = episode
        log_batch(summarize_episodes(episode), given, log_metric)
        return [rollout.score.reward for rollout in episode]

    return [episode_reward]
