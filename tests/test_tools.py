"""Each tool once accepted (what it leaves in the store) and once refused (nothing changed).

Behind those, the corners in which tau-bench's tools have an opinion of their own.
"""

import json
from typing import Any, Literal

import pytest
from small_store import (
    ADDRESS,
    BLUE,
    CANCELLED,
    CARD,
    CUP,
    DELIVERED,
    GIFT,
    GIFT_PENDING,
    GOLD,
    LAMP,
    LOST,
    NEW_ADDRESS,
    PAYPAL,
    PENDING,
    PROCESSED,
    RED,
    SHORT,
    TALL,
    USER,
    make_episode,
    make_records,
)

from envs.retail import (
    READ_TOOLS,
    TOOL_SCHEMAS,
    WRITE_TOOLS,
    Episode,
    RetailDatabase,
    check_arguments,
)
from envs.retail.tools.schema import describe

NOTHING: dict[str, Any] = {"orders": {}, "users": {}}


def accept(episode: Episode, name: str, /, **arguments: Any) -> Any:
    observation = episode.call(name, arguments)
    assert observation.ok, observation.content
    return observation.content


def refuse(episode: Episode, name: str, fault: str, /, **arguments: Any) -> None:
    before = episode.changed_records()
    observation = episode.call(name, arguments)
    assert not observation.ok
    assert observation.content.startswith("Error: ")
    assert fault in observation.content
    assert episode.changed_records() == before


def balance(episode: Episode) -> float:
    return accept(episode, "get_user_details", user_id=USER)["payment_methods"][GIFT]["balance"]


def entry(kind: str, amount: float, method_id: str) -> dict[str, Any]:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}


# Reads


def test_find_user_id_by_email() -> None:
    episode = make_episode()
    email = "ANA.Test2222@example.com"
    assert accept(episode, "find_user_id_by_email", email=email) == USER
    refuse(episode, "find_user_id_by_email", "user not found", email="ana.test@example.com")
    assert episode.changed_records() == NOTHING


def test_find_user_id_by_name_zip() -> None:
    episode = make_episode()
    name = {"first_name": "aNA", "last_name": "TEST"}
    assert accept(episode, "find_user_id_by_name_zip", **name, zip="12201") == USER
    refuse(episode, "find_user_id_by_name_zip", "user not found", **name, zip="12202")
    refuse(episode, "find_user_id_by_name_zip", "must be a string", **name, zip=12201)
    assert episode.changed_records() == NOTHING


def test_find_by_zip_sees_the_address_of_this_episode() -> None:
    episode = make_episode()
    name = {"first_name": "Ana", "last_name": "Test"}
    accept(episode, "modify_user_address", user_id=USER, **NEW_ADDRESS)
    assert accept(episode, "find_user_id_by_name_zip", **name, zip=NEW_ADDRESS["zip"]) == USER
    refuse(episode, "find_user_id_by_name_zip", "not found", **name, zip=ADDRESS["zip"])


@pytest.mark.parametrize(
    ("name", "key", "record_id", "kind"),
    [
        ("get_user_details", "user_id", USER, "users"),
        ("get_order_details", "order_id", PENDING, "orders"),
        ("get_product_details", "product_id", CUP, "products"),
    ],
)
def test_get_details(name: str, key: str, record_id: str, kind: str) -> None:
    episode = make_episode()
    assert accept(episode, name, **{key: record_id}) == make_records()[kind][record_id]
    refuse(episode, name, "not found", **{key: record_id.lower() + "0"})
    assert episode.changed_records() == NOTHING


def test_list_all_product_types() -> None:
    episode = make_episode()
    types = accept(episode, "list_all_product_types")
    assert list(types.items()) == [("Cup", CUP), ("Lamp", LAMP)]
    refuse(episode, "list_all_product_types", "unexpected argument 'limit'", limit="5")


