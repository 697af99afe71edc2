"""Samplers of intents that change the store: each gives the facts, the gold call and the outcome.

A sampler raises `NoFit` if the customer's records do not allow the intent; the caller draws again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from envs.retail.store import ADDRESS_FIELDS
from tasks.audit.grounding import MISTAKE, NOT_NEEDED
from tasks.blueprint import Intent
from tasks.generate.store_view import Record, StoreView, unique_items
from tasks.mix import TaskMix

# Which changes of the same order may come before a change; the item change comes last.
MAY_FOLLOW = {
    "change_address": {"change_payment"},
    "change_payment": {"change_address"},
    "change_items": {"change_address", "change_payment"},
}
STATUSES_AFTER_PENDING = ("processed", "delivered", "cancelled")


class NoFit(Exception):
    """The customer's records do not allow the intent."""


@dataclass
class Draw:
    """The state of one task while its intents are drawn."""

    rng: Random
    view: StoreView
    mix: TaskMix
    user_id: str
    used: dict[str, set[str]] = field(default_factory=dict)
    """Intents drawn so far by order id, so that incompatible ones never share an order."""

    @property
    def user(self) -> Record:
        """The customer's record."""
        return self.view.db.users[self.user_id]

    def order(self, kind: str, *statuses: str, fits: Callable[[str], bool] | None = None) -> str:
        """Draw an order for an intent; one with earlier changes is taken only if they may precede it.

        Raises:
            NoFit: No order with one of these statuses fits.
        """
        open_ids = [
            order_id
            for order_id in self.view.order_ids(self.user_id, *statuses)
            if self.used.get(order_id, set()) <= MAY_FOLLOW.get(kind, set())
            and (fits is None or fits(order_id))
        ]
        if not open_ids:
            raise NoFit
        order_id = self.rng.choice(open_ids)
        self.used.setdefault(order_id, set()).add(kind)
        return order_id

    def num_items(self, most: int) -> int:
        """Draw the number of items of an intent, up to `most`."""
        shares = self.mix.num_items_shares[:most]
        return self.rng.choices(range(1, len(shares) + 1), shares)[0]


Sampler = Callable[[Draw], Intent]


def item_fact(draw: Draw, item: Record) -> dict[str, Any]:
    """Return what the query and the instruction say about an item."""
    name = draw.view.db.products[item["product_id"]]["name"]
    return {"item_id": item["item_id"], "name": name, "options": item["options"]}


def method_fact(draw: Draw, method_id: str) -> dict[str, Any]:
    """Return what the query and the instruction say about a payment method."""
    source = draw.user["payment_methods"][method_id]["source"]
    label = draw.view.method_labels(draw.user_id)[method_id]
    return {"id": method_id, "source": source, "label": label}


def order_names(draw: Draw, order_id: str) -> list[str]:
    """Return the distinct product names in an order."""
    products = draw.view.db.products
    names = [products[i["product_id"]]["name"] for i in draw.view.db.orders[order_id]["items"]]
    return list(dict.fromkeys(names))


def call(name: str, **arguments: Any) -> dict:
    """Return a gold call."""
    return {"name": name, "arguments": arguments}


def sample_cancel(draw: Draw) -> Intent:
    """Cancel a pending order for one of the two reasons."""
    order_id = draw.order("cancel", "pending")
    reason = draw.rng.choice((NOT_NEEDED, MISTAKE))
    return Intent(
        "cancel",
        call("cancel_pending_order", order_id=order_id, reason=reason),
        {"order_id": order_id, "reason": reason, "names": order_names(draw, order_id)},
        "cancelled the pending order",
    )


def refund_methods(draw: Draw, order_id: str) -> list[str]:
    """Return the methods a refund may go to: the original one and gift cards."""
    original = draw.view.db.orders[order_id]["payment_history"][0]["payment_method_id"]
    methods = draw.user["payment_methods"]
    return [
        method_id
        for method_id in draw.view.method_labels(draw.user_id)
        if method_id == original or methods[method_id]["source"] == "gift_card"
    ]


def returnable(draw: Draw, order_id: str) -> bool:
    """Tell whether an order has a returnable item and a method for its refund."""
    return bool(refund_methods(draw, order_id) and unique_items(draw.view.db.orders[order_id]))


def sample_return(draw: Draw) -> Intent:
    """Return items of a delivered order."""
    order_id = draw.order("return", "delivered", fits=lambda o: returnable(draw, o))
    items = unique_items(draw.view.db.orders[order_id])
    items = draw.rng.sample(items, draw.num_items(len(items)))
    method_id = draw.rng.choice(refund_methods(draw, order_id))
    item_ids = [item["item_id"] for item in items]
    facts = {
        "order_id": order_id, "items": [item_fact(draw, item) for item in items],
        "method": method_fact(draw, method_id),
    }
    return Intent(
        "return",
        call(
            "return_delivered_order_items",
            order_id=order_id, item_ids=item_ids, payment_method_id=method_id,
        ),
        facts,
        "requested the return" + (f" of {len(items)} items" if len(items) > 1 else ""),
    )


