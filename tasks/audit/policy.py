"""The rules of wiki.md as code: what an agent may do to the store, and in which order.

The rules are checked on records, not by the tools' refusals, so a tool that lacks a guard does not
make a forbidden task pass.

Kinds: unauthenticated, authenticated_twice, other_customers_order, other_customers_record,
unknown_record, wrong_status, second_item_change, change_after_item_change, no_items,
uneven_items, item_not_in_order, unknown_item, same_item, other_product, unavailable_item,
unknown_payment_method, refund_to_other_method, same_payment_method, gift_card_short.
"""

from collections import Counter

from data_reader import Task
from envs.retail import Episode, RetailDatabase
from scoring.violations import AUTHENTICATION_TOOLS, ITEM_TOOLS
from tasks.audit.finding import Finding, call_label, order_remedy

REQUIRED_STATUS = {
    "cancel_pending_order": "pending",
    "modify_pending_order_address": "pending",
    "modify_pending_order_items": "pending",
    "modify_pending_order_payment": "pending",
    "return_delivered_order_items": "delivered",
    "exchange_delivered_order_items": "delivered",
}


class PolicyReplay:
    """Replays gold on the store and checks each call against the records before it."""

    def __init__(self, db: RetailDatabase, user_id: str | None, require_authentication: bool):
        """Start from the unchanged store.

        Args:
            user_id: The customer as the row names it; None when it does not.
            require_authentication: False for sources without authentication calls.
        """
        self.db = db
        self.episode = Episode(db)
        self.require_authentication = require_authentication
        self.customer_id = None if require_authentication else user_id
        self.num_authentications = 0
        self.item_changed: set[str] = set()
        self.findings: list[Finding] = []
        self.label = ""

    def add(self, kind: str, detail: str) -> None:
        """Record a finding about the current call."""
        self.findings.append(Finding(kind, f"{self.label}: {detail}"))

    def step(self, index: int, action: dict) -> None:
        """Check one call, then execute it."""
        name, arguments = action["name"], action["arguments"]
        self.label = call_label(index, action)
        if name in AUTHENTICATION_TOOLS:
            observation = self.episode.call(name, arguments)
            self.num_authentications += 1
            if self.num_authentications > 1:
                self.add("authenticated_twice", "the customer is known already")
            if observation.ok:
                self.customer_id = observation.content
            return
        if name != "think" and self.require_authentication and self.customer_id is None:
            self.add("unauthenticated", "the customer is not authenticated before it")
        if name in REQUIRED_STATUS:
            self.check_order_write(name, arguments)
        elif name in ("modify_user_address", "get_user_details"):
            self.check_user_call(arguments)
        self.episode.call(name, arguments)
        if name in ITEM_TOOLS:
            self.item_changed.add(arguments["order_id"])

    def check_user_call(self, arguments: dict) -> None:
        """Check that a profile is read and changed for its own customer only."""
        user_id = arguments["user_id"]
        if user_id not in self.db.users:
            self.add("unknown_record", f"no user {user_id}")
        elif self.customer_id is not None and user_id != self.customer_id:
            self.add("other_customers_record", f"user {user_id} is not {self.customer_id}")

    def check_order_write(self, name: str, arguments: dict) -> None:
        """Check ownership, status, one item change per order, then the tool's own rules."""
        order_id = arguments["order_id"]
        if order_id not in self.db.orders:
            remedy = order_remedy({"arguments": arguments}, self.db)
            self.add("unknown_record", f"no order {order_id}; {remedy}")
            return
        order = self.episode.call("get_order_details", {"order_id": order_id}).content
        if self.customer_id is not None and order["user_id"] != self.customer_id:
            self.add("other_customers_order", f"{order_id} is not an order of {self.customer_id}")
        if order["status"] != REQUIRED_STATUS[name]:
            if order_id not in self.item_changed:
                kind = "wrong_status"
            elif name in ITEM_TOOLS:
                kind = "second_item_change"
            else:
                kind = "change_after_item_change"
            self.add(kind, f"{order_id} is {order['status']}, the tool needs {REQUIRED_STATUS[name]}")
        user = self.episode.call("get_user_details", {"user_id": order["user_id"]}).content
        if name in ITEM_TOOLS:
            self.check_items(name, arguments, order, user)
        elif name == "modify_pending_order_payment":
            self.check_payment_change(arguments, order, user)

    def check_items(self, name: str, arguments: dict, order: dict, user: dict) -> None:
        """Check that the items are in the order and new ones are available options of their product."""
        item_ids = arguments["item_ids"]
        if not item_ids:
            self.add("no_items", "item_ids is empty")
        owned = Counter(item["item_id"] for item in order["items"])
        for item_id, count in Counter(item_ids).items():
            if count > owned[item_id]:
                self.add(
                    "item_not_in_order", f"item {item_id} is {owned[item_id]} times in {order['order_id']}"
                )
        method_id = arguments["payment_method_id"]
        if method_id not in user["payment_methods"]:
            self.add("unknown_payment_method", f"{method_id} is not one of {order['user_id']}")
            return
        method = user["payment_methods"][method_id]
        if name == "return_delivered_order_items":
            original_id = order["payment_history"][0]["payment_method_id"]
            if method["source"] != "gift_card" and method_id != original_id:
                self.add(
                    "refund_to_other_method", f"{method_id} neither paid for the order nor is a gift card"
                )
            return
        difference = self.check_new_items(arguments, order)
        if method["source"] == "gift_card" and method["balance"] < difference:
            self.add(
                "gift_card_short",
                f"{method_id} holds {method['balance']}, the difference is {difference:.2f}",
            )

    def check_new_items(self, arguments: dict, order: dict) -> float:
        """Check each old-new pair; return the price difference in the store's currency."""
        item_ids, new_item_ids = arguments["item_ids"], arguments["new_item_ids"]
        if len(item_ids) != len(new_item_ids):
            self.add("uneven_items", f"{len(item_ids)} items for {len(new_item_ids)} new ones")
        items = {item["item_id"]: item for item in order["items"]}
        difference = 0.0
        for old_id, new_id in zip(item_ids, new_item_ids):
            if old_id not in items:
                continue
            old = items[old_id]
            variant = self.db.products[old["product_id"]]["variants"].get(new_id)
            if old_id == new_id:
                self.add("same_item", f"item {old_id} for itself")
            elif variant is None:
                known = any(new_id in p["variants"] for p in self.db.products.values())
                self.add(
                    "other_product" if known else "unknown_item",
                    f"item {new_id} is not an option of {old['name']}",
                )
            elif not variant["available"]:
                self.add("unavailable_item", f"item {new_id} is not available")
            if variant is not None:
                difference += variant["price"] - old["price"]
        return round(difference, 2)

    def check_payment_change(self, arguments: dict, order: dict, user: dict) -> None:
        """Check that the new method is the customer's, another one, and can pay the whole amount."""
        method_id = arguments["payment_method_id"]
        if method_id not in user["payment_methods"]:
            self.add("unknown_payment_method", f"{method_id} is not one of {order['user_id']}")
            return
        payments = order["payment_history"]
        if method_id == payments[-1]["payment_method_id"]:
            self.add("same_payment_method", f"{method_id} pays {order['order_id']} already")
            return
        method = user["payment_methods"][method_id]
        amount = payments[0]["amount"]
        if method["source"] == "gift_card" and method["balance"] < amount:
            self.add("gift_card_short", f"{method_id} holds {method['balance']}, the order is {amount}")


def check_policy(task: Task, db: RetailDatabase, require_authentication: bool = True) -> list[Finding]:
    """Check gold against the rules of wiki.md that hold for any row.

    Calls must fit the tool schemas (`check_format` first). The first call, `think` aside, has to
    authenticate the customer.

    Args:
        require_authentication: False for sources without any authentication call (tau-bench's own
            task files); `task.user_id` is the customer there and the other rules still hold.
    """
    replay = PolicyReplay(db, task.user_id, require_authentication)
    for index, action in enumerate(task.gold_actions):
        replay.step(index, action)
    return replay.findings
