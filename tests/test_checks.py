"""The checks on tasks: clean rows pass, planted faults are named, words are read as people do."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_reader import Task, read_tasks, task_from_json, task_to_json
from envs.retail import RetailDatabase
from tasks.audit.conventions import check_conventions
from tasks.audit.duplicates import UniquenessCheck
from tasks.audit.execution import RowChecks, check_execution, check_format, is_scenario
from tasks.audit.grounding import (
    MISTAKE,
    NOT_NEEDED,
    cancel_reason,
    check_agent_grounding,
    check_grounding,
    find_value,
)
from tasks.audit.policy import check_policy
from tasks.generate.pipeline import TaskStream
from tests import small_store
from tests.plant_faults import FAULT_CLASSES

ROOT = Path(__file__).resolve().parent.parent
TAU_BENCH = ROOT.parent / "shared" / "taubench"
needs_tau_bench = pytest.mark.skipif(not TAU_BENCH.is_dir(), reason="tau-bench's data is not here")

# Faults of a row's form and of its outputs are the reader's and the audit's own questions.
OWN_KINDS = {"unreadable", "unfounded_output", "other_user_id", "address_shape"}


def kinds(task: Task, db: RetailDatabase) -> set[str]:
    """Return the kinds of all faults of a task."""
    faults = check_format(task)
    if not faults:
        for check in (check_execution, check_policy, check_grounding, check_conventions):
            faults += check(task, db)
        faults += check_agent_grounding(task, db)
    return {fault.kind for fault in faults}


@pytest.fixture(scope="module")
def tasks():
    return list(TaskStream(500, seed=11))


@pytest.fixture(scope="module")
def rows(tasks):
    return [json.loads(task_to_json(task, keep_empty=True)) for task in tasks]


def test_clean_tasks_have_no_fault(tasks, db):
    assert {task.task_id: kinds(task, db) for task in tasks if kinds(task, db)} == {}


@pytest.mark.parametrize(
    "fault", [f for f in FAULT_CLASSES if f.kind not in OWN_KINDS], ids=lambda f: f.name
)
def test_planted_fault_is_named_in_every_row_that_can_carry_it(fault, rows, db):
    num_planted = 0
    for row in rows:
        spoiled = fault.spoil(copy.deepcopy(row), db)
        if spoiled is None or spoiled == row:
            continue
        # A cancellation may refund enough to a gift card that was short before.
        if fault.kind == "gift_card_short" and "cancel" in row["tags"]["wishes"]:
            continue
        num_planted += 1
        task = task_from_json(json.dumps(spoiled)) if fault.kind != "schema" else _raw(spoiled)
        assert kinds(task, db), spoiled["query"]
    assert num_planted >= 1


def _raw(row: dict) -> Task:
    """Return a row as a task without the reader's own checks."""
    return Task(row["query"], row["gold_actions"], row["gold_final"], row["task_id"])


def _second_call(task: Task, **arguments: object) -> Task:
    gold = copy.deepcopy(task.gold_actions)
    gold[1]["arguments"].update(arguments)
    return replace(task, gold_actions=gold)


def test_item_left_out_of_gold_is_named(tasks, db):
    several = [t for t in tasks if len(t.gold_actions[1]["arguments"].get("item_ids", "")) > 1]
    assert len(several) > 20
    for task in several:
        if task.tags["distractor"] or task.tags["refusal"]:
            continue
        arguments = task.gold_actions[1]["arguments"]
        shorter = {k: v[1:] for k, v in arguments.items() if isinstance(v, list)}
        assert "unused_id" in kinds(_second_call(task, **shorter), db)


def test_flipped_sign_is_named(tasks, db):
    sums = [t for t in tasks if "expression" in t.gold_actions[1]["arguments"]]
    assert len(sums) > 10
    for task in sums:
        expression = task.gold_actions[1]["arguments"]["expression"]
        flipped = expression.translate(str.maketrans("+-", "-+"))
        assert "expression_form" in kinds(_second_call(task, expression=flipped), db)


