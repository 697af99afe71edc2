"""Indexes of a store for sampling: which customers have which orders, options and methods.

A view is built once and read by every draft; nothing in it is random.
"""

from collections import Counter
from typing import Any

from envs.retail import Episode, RetailDatabase
from envs.retail.store import ADDRESS_FIELDS

Record = dict[str, Any]


class StoreView:
    """Indexes over one store, for any store in the schema."""

    def __init__(self, db: RetailDatabase):
        self.db = db
        self.orders_by_user: dict[str, dict[str, list[str]]] = {user_id: {} for user_id in db.users}
        for order_id, order in db.orders.items():
            self.orders_by_user[order["user_id"]].setdefault(order["status"], []).append(order_id)
        self.available: dict[str, list[str]] = {}
        self.unavailable: dict[str, list[str]] = {}
        for product_id, product in db.products.items():
            for store, wanted in ((self.available, True), (self.unavailable, False)):
                variants = product["variants"].items()
                store[product_id] = [i for i, variant in variants if variant["available"] is wanted]
        self.streets, self.places = self._addresses()
        self.pending_order_ids = [i for i, o in db.orders.items() if o["status"] == "pending"]
        self.product_ids = [p for p, record in db.products.items() if record["variants"]]
        self._ways = {user_id: self._find_ways(user_id) for user_id in db.users}
        self.users = [user_id for user_id, ways in self._ways.items() if ways]

    def _addresses(self) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
        """Return every street with its second line, and every city with state, country and zip."""
        streets, places = {}, {}
        for record in list(self.db.users.values()) + list(self.db.orders.values()):
            address = record["address"]
            if all(address[field].strip() for field in ADDRESS_FIELDS if field != "address2"):
                streets[address["address1"], address["address2"]] = None
                places[tuple(address[f] for f in ("city", "state", "country", "zip"))] = None
        return list(streets), list(places)

    def _find_ways(self, user_id: str) -> list[str]:
        user, episode = self.db.users[user_id], Episode(self.db)
        facts = {"email": {"email": user["email"]},
                 "name_zip": {**user["name"], "zip": user["address"]["zip"]}}
        return [
            way for way, given in facts.items()
            if episode.call(f"find_user_id_by_{way}", given).content == user_id
        ]

    def authentications(self, user_id: str) -> list[str]:
        """Return the ways to authenticate that find this user, and not a namesake."""
        return self._ways[user_id]

    def order_ids(self, user_id: str, *statuses: str) -> list[str]:
        """Return the user's orders with one of these statuses, in the store's order."""
        orders = self.orders_by_user[user_id]
        return [order_id for status in statuses for order_id in orders.get(status, ())]

    def method_labels(self, user_id: str) -> dict[str, str]:
        """Return the user's payment methods as a customer would tell them apart.

        Leave out methods that a customer could not tell apart without ids.
        """
        methods = self.db.users[user_id]["payment_methods"]
        labels = {}
        for method_id, method in methods.items():
            source = method["source"]
            if source == "credit_card" and "last_four" in method:
                brand = method.get("brand", "credit")
                labels[method_id] = f"{brand} card ending in {method['last_four']}"
            elif source == "paypal":
                labels[method_id] = "PayPal account"
            else:
                labels[method_id] = source.replace("_", " ")
        counts = Counter(labels.values())
        for method_id, method in methods.items():
            if counts[labels[method_id]] > 1 and method["source"] == "gift_card":
                labels[method_id] = f"gift card with {method['balance']} dollars on it"
        counts = Counter(labels.values())
        return {m: label for m, label in labels.items() if counts[label] == 1}

    def swappable(self, order_id: str) -> list[Record]:
        """Return the items of an order that have another available option."""
        return [
            item
            for item in unique_items(self.db.orders[order_id])
            if any(i != item["item_id"] for i in self.available[item["product_id"]])
        ]


def unique_items(order: Record) -> list[Record]:
    """Return an order's items without those it holds twice, whose id names two things."""
    counts = Counter(item["item_id"] for item in order["items"])
    return [item for item in order["items"] if counts[item["item_id"]] == 1]
