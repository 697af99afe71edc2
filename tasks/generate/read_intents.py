"""Samplers of intents whose gold only reads: questions, sums, transfers, and requests to be refused.

A refused request's facts hold what forbids it (a status, another owner, the stock, a balance); the words
mention it, and gold reads the record that shows it.
"""

from envs.retail import Episode
from tasks.audit.conventions import TRANSFER_SUBJECTS
from tasks.audit.grounding import NOT_NEEDED
from tasks.blueprint import Intent
from tasks.generate.intents import (
    STATUSES_AFTER_PENDING,
    Draw,
    NoFit,
    Sampler,
    call,
    item_fact,
    method_fact,
    new_address,
    order_names,
    other_methods,
    refund_methods,
    returnable,
)
from tasks.generate.store_view import unique_items


def sample_ask_order(draw: Draw) -> Intent:
    """Ask about one of the customer's orders."""
    order_id = draw.order("ask_order", "pending", *STATUSES_AFTER_PENDING)
    order = draw.view.db.orders[order_id]
    answers = {
        "status": ("told the order's status", (order["status"],)),
        "items": ("told what the order holds", tuple(order_names(draw, order_id))),
        "amount": ("told the order's amount", (str(order["payment_history"][0]["amount"]),)),
        "address": ("told the order's address", (order["address"]["address1"],)),
    }
    aspect = draw.rng.choice(list(answers))
    facts = {"order_id": order_id, "aspect": aspect}
    return Intent("ask_order", call("get_order_details", order_id=order_id), facts, *answers[aspect])


def sample_ask_product(draw: Draw) -> Intent:
    """Ask about a product by its id."""
    view = draw.view
    product_id = draw.rng.choice(view.product_ids)
    product = view.db.products[product_id]
    prices = [product["variants"][i]["price"] for i in view.available[product_id]]
    answers = {"count": ("told how many options are available", (str(len(prices)),))}
    if prices:
        answers["cheapest"] = ("told the lowest price", (str(min(prices)),))
        answers["dearest"] = ("told the highest price", (str(max(prices)),))
    aspect = draw.rng.choice(list(answers))
    action = call("get_product_details", product_id=product_id)
    facts = {"product_id": product_id, "name": product["name"], "aspect": aspect}
    return Intent("ask_product", action, facts, *answers[aspect])


def sample_ask_product_types(draw: Draw) -> Intent:
    """Ask about the kinds of products."""
    count = str(len(draw.view.db.product_types))
    outcome = "told the kinds of products"
    return Intent("ask_product_types", call("list_all_product_types"), {}, outcome, (count,))


def sample_ask_account(draw: Draw) -> Intent:
    """Ask about the customer's own account by the user id."""
    user = draw.user
    answers = {
        "address": ("told the address on file", (user["address"]["address1"],)),
        "orders": ("told the orders of the account", tuple(user["orders"])),
    }
    cards = [m for m in user["payment_methods"].values() if m["source"] == "gift_card"]
    if cards:
        balances = tuple(str(card["balance"]) for card in cards)
        answers["balance"] = ("told the gift card balance", balances)
    aspect = draw.rng.choice(list(answers))
    facts = {"user_id": draw.user_id, "aspect": aspect}
    return Intent("ask_account", call("get_user_details", user_id=draw.user_id), facts, *answers[aspect])


def sample_calculation(draw: Draw, kind: str, num_numbers: int, sign: str) -> Intent:
    """Add or subtract prices from the customer's orders."""
    prices: dict[float, str] = {}
    for orders in draw.view.orders_by_user[draw.user_id].values():
        for order_id in orders:
            for item in draw.view.db.orders[order_id]["items"]:
                name = draw.view.db.products[item["product_id"]]["name"]
                prices.setdefault(item["price"], name)
    if len(prices) < num_numbers:
        raise NoFit
    chosen = draw.rng.sample(sorted(prices), num_numbers)
    if sign == "-":
        chosen.sort(reverse=True)
    numbers = [f"{price:.2f}" for price in chosen]
    expression = f" {sign} ".join(numbers)
    result = Episode(draw.view.db).call("calculate", {"expression": expression})
    return Intent(
        kind,
        call("calculate", expression=expression),
        {"numbers": numbers, "names": [prices[price] for price in chosen]},
        "told the sum" if sign == "+" else "told the difference",
        (str(result.content),),
    )


def sample_transfer(draw: Draw) -> Intent:
    """Raise a subject outside the tools."""
    subject = draw.rng.choice(TRANSFER_SUBJECTS)
    action = call("transfer_to_human_agents", summary=subject)
    return Intent("transfer", action, {"subject": subject}, "transferred to a human agent")


def refused_by_status(draw: Draw, kind: str, order_id: str, forbidden: dict, change: str) -> Intent:
    """Make an intent that the order's status forbids; gold reads the order."""
    status = draw.view.db.orders[order_id]["status"]
    facts = {"order_id": order_id, "status": status, "change": change, "names": order_names(draw, order_id)}
    action = call("get_order_details", order_id=order_id)
    return Intent(kind, action, facts, f"refused: the order is {status}", forbidden=forbidden)


def sample_refuse_cancel(draw: Draw) -> Intent:
    """Cancel an order that is no longer pending."""
    order_id = draw.order("refuse_cancel", *STATUSES_AFTER_PENDING)
    forbidden = call("cancel_pending_order", order_id=order_id, reason=NOT_NEEDED)
    return refused_by_status(draw, "refuse_cancel", order_id, forbidden, "cancel")


