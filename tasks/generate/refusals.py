"""Samplers of wishes that must not be granted; gold looks at the record that shows why.

Left out on purpose: refusals that only the store could show. The facts hold what makes the wish
forbidden (a status, another owner, a stock level, a balance), and the words must say it.
"""

from __future__ import annotations

from tasks.audit.grounding import NOT_NEEDED
from tasks.generate.store_view import unique_items
from tasks.generate.wishes import (
    STATUSES_AFTER_PENDING,
    Draw,
    Sampler,
    Wish,
    call,
    item_fact,
    method_fact,
    new_address,
    order_names,
    other_methods,
    refund_methods,
)


def refused_by_status(draw: Draw, kind: str, order_id: str, forbidden: dict, change: str) -> Wish:
    """Return a wish that the order's status forbids; gold looks at the order."""
    status = draw.view.db.orders[order_id]["status"]
    return Wish(
        kind,
        call("get_order_details", order_id=order_id),
        {
            "order_id": order_id,
            "status": status,
            "change": change,
            "names": order_names(draw, order_id),
        },
        f"refused: the order is {status}",
        forbidden=forbidden,
    )


def sample_refuse_cancel(draw: Draw) -> Wish | None:
    """An order to cancel that is past cancelling."""
    order_id = draw.order("refuse_cancel", *STATUSES_AFTER_PENDING)
    if order_id is None:
        return None
    forbidden = call("cancel_pending_order", order_id=order_id, reason=NOT_NEEDED)
    return refused_by_status(draw, "refuse_cancel", order_id, forbidden, "cancel")


def sample_refuse_order_change(draw: Draw) -> Wish | None:
    """An order to change that is past changing."""
    order_id = draw.order("refuse_order_change", *STATUSES_AFTER_PENDING)
    if order_id is None:
        return None
    change = draw.rng.choice(("address", "payment"))
    order = draw.view.db.orders[order_id]
    if change == "address":
        address = new_address(draw, order["address"])
        if address is None:
            return None
        forbidden = call("modify_pending_order_address", order_id=order_id, **address)
    else:
        # Any method shows the refusal: the status is judged before the method.
        method_id = order["payment_history"][0]["payment_method_id"]
        forbidden = call(
            "modify_pending_order_payment", order_id=order_id, payment_method_id=method_id
        )
    return refused_by_status(draw, "refuse_order_change", order_id, forbidden, change)


def sample_refuse_return(draw: Draw) -> Wish | None:
    """An order to return or exchange that has not been delivered."""
    view = draw.view
    order_id = draw.order(
        "refuse_return",
        "pending",
        "processed",
        fits=lambda o: bool(refund_methods(draw, o) and unique_items(view.db.orders[o])),
    )
    if order_id is None:
        return None
    item = draw.rng.choice(unique_items(view.db.orders[order_id]))
    forbidden = call(
        "return_delivered_order_items",
        order_id=order_id,
        item_ids=[item["item_id"]],
        payment_method_id=refund_methods(draw, order_id)[0],
    )
    wish = refused_by_status(draw, "refuse_return", order_id, forbidden, "return")
    wish.facts["item"] = item_fact(draw, item)
    return wish


def sample_refuse_other_customer(draw: Draw) -> Wish | None:
    """Somebody else's order to cancel."""
    view = draw.view
    order_id = draw.rng.choice(view.pending_order_ids) if view.pending_order_ids else None
    if order_id is None or view.db.orders[order_id]["user_id"] == draw.user_id:
        return None
    return Wish(
        "refuse_other_customer",
        call("get_order_details", order_id=order_id),
        {"order_id": order_id},
        "refused: the order belongs to another customer",
        forbidden=call("cancel_pending_order", order_id=order_id, reason=NOT_NEEDED),
    )


def sample_refuse_unavailable(draw: Draw) -> Wish | None:
    """An item to swap for one that is out of stock; gold looks at the product."""
    view = draw.view

    def short_items(order_id: str) -> list[dict]:
        items = unique_items(view.db.orders[order_id])
        held = {item["item_id"] for item in items}
        return [i for i in items if set(view.unavailable[i["product_id"]]) - held]

    order_id = draw.order(
        "refuse_unavailable", "pending", "delivered", fits=lambda o: bool(short_items(o))
    )
    if order_id is None:
        return None
    order = view.db.orders[order_id]
    item = draw.rng.choice(short_items(order_id))
    held = {one["item_id"] for one in order["items"]}
    new_id = draw.rng.choice([i for i in view.unavailable[item["product_id"]] if i not in held])
    product = view.db.products[item["product_id"]]
    pending = order["status"] == "pending"
    return Wish(
        "refuse_unavailable",
        call("get_product_details", product_id=item["product_id"]),
        {
            "order_id": order_id,
            "product_id": item["product_id"],
            "item": item_fact(draw, item),
            "new": {
                "item_id": new_id,
                "name": product["name"],
                "options": product["variants"][new_id]["options"],
            },
        },
        "refused: the wanted item is not available",
        forbidden=call(
            "modify_pending_order_items" if pending else "exchange_delivered_order_items",
            order_id=order_id,
            item_ids=[item["item_id"]],
            new_item_ids=[new_id],
            payment_method_id=order["payment_history"][0]["payment_method_id"],
        ),
    )


def sample_refuse_gift_card(draw: Draw) -> Wish | None:
    """A gift card that cannot carry an order; gold looks at the account."""
    order_id = draw.order(
        "refuse_gift_card", "pending", fits=lambda o: bool(other_methods(draw, o, False))
    )
    if order_id is None:
        return None
    method_id = draw.rng.choice(other_methods(draw, order_id, False))
    return Wish(
        "refuse_gift_card",
        call("get_user_details", user_id=draw.user_id),
        {
            "user_id": draw.user_id,
            "order_id": order_id,
            "method": method_fact(draw, method_id),
            "balance": draw.user["payment_methods"][method_id]["balance"],
            "amount": draw.view.db.orders[order_id]["payment_history"][0]["amount"],
        },
        "refused: the gift card balance is too small",
        forbidden=call(
            "modify_pending_order_payment", order_id=order_id, payment_method_id=method_id
        ),
    )


REFUSED_SAMPLERS: dict[str, Sampler] = {
    "refuse_cancel": sample_refuse_cancel,
    "refuse_order_change": sample_refuse_order_change,
    "refuse_return": sample_refuse_return,
    "refuse_other_customer": sample_refuse_other_customer,
    "refuse_unavailable": sample_refuse_unavailable,
    "refuse_gift_card": sample_refuse_gift_card,
}
