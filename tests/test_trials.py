"""Agent metrics: pass^k by hand and by simulation, the exact keys, paired comparison."""

import random
from dataclasses import replace
from itertools import combinations

import pytest

from scoring.episode import EpisodeScore
from scoring.trials import compare_trials, pass_hat, summarize_trials
from scoring.violations import Violation


def episode(task_id, success, **more):
    base = EpisodeScore(task_id, success, 1.2 if success else 0.0, 1.2, success, True, (), 4, 2, 0)
    return replace(base, **more)


def test_the_keys_are_the_agreed_ones():
    scores = [episode("a", True), episode("a", False), episode("b", True), episode("b", True)]
    found = summarize_trials(scores)
    assert set(found) == {
        "success_rate", "db_match_rate", "outputs_told_rate", "violation_rate", "mean_turns",
        "mean_calls", "pass_hat_k", "num_tasks", "num_trials",
    }
    assert found["num_tasks"] == 2 and found["num_trials"] == 2
    assert found["success_rate"]["value"] == 0.75 and found["mean_turns"]["value"] == 4
    assert {k: v["value"] for k, v in found["pass_hat_k"].items()} == {"1": 0.75, "2": 0.5}
    assert set(found["success_rate"]) == set(found["pass_hat_k"]["1"]) == {"value", "low", "high"}


def test_violations_count_by_episode():
    violations = (Violation("unauthenticated", 1, "x"), Violation("unconfirmed_write", 2, "y"))
    scores = [episode("a", True, violations=violations), episode("b", True)]
    assert summarize_trials(scores)["violation_rate"]["value"] == 0.5


@pytest.mark.parametrize("num_trials", [1, 2, 5])
def test_pass_hat_is_the_share_of_all_draws(num_trials):
    for num_successes in range(num_trials + 1):
        wins = [index < num_successes for index in range(num_trials)]
        for k in range(1, num_trials + 1):
            draws = [all(draw) for draw in combinations(wins, k)]
            assert pass_hat(num_trials, num_successes, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_hat_is_unbiased():
    rng = random.Random(0)
    mean = sum(pass_hat(4, sum(rng.random() < 0.7 for _ in range(4)), 3) for _ in range(20_000))
    assert mean / 20_000 == pytest.approx(0.7**3, abs=0.01)


@pytest.mark.parametrize("k", [0, 3])
def test_pass_hat_refuses_more_draws_than_trials(k):
    with pytest.raises(ValueError, match="k: must be 1 to 2"):
        pass_hat(2, 1, k)


def test_intervals_widen_with_the_spread_between_tasks():
    same = summarize_trials([episode(str(n), True) for n in range(50)])["success_rate"]
    mixed = summarize_trials([episode(str(n), n % 2 == 0) for n in range(50)])["success_rate"]
    assert same["low"] == same["high"] == 1.0
    assert mixed["low"] < 0.45 < 0.55 < mixed["high"]


def test_paired_comparison_is_narrower_than_the_runs():
    rng = random.Random(1)
    before = [episode(str(n), n % 2 == 0) for n in range(200)]
    after = [replace(s, success=s.success or rng.random() < 0.1) for s in before]
    found = compare_trials(before, after)
    assert found["num_tasks"] == 200
    gain = found["success_rate"]
    assert 0 < gain["low"] <= gain["value"] <= gain["high"] < 0.12
    own = summarize_trials(before)["success_rate"]
    assert gain["high"] - gain["low"] < own["high"] - own["low"]
    assert found["mean_turns"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_only_common_tasks_are_compared():
    found = compare_trials([episode("a", True), episode("b", True)], [episode("b", False)])
    assert found["num_tasks"] == 1 and found["success_rate"]["value"] == -1.0
    with pytest.raises(ValueError, match="share no task"):
        compare_trials([episode("a", True)], [episode("b", True)])


def test_no_episodes_is_an_error():
    with pytest.raises(ValueError, match="no scores"):
        summarize_trials([])
