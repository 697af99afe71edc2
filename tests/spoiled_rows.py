"""Ways to spoil a clean task row, one function each: (row, store) -> the spoiled row.

A row is the generator's, as a dict that the function may change. None comes back when this row
cannot carry the fault, a text when the spoiled row is no JSON object any more.
"""

import copy
import json
from collections.abc import Iterator

from envs.retail import RetailDatabase

Row = dict
ITEM_WRITES = (
    "return_delivered_order_items", "exchange_delivered_order_items", "modify_pending_order_items",
)


def calls(row: Row, *names: str) -> Iterator[dict]:
    """Yield the arguments of the calls of these tools."""
    for action in row["gold_actions"]:
        if action["name"] in names:
            yield action["arguments"]


def everywhere(row: Row, old: str, new: str) -> Row:
    """Replace a text in the query and in gold alike, so that the two still agree."""
    return json.loads(json.dumps(row, ensure_ascii=False).replace(old, new))


def wrong_item_id(row: Row, db: RetailDatabase) -> Row | None:
    """Another item of the same order: the store accepts it, only the words speak against it."""
    for arguments in calls(row, "return_delivered_order_items"):
        for item in db.orders[arguments["order_id"]]["items"]:
            if item["item_id"] not in row["query"]:
                arguments["item_ids"][0] = item["item_id"]
                return row
    return None


def item_of_no_order(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, *ITEM_WRITES):
        return everywhere(row, arguments["item_ids"][0], "9999999999")
    return None


def missing_zip(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "modify_pending_order_address", "modify_user_address"):
        arguments["zip"] = ""
        return row
    return None


def dropped_zip(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "find_user_id_by_name_zip"):
        row["query"] = row["query"].replace(arguments["zip"], "")
        return row
    return None


def wrong_city(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "modify_pending_order_address", "modify_user_address"):
        arguments["city"] = "Springfield"
        return row
    return None


def city_and_state_swapped(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "modify_pending_order_address", "modify_user_address"):
        arguments["city"], arguments["state"] = arguments["state"], arguments["city"]
        return row
    return None


def street_lines_swapped(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "modify_pending_order_address", "modify_user_address"):
        if arguments["address2"]:
            lines = arguments["address2"], arguments["address1"]
            arguments["address1"], arguments["address2"] = lines
            return row
    return None


def lost_second_line(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "modify_pending_order_address", "modify_user_address"):
        if arguments["address2"]:
            arguments["address2"] = ""
            return row
    return None


def unnamed_order(row: Row, db: RetailDatabase) -> Row | None:
    """Another order of the same customer that could be cancelled as well."""
    for arguments in calls(row, "cancel_pending_order"):
        for order_id in db.users[db.orders[arguments["order_id"]]["user_id"]]["orders"]:
            if db.orders[order_id]["status"] == "pending" and order_id not in row["query"]:
                arguments["order_id"] = order_id
                return row
    return None


def unknown_payment(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, *ITEM_WRITES, "modify_pending_order_payment"):
        return everywhere(row, arguments["payment_method_id"], "paypal_9999999")
    return None


def unnamed_payment(row: Row, db: RetailDatabase) -> Row | None:
    """Another method of the same customer, which the query does not name."""
    for arguments in calls(row, "exchange_delivered_order_items", "modify_pending_order_items"):
        user = db.users[db.orders[arguments["order_id"]]["user_id"]]
        for method_id in user["payment_methods"]:
            if method_id not in row["query"]:
                arguments["payment_method_id"] = method_id
                return row
    return None


def wrong_status(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "cancel_pending_order"):
        order = db.orders[arguments["order_id"]]
        for order_id in db.users[order["user_id"]]["orders"]:
            if db.orders[order_id]["status"] == "delivered" and order_id not in row["query"]:
                return everywhere(row, order["order_id"], order_id)
    return None


def other_customers_order(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "cancel_pending_order"):
        own = db.orders[arguments["order_id"]]
        for order_id, order in db.orders.items():
            if order["user_id"] != own["user_id"] and order["status"] == "pending":
                return everywhere(row, arguments["order_id"], order_id)
    return None


def dropped_email(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "find_user_id_by_email"):
        row["query"] = row["query"].replace(arguments["email"], "")
        return row
    return None


def mistyped_email(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "find_user_id_by_email"):
        return everywhere(row, arguments["email"], "x" + arguments["email"])
    return None


def authenticates_last(row: Row, db: RetailDatabase) -> Row | None:
    row["gold_actions"] = row["gold_actions"][1:] + row["gold_actions"][:1]
    return row


def authenticates_twice(row: Row, db: RetailDatabase) -> Row | None:
    row["gold_actions"].insert(1, copy.deepcopy(row["gold_actions"][0]))
    return row


def wishes_swapped(row: Row, db: RetailDatabase) -> Row | None:
    """The last two calls change places; no rule of the store forbids it."""
    if len(row["gold_actions"]) < 3:
        return None
    *first, one, two = row["gold_actions"]
    ids = [action["arguments"].get("order_id") for action in (one, two)]
    if None in ids or ids[0] == ids[1]:
        return None
    row["gold_actions"] = [*first, two, one]
    return row


