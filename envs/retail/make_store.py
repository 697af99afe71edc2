"""Make a retail store: users, orders and products in tau-bench's schema, all of them invented.

    python envs/retail/make_store.py --seed 7 --output-dir envs/retail/data

The same seed gives the same bytes. Words (names, streets, products) are in `vocabulary.json`; ids,
prices and who bought what are drawn here. Left out: records that no tool can meet (empty orders,
users without an order) and orders with a requested return, exchange or change, which only a tool
may bring about. A folder's store is replaced only when this script wrote it.
"""

import argparse
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the folder of the script is on the import path, the project is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.outputs import check_files, writing
from common.user_error import UserError, system_error

DEFAULT_SEED = 7
NUM_ID_CLASSES = 89
"""Ids of a store are all congruent to its seed modulo this, so stores of two seeds share none."""
MAX_ORDERS = 80_000
"""Beyond this, the 7-digit ids of one seed would run short."""

Record = dict[str, Any]
Records = dict[str, Record]

_STATUS_WEIGHTS = {"pending": 42, "delivered": 38, "processed": 10, "cancelled": 10}
_NUM_METHODS_WEIGHTS = {1: 35, 2: 42, 3: 23}
_NUM_ITEMS_WEIGHTS = {1: 24, 2: 27, 3: 22, 4: 15, 5: 12}
_SHARE_AVAILABLE = 0.7
_SHARE_TWICE_BOUGHT = 0.01
"""Orders in which one item is bought twice: rare, but the tools must cope."""
_SHARE_OTHER_ADDRESS = 0.08
"""Orders that go to somebody else's house."""


def make_store(
    seed: int, num_users: int = 500, num_orders: int = 1000
) -> tuple[Records, Records, Records]:
    """Make a store in memory; those whose seeds differ modulo `NUM_ID_CLASSES` share no id.

    Args:
        num_users: 1 or more.
        num_orders: At least one for every user, at most `MAX_ORDERS`.

    Returns:
        Users, orders and products, each by id.

    Raises:
        ValueError: A number is too small or too large.
    """
    if num_users < 1:
        raise ValueError(f"num_users must be 1 or more, not {num_users}")
    if num_orders < num_users:
        raise ValueError(f"num_orders must be at least num_users ({num_users}), not {num_orders}")
    if num_orders > MAX_ORDERS:
        raise ValueError(f"num_orders must be at most {MAX_ORDERS}, not {num_orders}")
    words = json.loads((Path(__file__).parent / "vocabulary.json").read_text(encoding="utf-8"))
    # One stream each, so that asking for more orders changes neither people nor products.
    products = _make_products(random.Random(f"{seed} products"), seed, words)
    users = _make_users(random.Random(f"{seed} users"), seed, words, num_users)
    orders = _make_orders(random.Random(f"{seed} orders"), seed, words, users, products, num_orders)
    return users, orders, products


class _Ids:
    """Draws numbers of a fixed length that are unique within a store and tied to its seed."""

    def __init__(self, rng: random.Random, seed: int, num_digits: int) -> None:
        self._rng = rng
        self._low = 10 ** (num_digits - 1)
        self._offset = seed % NUM_ID_CLASSES
        # Only whole classes, so that every id has exactly `num_digits` digits.
        self._num_ids = 9 * self._low // NUM_ID_CLASSES
        self._taken: set[int] = set()

    def draw(self) -> int:
        """Return a number that was not drawn before."""
        while True:
            number = self.draw_any()
            if number not in self._taken:
                self._taken.add(number)
                return number

    def draw_any(self) -> int:
        """Return a number that may have been drawn before."""
        return self._low + self._rng.randrange(self._num_ids) * NUM_ID_CLASSES + self._offset


