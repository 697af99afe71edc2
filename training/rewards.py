"""The two reward functions of GRPO, over one scoring of each completion.

`tool_reward` is the shaped reward over the calls, `outcome_reward` is 1.0 when the store ends as
gold leaves it. Both come from `task_tester.score_completion`, the scorer of the evaluation, so the
reward and the metrics cannot disagree.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from statistics import fmean
from typing import Any, get_args

from configs import GrpoStage
from data_reader import Task
from envs.retail import TOOL_SCHEMAS, RetailDatabase
from gptoss.model_types import Tokenizer
from prompting.plan_format import plan_format
from scoring.explain import explain_calls, format_score
from scoring.parse import ParseKind
from scoring.reward import RewardWeights, Score, score_completion

RewardFunction = Callable[..., list[float]]
ROLLOUT_FIELDS = ("useful_before", "useful_after")
"""What dynamic sampling says of each completion; logged as shares under `resampling/`."""
MAX_KNOWN = 8192
"""Completions whose score is remembered; far more than one batch, and bounded."""


def weighted_reward(stage: GrpoStage, score: Score) -> float:
    """Return what GRPO compares within a group: the weighted sum of the two rewards."""
    return stage.tool_reward_weight * score.reward + stage.outcome_reward_weight * score.outcome


class CompletionScorer:
    """Scores completions, each once, and keeps the last batch for those who watch.

    Attributes:
        tasks: Tasks of the last batch, one per completion.
        texts: Its completions as text with special tokens.
        scores: Its scores.
        num_scored: Distinct completions scored so far.
    """

    def __init__(self, tokenizer: Tokenizer, db: RetailDatabase, tasks: Sequence[Task]) -> None:
        """Keep the store, never changed, and the training tasks by the numbers of `data_reader.grpo_rows`."""
        self.tokenizer = tokenizer
        self.plans = plan_format(tokenizer)
        self.db = db
        self.tasks: list[Task] = []
        self.texts: list[str] = []
        self.scores: list[Score] = []
        self.num_scored = 0
        self._known: dict[tuple[int, tuple[int, ...]], tuple[str, Score]] = {}
        self._find_task = lru_cache(maxsize=65536)(tasks.__getitem__)

    def score(self, numbers: list[int], completion_ids: list[list[int]]) -> list[Score]:
        """Return a score per completion; those that were just scored are not run again.

        Args:
            numbers: Number of each completion's task.
            completion_ids: Token ids up to and including the stop token, without padding.
        """
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        pairs = zip(numbers, map(tuple, completion_ids), strict=True)
        rows = [self._score_one(number, ids) for number, ids in pairs]
        self.tasks = [self._find_task(number) for number in numbers]
        self.texts = [text for text, _ in rows]
        self.scores = [score for _, score in rows]
        return self.scores

    def describe(self, index: int) -> str:
        """Return a completion of the last batch as Markdown: query, text, calls with results, reward."""
        task, text, score = self.tasks[index], self.texts[index], self.scores[index]
        return "\n".join([
            f"**{task.task_id}** {task.query}", "", "```", text, "",
            explain_calls(self.plans.final_text(text), self.db), "```", "",
            f"- {format_score(score)}", f"- parse error: {score.parse_error or 'none'}",
        ])

    def _score_one(self, number: int, ids: tuple[int, ...]) -> tuple[str, Score]:
        key = (number, ids)
        if key not in self._known:
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
            final = self.plans.final_text(text)
            score = score_completion(self._find_task(number), final, self.db)
            self._known[key] = (text, score)
            self.num_scored += 1
        return self._known[key]


def summarize_batch(scores: list[Score]) -> dict[str, float]:
    """Return what is logged about a batch beside its rewards.

    Means of the reward's parts (`reward_parts/*`), shares of completions that fail to parse by kind
    (`parse_failures/*`), both 0.0 where there is none; exact match, db match and parse shares; the reward
    as a share of the task's maximum (1.0 is gold's, below 0 is possible); calls of the plans for each gold
    call (where there is a plan); and for each tool that was called the share of its calls that were
    correct (`tools/*`).
    """
    count = len(scores)
    metrics = {
        "rollouts/exact_match": sum(s.exact_match for s in scores) / count,
        "rollouts/db_match": sum(s.db_match for s in scores) / count,
        "rollouts/reward_share": sum(s.reward / s.max_reward for s in scores) / count,
        "rollouts/parsed": sum(s.parse_error is None for s in scores) / count,
    }
    plans = [score for score in scores if score.parse_error is None]
    if num_gold := sum(plan.num_gold for plan in plans):
        metrics["rollouts/calls_per_gold"] = sum(plan.num_predicted for plan in plans) / num_gold
    # Every part and every kind, each time: the trainer averages what is logged, so a name left out
    # where it is 0 would be averaged over the other batches of the row alone, and come out too high.
    for part in fields(RewardWeights):
        points = sum(score.parts.get(part.name, 0.0) for score in scores)
        metrics[f"reward_parts/{part.name}"] = points / count
    for kind in get_args(ParseKind):
        metrics[f"parse_failures/{kind}"] = sum(s.parse_error == kind for s in scores) / count
    called: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for score in scores:
        for call in score.calls:
            # Invented names share one column: there is no end to them.
            name = call.name if call.name in TOOL_SCHEMAS else "unknown"
            called[name] += 1
            correct[name] += bool(call.correct)
    metrics |= {f"tools/{name}": correct[name] / n for name, n in sorted(called.items())}
    return metrics


def log_batch(
    metrics: Mapping[str, float], given: Mapping[str, Any], log_metric: Callable[[str, float], None]
) -> None:
    """Log the figures of a batch, and of what TRL gives a reward function the `ROLLOUT_FIELDS`."""
    shares = {f"resampling/{name}": fmean(given[name]) for name in ROLLOUT_FIELDS if name in given}
    for name, value in {**metrics, **shares}.items():
        log_metric(name, value)


def make_reward_functions(scorer: CompletionScorer) -> list[RewardFunction]:
    """Return `tool_reward` and `outcome_reward`; TRL logs each under its name.

    They share a scorer, so that a completion is run on the store once.
    """

    def tool_reward(
        completion_ids: list[list[int]], task: list[int], log_metric: Callable, **given: Any
    ) -> list[float]:
        """Return the shaped reward of each completion: gold's maximum at best, -1.0 at worst."""
        scores = scorer.score(task, completion_ids)
        log_batch(summarize_batch(scores), given, log_metric)
        return [score.reward for score in scores]

    def outcome_reward(completion_ids: list[list[int]], task: list[int], **_: Any) -> list[float]:
        """Return 1.0 for each completion that leaves the store as gold does, else 0.0."""
        return [score.outcome for score in scorer.score(task, completion_ids)]

    return [tool_reward, outcome_reward]
