"""The rates of `benchmarks/scaling.py` follow from the noted times, also of a launch that was cut."""

import json

import pytest

from benchmarks.scaling import grpo_rates, make_row

TIMES = {
    "steps_per_generation": 2, "tasks_per_step": 4,
    "grpo_preparations_s": [30.0, 6.0], "grpo_samplings": [[20.0, 500], [4.0, 800]],
    "grpo_step_s": [90.0, 2.0, 9.0],
}
"""The first step holds compilation, the third one the second preparation: updates of 60, 2 and 3 s."""


def test_rates_of_one_process():
    assert grpo_rates(TIMES) == {
        "update_s": 2.5, "seconds_per_step": 5.5, "sampling_s_per_step": 2.0,
        "tasks_per_s": pytest.approx(4 / 5.5, abs=1e-4), "tokens_per_s": 200.0,
    }


def test_no_rate_before_the_second_generate_call_is_behind():
    cut = TIMES | {"grpo_step_s": [90.0, 2.0], "grpo_preparations_s": [30.0, 6.0]}
    assert grpo_rates(cut) == {} == grpo_rates({"loss": 1.0})


def test_a_row_adds_rates_takes_the_slowest_time_and_says_why_it_ended(tmp_path):
    for rank, scale in enumerate((1.0, 1.5)):
        steps = [scale * seconds for seconds in TIMES["grpo_step_s"]]
        times = TIMES | {"grpo_step_s": steps, "peak_gib": 20.0 + rank}
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(times), encoding="utf-8")
    row = make_row(2, tmp_path, "not done within 300 s, see log.txt")
    # Updates of the slower one: 3.0 and 7.5 s.
    assert row["seconds_per_step"] == 5.25 + 3.0
    assert row["tasks_per_s"] == pytest.approx(4 / 5.5 + 4 / 8.25, abs=1e-4)
    assert row["tokens_per_s"] == 400.0 and row["peak_gib"] == 21.0
    assert row["error"] == "not done within 300 s, see log.txt"
    assert "tasks_per_s" not in make_row(3, tmp_path, "")
