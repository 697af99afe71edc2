"""Sum up episodes of agent mode: rates, pass^k and the difference between two runs.

Every figure has a 95 % bootstrap interval over tasks; the trials of a task are resampled together.
"""

from collections.abc import Iterable, Sequence
from math import comb
from typing import Any, NamedTuple

from scoring.episode import EpisodeScore
from scoring.metrics import Estimate, Ratio, estimate_gains, estimate_ratios

RATES: dict[str, Ratio] = {
    "success_rate": lambda s: (s.success, 1),
    "db_match_rate": lambda s: (s.db_match, 1),
    "outputs_told_rate": lambda s: (s.outputs_told, 1),
    "violation_rate": lambda s: (bool(s.violations), 1),
    "mean_turns": lambda s: (s.num_turns, 1),
    "mean_calls": lambda s: (s.num_calls, 1),
}


class _TaskTrials(NamedTuple):
    task_id: str
    num_trials: int
    num_successes: int


def _by_task(scores: Iterable[EpisodeScore]) -> list[_TaskTrials]:
    trials: dict[str, list[bool]] = {}
    for score in scores:
        trials.setdefault(score.task_id, []).append(score.success)
    return [_TaskTrials(task_id, len(won), sum(won)) for task_id, won in trials.items()]


def pass_hat(num_trials: int, num_successes: int, k: int) -> float:
    """Return the unbiased estimate C(c,k)/C(n,k) of the chance that k of k trials succeed.

    Source: tau-bench (arXiv 2406.12045), section 4.

    Raises:
        ValueError: k is not between 1 and the number of trials.
    """
    if not 1 <= k <= num_trials:
        raise ValueError(f"k: must be 1 to {num_trials}, the number of trials, is {k}")
    return comb(num_successes, k) / comb(num_trials, k)


def summarize_trials(
    scores: Iterable[EpisodeScore], num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of agent mode.

    - success_rate: share of episodes that did the task
    - db_match_rate: share whose store ends as gold leaves it
    - outputs_told_rate: share that told the customer every output
    - violation_rate: share with at least one violation of the policy
    - mean_turns, mean_calls: messages and tool calls of the agent
    - pass_hat_k: by k, up to the fewest trials of any task, the chance that all of k trials succeed
    - num_tasks, num_trials: ints; the trials of each task (the fewest, where they differ)

    Args:
        scores: one score per episode, at least one.

    Raises:
        ValueError: there are no scores.
    """
    scores = list(scores)
    rates, num_tasks = estimate_ratios(scores, RATES, num_bootstrap, seed)
    tasks = _by_task(scores)
    num_trials = min(task.num_trials for task in tasks)

    def ratio(k: int) -> Ratio:
        return lambda task: (pass_hat(task.num_trials, task.num_successes, k), 1)

    ratios = {str(k): ratio(k) for k in range(1, num_trials + 1)}
    pass_hat_k, _ = estimate_ratios(tasks, ratios, num_bootstrap, seed)
    return {**rates, "pass_hat_k": pass_hat_k, "num_tasks": num_tasks, "num_trials": num_trials}


def compare_trials(
    before: Sequence[EpisodeScore], after: Sequence[EpisodeScore], num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate | int]:
    """Return how much higher each rate is in one run than in another, see `estimate_gains`.

    Returns:
        The mean difference of each rate with its interval, and `num_tasks`.
    """
    found, num_tasks = estimate_gains(before, after, RATES, num_bootstrap, seed)
    return {**found, "num_tasks": num_tasks}