def _pick(rng: random.Random, weights: dict[Any, int]) -> Any:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def _make_products(rng: random.Random, seed: int, words: Record) -> Records:
    ids = _Ids(rng, seed, 10)
    products: Records = {}
    for line in words["products"]:
        names = list(line["options"])
        combinations = list(itertools.product(*line["options"].values()))
        chosen = rng.sample(combinations, k=rng.randint(8, min(14, len(combinations))))
        # Enough can be had for an exchange, and one cannot, so a refusal can be met too.
        available = [True, True, True, False]
        available += [rng.random() < _SHARE_AVAILABLE for _ in chosen[4:]]
        rng.shuffle(available)
        worth = _make_worth(rng, list(line["options"].values()))
        low, high = line["price"]
        variants: Records = {}
        for values, is_available in zip(chosen, available, strict=True):
            share = sum(worth[value] for value in values)
            price = round((low + (high - low) * share) * rng.uniform(0.97, 1.03), 2)
            item_id = str(ids.draw())
            variants[item_id] = {
                "item_id": item_id, "options": dict(zip(names, values, strict=True)),
                "available": is_available, "price": price,
            }
        product_id = str(ids.draw())
        products[product_id] = {"name": line["name"], "product_id": product_id, "variants": variants}
    return products


def _make_worth(rng: random.Random, options: list[list[str]]) -> dict[str, float]:
    """Return what each option value adds to the price, as a share of the product's price range.

    The vocabulary lists the values of a product's first option from cheap to dear, so a larger size
    costs more; the other options add a little, each the same in every variant.
    """
    first, *others = options
    worth = {value: 0.6 * rank / (len(first) - 1) for rank, value in enumerate(first)}
    for values in others:
        worth.update({value: 0.4 * rng.random() / len(others) for value in values})
    return worth


def _make_address(rng: random.Random, words: Record) -> Record:
    city, state, zip_prefix = rng.choice(words["cities"])
    unit, number = rng.choice(words["units"]), rng.randint(1, 48)
    return {
        "address1": f"{rng.randint(3, 2999)} {rng.choice(words['streets'])}",
        "address2": f"{unit} {number}",
        "city": city,
        "country": "USA",
        "state": state,
        "zip": f"{zip_prefix}{rng.randint(1, 60):02d}",
    }


def _make_payment_methods(rng: random.Random, ids: dict[str, _Ids]) -> Records:
    kinds = rng.sample(["credit_card", "credit_card", "gift_card", "paypal"], k=4)
    methods: Records = {}
    for kind in kinds[: _pick(rng, _NUM_METHODS_WEIGHTS)]:
        method_id = f"{kind}_{ids[kind].draw()}"
        method: Record = {"source": kind}
        if kind == "credit_card":
            method["brand"] = rng.choice(["visa", "mastercard", "discover"])
            method["last_four"] = f"{rng.randrange(10_000):04d}"
        elif kind == "gift_card":
            # Some cards cover a whole order, some only a price difference, some hardly anything.
            low, high = rng.choice([(2, 30), (30, 150), (150, 600), (600, 1800)])
            method["balance"] = round(rng.uniform(low, high), 2)
        methods[method_id] = {**method, "id": method_id}
    return methods


def _make_users(rng: random.Random, seed: int, words: Record, num_users: int) -> Records:
    suffixes = _Ids(rng, seed, 4)
    method_ids = {kind: _Ids(rng, seed, 7) for kind in ("credit_card", "gift_card", "paypal")}
    emails: set[str] = set()
    names_and_zips: set[tuple[str, str, str]] = set()
    users: Records = {}
    while len(users) < num_users:
        first, last = rng.choice(words["first_names"]), rng.choice(words["last_names"])
        user_id = f"{first}_{last}_{suffixes.draw_any()}".lower()
        email = f"{first}.{last}{suffixes.draw_any()}@example.com".lower()
        address = _make_address(rng, words)
        name_and_zip = (first, last, address["zip"])
        # A customer is found by any of these three, so each must point at one user.
        if user_id in users or email in emails or name_and_zip in names_and_zips:
            continue
        emails.add(email)
        names_and_zips.add(name_and_zip)
        users[user_id] = {
            "name": {"first_name": first, "last_name": last},
            "address": address,
            "email": email,
            "payment_methods": _make_payment_methods(rng, method_ids),
            "orders": [],
        }
    return users