def test_calculate() -> None:
    episode = make_episode()
    assert accept(episode, "calculate", expression="47.84 + 488.81") == "536.65"
    refuse(episode, "calculate", "division by zero", expression="1/0")


def test_think_and_transfer() -> None:
    episode = make_episode()
    assert accept(episode, "think", thought="hm") == ""
    assert accept(episode, "transfer_to_human_agents", summary="x") == "Transfer successful"
    refuse(episode, "think", "missing argument thought")
    refuse(episode, "transfer_to_human_agents", "must be a string, not null", summary=None)
    assert episode.changed_records() == NOTHING


# Writes


def test_cancel_pending_order() -> None:
    episode = make_episode()
    order = accept(episode, "cancel_pending_order", order_id=PENDING, reason="ordered by mistake")
    assert order["status"] == "cancelled"
    assert order["cancel_reason"] == "ordered by mistake"
    assert order["payment_history"] == [entry("payment", 50.1, CARD), entry("refund", 50.1, CARD)]
    assert episode.changed_records() == {"orders": {PENDING: order}, "users": {}}


@pytest.mark.parametrize("order_id", [PROCESSED, DELIVERED, CANCELLED, "#W9999999", PENDING[1:]])
def test_cancel_refuses_other_orders(order_id: str) -> None:
    episode = make_episode()
    reason = "no longer needed"
    refuse(episode, "cancel_pending_order", "order", order_id=order_id, reason=reason)
    assert episode.changed_records() == NOTHING


def test_cancel_refuses_other_reasons() -> None:
    wish = {"order_id": PENDING, "reason": "too dear"}
    refuse(make_episode(), "cancel_pending_order", "reason must be one of", **wish)


def test_cancel_refunds_a_gift_card_at_once() -> None:
    episode = make_episode()
    accept(episode, "cancel_pending_order", order_id=GIFT_PENDING, reason="no longer needed")
    assert balance(episode) == 72.47


def test_cancel_after_a_change_of_payment_pays_back_every_entry() -> None:
    """tau-bench mirrors the whole history, its refund included; scores depend on doing the same."""
    episode = make_episode()
    accept(
        episode, "modify_pending_order_payment", order_id=GIFT_PENDING, payment_method_id=PAYPAL
    )
    order = accept(
        episode, "cancel_pending_order", order_id=GIFT_PENDING, reason="no longer needed"
    )
    assert [row["transaction_type"] for row in order["payment_history"][3:]] == ["refund"] * 3
    assert balance(episode) == pytest.approx(50 + 3 * 22.47)


def test_modify_pending_order_address() -> None:
    episode = make_episode()
    order = accept(episode, "modify_pending_order_address", order_id=PENDING, **NEW_ADDRESS)
    assert order["address"] == NEW_ADDRESS
    assert order["status"] == "pending"
    assert episode.changed_records() == {"orders": {PENDING: order}, "users": {}}
    refuse(
        episode, "modify_pending_order_address", "delivered", order_id=DELIVERED, **NEW_ADDRESS
    )


def test_writing_what_is_there_already_changes_nothing() -> None:
    episode = make_episode()
    accept(episode, "modify_pending_order_address", order_id=PENDING, **ADDRESS)
    accept(episode, "modify_user_address", user_id=USER, **ADDRESS)
    assert episode.changed_records() == NOTHING


def test_modify_pending_order_payment() -> None:
    episode = make_episode()
    order = accept(
        episode, "modify_pending_order_payment", order_id=PENDING, payment_method_id=PAYPAL
    )
    assert order["status"] == "pending"
    assert order["payment_history"] == [
        entry("payment", 50.1, CARD),
        entry("payment", 50.1, PAYPAL),
        entry("refund", 50.1, CARD),
    ]
    assert episode.changed_records() == {"orders": {PENDING: order}, "users": {}}
    # A second change is refused: the order no longer has exactly one payment.
    refuse(
        episode,
        "modify_pending_order_payment",
        "exactly one payment",
        order_id=PENDING,
        payment_method_id=CARD,
    )


