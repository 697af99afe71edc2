"""A conversation: what comes in and out, its limits, and what hostile messages do to it."""

import json

import pytest

from agent import Conversation, CustomerTurn, Limits, play
from data_reader import Task

TASK = Task("q", [{"name": "list_all_product_types", "arguments": {}}], "f", "t")


class Parrot:
    """A customer who says the same until told goodbye."""

    def open(self, db):
        return CustomerTurn("hello")

    def reply(self, messages):
        assert messages[-1]["role"] == "assistant"
        if "bye" in messages[-1]["content"]:
            return CustomerTurn("bye", "satisfied")
        return CustomerTurn("go on")


def start(db, **limits):
    return Conversation(TASK, db, Parrot(), Limits(**limits))


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def called(name, arguments="{}", **more):
    function = {"name": name, "arguments": arguments}
    return said(None, tool_calls=[{"id": "c", "type": "function", "function": function}], **more)


def test_words_go_to_the_customer_and_calls_to_the_store(db):
    talk = start(db)
    assert talk.messages == [{"role": "user", "content": "hello"}]
    assert talk.step(said("hi")) == [{"role": "user", "content": "go on"}]
    (observation,) = talk.step(called("list_all_product_types"))
    assert observation["role"] == "tool" and observation["tool_call_id"] == "c"
    assert json.loads(observation["content"]) == dict(db.product_types)
    assert not talk.done
    assert talk.step(said("bye")) == [{"role": "user", "content": "bye"}]
    assert talk.done and talk.termination == "customer_satisfied"
    with pytest.raises(ValueError, match="has ended"):
        talk.step(said("hi"))


def test_words_beside_a_call_stay_with_the_agent(db):
    talk = start(db)
    talk.step({**called("list_all_product_types"), "content": "bye"})
    assert not talk.done and talk.messages[-1]["role"] == "tool"


def test_transfer_ends_and_drops_what_was_asked_for_after_it(db):
    talk = start(db)
    calls = [
        {"function": {"name": "transfer_to_human_agents", "arguments": '{"summary": "x"}'}},
        {"function": {"name": "list_all_product_types", "arguments": "{}"}},
    ]
    talk.step(said(None, tool_calls=calls))
    assert talk.termination == "transferred" and talk.num_calls == 1
    assert len(talk.messages[-2]["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("limits", "message", "termination"),
    [
        ({"max_turns": 2}, said("hi"), "turn_limit"),
        ({"max_calls": 2}, called("list_all_product_types"), "call_limit"),
        ({"max_tokens": 10}, said("x" * 30), "token_limit"),
        ({"max_tokens": 10}, said("x", num_tokens=6), "token_limit"),
        ({"max_seconds": 1e-9}, said("hi"), "time_limit"),
    ],
)
def test_limits_end_the_conversation_and_say_which(db, limits, message, termination):
    talk = start(db, **limits)
    for _ in range(4):
        if not talk.done:
            talk.step(message)
    assert talk.termination == termination
    calls = [call for m in talk.messages for call in m.get("tool_calls", [])]
    assert len(calls) == sum(m["role"] == "tool" for m in talk.messages) == talk.num_calls


def test_limits_that_let_nothing_happen_are_refused():
    with pytest.raises(ValueError, match="max_turns"):
        Limits(max_turns=0)


HOSTILE = [
    None, 5, [], {}, said(None), said(7), said("  "), said("", tool_calls=[]), said(None, tool_calls=5),
]


@pytest.mark.parametrize("message", HOSTILE, ids=repr)
def test_a_message_with_neither_words_nor_calls_ends_it(db, message):
    talk = start(db)
    assert talk.step(message) == [] and talk.termination == "broken_message"
    json.dumps(talk.messages, ensure_ascii=False).encode()


DEEP = "[" * 100_000
CYCLE: dict = {}
CYCLE["self"] = CYCLE


@pytest.mark.parametrize(
    "message",
    [
        said(None, tool_calls=[None]),
        said(None, tool_calls=[{"function": 3}]),
        said(None, tool_calls=[{"id": {}, "function": {"name": [], "arguments": {}}}]),
        called("no_such_tool"),
        called("x" * 1_000_000),
        called("think", "x" * 1_000_000),
        called("think", "[1]"),
        called("think", "{"),
        called("think", '{"thought": NaN}'),
        called("think", '{"thought": 1, "thought": 2}'),
        called("think", DEEP),
        called("think", CYCLE),
        called("think", '{"thought": "\\ud800"}'),
        called("think", '{"\\ud800": "x"}'),
        called("think\ud800", "{}"),
        called("think", None),
        called("think", 10**400),
    ],
    ids=lambda message: repr(message)[:60],
)
def test_a_broken_call_is_refused_and_changes_nothing(db, message):
    talk = start(db, max_tokens=10**9)
    (observation,) = talk.step(message)
    assert observation["content"].startswith("Error: ") and len(observation["content"]) < 300
    assert not talk.done and talk.episode.changed_records() == {"orders": {}, "users": {}}
    assert len(json.dumps(talk.messages, ensure_ascii=False).encode()) < 50_000


def test_hostile_words_are_kept_short_and_writable(db):
    talk = start(db)
    talk.step(said("x\ud800" * 500_000))
    assert talk.termination == "token_limit"
    assert len(json.dumps(talk.messages, ensure_ascii=False).encode()) < 50_000


def test_a_customers_words_are_kept_short_too(db):
    class Flood(Parrot):
        def reply(self, messages):
            return CustomerTurn("x\ud800" * 500_000)

    talk = Conversation(TASK, db, Flood())
    talk.step(said("Hello"))
    assert len(talk.messages[-1]["content"]) == 20_000 and "\ud800" not in talk.messages[-1]["content"]


@pytest.mark.parametrize(
    ("words", "wants_write", "termination"),
    [
        ("Shall I go ahead? bye", True, "customer_left_before_confirmation"),
        ("It is done, bye", True, "customer_satisfied"),
        ("Shall I go ahead? bye", False, "customer_satisfied"),
    ],
)
def test_a_customer_who_leaves_before_the_yes_is_counted_apart(db, words, wants_write, termination):
    cancel = {"order_id": "#W0000000", "reason": "no longer needed"}
    gold = [{"name": "cancel_pending_order", "arguments": cancel}] if wants_write else []
    talk = Conversation(Task("q", gold, "f", "t"), db, Parrot())
    talk.step(said(words))
    assert talk.termination == termination


def test_many_conversations_advance_together(db):
    asked = []

    class Policy:
        def reply(self, conversations):
            asked.append(len(conversations))
            return [said("bye" if c.num_turns >= n else "hi") for n, c in enumerate(conversations)]

    talks = [start(db) for _ in range(3)]
    play(talks, Policy())
    assert all(talk.termination == "customer_satisfied" for talk in talks)
    assert asked[0] == 3 and asked[-1] < 3