def _make_items(rng: random.Random, products: Records) -> list[Record]:
    num_items = _pick(rng, _NUM_ITEMS_WEIGHTS)
    items = []
    for product_id in rng.sample(list(products), k=num_items):
        product = products[product_id]
        variant = rng.choice(list(product["variants"].values()))
        items.append({
            "name": product["name"], "product_id": product_id, "item_id": variant["item_id"],
            "price": variant["price"], "options": dict(variant["options"]),
        })
    if rng.random() < _SHARE_TWICE_BOUGHT:
        items.append({**items[0], "options": dict(items[0]["options"])})
    return items


def _make_fulfillments(rng: random.Random, items: list[Record]) -> list[Record]:
    item_ids = [item["item_id"] for item in items]
    cut = rng.randrange(1, len(item_ids)) if len(item_ids) > 2 and rng.random() < 0.3 else 0
    return [
        {"tracking_id": [str(rng.randrange(10**11, 10**12))], "item_ids": parcel}
        for parcel in (item_ids[:cut], item_ids[cut:]) if parcel
    ]


def _make_orders(
    rng: random.Random, seed: int, words: Record, users: Records, products: Records, num_orders: int,
) -> Records:
    ids = _Ids(rng, seed, 7)
    user_ids = list(users)
    buyers = user_ids + rng.choices(user_ids, k=num_orders - len(user_ids))
    rng.shuffle(buyers)
    orders: Records = {}
    for user_id in buyers:
        user = users[user_id]
        order_id = f"#W{ids.draw()}"
        status = _pick(rng, _STATUS_WEIGHTS)
        items = _make_items(rng, products)
        amount = round(sum(item["price"] for item in items), 2)
        method_id = rng.choice(list(user["payment_methods"]))
        kinds = ["payment", "refund"] if status == "cancelled" else ["payment"]
        elsewhere = rng.random() < _SHARE_OTHER_ADDRESS
        orders[order_id] = {
            "order_id": order_id,
            "user_id": user_id,
            "address": _make_address(rng, words) if elsewhere else dict(user["address"]),
            "items": items,
            "fulfillments": (
                _make_fulfillments(rng, items) if status in ("processed", "delivered") else []
            ),
            "status": status,
            "payment_history": [
                {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}
                for kind in kinds
            ],
        }
        user["orders"].append(order_id)
    return orders


def dump_records(records: Records) -> str:
    """Return records as a JSON object, one record a line so that a diff shows which changed."""
    lines = (
        f"{json.dumps(key)}:{json.dumps(record, separators=(',', ':'))}"
        for key, record in records.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_store(seed: int, output_dir: Path, num_users: int, num_orders: int) -> None:
    """Make a store and write it as users.json, orders.json and products.json.

    Raises:
        ValueError: A number is too small or too large.
        OutputError: The folder holds a store that was not written here.
        OSError: The folder cannot be written to.
    """
    paths = [output_dir / f"{name}.json" for name in ("users", "orders", "products")]
    check_files("make_store.py", paths, option="--output-dir")
    store = make_store(seed, num_users, num_orders)
    output_dir.mkdir(parents=True, exist_ok=True)
    with writing("make_store.py", *paths) as parts:
        for part, records in zip(parts, store, strict=True):
            part.write_text(dump_records(records), encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 where somebody's store would be lost, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description="Make a retail store of invented records.")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="default: %(default)s")
    parser.add_argument(
        "--output-dir", type=Path, default=Path(__file__).parent / "data", help="default: %(default)s",
    )
    parser.add_argument("--num-users", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--num-orders", type=int, default=1000, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        write_store(options.seed, options.output_dir, options.num_users, options.num_orders)
    except (UserError, ValueError, OSError) as error:
        text = system_error(error, options.output_dir) if isinstance(error, OSError) else error
        print(f"make_store.py: {text}", file=sys.stderr)
        return 1 if isinstance(error, UserError) else 2
    print(f"{options.output_dir}: {options.num_users} users, {options.num_orders} orders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
