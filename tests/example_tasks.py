"""Tasks of several shapes, found in a store by search, for the scorer's tests."""

from collections.abc import Callable

from data_reader import Task
from envs.retail import Episode, RetailDatabase

ADDRESS = {
    "address1": "1 Test Street", "address2": "", "city": "Austin", "state": "TX", "country": "USA",
    "zip": "78701",
}


def call(name: str, **arguments: object) -> dict:
    """Return one call as gold or a plan holds it."""
    return {"name": name, "arguments": arguments}


def make_task(task_id: str, *actions: dict, query: str = "A query.") -> Task:
    """Return a task with these gold calls."""
    return Task(query, list(actions), "done", task_id, user_id=f"user_of_{task_id}")


def find_orders(db: RetailDatabase, status: str, keep: Callable[[dict], bool] = bool) -> list[dict]:
    """Return the orders with this status, each with its `order_id`."""
    return [{**o, "order_id": k} for k, o in db.orders.items() if o["status"] == status and keep(o)]


def find_swaps(db: RetailDatabase, order: dict) -> list[tuple[str, str]]:
    """Return (item, other variant in stock) for each item that is in the order once."""
    ids = [item["item_id"] for item in order["items"]]
    swaps = []
    for item in order["items"]:
        variants = db.products[item["product_id"]]["variants"]
        other = [k for k, v in variants.items() if v["available"] and k not in ids]
        if other and ids.count(item["item_id"]) == 1:
            swaps.append((item["item_id"], other[0]))
    return swaps


def find_card(db: RetailDatabase, order: dict) -> str | None:
    """Return a payment method of the order's customer that is no gift card."""
    methods = db.users[order["user_id"]]["payment_methods"]
    return next((k for k, m in methods.items() if m["source"] != "gift_card"), None)


def find_swap_order(db: RetailDatabase, status: str) -> tuple[dict, list[tuple[str, str]], str]:
    """Return an order with two items or more to swap, the swaps, and a card to pay with."""
    for order in find_orders(db, status):
        swaps, card = find_swaps(db, order), find_card(db, order)
        if len(swaps) >= 2 and card is not None:
            return order, swaps, card
    raise LookupError(f"the store has no {status} order with two items to swap")


def email_of(db: RetailDatabase, order: dict) -> str:
    """Return the email of an order's customer."""
    return db.users[order["user_id"]]["email"]


def make_tasks(db: RetailDatabase) -> dict[str, Task]:
    """Return tasks by shape; the gold of each replays on `db`."""
    pending = find_orders(db, "pending")
    first, second, third = pending[0], pending[1], pending[2]
    changed, changes, change_card = find_swap_order(db, "pending")
    exchanged, exchanges, exchange_card = find_swap_order(db, "delivered")
    delivered = find_orders(db, "delivered", lambda o: len(o["items"]) >= 2)[0]
    user = db.users[first["user_id"]]
    product_id = next(iter(db.products))

    def auth(order: dict) -> dict:
        return call("find_user_id_by_email", email=email_of(db, order))

    old, new = (list(ids) for ids in zip(*changes, strict=True))
    given, taken = (list(ids) for ids in zip(*exchanges, strict=True))
    cancel = call("cancel_pending_order", order_id=first["order_id"], reason="no longer needed")
    look = call("get_order_details", order_id=first["order_id"])
    tasks = [
        make_task("one_write", cancel),
        make_task("auth_and_write", auth(first), cancel),
        make_task(
            "three_calls",
            auth(changed),
            call("modify_pending_order_address", order_id=changed["order_id"], **ADDRESS),
            call(
                "modify_pending_order_items", order_id=changed["order_id"], item_ids=old,
                new_item_ids=new, payment_method_id=change_card,
            ),
        ),
        make_task(
            "return", auth(delivered),
            call(
                "return_delivered_order_items", order_id=delivered["order_id"],
                item_ids=[item["item_id"] for item in delivered["items"]],
                payment_method_id=delivered["payment_history"][0]["payment_method_id"],
            ),
        ),
        make_task(
            "exchange", auth(exchanged),
            call(
                "exchange_delivered_order_items", order_id=exchanged["order_id"], item_ids=given,
                new_item_ids=taken, payment_method_id=exchange_card,
            ),
        ),
        make_task(
            "only_reads", auth(first), look, call("get_product_details", product_id=product_id)
        ),
        make_task("same_read_twice", auth(first), look, call("think", thought="hm"), look),
        make_task("identical_calls", look, look, look),
        make_task(
            "same_name_writes", auth(first), cancel,
            call("cancel_pending_order", order_id=second["order_id"], reason="ordered by mistake"),
            call("cancel_pending_order", order_id=third["order_id"], reason="no longer needed"),
        ),
        make_task("no_arguments", auth(first), call("list_all_product_types")),
        make_task("transfer", auth(first), call("transfer_to_human_agents", summary="lost parcel")),
        make_task("sum", auth(first), call("calculate", expression="47.84 + 488.81")),
        make_task(
            "write_that_changes_nothing", auth(first),
            call("modify_user_address", user_id=first["user_id"], **user["address"]),
        ),
        make_task(
            "user_address", auth(first),
            call("modify_user_address", user_id=first["user_id"], **ADDRESS),
            call("get_user_details", user_id=first["user_id"]),
        ),
    ]
    for task in tasks:
        episode = Episode(db)
        assert all(episode.call(a["name"], a["arguments"]).ok for a in task.gold_actions), task
    return {task.task_id: task for task in tasks}
