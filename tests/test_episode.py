"""Episodes: isolated from each other, unharmed by anything a model may write, honest about bugs."""

import copy
import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import (
    ADDRESS,
    BLUE,
    CARD,
    CUP,
    DELIVERED,
    GIFT,
    GIFT_PENDING,
    LAMP,
    LOST,
    NEW_ADDRESS,
    PAYPAL,
    PENDING,
    RED,
    SHORT,
    TALL,
    USER,
    make_episode,
    make_records,
)

from envs.retail import TOOL_SCHEMAS, Episode, Observation, RetailDatabase, check_arguments
from envs.retail.tools import TOOLS, RetailTools
from envs.retail.tools.schema import Tool

CANCEL = {"order_id": PENDING, "reason": "no longer needed"}


def text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def test_two_episodes_do_not_see_each_other() -> None:
    database = RetailDatabase(**make_records())
    one, other = Episode(database), Episode(database)
    assert one.call("cancel_pending_order", CANCEL).ok
    assert one.call("modify_user_address", {"user_id": USER, **NEW_ADDRESS}).ok
    assert other.changed_records() == {"orders": {}, "users": {}}
    order = other.call("get_order_details", {"order_id": PENDING}).content
    assert order == make_records()["orders"][PENDING]
    assert text(database.orders) == text(make_records()["orders"])
    assert text(database.users) == text(make_records()["users"])


def test_what_is_handed_out_is_a_copy() -> None:
    database = RetailDatabase(**make_records())
    episode = Episode(database)
    for name, arguments in (
        ("get_order_details", {"order_id": PENDING}),
        ("get_user_details", {"user_id": USER}),
        ("get_product_details", {"product_id": CUP}),
        ("list_all_product_types", {}),
        ("cancel_pending_order", CANCEL),
    ):
        content = episode.call(name, arguments).content
        for value in content.values():
            if isinstance(value, dict | list):
                value.clear()
        content.clear()
    changed = episode.changed_records()
    changed["orders"][PENDING]["items"].clear()
    assert len(episode.changed_records()["orders"][PENDING]["items"]) == 2
    assert text(database.orders) == text(make_records()["orders"])
    assert text(database.products) == text(make_records()["products"])
    assert Episode(database).call("list_all_product_types", {}).content == {
        "Cup": CUP,
        "Lamp": LAMP,
    }


def test_an_observation_does_not_change_afterwards() -> None:
    episode = make_episode()
    before = episode.call("get_order_details", {"order_id": PENDING})
    episode.call("cancel_pending_order", CANCEL)
    assert before.content["status"] == "pending"
    with pytest.raises(AttributeError):
        before.ok = False  # type: ignore[misc]


def test_a_write_copies_only_what_it_touches() -> None:
    episode = make_episode()
    assert episode.call("cancel_pending_order", {**CANCEL, "order_id": GIFT_PENDING}).ok
    assert set(episode._store._orders) == {GIFT_PENDING}
    assert set(episode._store._users) == {USER}


def test_construction_takes_constant_time() -> None:
    small, large = RetailDatabase(**make_records()), RetailDatabase.load()

    def best_time_s(database: RetailDatabase) -> float:
        times = []
        for _ in range(20):
            start = time.process_time()
            for _ in range(200):
                Episode(database)
            times.append(time.process_time() - start)
        return min(times)

    assert best_time_s(large) < 5 * best_time_s(small)


