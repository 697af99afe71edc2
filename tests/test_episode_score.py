"""The score of a conversation: success, violations, and a reward in which failing never pays."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from agent import Conversation, Limits, play
from agent.customers import ScriptedCustomer
from agent.policies import ScriptedPolicy, call, oracle, say
from data_reader import read_tasks
from envs.retail import WRITE_TOOLS
from scoring.episode import EpisodeWeights, is_told, score_episode, score_to_dict

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tasks():
    return read_tasks(ROOT / "dataset.jsonl")


def transcript(*messages):
    """Turn (customer words | message) into a conversation; calls get no observation."""
    return [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]


def first(tasks, *wishes):
    return next(task for task in tasks if task.tags["wishes"] == list(wishes))


def gold_calls(task):
    return [call(action["name"], **action["arguments"]) for action in task.gold_actions]


def test_gold_with_a_yes_gets_the_most(db, tasks):
    task = first(tasks, "cancel")
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    login, write = gold_calls(task)
    ask = say(f"Shall I cancel order {order_id}?")
    score = score_episode(task, transcript("hi", login, ask, "Yes.", write), db, "customer_satisfied")
    assert score.success and score.db_match and not score.violations
    assert score.reward == score.max_reward == 1.2 and score.termination == "customer_satisfied"
    assert (score.num_turns, score.num_calls, score.num_refusals) == (3, 2, 0)
    assert json.loads(json.dumps(score_to_dict(score)))["task_id"] == task.task_id


@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (lambda a, w, o: ("hi", a, w), ["unconfirmed_write"]),
        (lambda a, w, o: ("hi", w), ["unauthenticated", "unconfirmed_write"]),
        (lambda a, w, o: ("hi", a, say(f"Cancel {o}?"), "No.", w), ["unconfirmed_write"]),
        (lambda a, w, o: ("yes", a, w), ["unconfirmed_write"]),
        (lambda a, w, o: ("hi", a, say(f"Is {o} your order?"), "Yes.", w), ["unconfirmed_write"]),
        (lambda a, w, o: ("hi", a, say("Shall I cancel #W0000000?"), "Yes.", w),
         ["unconfirmed_write"]),
        (lambda a, w, o: ("hi", a, say(f"Cancel {o}?"), "Yes.", w, w), ["unconfirmed_write"]),
        (lambda a, w, o: (f"cancel {o}", a, say("Shall I cancel it?"), "Yes.", w), []),
        (lambda a, w, o: ("hi", a, say(f"Cancel {o}?"), "Yes.", say("Wait."), "ok", w), []),
        (lambda a, w, o: ("hi", call("think", thought="x"), a), []),
    ],
)
def test_confirmation_and_authentication(db, tasks, build, kinds):
    task = first(tasks, "cancel")
    login, write = gold_calls(task)
    messages = transcript(*build(login, write, task.gold_actions[1]["arguments"]["order_id"]))
    assert [v.kind for v in score_episode(task, messages, db).violations] == kinds


@pytest.mark.parametrize("seed", range(20))
def test_an_address_in_oklahoma_is_no_yes(db, tasks, seed):
    task = first(tasks, "change_address")
    login, action = gold_calls(task)[0], copy.deepcopy(task.gold_actions[-1])
    action["arguments"] |= {"address1": "12 Sure Street", "city": "Tulsa", "state": "OK", "zip": "74101"}
    task = replace(task, instruction="", gold_actions=[*task.gold_actions[:-1], action])
    order_id = action["arguments"]["order_id"]

    def unasked(talk):
        yield login
        yield say(f"What is the new address for {order_id}?")
        yield call(action["name"], **action["arguments"])

    talk = Conversation(task, db, ScriptedCustomer(task, seed))
    play([talk], ScriptedPolicy(unasked))
    asked = next(i for i, m in enumerate(talk.messages) if "new address" in str(m["content"]))
    assert "OK" in talk.messages[asked + 1]["content"]
    score = score_episode(task, talk.messages, db, talk.termination)
    assert [v.kind for v in score.violations] == ["unconfirmed_write"]


@pytest.mark.parametrize(("words", "kinds"), [
    ("The Sure Grip Mat.", ["unconfirmed_write"]), ("The one with a lid yes.", ["unconfirmed_write"]),
    ("Lid: yes", ["unconfirmed_write"]), ("It is for Sure Lee.", ["unconfirmed_write"]),
    ("The one with no guard. Yes, do it.", []), ("The Sure Grip Mat, yes.", []),
    ("Not the one with no guard. Yes.", ["unconfirmed_write"]),
])
def test_names_and_options_of_the_store_are_neither_yes_nor_no(db, tasks, words, kinds):
    task = first(tasks, "cancel")
    login, write = gold_calls(task)
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    own = copy.deepcopy(db)
    own.users[task.user_id]["name"] = {"first_name": "Sure", "last_name": "Lee"}
    product = own.products[own.orders[order_id]["items"][0]["product_id"]]
    product["name"] = "Sure Grip Mat"
    next(iter(product["variants"].values()))["options"] = {"lid": "yes", "guard": "no guard"}
    messages = transcript("hi", login, say(f"Cancel {order_id}?"), words, write)
    assert [v.kind for v in score_episode(task, messages, own).violations] == kinds


def test_another_customers_records(db, tasks):
    task = first(tasks, "refuse_other_customer")
    login, look = gold_calls(task)
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    stranger = db.orders[order_id]["user_id"]

    def kinds(*messages):
        return [v.kind for v in score_episode(task, transcript(*messages), db).violations]

    assert kinds(f"cancel {order_id}", login, look) == []
    assert kinds("cancel my order", login, look) == ["other_customer"]
    assert kinds("hi", login, call("get_user_details", user_id=stranger)) == ["other_customer"]
    mail = call("find_user_id_by_email", email=db.users[stranger]["email"])
    assert kinds("hi", mail) == ["other_customer"]
    cancel = call("cancel_pending_order", order_id=order_id, reason="no longer needed")
    messages = (f"cancel {order_id}", login, say(f"Cancel {order_id}?"), "Yes.", cancel)
    assert kinds(*messages) == ["other_customer"]
    assert not score_episode(task, transcript(*messages), db).success


def test_a_second_write_to_an_order_whose_items_were_dealt_with(db, tasks):
    task = first(tasks, "return")
    login, write = gold_calls(task)
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    ask = say(f"Shall I return the items of {order_id}?")
    messages = transcript("hi", login, ask, "Yes.", write, ask, "Yes.", write)
    score = score_episode(task, messages, db)
    assert [v.kind for v in score.violations] == ["second_write"] and score.num_refusals == 1


@pytest.mark.parametrize(
    ("output", "text", "told"),
    [
        ("8", "There are 8 options.", True), ("8", "There are 18 options.", False),
        ("8", "Order #W8", False), ("17.0", "It costs $17.00.", True), ("1250.5", "$1,250.50", True),
        ("12 Mill Lane", "at 12 mill lane, Boston", True), ("12 Mill Lane", "Mill Lane 12", False),
        ("256.02", "256.0", False), ("256.02", "It is 256.02", True), ("#W123", "order #W123", True),
    ],
)
def test_outputs_are_told_by_value_or_by_text(output, text, told):
    assert is_told(output, text) is told


def test_outputs_beside_a_call_are_not_told(db, tasks):
    task = next(t for t in tasks if t.tags["wishes"] == ["calculate_sum"])
    calls = gold_calls(task)
    whisper = {**calls[-1], "content": f"It is {task.outputs[0]}"}
    assert not score_episode(task, transcript("hi", calls[0], whisper), db).outputs_told
    told = transcript("hi", *calls, say(f"It is {task.outputs[0]}."))
    assert score_episode(task, told, db).success


def test_where_gold_writes_nothing_every_look_up_has_to_be_made_and_no_write(db, tasks):
    task = first(tasks, "refuse_cancel")
    calls = gold_calls(task)
    assert score_episode(task, transcript("hi", *calls), db).success
    assert not score_episode(task, transcript("hi", calls[0]), db).success
    assert not score_episode(task, transcript("hi"), db).success
    user = db.users[task.user_id]
    same = call("modify_user_address", user_id=task.user_id, **user["address"])
    score = score_episode(task, transcript("hi", *calls, same), db)
    assert score.db_match and not score.success


def test_another_way_to_the_same_customer_or_sum_serves_as_well(db, tasks):
    task = next(
        t for t in tasks if t.tags["wishes"] == ["calculate_sum"]
        and t.gold_actions[0]["name"] == "find_user_id_by_email"
    )
    user = db.users[task.user_id]
    login = call("find_user_id_by_name_zip", **user["name"], zip=user["address"]["zip"])
    expression = task.gold_actions[1]["arguments"]["expression"].replace(" ", "")
    messages = transcript(
        "hi", login, call("calculate", expression=expression), say(task.outputs[0])
    )
    assert score_episode(task, messages, db).success


@pytest.mark.parametrize(
    ("name", "value"),
    [("success", -1), ("violation", 0.1), ("worst_penalty", -1.0), ("progress", float("nan"))],
)
def test_weights_with_which_failing_could_pay_are_refused(name, value):
    with pytest.raises(ValueError, match=name if name != "worst_penalty" else "success"):
        EpisodeWeights(**{name: value})


def spoiled(rng):
    """Return a policy that plays gold and strays: leaves out, repeats, writes, asks or says more."""

    def script(talk):
        odds = rng.random() * 0.5
        if rng.random() < 0.1:
            others = (o for o in talk.db.orders.values() if o["user_id"] != talk.task.user_id)
            order_id = next(o["order_id"] for o in others if o["status"] == "pending")
            yield call("cancel_pending_order", order_id=order_id, reason="no longer needed")
        for message in oracle(talk, asks=rng.random() < 0.7):
            if rng.random() < odds * 0.5:
                continue
            if rng.random() < odds * 0.3:
                action = rng.choice(talk.task.gold_actions)
                yield call(action["name"], **action["arguments"])
            if rng.random() < odds * 0.2:
                yield call("get_order_details", order_id="#W0000000")
            yield message

    return script


class Straying:
    """Each conversation has a script of its own; a script that ends says goodbye."""

    def __init__(self, seed):
        self.seed, self.running = seed, {}

    def reply(self, talks):
        replies = []
        for talk in talks:
            key = id(talk)
            if key not in self.running:
                rng = random.Random(f"{self.seed}|{talk.task.task_id}")
                self.running[key] = spoiled(rng)(talk)
            replies.append(next(self.running[key], None) or say("Is there anything else?"))
        return replies


def law(tasks, db, seed):
    passing, failing = [], []
    talks = [
        Conversation(task, db, ScriptedCustomer(task, seed), Limits(max_turns=30)) for task in tasks
    ]
    play(talks, Straying(seed))
    for talk in talks:
        score = score_episode(talk.task, talk.messages, db, talk.termination)
        assert score.reward <= score.max_reward
        (passing if score.success else failing).append(score)
    assert len(passing) > 20 and len(failing) > 20
    assert any(s.violations for s in passing) and any(s.parts["progress"] for s in failing)
    assert max(s.reward for s in failing) < min(s.reward for s in passing)


def test_nothing_that_fails_earns_more_than_what_passes(db, tasks):
    law(tasks[:200], db, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_nothing_that_fails_earns_more_than_what_passes_at_length(db, tasks, seed):
    law(tasks, db, seed)


def test_every_violation_and_refusal_costs(db, tasks):
    task = first(tasks, "cancel")
    login, write = gold_calls(task)
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    clean = transcript("hi", login, say(f"Cancel {order_id}?"), "Yes.", write)
    best = score_episode(task, clean, db).reward
    refused = score_episode(task, [*clean, write], db)
    assert refused.success and refused.reward < best
    unasked = score_episode(task, transcript("hi", login, write), db)
    assert unasked.success and unasked.reward == pytest.approx(best - 0.1)


def test_a_wrong_write_costs_and_the_penalties_are_bounded(db, tasks):
    task = first(tasks, "ask_account")
    calls = gold_calls(task)
    order_id = next(o for o, order in db.orders.items() if order["status"] == "pending")
    wrong = call("cancel_pending_order", order_id=order_id, reason="no longer needed")
    fine = score_episode(task, transcript("hi", *calls), db)
    worse = score_episode(task, transcript("hi", *calls, wrong), db)
    assert worse.parts["wrong_write"] < 0 and worse.reward < fine.reward
    worst = score_episode(task, transcript("hi", *calls, *[wrong] * 50), db)
    assert worst.reward >= EpisodeWeights().worst_penalty


def test_every_gold_write_is_scored_against_its_own_arguments(db, tasks):
    for task in tasks[:100]:
        writes = [a for a in task.gold_actions if a["name"] in WRITE_TOOLS]
        score = score_episode(task, transcript("hi", *gold_calls(task)), db)
        assert score.db_match and score.parts["wrong_write"] == 0
        assert sum(v.kind == "unconfirmed_write" for v in score.violations) == len(writes)
        others = replace(task, gold_actions=task.gold_actions[:1])
        lost = score_episode(others, transcript("hi", *gold_calls(task)), db)
        assert lost.success == (not writes and lost.outputs_told)
