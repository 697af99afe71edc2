"""Samplers of questions, sums and subjects for a person: gold reads and changes nothing.

Left out on purpose: questions that no single call answers.
"""

from __future__ import annotations

from envs.retail import Episode
from tasks.audit.conventions import TRANSFER_SUBJECTS
from tasks.generate.wishes import STATUSES_AFTER_PENDING, Draw, Sampler, Wish, call, order_names


def sample_ask_order(draw: Draw) -> Wish | None:
    """A question about one of the customer's orders."""
    order_id = draw.order("ask_order", "pending", *STATUSES_AFTER_PENDING)
    if order_id is None:
        return None
    order = draw.view.db.orders[order_id]
    answers = {
        "status": (order["status"],),
        "items": tuple(order_names(draw, order_id)),
        "amount": (str(order["payment_history"][0]["amount"]),),
        "address": (order["address"]["address1"],),
    }
    aspect = draw.rng.choice(list(answers))
    return Wish(
        "ask_order",
        call("get_order_details", order_id=order_id),
        {"order_id": order_id, "aspect": aspect},
        {
            "status": "told the order's status",
            "items": "told what the order holds",
            "amount": "told the order's amount",
            "address": "told the order's address",
        }[aspect],
        answers[aspect],
    )


def sample_ask_product(draw: Draw) -> Wish | None:
    """A question about a product, its id given."""
    view = draw.view
    product_id = draw.rng.choice(view.product_ids)
    product = view.db.products[product_id]
    aspects = ["count"]
    prices = [product["variants"][i]["price"] for i in view.available[product_id]]
    if prices:
        aspects += ["cheapest", "dearest"]
    aspect = draw.rng.choice(aspects)
    answer = {"count": len(prices)}
    if prices:
        answer |= {"cheapest": min(prices), "dearest": max(prices)}
    return Wish(
        "ask_product",
        call("get_product_details", product_id=product_id),
        {"product_id": product_id, "name": product["name"], "aspect": aspect},
        {
            "count": "told how many options are available",
            "cheapest": "told the lowest price",
            "dearest": "told the highest price",
        }[aspect],
        (str(answer[aspect]),),
    )


def sample_ask_product_types(draw: Draw) -> Wish | None:
    """A question about the range of products."""
    return Wish(
        "ask_product_types",
        call("list_all_product_types"),
        {},
        "told the kinds of products",
        (str(len(draw.view.db.product_types)),),
    )


def sample_ask_account(draw: Draw) -> Wish | None:
    """A question about the customer's own account, the user id given."""
    user = draw.user
    answers = {"address": (user["address"]["address1"],), "orders": tuple(user["orders"])}
    cards = [m for m in user["payment_methods"].values() if m["source"] == "gift_card"]
    if cards:
        answers["balance"] = tuple(str(card["balance"]) for card in cards)
    aspect = draw.rng.choice(list(answers))
    return Wish(
        "ask_account",
        call("get_user_details", user_id=draw.user_id),
        {"user_id": draw.user_id, "aspect": aspect},
        {
            "address": "told the address on file",
            "orders": "told the orders of the account",
            "balance": "told the gift card balance",
        }[aspect],
        answers[aspect],
    )


def sample_calculation(draw: Draw, kind: str, num_numbers: int, sign: str) -> Wish | None:
    """Sum or difference of prices in the customer's orders."""
    prices: dict[float, str] = {}
    for orders in draw.view.orders_by_user[draw.user_id].values():
        for order_id in orders:
            for item in draw.view.db.orders[order_id]["items"]:
                name = draw.view.db.products[item["product_id"]]["name"]
                prices.setdefault(item["price"], name)
    if len(prices) < num_numbers:
        return None
    chosen = draw.rng.sample(sorted(prices), num_numbers)
    if sign == "-":
        chosen.sort(reverse=True)
    numbers = [f"{price:.2f}" for price in chosen]
    expression = f" {sign} ".join(numbers)
    result = Episode(draw.view.db).call("calculate", {"expression": expression})
    return Wish(
        kind,
        call("calculate", expression=expression),
        {"numbers": numbers, "names": [prices[price] for price in chosen]},
        "told the sum" if sign == "+" else "told the difference",
        (str(result.content),),
    )


def sample_calculate_sum(draw: Draw) -> Wish | None:
    """What two or three prices make together."""
    return sample_calculation(draw, "calculate_sum", draw.rng.choice((2, 2, 3)), "+")


def sample_calculate_difference(draw: Draw) -> Wish | None:
    """How far two prices are apart."""
    return sample_calculation(draw, "calculate_difference", 2, "-")


def sample_transfer(draw: Draw) -> Wish | None:
    """A subject outside the tools."""
    subject = draw.rng.choice(TRANSFER_SUBJECTS)
    return Wish(
        "transfer",
        call("transfer_to_human_agents", summary=subject),
        {"subject": subject},
        "transferred to a human agent",
    )


READ_SAMPLERS: dict[str, Sampler] = {
    "ask_order": sample_ask_order,
    "ask_product": sample_ask_product,
    "ask_product_types": sample_ask_product_types,
    "ask_account": sample_ask_account,
    "calculate_sum": sample_calculate_sum,
    "calculate_difference": sample_calculate_difference,
    "transfer": sample_transfer,
}