def can_carry(method: Record, amount: float) -> bool:
    """Tell whether a payment method covers an amount; only gift cards are limited."""
    return method["source"] != "gift_card" or method["balance"] >= amount


def swap_facts(draw: Draw, order_id: str) -> tuple[list[dict], float]:
    """Draw pairs of old and new items of an order; return them and the price difference in dollars."""
    view = draw.view
    candidates = view.swappable(order_id)
    items = draw.rng.sample(candidates, draw.num_items(len(candidates)))
    held = {item["item_id"] for item in view.db.orders[order_id]["items"]}
    pairs, difference = [], 0.0
    for item in items:
        product_id = item["product_id"]
        taken = held | {pair["new"]["item_id"] for pair in pairs}
        options = [i for i in view.available[product_id] if i not in taken]
        if not options:
            raise NoFit
        new_id = draw.rng.choice(options)
        variant = view.db.products[product_id]["variants"][new_id]
        new = {"item_id": new_id, "product_id": product_id, "options": variant["options"]}
        pairs.append({"old": item_fact(draw, item), "new": item_fact(draw, new)})
        difference += variant["price"] - item["price"]
    return pairs, round(difference, 2)


def sample_swap(draw: Draw, kind: str, status: str, tool: str, outcome: str) -> Intent:
    """Swap items of an order for other variants of the same products."""
    order_id = draw.order(kind, status, fits=lambda o: bool(draw.view.swappable(o)))
    pairs, difference = swap_facts(draw, order_id)
    methods, labels = draw.user["payment_methods"], draw.view.method_labels(draw.user_id)
    able = [method_id for method_id in labels if can_carry(methods[method_id], difference)]
    if not able:
        raise NoFit
    method_id = draw.rng.choice(able)
    old, new = ([pair[part]["item_id"] for pair in pairs] for part in ("old", "new"))
    return Intent(
        kind,
        call(tool, order_id=order_id, item_ids=old, new_item_ids=new, payment_method_id=method_id),
        {"order_id": order_id, "pairs": pairs, "method": method_fact(draw, method_id)},
        outcome if len(pairs) == 1 else f"{outcome} for {len(pairs)} items",
    )


def new_address(draw: Draw, known: Record) -> Record:
    """Draw an address from the store's streets and cities that is not on the known street."""
    for _ in range(8):
        address1, address2 = draw.rng.choice(draw.view.streets)
        place = draw.rng.choice(draw.view.places)
        if address1 != known["address1"]:
            break
    else:
        raise NoFit
    if draw.rng.random() < draw.mix.empty_address2_share:
        address2 = ""
    return dict(zip(ADDRESS_FIELDS, (address1, address2, *place)))


def sample_change_address(draw: Draw) -> Intent:
    """Change the shipping address of a pending order."""
    order_id = draw.order("change_address", "pending")
    address = new_address(draw, draw.view.db.orders[order_id]["address"])
    return Intent(
        "change_address",
        call("modify_pending_order_address", order_id=order_id, **address),
        {"order_id": order_id, "address": address, "names": order_names(draw, order_id)},
        "changed the order's address",
    )


def sample_change_profile_address(draw: Draw) -> Intent:
    """Change the customer's default address."""
    address = new_address(draw, draw.user["address"])
    return Intent(
        "change_profile_address",
        call("modify_user_address", user_id=draw.user_id, **address),
        {"user_id": draw.user_id, "address": address},
        "changed the address on file",
    )


def other_methods(draw: Draw, order_id: str, enough: bool) -> list[str]:
    """Return the other methods that cover what an order costs, or the gift cards that do not."""
    payments = draw.view.db.orders[order_id]["payment_history"]
    if len(payments) != 1 or payments[0]["transaction_type"] != "payment":
        return []
    methods = draw.user["payment_methods"]
    return [
        method_id
        for method_id in draw.view.method_labels(draw.user_id)
        if method_id != payments[0]["payment_method_id"]
        and enough == can_carry(methods[method_id], payments[0]["amount"])
    ]


def sample_change_payment(draw: Draw) -> Intent:
    """Pay a pending order with another method that covers it."""
    order_id = draw.order("change_payment", "pending", fits=lambda o: bool(other_methods(draw, o, True)))
    method_id = draw.rng.choice(other_methods(draw, order_id, True))
    return Intent(
        "change_payment",
        call("modify_pending_order_payment", order_id=order_id, payment_method_id=method_id),
        {"order_id": order_id, "method": method_fact(draw, method_id), "names": order_names(draw, order_id)},
        "changed the payment method",
    )


WRITE_SAMPLERS: dict[str, Sampler] = {
    "cancel": sample_cancel,
    "return": sample_return,
    "exchange": lambda draw: sample_swap(
        draw, "exchange", "delivered", "exchange_delivered_order_items", "requested the exchange"
    ),
    "change_items": lambda draw: sample_swap(
        draw, "change_items", "pending", "modify_pending_order_items", "changed the items"
    ),
    "change_address": sample_change_address,
    "change_payment": sample_change_payment,
    "change_profile_address": sample_change_profile_address,
}
