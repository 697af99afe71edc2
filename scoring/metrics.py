"""Sum scores up: metrics with bootstrap intervals, a table by tool, a table of parse failures.

Agent mode has its own in `scoring/trials.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from envs.retail import TOOL_SCHEMAS
from scoring.reward import Score

UNKNOWN_TOOL = "(unknown tool)"

Estimate = dict[str, float]
"""`value` with its 95 % interval, `low` to `high`."""


def format_estimate(estimate: Estimate, sign: str = "") -> str:
    """Return `0.500 [0.250, 0.750]`; with "+" as the sign, as a difference is written."""
    value, low, high = (format(estimate[name], f"{sign}.3f") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def metric_line(name: str, estimate: Estimate) -> str:
    """Return a metric as one line of a command's output."""
    value, interval = format_estimate(estimate).split(" ", 1)
    return f"{name:22}{value:>8}   95 % {interval}"


Ratio = Callable[[Any], tuple[float, float]]

RATIOS: dict[str, Ratio] = {
    "exact_match_rate": lambda s: (s.exact_match, 1),
    "action_precision": lambda s: (s.num_correct, s.num_predicted),
    "action_recall": lambda s: (s.num_correct, s.num_gold),
    "action_f1": lambda s: (2 * s.num_correct, s.num_predicted + s.num_gold),
    "json_parse_success": lambda s: (s.parse_error is None, 1),
    "ordering_accuracy": lambda s: (s.ordering, 1),
    "completeness_score": lambda s: (s.complete, 1),
    "db_match_rate": lambda s: (s.db_match, 1),
    "mean_reward": lambda s: (s.reward, 1),
}
"""Numerator and denominator that one score adds to each metric."""

_OUTCOME: dict[str, Ratio] = {"outcome_rate": lambda s: (s.outcome, 1)}


def estimate_ratios(
    scores: Sequence[Any], ratios: Mapping[str, Ratio], num_bootstrap: int, seed: int
) -> tuple[dict[str, Estimate], int]:
    """Return each ratio's estimate and the number of tasks, resampling whole tasks.

    Args:
        scores: records with a `task_id`, at least one; those of one task are resampled together.
        ratios: by name, what a record adds to a numerator and to its denominator.
        num_bootstrap: number of resamples, at least 1.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("no scores to sum up: score at least one task")
    rows = {task_id: row for row, task_id in enumerate(dict.fromkeys(s.task_id for s in scores))}
    row_of_score = [rows[score.task_id] for score in scores]
    sums = np.zeros((len(rows), len(ratios), 2))
    values = np.array([[ratio(score) for ratio in ratios.values()] for score in scores], float)
    np.add.at(sums, row_of_score, values)

    def ratio_of(total: np.ndarray) -> np.ndarray:
        # Nothing predicted at all: precision is 0, not undefined.
        return np.divide(total[:, 0], total[:, 1], out=np.zeros(len(total)), where=total[:, 1] > 0)

    rng = np.random.default_rng(seed)
    resampled = np.array([
        ratio_of(sums[rng.integers(len(rows), size=len(rows))].sum(axis=0)) for _ in range(num_bootstrap)
    ])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    found = zip(ratios, ratio_of(sums.sum(axis=0)), low, high, strict=True)
    return {
        name: {"value": float(value), "low": float(one), "high": float(other)}
        for name, value, one, other in found
    }, len(rows)


def estimate_gains(
    before: Sequence[Any], after: Sequence[Any], ratios: Mapping[str, Ratio], num_bootstrap: int, seed: int
) -> tuple[dict[str, Estimate], int]:
    """Return how much higher each mean is in one run than in another, task by task.

    Pairing removes the difficulty of the tasks from the noise, so the interval is far narrower than the
    two runs' own intervals suggest. Tasks that only one run has are left out.

    Args:
        before: as for `estimate_ratios`; the trials of a task are averaged.
        ratios: whose denominators are 1.

    Returns:
        The mean difference of each with its interval, and the number of tasks.

    Raises:
        ValueError: the runs share no task.
    """
    ours, theirs = (_means(scores, ratios) for scores in (before, after))
    gains = [
        SimpleNamespace(task_id=task_id, gain=theirs[task_id] - mean)
        for task_id, mean in ours.items() if task_id in theirs
    ]
    if not gains:
        raise ValueError("the two runs share no task: compare runs over the same task file")
    places = {name: lambda row, place=place: (row.gain[place], 1) for place, name in enumerate(ratios)}
    return estimate_ratios(gains, places, num_bootstrap, seed)


def _means(scores: Sequence[Any], ratios: Mapping[str, Ratio]) -> dict[str, np.ndarray]:
    rows: dict[str, list[list[float]]] = {}
    for score in scores:
        rows.setdefault(score.task_id, []).append([ratio(score)[0] for ratio in ratios.values()])
    return {task_id: np.array(own, float).mean(axis=0) for task_id, own in rows.items()}


def summarize(
    scores: Iterable[Score], num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Estimate | int]:
    """Return the metrics with 95 % percentile bootstrap intervals over tasks.

    Several answers to one task (trials) are resampled together.

    - exact_match_rate: share of answers with the gold calls, in order, accepted, nothing else
    - action_precision: share of all predicted calls that are correct (accepted, and matched one
      to one to a gold call with equal arguments); 0 when nothing is predicted
    - action_recall: share of all gold calls that were predicted correctly
    - action_f1: harmonic mean of the two
    - json_parse_success: share of answers that are plans (strict JSON of the right shape)
    - ordering_accuracy: share of answers that match every gold call, by name at least, in order
    - completeness_score: share of answers with at least one call (where gold has one), known tools
      only and every required argument given
    - db_match_rate: share of plans, of all answers, that leave the store as gold leaves it
    - mean_reward: mean training reward
    - num_tasks: number of tasks, an int

    Args:
        scores: one score per answer, at least one.

    Raises:
        ValueError: there are no scores.
    """
    estimates, num_tasks = estimate_ratios(list(scores), RATIOS, num_bootstrap, seed)
    return {**estimates, "num_tasks": num_tasks}


def summarize_outcome(scores: Iterable[Score], num_bootstrap: int = 1000, seed: int = 0) -> Estimate:
    """Return the mean outcome (share of answers that solve their task) with its interval.

    Raises:
        ValueError: there are no scores.
    """
    return estimate_ratios(list(scores), _OUTCOME, num_bootstrap, seed)[0]["outcome_rate"]


def per_tool_table(scores: Iterable[Score]) -> dict[str, dict[str, int]]:
    """Count, by tool, the predicted calls: called, correct, wrong_arguments, refused.

    `wrong_arguments` are calls matched to a gold call by name alone; `refused` are calls that the
    store did not accept, whatever they were matched to. Tools that the store lacks share one row.
    """
    table: dict[str, Counter] = {}
    for score in scores:
        for call in score.calls:
            row = table.setdefault(call.name if call.name in TOOL_SCHEMAS else UNKNOWN_TOOL, Counter())
            row["called"] += 1
            row["correct"] += call.correct
            row["wrong_arguments"] += call.kind == "wrong_arguments"
            row["refused"] += not call.ok
    columns = ("called", "correct", "wrong_arguments", "refused")
    return {name: {column: table[name][column] for column in columns} for name in sorted(table)}


def parse_failure_table(scores: Iterable[Score]) -> dict[str, int]:
    """Count the answers that are no plan, by kind, most frequent first."""
    return dict(Counter(s.parse_error for s in scores if s.parse_error is not None).most_common())