@pytest.mark.parametrize(
    ("method_id", "reason"),
    [(CARD, "already paid"), ("paypal_2", "not found"), (GIFT, "too small")],
)
def test_modify_payment_refuses(method_id: str, reason: str) -> None:
    episode = make_episode()  # the order costs 50.1 and the gift card holds 50
    refuse(
        episode,
        "modify_pending_order_payment",
        reason,
        order_id=PENDING,
        payment_method_id=method_id,
    )
    assert episode.changed_records() == NOTHING


def test_modify_payment_moves_gift_card_balances() -> None:
    episode = make_episode()
    accept(
        episode, "modify_pending_order_payment", order_id=GIFT_PENDING, payment_method_id=CARD
    )
    assert balance(episode) == 72.47
    accept(episode, "modify_pending_order_payment", order_id=PENDING, payment_method_id=GIFT)
    assert balance(episode) == 22.37


def test_modify_pending_order_items() -> None:
    episode = make_episode()
    swap = {"item_ids": [RED, TALL], "new_item_ids": [BLUE, SHORT]}
    order = accept(
        episode, "modify_pending_order_items", order_id=PENDING, **swap, payment_method_id=GIFT
    )
    assert order["status"] == "pending (item modified)"
    assert [(i["item_id"], i["price"], i["options"]["look"]) for i in order["items"]] == [
        (BLUE, 12.37, "blue"),
        (SHORT, 30.5, "short"),
    ]
    # tau-bench rounds the balance but not the amount.
    refund = order["payment_history"][-1]
    assert refund == entry("refund", abs(12.37 - 10.1 + (30.5 - 40.0)), GIFT)
    assert balance(episode) == 57.23
    assert set(episode.changed_records()["users"]) == {USER}
    refuse(
        episode,
        "modify_pending_order_items",
        "pending (item modified), not pending",
        order_id=PENDING,
        item_ids=[BLUE],
        new_item_ids=[RED],
        payment_method_id=GIFT,
    )


@pytest.mark.parametrize("name", ["modify_pending_order_items", "exchange_delivered_order_items"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"item_ids": [BLUE]}, "not found in the order"),
        ({"item_ids": [RED] * 3, "new_item_ids": [BLUE] * 3}, "not found in the order"),
        ({"new_item_ids": [LOST]}, "not available"),
        ({"new_item_ids": [TALL]}, "not found or not available"),  # another product's item
        ({"new_item_ids": [CUP]}, "not found or not available"),  # a product id
        ({"new_item_ids": [BLUE, BLUE]}, "same length"),
        ({"new_item_ids": []}, "same length"),
        ({"new_item_ids": [GOLD], "payment_method_id": GIFT}, "too small"),
        ({"payment_method_id": "gift_card_2"}, "payment method not found"),
        ({"item_ids": RED}, "must be an array of strings"),
        ({"item_ids": [int(RED)]}, "must hold strings only"),
        ({"order_id": PROCESSED}, "is processed"),
        ({"order_id": "#W1"}, "order not found"),
    ],
)
def test_swaps_refuse(name: str, changes: dict[str, Any], reason: str) -> None:
    episode = make_episode()
    wish = {
        "order_id": PENDING if name.startswith("modify") else DELIVERED,
        "item_ids": [RED],
        "new_item_ids": [BLUE],
        "payment_method_id": CARD,
    }
    refuse(episode, name, reason, **(wish | changes))
    assert episode.changed_records() == NOTHING


def test_swaps_are_made_one_after_the_other() -> None:
    """[A, B] for [B, C] leaves [C, B]: the second swap finds what the first one put there."""
    episode = make_episode()
    order = accept(
        episode,
        "modify_pending_order_items",
        order_id=GIFT_PENDING,
        item_ids=[RED, BLUE],
        new_item_ids=[BLUE, RED],
        payment_method_id=GIFT,
    )
    assert [item["item_id"] for item in order["items"]] == [RED, BLUE]