def sample_refuse_order_change(draw: Draw) -> Intent:
    """Change an order that is no longer pending."""
    order_id = draw.order("refuse_order_change", *STATUSES_AFTER_PENDING)
    change = draw.rng.choice(("address", "payment"))
    order = draw.view.db.orders[order_id]
    if change == "address":
        address = new_address(draw, order["address"])
        forbidden = call("modify_pending_order_address", order_id=order_id, **address)
    else:
        # Any method shows the refusal: the status is judged before the method.
        method_id = order["payment_history"][0]["payment_method_id"]
        forbidden = call("modify_pending_order_payment", order_id=order_id, payment_method_id=method_id)
    return refused_by_status(draw, "refuse_order_change", order_id, forbidden, change)


def sample_refuse_return(draw: Draw) -> Intent:
    """Return an item of an order that has not been delivered."""
    order_id = draw.order("refuse_return", "pending", "processed", fits=lambda o: returnable(draw, o))
    item = draw.rng.choice(unique_items(draw.view.db.orders[order_id]))
    forbidden = call(
        "return_delivered_order_items",
        order_id=order_id, item_ids=[item["item_id"]], payment_method_id=refund_methods(draw, order_id)[0],
    )
    intent = refused_by_status(draw, "refuse_return", order_id, forbidden, "return")
    intent.facts["item"] = item_fact(draw, item)
    return intent


def sample_refuse_other_customer(draw: Draw) -> Intent:
    """Cancel another customer's order."""
    view = draw.view
    if not view.pending_order_ids:
        raise NoFit
    order_id = draw.rng.choice(view.pending_order_ids)
    if view.db.orders[order_id]["user_id"] == draw.user_id:
        raise NoFit
    return Intent(
        "refuse_other_customer",
        call("get_order_details", order_id=order_id),
        {"order_id": order_id},
        "refused: the order belongs to another customer",
        forbidden=call("cancel_pending_order", order_id=order_id, reason=NOT_NEEDED),
    )


def sample_refuse_unavailable(draw: Draw) -> Intent:
    """Swap an item for one that is out of stock; gold reads the product."""
    view = draw.view

    def short_items(order_id: str) -> list[dict]:
        items = unique_items(view.db.orders[order_id])
        held = {item["item_id"] for item in items}
        return [i for i in items if set(view.unavailable[i["product_id"]]) - held]

    order_id = draw.order("refuse_unavailable", "pending", "delivered", fits=lambda o: bool(short_items(o)))
    order = view.db.orders[order_id]
    item = draw.rng.choice(short_items(order_id))
    held = {one["item_id"] for one in order["items"]}
    new_id = draw.rng.choice([i for i in view.unavailable[item["product_id"]] if i not in held])
    variant = view.db.products[item["product_id"]]["variants"][new_id]
    new = {"item_id": new_id, "product_id": item["product_id"], "options": variant["options"]}
    pending = order["status"] == "pending"
    return Intent(
        "refuse_unavailable",
        call("get_product_details", product_id=item["product_id"]),
        {"order_id": order_id, "product_id": item["product_id"], "item": item_fact(draw, item),
         "new": item_fact(draw, new)},
        "refused: the wanted item is not available",
        forbidden=call(
            "modify_pending_order_items" if pending else "exchange_delivered_order_items",
            order_id=order_id, item_ids=[item["item_id"]], new_item_ids=[new_id],
            payment_method_id=order["payment_history"][0]["payment_method_id"],
        ),
    )


def sample_refuse_gift_card(draw: Draw) -> Intent:
    """Pay an order with a gift card that does not cover it; gold reads the account."""
    order_id = draw.order("refuse_gift_card", "pending", fits=lambda o: bool(other_methods(draw, o, False)))
    method_id = draw.rng.choice(other_methods(draw, order_id, False))
    return Intent(
        "refuse_gift_card",
        call("get_user_details", user_id=draw.user_id),
        {"user_id": draw.user_id, "order_id": order_id, "method": method_fact(draw, method_id),
         "balance": draw.user["payment_methods"][method_id]["balance"],
         "amount": draw.view.db.orders[order_id]["payment_history"][0]["amount"]},
        "refused: the gift card balance is too small",
        forbidden=call("modify_pending_order_payment", order_id=order_id, payment_method_id=method_id),
    )


READ_SAMPLERS: dict[str, Sampler] = {
    "ask_order": sample_ask_order,
    "ask_product": sample_ask_product,
    "ask_product_types": sample_ask_product_types,
    "ask_account": sample_ask_account,
    "calculate_sum": lambda draw: sample_calculation(
        draw, "calculate_sum", draw.rng.choice((2, 2, 3)), "+"
    ),
    "calculate_difference": lambda draw: sample_calculation(draw, "calculate_difference", 2, "-"),
    "transfer": sample_transfer,
}
REFUSED_SAMPLERS: dict[str, Sampler] = {
    "refuse_cancel": sample_refuse_cancel,
    "refuse_order_change": sample_refuse_order_change,
    "refuse_return": sample_refuse_return,
    "refuse_other_customer": sample_refuse_other_customer,
    "refuse_unavailable": sample_refuse_unavailable,
    "refuse_gift_card": sample_refuse_gift_card,
}