def test_missing_authentication_is_named(tasks, db):
    for task in tasks:
        assert "first_call" in kinds(replace(task, gold_actions=task.gold_actions[1:]), db)


def test_refused_intent_that_gold_grants_is_named(tasks, db):
    refused = [t for t in tasks if t.tags["wishes"] == ["refuse_cancel"]]
    assert refused
    for task in refused:
        order_id = task.gold_actions[1]["arguments"]["order_id"]
        cancel = {"order_id": order_id, "reason": NOT_NEEDED}
        call = {"name": "cancel_pending_order", "arguments": cancel}
        granted = replace(task, gold_actions=[task.gold_actions[0], call])
        assert {"refused_call", "wrong_status", "tool_of_wish"} <= kinds(granted, db)


def own_row(db: RetailDatabase, query: str, *actions: tuple[str, dict], **fields) -> Task:
    """Return a user's own row: the required fields only."""
    gold = [{"name": name, "arguments": arguments} for name, arguments in actions]
    return Task(query, gold, "done", "line-1", **fields)


@pytest.fixture
def pending(db):
    """An order that can be cancelled, with its user."""
    order_id = next(i for i, o in db.orders.items() if o["status"] == "pending")
    return order_id, db.users[db.orders[order_id]["user_id"]]


def test_own_row_with_required_fields_passes(db, pending):
    order_id, user = pending
    task = own_row(
        db,
        f"Hi, cancel order {order_id}. I don't need it. My email is {user['email'].upper()}",
        ("find_user_id_by_email", {"email": user["email"]}),
        ("get_order_details", {"order_id": order_id}),
        ("cancel_pending_order", {"order_id": order_id, "reason": NOT_NEEDED}),
    )
    assert kinds(task, db) == set()


def test_own_row_may_name_an_order_without_its_hash(db, pending):
    order_id, user = pending
    task = own_row(
        db,
        f"Ordered by mistake: {order_id[1:]}. {user['email']}",
        ("find_user_id_by_email", {"email": user["email"]}),
        ("cancel_pending_order", {"order_id": order_id, "reason": MISTAKE}),
    )
    assert kinds(task, db) == set()


def test_own_row_with_a_part_of_an_id_is_not_grounded(db, pending):
    order_id, user = pending
    task = own_row(
        db,
        f"cancel {order_id}9, I don't need it. {user['email']}.au",
        ("find_user_id_by_email", {"email": user["email"]}),
        ("cancel_pending_order", {"order_id": order_id, "reason": NOT_NEEDED}),
    )
    assert [fault.kind for fault in check_grounding(task, db)] == ["ungrounded", "ungrounded"]


ADDRESS = {
    "address1": "9 Other Road",
    "address2": "",
    "city": "Boise",
    "state": "ID",
    "country": "USA",
    "zip": "83702",
}


