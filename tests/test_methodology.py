"""The worked numbers of docs/TRAINING_METHODOLOGY.md are what the scorer gives."""

import copy
import json
import re
from pathlib import Path

import pytest

from data_reader import Task
from envs.retail import RetailDatabase
from task_tester import max_reward, score_completion

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "TRAINING_METHODOLOGY.md"


@pytest.fixture(scope="module")
def db():
    return RetailDatabase.load()


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