def test_a_swap_for_the_same_item_turns_the_balance_into_a_float() -> None:
    """tau-bench hashes text, so 50 and 50.0 differ there, and the user counts as changed."""
    episode = make_episode()
    order = accept(
        episode,
        "modify_pending_order_items",
        order_id=PENDING,
        item_ids=[RED],
        new_item_ids=[RED],
        payment_method_id=GIFT,
    )
    assert order["payment_history"][-1] == entry("refund", 0.0, GIFT)
    assert repr(balance(episode)) == "50.0"
    assert set(episode.changed_records()["users"]) == {USER}


def test_a_gift_card_may_be_emptied() -> None:
    records = make_records()
    records["users"][USER]["payment_methods"][GIFT]["balance"] = 50.1
    episode = Episode(RetailDatabase(**records))
    accept(episode, "modify_pending_order_payment", order_id=PENDING, payment_method_id=GIFT)
    assert balance(episode) == 0.0


def test_modify_user_address() -> None:
    episode = make_episode()
    user = accept(episode, "modify_user_address", user_id=USER, **NEW_ADDRESS)
    assert user["address"] == NEW_ADDRESS
    assert episode.changed_records() == {"orders": {}, "users": {USER: user}}
    assert accept(episode, "get_order_details", order_id=PENDING)["address"] == ADDRESS
    refuse(episode, "modify_user_address", "user not found", user_id="x", **NEW_ADDRESS)


def test_return_delivered_order_items() -> None:
    episode = make_episode()
    order = accept(
        episode,
        "return_delivered_order_items",
        order_id=DELIVERED,
        item_ids=[SHORT, RED, RED],
        payment_method_id=CARD,
    )
    assert order["status"] == "return requested"
    assert order["return_items"] == [RED, RED, SHORT]
    assert order["return_payment_method_id"] == CARD
    assert len(order["payment_history"]) == 1
    assert episode.changed_records() == {"orders": {DELIVERED: order}, "users": {}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payment_method_id": PAYPAL}, "original payment method"),
        ({"payment_method_id": "gift_card_2"}, "payment method not found"),
        ({"item_ids": [TALL]}, "not found in the order"),
        ({"item_ids": [RED] * 3}, "not found in the order"),
        ({"order_id": PENDING}, "is pending, not delivered"),
        ({"order_id": "#W1"}, "order not found"),
    ],
)
def test_return_refuses(changes: dict[str, Any], reason: str) -> None:
    episode = make_episode()
    wish = {"order_id": DELIVERED, "item_ids": [RED], "payment_method_id": CARD}
    refuse(episode, "return_delivered_order_items", reason, **(wish | changes))
    assert episode.changed_records() == NOTHING


def test_return_to_a_gift_card_leaves_its_balance() -> None:
    episode = make_episode()
    wish = {"order_id": DELIVERED, "item_ids": [RED], "payment_method_id": GIFT}
    accept(episode, "return_delivered_order_items", **wish)
    assert episode.changed_records()["users"] == {}
    refuse(episode, "return_delivered_order_items", "is return requested", **wish)


def test_exchange_delivered_order_items() -> None:
    episode = make_episode()
    order = accept(
        episode,
        "exchange_delivered_order_items",
        order_id=DELIVERED,
        item_ids=[SHORT, RED],
        new_item_ids=[TALL, BLUE],
        payment_method_id=GIFT,
    )
    assert order["status"] == "exchange requested"
    assert order["exchange_items"] == [RED, SHORT]
    assert order["exchange_new_items"] == [BLUE, TALL]
    assert order["exchange_payment_method_id"] == GIFT
    assert order["exchange_price_difference"] == 11.77
    assert order["items"] == make_records()["orders"][DELIVERED]["items"]
    assert episode.changed_records() == {"orders": {DELIVERED: order}, "users": {}}