@pytest.mark.parametrize(
    ("words", "second", "grounded"),
    [
        ("9 Other Road, Boise, ID 83702, USA", "", True),
        ("9 Other Road (no apartment), Boise, ID 83702, USA", "", True),
        ("street 9 Other Road, unit none, city Boise, state ID, country USA, zip 83702", "", True),
        ("9 Other Road, Apt 4, Boise, ID 83702, USA", "", False),
        ("9 Other Road, Apt 4, Boise, ID 83702, USA", "Apt 4", True),
        ("9 Other Road, Floor 2, Boise, ID 83702, USA", "", False),
        ("9 other road, apt 4, boise, ID 83702, usa", "Apt 4", True),
        ("9 Other Road, Boise, id 83702, USA", "", False),
        ("9 Other Road, Boise, ID, USA", "", False),
        ("9 Other Road" + " and so on" * 30 + ", Boise, ID 83702, USA", "", False),
    ],
)
def test_address_is_grounded_as_people_write_it(words, second, grounded, db, pending):
    order_id, user = pending
    task = own_row(
        db,
        f"{user['email']}: send {order_id} to {words}",
        ("find_user_id_by_email", {"email": user["email"]}),
        (
            "modify_pending_order_address",
            {"order_id": order_id, **ADDRESS, "address2": second},
        ),
    )
    assert (check_grounding(task, db) == []) is grounded


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Cancel #W1111111, I don't need it.", NOT_NEEDED),
        ("Cancel #W1111111.", NOT_NEEDED),
        ("I ordered #W1111111 by mistake, cancel it.", MISTAKE),
        ("Cancel #W1111111. It was an accident.", MISTAKE),
        ("I clicked the wrong button. Please cancel #W1111111.", MISTAKE),
        ("It was no mistake, but cancel #W1111111.", NOT_NEEDED),
        ("Cancel #W2222222, a mistake. And cancel #W1111111, too late now.", NOT_NEEDED),
        ("Cancel #W2222222. It was a mistake. Cancel #W1111111. Too late now.", NOT_NEEDED),
        ("Cancel #W1111111 and #W2222222, both by mistake.", None),
        ("Cancel #W2222222.", None),
    ],
)
def test_cancel_reason_follows_from_the_words_near_the_order(text, reason):
    assert cancel_reason(text, "#W1111111") == reason


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("zip 12345.", "12345", True),
        ("zip 123456", "12345", False),
        ("me@x.com.", "me@x.com", True),
        ("me@x.com.au", "me@x.com", False),
        ("some.me@x.com", "me@x.com", False),
        ("anna.lee@x.com", "lee", False),
        ("paypal_12", "paypal_1", False),
        ("price 12.50", "50", False),
        ("price 12.50", "12", False),
        ("zip 12345.Thanks", "12345", True),
        ("order no.#W1111111", "#W1111111", True),
    ],
)
def test_values_are_found_as_tokens_of_their_own(text, value, found):
    assert (find_value(text, value) != -1) is found


def test_repeated_query_and_id_are_duplicates(tasks):
    unique = UniquenessCheck()
    assert unique.check(tasks[0]) == []
    again = replace(tasks[0], query=tasks[0].query.upper() + " !")
    assert [f.kind for f in unique.check(again)] == ["duplicate_query", "duplicate_task_id"]
    assert unique.check(tasks[1]) == []


def test_agent_view_needs_what_neither_scenario_nor_lookup_gives(tasks, db):
    task = next(t for t in tasks if t.tags["wishes"] == ["cancel"])
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    assert check_agent_grounding(task, db) == []
    other = replace(task, instruction=task.instruction.replace("mistake", "intention"))
    if task.gold_actions[1]["arguments"]["reason"] == MISTAKE:
        assert [f.kind for f in check_agent_grounding(other, db)] == ["reason_contradicts"]
    without = task.instruction.replace(order_id, "it")
    # The customer's orders are shown by a lookup, so the id itself need not be told.
    assert check_agent_grounding(replace(task, instruction=without), db) == []


@needs_tau_bench
def test_tau_bench_gold_that_its_own_tools_refuse_is_named():
    db = RetailDatabase.load(TAU_BENCH)
    refused = {
        task.task_id
        for task in read_tasks(TAU_BENCH / "tasks_train.json")
        if check_execution(task, db)
    }
    short = {
        task.task_id
        for task in read_tasks(TAU_BENCH / "tasks_train.json")
        if {f.kind for f in check_policy(task, db, require_authentication=False)} - {"same_item"}
    }
    assert len(refused) == 15
    assert short == refused


# -- scenarios: what the customer's own records show --------------------------------------------


@pytest.fixture
def scenario():
    """A store of one customer, and a function that makes a scenario row about her."""
    db = RetailDatabase(**small_store.make_records())

    def faults(text, name, user_id=small_store.USER, **arguments):
        action = {"name": name, "arguments": arguments}
        task = Task(text, [action], "", "t", user_id=user_id, instruction=text)
        assert is_scenario(task)
        return [fault.detail.split(": ")[1] for fault in check_agent_grounding(task, db, True)]

    return db, faults


