"""Sum up episodes of agent mode: rates, pass^k and the difference between two runs.

Every figure has a 95 % bootstrap interval over tasks; the trials of a task are resampled together.
"""

from collections.abc import Callable, Iterable, Sequence
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


def pass_hat(num_trials: int, num_successes: int, k: int) -> float:
    """Return the unbiased estimate C(c,k)/C(n,k) of the chance that k of k trials succeed.

    Source: tau-bench (arXiv 2406.12045), section 4.

    Raises:
        ValueError: k is not between 1 and the number of trials.
    """
    if not 1 <= k <= num_trials:
        raise ValueError(f"k: must be 1 to {num_trials}, the number of trials, is {k}")
    return comb(num_successes, k) / comb(num_trials, k)


def estimate_pass_hat(
    scores: Iterable[Any], is_success: Callable[[Any], bool], num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Return pass^k by k ("1", "2", ...), up to the fewest trials of any task.

    Args:
        scores: one score per trial, at least one; they have a `task_id`.
        is_success: says which trials succeeded.

    Raises:
        ValueError: there are no scores.
    """
    trials: dict[str, list[bool]] = {}
    for score in scores:
        trials.setdefault(score.task_id, []).append(is_success(score))
    tasks = [_TaskTrials(task_id, len(won), sum(won)) for task_id, won in trials.items()]

    def ratio(k: int) -> Ratio:
        return lambda task: (pass_hat(task.num_trials, task.num_successes, k), 1)

    fewest = min((task.num_trials for task in tasks), default=0)
    ratios = {str(k): ratio(k) for k in range(1, fewest + 1)}
    return estimate_ratios(tasks, ratios, num_bootstrap, seed)[0]


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
    pass_hat_k = estimate_pass_hat(scores, lambda score: score.success, num_bootstrap, seed)
    return {**rates, "pass_hat_k": pass_hat_k, "num_tasks": num_tasks, "num_trials": len(pass_hat_k)}


def compare_trials(
    before: Sequence[EpisodeScore], after: Sequence[EpisodeScore], num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate | int]:
    """Return how much higher each rate is in a second run, see `estimate_gains`, and `num_tasks`."""
    found, num_tasks = estimate_gains(before, after, RATES, num_bootstrap, seed)
    return {**found, "num_tasks": num_tasks}