def test_threads_do_not_see_each_other() -> None:
    database = RetailDatabase.load()
    before = text(database.orders) + text(database.users)
    pending = [key for key, order in database.orders.items() if order["status"] == "pending"][:64]
    faults: list[str] = []

    def play(number: int) -> None:
        for round_number in range(20):
            order_id = pending[(number * 7 + round_number) % len(pending)]
            episode = Episode(database)
            arguments = {"order_id": order_id, "reason": "no longer needed"}
            first = episode.call("cancel_pending_order", arguments)
            second = episode.call("cancel_pending_order", arguments)
            if not first.ok or second.ok or set(episode.changed_records()["orders"]) != {order_id}:
                faults.append(order_id)

    threads = [threading.Thread(target=play, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert text(database.orders) + text(database.users) == before


def deep(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1.5,
    float("nan"),
    10**5000,
    "",
    "\ud800",
    "\x00\n\u202e",
    "x" * 1_000_000,
    [],
    [[]],
    {},
    {"a": {}},
    {None: 1},
    {1, 2},
    b"bytes",
    object(),
    deep(100_000),
    [None, "\ud800", {}],
]


@pytest.mark.parametrize("name", sorted(TOOL_SCHEMAS))
def test_hostile_arguments_are_answered(name: str) -> None:
    good = {key: "x" for key in TOOL_SCHEMAS[name]["function"]["parameters"]["properties"]}
    episode = make_episode()
    for value in HOSTILE:
        calls = [value, {**good, "\ud800": value}, {**good, 5: value}, {value.__class__: value}]
        calls += [{**good, key: value} for key in good]
        calls += [dict.fromkeys(good, value)]
        for arguments in calls:
            observation = episode.call(name, arguments)
            assert isinstance(observation, Observation)
            if not observation.ok:
                assert len(observation.content) < 300
                assert "\n" not in observation.content
                observation.content.encode("utf-8")
    assert episode.changed_records() == {"orders": {}, "users": {}}


def test_hostile_names_are_answered() -> None:
    for name in HOSTILE:
        observation = make_episode().call(name, {})
        assert not observation.ok
        assert observation.content.startswith("Error: unknown tool ")
        assert len(observation.content) < 300
        observation.content.encode("utf-8")


@pytest.mark.parametrize(
    "name", ["__init__", "call", "_save", "_order_with_status", "refund", "CALCULATE", " calculate"]
)
def test_only_tools_can_be_called(name: str) -> None:
    assert not make_episode().call(name, {}).ok


def test_long_lists_are_refused_at_once() -> None:
    episode = make_episode()
    start = time.process_time()
    for item_ids in ([RED] * 300_000, [str(number) for number in range(300_000)]):
        arguments = {"order_id": DELIVERED, "item_ids": item_ids, "payment_method_id": CARD}
        assert not episode.call("return_delivered_order_items", arguments).ok
    assert time.process_time() - start < 3.0


def test_a_lone_surrogate_can_be_stored_and_read_back() -> None:
    episode = make_episode()
    address = {**NEW_ADDRESS, "city": "\ud800"}
    assert episode.call("modify_user_address", {"user_id": USER, **address}).ok
    assert episode.changed_records()["users"][USER]["address"] == address


def test_our_own_bugs_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: RetailTools, order_id: str) -> Any:
        raise KeyError(order_id)

    tool = TOOLS["get_order_details"]
    spoilt = Tool(tool.name, tool.access, broken, tool.schema, tool.check)
    monkeypatch.setitem(TOOLS, "get_order_details", spoilt)
    with pytest.raises(KeyError):
        make_episode().call("get_order_details", {"order_id": PENDING})


# Fuzzing with words of this store, so that a good part of the calls is accepted.
_WORDS = st.sampled_from(
    [PENDING, GIFT_PENDING, DELIVERED, USER, CARD, PAYPAL, GIFT, CUP, RED, BLUE, LOST, TALL, SHORT]
    + ["no longer needed", "ordered by mistake", "1+1", "", *ADDRESS.values()]
)
_ITEMS = st.lists(st.sampled_from([RED, BLUE, TALL, SHORT, LOST]), max_size=4)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)
_BY_KEY = {
    "order_id": st.sampled_from([PENDING, GIFT_PENDING, DELIVERED]),
    "payment_method_id": st.sampled_from([CARD, PAYPAL, GIFT]),
    "item_ids": _ITEMS,
    "new_item_ids": _ITEMS,
    "user_id": st.just(USER),
    "reason": st.sampled_from(["no longer needed", "ordered by mistake"]),
}


@st.composite
def _calls(draw: st.DrawFn) -> tuple[Any, Any]:
    name = draw(st.sampled_from(sorted(TOOL_SCHEMAS)))
    keys = TOOL_SCHEMAS[name]["function"]["parameters"]["properties"]
    arguments: Any = {key: draw(_BY_KEY.get(key, _WORDS)) for key in keys}
    spoil = draw(st.integers(0, 9))
    if spoil == 0:
        arguments[draw(st.one_of(st.text(), st.sampled_from(["order_id", "zip"])))] = draw(_JSON)
    elif spoil == 1:
        arguments = draw(_JSON)
    elif spoil == 2:
        name = draw(_JSON)
    return name, arguments


@settings(max_examples=250, deadline=None)
@given(st.lists(_calls(), max_size=6))
def test_fuzz(calls: list[tuple[Any, Any]]) -> None:
    records = make_records()
    database = RetailDatabase(**copy.deepcopy(records))
    episode = Episode(database)
    for name, arguments in calls:
        before, written = text(episode.changed_records()), copy.deepcopy(arguments)
        observation = episode.call(name, arguments)
        assert observation.ok or observation.content.startswith("Error: ")
        if check_arguments(name, arguments) is not None:
            assert not observation.ok
        if not observation.ok:
            assert text(episode.changed_records()) == before
        assert text(arguments) == text(written)
    assert text(database.orders) == text(records["orders"])
    assert text(database.users) == text(records["users"])
    for user in episode.changed_records()["users"].values():
        assert user["payment_methods"][GIFT]["balance"] >= 0
