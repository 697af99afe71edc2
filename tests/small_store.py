"""A store of one user, five orders and two products, small enough to know by heart."""

import copy
from typing import Any

from envs.retail import Episode, RetailDatabase

ADDRESS = {
    "address1": "1 Test Street",
    "address2": "Apt 2",
    "city": "Albany",
    "state": "NY",
    "country": "USA",
    "zip": "12201",
}
NEW_ADDRESS = {
    "address1": "9 Other Road",
    "address2": "",
    "city": "Boise",
    "state": "ID",
    "country": "USA",
    "zip": "83702",
}
USER, CARD, PAYPAL, GIFT = "ana_test_1111", "credit_card_1", "paypal_1", "gift_card_1"
PENDING, GIFT_PENDING, DELIVERED, PROCESSED, CANCELLED = (f"#W000000{n}" for n in range(1, 6))
CUP, LAMP = "1000000001", "1000000002"
RED, BLUE, GOLD, LOST = "2000000001", "2000000002", "2000000003", "2000000004"
TALL, SHORT = "3000000001", "3000000002"

# 12.37 - 10.1 is 2.2699999999999996 in floats, so a rounding that is left out shows.
_VARIANTS = {
    CUP: {RED: ("red", 10.1, True), BLUE: ("blue", 12.37, True), GOLD: ("gold", 90.0, True)},
    LAMP: {TALL: ("tall", 40.0, True), SHORT: ("short", 30.5, True)},
}
_VARIANTS[CUP][LOST] = ("lost", 11.0, False)
_NAMES = {CUP: "Cup", LAMP: "Lamp"}


def _item(product_id: str, item_id: str) -> dict[str, Any]:
    look, price, _ = _VARIANTS[product_id][item_id]
    return {
        "name": _NAMES[product_id],
        "product_id": product_id,
        "item_id": item_id,
        "price": price,
        "options": {"look": look},
    }


def _order(order_id: str, status: str, method_id: str, *items: tuple[str, str]) -> dict[str, Any]:
    rows = [_item(*item) for item in items]
    amount = round(sum(row["price"] for row in rows), 2)
    payment = {"transaction_type": "payment", "amount": amount, "payment_method_id": method_id}
    return {
        "order_id": order_id,
        "user_id": USER,
        "address": dict(ADDRESS),
        "items": rows,
        "fulfillments": [],
        "status": status,
        "payment_history": [payment],
    }


def make_records() -> dict[str, dict[str, Any]]:
    """Return the store's users, orders and products, fresh and free to be changed."""
    user = {
        "name": {"first_name": "Ana", "last_name": "Test"},
        "address": dict(ADDRESS),
        "email": "ana.test2222@example.com",
        "payment_methods": {
            CARD: {"source": "credit_card", "brand": "visa", "last_four": "0001", "id": CARD},
            PAYPAL: {"source": "paypal", "id": PAYPAL},
            GIFT: {"source": "gift_card", "balance": 50, "id": GIFT},
        },
        "orders": [PENDING, GIFT_PENDING, DELIVERED, PROCESSED, CANCELLED],
    }
    orders = [
        _order(PENDING, "pending", CARD, (CUP, RED), (LAMP, TALL)),
        _order(GIFT_PENDING, "pending", GIFT, (CUP, RED), (CUP, BLUE)),
        _order(DELIVERED, "delivered", CARD, (CUP, RED), (LAMP, SHORT), (CUP, RED)),
        _order(PROCESSED, "processed", CARD, (LAMP, TALL)),
        _order(CANCELLED, "cancelled", CARD, (LAMP, TALL)),
    ]
    products = {
        product_id: {
            "name": _NAMES[product_id],
            "product_id": product_id,
            "variants": {
                item_id: {
                    "item_id": item_id,
                    "options": {"look": look},
                    "available": available,
                    "price": price,
                }
                for item_id, (look, price, available) in variants.items()
            },
        }
        for product_id, variants in _VARIANTS.items()
    }
    return {
        "users": {USER: user},
        "orders": {order["order_id"]: order for order in orders},
        "products": products,
    }


def make_episode() -> Episode:
    """Return an episode over a fresh copy of the store."""
    return Episode(RetailDatabase(**copy.deepcopy(make_records())))