def address_after_items(row: Row, db: RetailDatabase) -> Row | None:
    """A change of payment or address behind the item change of the same order."""
    for index, action in enumerate(row["gold_actions"]):
        order_id = action["arguments"].get("order_id")
        if action["name"] != "modify_pending_order_items":
            continue
        for earlier in range(1, index):
            other = row["gold_actions"][earlier]
            if other["arguments"].get("order_id") == order_id:
                row["gold_actions"].insert(index, row["gold_actions"].pop(earlier))
                return row
    return None


def contradicted_reason(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "cancel_pending_order"):
        reasons = {"no longer needed", "ordered by mistake"}
        arguments["reason"] = (reasons - {arguments["reason"]}).pop()
        return row
    return None


def second_item_change(row: Row, db: RetailDatabase) -> Row | None:
    for index, action in enumerate(row["gold_actions"]):
        if action["name"] in ITEM_WRITES:
            row["gold_actions"].insert(index + 1, copy.deepcopy(action))
            return row
    return None


def other_product(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "exchange_delivered_order_items", "modify_pending_order_items"):
        old = arguments["new_item_ids"][0]
        for product in db.products.values():
            if old not in product["variants"]:
                new = next(i for i, v in product["variants"].items() if v["available"])
                return everywhere(row, old, new)
    return None


def unavailable_item(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "exchange_delivered_order_items", "modify_pending_order_items"):
        old = arguments["new_item_ids"][0]
        for product in db.products.values():
            for item_id, variant in product["variants"].items():
                if old in product["variants"] and not variant["available"]:
                    if item_id not in arguments["item_ids"]:
                        return everywhere(row, old, item_id)
    return None


def same_item(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "exchange_delivered_order_items", "modify_pending_order_items"):
        arguments["new_item_ids"] = list(arguments["item_ids"])
        return row
    return None


def swapped_pair(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "exchange_delivered_order_items", "modify_pending_order_items"):
        if len(arguments["item_ids"]) > 1:
            arguments["new_item_ids"].reverse()
            return row
    return None


def uneven_items(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "exchange_delivered_order_items", "modify_pending_order_items"):
        if len(arguments["item_ids"]) > 1:
            arguments["new_item_ids"].pop()
            return row
    return None


def short_gift_card(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "modify_pending_order_payment"):
        order = db.orders[arguments["order_id"]]
        paid = order["payment_history"][0]
        for method_id, method in db.users[order["user_id"]]["payment_methods"].items():
            if method["source"] == "gift_card" and method["balance"] < paid["amount"]:
                if method_id != paid["payment_method_id"]:
                    return everywhere(row, arguments["payment_method_id"], method_id)
    return None


def wrong_sum(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "calculate"):
        arguments["expression"] += " + 77123.45"
        return row
    return None


def other_subject(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "transfer_to_human_agents"):
        return everywhere(row, arguments["summary"], "gift wrapping")
    return None


def payments_swapped(row: Row, db: RetailDatabase) -> Row | None:
    """Two wishes trade their payment methods; each still stands in the query."""
    with_payment = list(calls(row, *ITEM_WRITES, "modify_pending_order_payment"))
    if len(with_payment) < 2:
        return None
    one, two = with_payment[:2]
    if one["payment_method_id"] == two["payment_method_id"]:
        return None
    methods = two["payment_method_id"], one["payment_method_id"]
    one["payment_method_id"], two["payment_method_id"] = methods
    return row


def wrong_output(row: Row, db: RetailDatabase) -> Row | None:
    if not row["outputs"]:
        return None
    row["outputs"][0] = "77123.45"
    return row


def forgotten_wish(row: Row, db: RetailDatabase) -> Row | None:
    if len(row["gold_actions"]) < 3:
        return None
    row["gold_actions"].pop()
    return row


def other_user_id(row: Row, db: RetailDatabase) -> Row | None:
    row["user_id"] = next(user_id for user_id in db.users if user_id != row["user_id"])
    return row


def unknown_tool(row: Row, db: RetailDatabase) -> Row:
    row["gold_actions"][-1]["name"] = "refund_order"
    return row


def extra_argument(row: Row, db: RetailDatabase) -> Row:
    row["gold_actions"][-1]["arguments"]["note"] = "please"
    return row


def missing_argument(row: Row, db: RetailDatabase) -> Row | None:
    arguments = row["gold_actions"][-1]["arguments"]
    if not arguments:
        return None
    arguments.popitem()
    return row


def foreign_reason(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, "cancel_pending_order"):
        arguments["reason"] = "customer request"
        return row
    return None


def ill_typed_argument(row: Row, db: RetailDatabase) -> Row | None:
    for arguments in calls(row, *ITEM_WRITES):
        arguments["item_ids"] = arguments["item_ids"][0]
        return row
    return None


def broken_json(row: Row, db: RetailDatabase) -> str:
    return json.dumps(row)[:-2]


def missing_field(row: Row, db: RetailDatabase) -> Row:
    del row["gold_final"]
    return row


def empty_query(row: Row, db: RetailDatabase) -> Row:
    row["query"] = "  "
    return row


def no_calls(row: Row, db: RetailDatabase) -> Row:
    row["gold_actions"] = []
    return row