def test_scenario_arguments_are_shown_by_the_customers_records(scenario):
    db, faults = scenario
    user = db.users[small_store.USER]
    name, address = user["name"], user["address"]
    wish = "You are Ana. You want your things to go to the address of your profile."
    who = {"first_name": name["first_name"], "last_name": name["last_name"], "zip": address["zip"]}
    order_id = small_store.PENDING
    for tool, arguments in (
        ("find_user_id_by_email", {"email": user["email"].upper()}),
        ("find_user_id_by_name_zip", who),
        ("modify_pending_order_address", {"order_id": order_id, **address}),
        ("modify_user_address", {"user_id": small_store.USER, **address}),
        ("calculate", {"expression": "(10.1 + 90.00) - 12.37"}),
        ("get_product_details", {"product_id": small_store.LAMP}),
        ("modify_pending_order_payment", {"order_id": order_id, "payment_method_id": small_store.GIFT}),
    ):
        assert faults(wish, tool, **arguments) == [], tool


def test_scenario_arguments_from_nowhere_are_named(scenario):
    db, faults = scenario
    user = db.users[small_store.USER]
    wish = "You are Ana. You want to send it to Boise, zip 83702."
    new = small_store.NEW_ADDRESS
    assert faults(wish, "find_user_id_by_email", email="else@example.com") == [
        "email 'else@example.com' is neither said nor shown"
    ]
    assert [
        fault.split()[0]
        for fault in faults(wish, "modify_user_address", user_id=small_store.USER, **new)
    ] == ["address1", "address2", "state"]
    assert faults(wish, "calculate", expression="10.1 + 7.77") == [
        "expression '10.1 + 7.77' is neither said nor shown"
    ]
    assert len(faults(wish, "transfer_to_human_agents", summary="a price match")) == 1
    # Nobody's records are open before the customer is known.
    assert len(faults(wish, "find_user_id_by_email", user_id=None, email=user["email"])) == 1


def test_what_an_earlier_call_returned_is_shown(scenario):
    db, _ = scenario
    calls = [
        {"name": "find_user_id_by_email", "arguments": {"email": db.users[small_store.USER]["email"]}},
        {"name": "calculate", "arguments": {"expression": "12.37 - 10.1"}},
        {"name": "calculate", "arguments": {"expression": "2.27 + 10.1"}},
    ]
    text = f"You are {db.users[small_store.USER]['email']} and wonder about 10.1 and 12.37."
    task = Task(text, calls, "", "t", instruction=text)
    assert check_agent_grounding(task, db, True) == []
    early = replace(task, gold_actions=[calls[0], calls[2], calls[1]])
    assert [f.kind for f in check_agent_grounding(early, db, True)] == ["ungrounded"]


def test_a_message_must_tell_what_a_scenario_need_not(scenario):
    db, _ = scenario
    email = db.users[small_store.USER]["email"]
    action = {"name": "find_user_id_by_email", "arguments": {"email": email}}
    task = Task(f"I am {email}", [action], "", "t", small_store.USER, "You are Ana.")
    assert [f.kind for f in check_agent_grounding(task, db)] == ["ungrounded"]


# -- outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output, founded", [
    ("2", True),  # the available variants, a number that stands in no record
    ("3", False),  # a digit of an id
    ("11.5", True), ("11", False), ("Cup", True), ("Cu", False),
])
def test_an_output_is_a_shown_value_or_a_count(output, founded):
    records = small_store.make_records()
    variants = {
        item_id: {"item_id": item_id, "options": {}, "available": available, "price": 11.5}
        for item_id, available in (("1111111111", True), ("1111111113", True), ("1111111114", False))
    }
    product = {"name": "Cup", "product_id": "1111111110", "variants": variants}
    records["products"]["1111111110"] = product
    db = RetailDatabase(**records)
    action = {"name": "get_product_details", "arguments": {"product_id": "1111111110"}}
    task = Task("?", [action], "", "t", outputs=[output], tags={"wishes": ["ask_product"]})
    assert (RowChecks(db).output_findings(task) == []) is founded
