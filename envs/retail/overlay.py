"""An episode's private, copy-on-write view of the store.

A record that the episode has written is replaced whole and never edited in place, so records seen
earlier stay as they were. Left out: rollback (tools check before they write) and locks (an overlay
belongs to one episode).
"""

import json

from envs.retail.database import Record, RetailDatabase


class ToolRefusal(Exception):
    """A call that the store refuses; the message is what the caller gets to read."""


class StoreOverlay:
    """The store as one episode sees it: the shared database under the episode's own records.

    Args:
        database: The shared, read-only store.
    """

    __slots__ = ("_orders", "_users", "database")

    def __init__(self, database: RetailDatabase) -> None:
        self.database = database
        self._orders: dict[str, Record] = {}
        self._users: dict[str, Record] = {}

    def order(self, order_id: str) -> Record:
        """Return an order as this episode sees it; read-only.

        Raises:
            ToolRefusal: There is no such order.
        """
        record = self._orders.get(order_id) or self.database.orders.get(order_id)
        if record is None:
            raise ToolRefusal("order not found")
        return record

    def user(self, user_id: str) -> Record:
        """Return a user as this episode sees it; read-only.

        Raises:
            ToolRefusal: There is no such user.
        """
        record = self._users.get(user_id) or self.database.users.get(user_id)
        if record is None:
            raise ToolRefusal("user not found")
        return record

    def put_order(self, order_id: str, record: Record) -> None:
        """Replace an order for this episode only."""
        self._orders[order_id] = record

    def put_user(self, user_id: str, record: Record) -> None:
        """Replace a user for this episode only."""
        self._users[user_id] = record

    def changed_orders(self) -> dict[str, Record]:
        """Return the orders that differ from the database, whole, by id."""
        return _differing(self._orders, self.database.orders)

    def changed_users(self) -> dict[str, Record]:
        """Return the users that differ from the database, whole, by id."""
        return _differing(self._users, self.database.users)


def _differing(own: dict[str, Record], shared: dict[str, Record]) -> dict[str, Record]:
    return {key: record for key, record in own.items() if not _same_json(record, shared[key])}


def _same_json(one: Record, other: Record) -> bool:
    """Tell whether two records are the same JSON text, where a balance of 9 is not one of 9.0.

    tau-bench hashes the text of its records, so a gift card that a zero payment turned from 9 into
    9.0 counts as changed there, and it does here.
    """
    if one is other:
        return True
    return one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
