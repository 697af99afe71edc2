"""The worked numbers of docs/TRAINING_METHODOLOGY.md are what the scorer gives."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from data_reader import Task
from task_tester import max_reward, score_completion

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "TRAINING_METHODOLOGY.md"


@pytest.fixture(scope="module")
def task(db):
    order = next(order for order in db.orders.values() if order["status"] == "pending")
    email = db.users[order["user_id"]]["email"]
    arguments = {"order_id": order["order_id"], "reason": "no longer needed"}
    return Task(
        query=f"{email}: cancel {order['order_id']}", gold_final="cancelled", task_id="worked",
        gold_actions=[
            {"name": "find_user_id_by_email", "arguments": {"email": email}},
            {"name": "cancel_pending_order", "arguments": arguments},
        ],
    )


def completions(task):
    """Return the document's completions, in the order of its table."""
    gold = task.gold_actions
    wrong_id, no_reason = copy.deepcopy(gold), copy.deepcopy(gold)
    wrong_id[1]["arguments"]["order_id"] = "#W0000000"
    del no_reason[1]["arguments"]["reason"]
    look = {"name": "get_order_details", "arguments": {"order_id": gold[1]["arguments"]["order_id"]}}
    plans = [gold, wrong_id, no_reason, gold[:1], [gold[0], look, gold[1]]]
    texts = [json.dumps({"tool_calls": plan}) for plan in plans]
    return [*texts, "Sure! " + texts[0]]


def test_worked_numbers(task, db):
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.split("| completion | reward | outcome |")[1].split("\n\n")[0]
    rows = re.findall(r"\*\*(-?[\d.]+)\*\* \| ([01]) \|", table)
    assert len(rows) == 6
    assert max_reward(task) == 3.5
    for (reward, outcome), completion in zip(rows, completions(task), strict=True):
        score = score_completion(task, completion, db)
        assert (score.reward, score.outcome) == (float(reward), float(outcome)), completion


def test_numbers_on_hedging(task, db):
    """Both calls against a guess: what they earn, and from which certainty on the guess is better."""
    text = DOCUMENT.read_text(encoding="utf-8")
    paragraph = " ".join(text.split("**Hedging between two tools pays.**")[1].split("\n\n")[0].split())
    look_up, cancel = task.gold_actions
    order = db.orders[cancel["arguments"]["order_id"]]
    used = order["payment_history"][0]["payment_method_id"]
    methods = db.users[order["user_id"]]["payment_methods"]
    other = next(method for method in methods if method != used)
    arguments = {"order_id": order["order_id"], "payment_method_id": other}
    change = {"name": "modify_pending_order_payment", "arguments": arguments}
    tasks = [task, replace(task, gold_actions=[look_up, change])]

    def score(one, *calls):
        return score_completion(one, json.dumps({"tool_calls": [look_up, *calls]}), db)

    hedges = [score(one, change, cancel) for one in tasks]
    right = [score(tasks[0], cancel), score(tasks[1], change)]
    wrong = [score(tasks[0], change), score(tasks[1], cancel)]
    assert all((s.reward, s.outcome, s.exact_match, s.db_match) == (3.2, 0, 0, 0) for s in hedges)
    assert all((s.reward, s.outcome) == (3.5, 1) for s in right)
    assert all((s.reward, s.outcome) == (1.2, 0) for s in wrong)
    tool_only = (3.2 - 1.2) / (3.5 - 1.2)
    both = (3.2 - 1.2) / (3.5 + 1 - 1.2)
    even_weight = 2 * (3.2 - (3.5 + 1.2) / 2)
    for number in (
        "**3.2**", "**1.2**", f"**{(3.5 + 1.2) / 2:g}**", f"below {tool_only:.0%}".replace("%", " %"),
        f"below {both:.0%}".replace("%", " %"), f"{(3.5 + 1 + 1.2) / 2:g} for a coin flip",
        f"`grpo.outcome_reward_weight` {even_weight:g} on",
    ):
        assert number in paragraph, number