def test_an_exchange_rounds_its_price_difference() -> None:
    wish = {"item_ids": [RED], "new_item_ids": [BLUE], "payment_method_id": CARD}
    order = accept(make_episode(), "exchange_delivered_order_items", order_id=DELIVERED, **wish)
    assert order["exchange_price_difference"] == 2.27  # 2.2699999999999996 before rounding


SWAP = {"item_ids": [RED], "new_item_ids": [BLUE], "payment_method_id": GIFT}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cancel_pending_order", {"order_id": GIFT_PENDING, "reason": "no longer needed"}),
        ("modify_pending_order_address", {"order_id": PENDING, **NEW_ADDRESS}),
        ("modify_pending_order_items", {"order_id": PENDING, **SWAP}),
        ("modify_pending_order_payment", {"order_id": GIFT_PENDING, "payment_method_id": CARD}),
        ("modify_user_address", {"user_id": USER, **NEW_ADDRESS}),
        (
            "return_delivered_order_items",
            {"order_id": DELIVERED, "item_ids": [RED], "payment_method_id": CARD},
        ),
        ("exchange_delivered_order_items", {"order_id": DELIVERED, **SWAP}),
    ],
)
def test_no_write_reaches_the_database(name: str, arguments: dict[str, Any]) -> None:
    database = RetailDatabase(**make_records())
    assert Episode(database).call(name, arguments).ok
    records = make_records()
    for kind in records:
        assert json.dumps(getattr(database, kind)) == json.dumps(records[kind])


# Schemas


def test_reads_and_writes_are_told_apart() -> None:
    assert len(READ_TOOLS) == 9
    assert len(WRITE_TOOLS) == 7
    assert set(TOOL_SCHEMAS) == READ_TOOLS | WRITE_TOOLS
    assert not READ_TOOLS & WRITE_TOOLS


@pytest.mark.parametrize("name", sorted(TOOL_SCHEMAS))
def test_schema_is_complete_and_one_line_each(name: str) -> None:
    function = TOOL_SCHEMAS[name]["function"]
    parameters = function["parameters"]
    assert function["name"] == name
    assert parameters["required"] == list(parameters["properties"])
    texts = [p["description"] for p in parameters["properties"].values()]
    texts.append(function["description"])
    assert all(text.strip() and "\n" not in text for text in texts)


def test_literal_becomes_an_enum() -> None:
    parameters = TOOL_SCHEMAS["cancel_pending_order"]["function"]["parameters"]
    assert parameters["properties"]["reason"]["enum"] == ["no longer needed", "ordered by mistake"]


def test_describe_refuses_what_it_cannot_describe() -> None:
    def two_lines(self: Any, text: str) -> str:
        """Say something
        in two lines.

        Args:
            text: Text.
        """

    def no_description(self: Any, text: str) -> str:
        """Say something."""

    def odd_type(self: Any, text: Literal[1, 2]) -> str:
        """Say something.

        Args:
            text: Text.
        """

    for function, reason in (
        (two_lines, "one-line summary"),
        (no_description, "no description"),
        (odd_type, "not supported"),
    ):
        with pytest.raises(TypeError, match=reason):
            describe(function)


def test_check_arguments_names_the_fault() -> None:
    good = {"order_id": PENDING, "reason": "no longer needed"}
    assert check_arguments("cancel_pending_order", good) is None
    assert check_arguments("refund", {}) == "unknown tool 'refund'"
    assert check_arguments("cancel_pending_order", {}) == (
        "cancel_pending_order: missing argument order_id, reason"
    )
    assert check_arguments("cancel_pending_order", [good]) == (
        "cancel_pending_order: arguments must be an object, not an array"
    )
    assert check_arguments("calculate", {"expression": True}) == (
        "calculate: expression must be a string, not a boolean"
    )
