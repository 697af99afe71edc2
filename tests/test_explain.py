"""What people are shown agrees with the scorer and the store."""

import json

import pytest
import torch

from data_reader import Task, gold_completion
from scoring.explain import (
    break_one_argument,
    explain_calls,
    explain_completion,
    format_score,
    group_advantages,
)
from task_tester import max_reward, score_completion


@pytest.fixture(scope="module")
def task(db):
    order = next(order for order in db.orders.values() if order["status"] == "pending")
    email = db.users[order["user_id"]]["email"]
    return Task(
        query=f"Cancel {order['order_id']} please, I no longer need it. {email}",
        gold_actions=[
            {"name": "find_user_id_by_email", "arguments": {"email": email}},
            {"name": "cancel_pending_order",
             "arguments": {"order_id": order["order_id"], "reason": "no longer needed"}},
        ],
        gold_final="cancelled the pending order", task_id="one",
    )


def test_gold_shows_its_calls_its_change_and_the_full_reward(task, db):
    text = explain_completion(task, gold_completion(task), db)
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    assert f"orders/{order_id}.status: pending -> cancelled" in text
    assert f'orders/{order_id}.payment_history: added [{{"transaction_type": "refund"' in text
    assert f"reward {max_reward(task):g} of {max_reward(task):g}" in text
    assert "refused" not in text


def test_broken_copy_is_refused_and_earns_less(task, db):
    broken = break_one_argument(task)
    assert broken != gold_completion(task)
    text = explain_completion(task, broken, db)
    assert "refused" in text and "changed nothing" in text
    assert score_completion(task, broken, db).reward < max_reward(task)


def test_prose_is_no_plan(task, db):
    assert explain_calls("Sure! Done.", db).startswith("no plan (")
    assert "unparsable -1" in format_score(score_completion(task, "Sure! Done.", db))


def test_control_characters_of_a_model_do_not_reach_a_terminal(db):
    plan = json.dumps({"tool_calls": [{"name": "a\x1b[2J", "arguments": {"k": "\x9b2J"}}]}, ensure_ascii=False)
    for completion in (plan, "Done\x1b[2J\x9b2J.\nReally."):
        shown = explain_calls(completion, db)
        assert all(line.isprintable() for line in shown.split("\n")) and "2J" in shown


def test_break_needs_a_text_argument(task):
    listing = Task(query="q", gold_actions=[{"name": "list_all_product_types", "arguments": {}}],
                   gold_final="", task_id="two")
    with pytest.raises(ValueError, match="two: the last gold call has no text"):
        break_one_argument(listing)


@pytest.mark.parametrize("rewards", [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [2.0, -1.0, 0.5]])
def test_advantages_are_those_of_trl(rewards):
    tensor = torch.tensor(rewards, dtype=torch.float64)
    expected = (tensor - tensor.mean()) / (tensor.std() + 1e-4)
    assert group_advantages(rewards) == pytest.approx(expected.tolist(), abs=1e-3)
    assert sum(group_advantages(rewards)) == pytest.approx(0, abs=1e-2)
