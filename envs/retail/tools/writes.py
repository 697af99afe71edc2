"""The seven tools that change the store.

Every guard runs before the first change, and a change replaces whole records in the overlay, so a
refused call leaves everything as it was. The effects follow tau-bench's tools, quirks included:
an order whose items were changed is no longer "pending", and a cancellation pays back every entry
of the payment history. The customer's consent, which the policy demands, no tool can check.
"""

from collections import Counter
from typing import Literal

from envs.retail.store import ADDRESS_FIELDS, Record, StoreOverlay, ToolRefusal
from envs.retail.tools.schema import shown, write


class WriteTools:
    """Cancel, change, return and exchange orders, move a user; a part of `RetailTools`."""

    _store: StoreOverlay
    """The store as one episode sees it."""

    @write
    def cancel_pending_order(
        self, order_id: str, reason: Literal["no longer needed", "ordered by mistake"]
    ) -> Record:
        """Cancel a pending order and refund it to the payment method it was paid with.

        Args:
            order_id: The order id, such as '#W0000000'; the '#' belongs to it.
            reason: Why the customer cancels.

        Raises:
            ToolRefusal: There is no such order, or it is not pending.
        """
        order = self._order_with_status(order_id, "pending")
        user = self._store.user(order["user_id"])
        refunds = []
        for entry in order["payment_history"]:
            refunds.append(_payment("refund", entry["amount"], entry["payment_method_id"]))
            user = _add_to_gift_card(user, entry["payment_method_id"], entry["amount"])
        order = {
            **order,
            "status": "cancelled",
            "cancel_reason": reason,
            "payment_history": order["payment_history"] + refunds,
        }
        return self._save(order_id, order, user)

    @write
    def modify_pending_order_address(
        self, order_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str,
    ) -> Record:
        """Change the shipping address of a pending order; all six fields are replaced.

        Args:
            order_id: The order id, such as '#W0000000'; the '#' belongs to it.
            address1: House number and street, such as '12 Mill Lane'.
            address2: Apartment or suite, such as 'Apt 3'; may be empty.
            city: The city.
            state: The state as two letters, such as 'TX'.
            country: The country, such as 'USA'.
            zip: The zip code, such as '12345'.

        Raises:
            ToolRefusal: There is no such order, or it is not pending.
        """
        order = self._order_with_status(order_id, "pending")
        address = _address(address1, address2, city, state, country, zip)
        return self._save(order_id, {**order, "address": address})

    @write
    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Record:
        """Swap items of a pending order for other variants of the same products, once per order.

        Args:
            order_id: The order id, such as '#W0000000'; the '#' belongs to it.
            item_ids: Item ids to replace; an item bought twice may be named twice.
            new_item_ids: New item ids, one for each of item_ids and in the same order.
            payment_method_id: Pays or receives the price difference, such as 'gift_card_0000000'.

        Raises:
            ToolRefusal: The order, an item, a new item or the payment method will not do.
        """
        order = self._order_with_status(order_id, "pending")
        difference = self._price_difference(order, item_ids, new_item_ids)
        user = self._store.user(order["user_id"])
        _require_funds(user, payment_method_id, difference)
        kind = "payment" if difference > 0 else "refund"
        entry = _payment(kind, abs(difference), payment_method_id)
        order = {
            **order,
            "items": self._replaced_items(order["items"], item_ids, new_item_ids),
            "status": "pending (item modified)",
            "payment_history": [*order["payment_history"], entry],
        }
        return self._save(order_id, order, _add_to_gift_card(user, payment_method_id, -difference))

    @write
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> Record:
        """Pay a pending order with another payment method and refund the first one.

        Args:
            order_id: The order id, such as '#W0000000'; the '#' belongs to it.
            payment_method_id: The user's other payment method, such as 'paypal_0000000'.

        Raises:
            ToolRefusal: The order or the payment method will not do.
        """
        order = self._order_with_status(order_id, "pending")
        user = self._store.user(order["user_id"])
        first = order["payment_history"][0]
        amount = first["amount"]
        if len(order["payment_history"]) > 1 or first["transaction_type"] != "payment":
            raise ToolRefusal("the order must have exactly one payment")
        if first["payment_method_id"] == payment_method_id:
            raise ToolRefusal("the order is already paid with this payment method")
        _require_funds(user, payment_method_id, amount)
        entries = [
            _payment("payment", amount, payment_method_id),
            _payment("refund", amount, first["payment_method_id"]),
        ]
        user = _add_to_gift_card(user, payment_method_id, -amount)
        user = _add_to_gift_card(user, first["payment_method_id"], amount)
        order = {**order, "payment_history": order["payment_history"] + entries}
        return self._save(order_id, order, user)

    @write
    def modify_user_address(
        self, user_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str,
    ) -> Record:
        """Change a user's default address; orders already placed keep theirs.

        Args:
            user_id: The user id, such as 'jane_doe_1234'.
            address1: House number and street, such as '12 Mill Lane'.
            address2: Apartment or suite, such as 'Apt 3'; may be empty.
            city: The city.
            state: The state as two letters, such as 'TX'.
            country: The country, such as 'USA'.
            zip: The zip code, such as '12345'.

        Raises:
            ToolRefusal: There is no such user.
        """
        address = _address(address1, address2, city, state, country, zip)
        user = {**self._store.user(user_id), "address": address}
        self._store.put_user(user_id, user)
        return user

    @write
    def return_delivered_order_items(
        self, order_id: str, item_ids: list[str], payment_method_id: str
    ) -> Record:
        """Request the return of items of a delivered order; one return or exchange per order.

        Args:
            order_id: The order id, such as '#W0000000'; the '#' belongs to it.
            item_ids: Item ids to return; an item bought twice may be named twice.
            payment_method_id: Receives the refund: the order's first payment method or a gift card.

        Raises:
            ToolRefusal: The order, an item or the payment method will not do.
        """
        order = self._order_with_status(order_id, "delivered")
        method = _payment_method(self._store.user(order["user_id"]), payment_method_id)
        original_id = order["payment_history"][0]["payment_method_id"]
        if method["source"] != "gift_card" and payment_method_id != original_id:
            raise ToolRefusal("refunds go to the original payment method or to a gift card")
        _require_items(order, item_ids)
        order = {
            **order,
            "status": "return requested",
            "return_items": sorted(item_ids),
            "return_payment_method_id": payment_method_id,
        }
        return self._save(order_id, order)

    @write
    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Record:
        """Request an exchange of items of a delivered order for variants of the same products.

        Args:
            order_id: The order id, such as '#W0000000'; the '#' belongs to it.
            item_ids: Item ids to exchange; an item bought twice may be named twice.
            new_item_ids: New item ids, one for each of item_ids and in the same order.
            payment_method_id: Pays or receives the price difference, such as 'gift_card_0000000'.

        Raises:
            ToolRefusal: The order, an item, a new item or the payment method will not do.
        """
        order = self._order_with_status(order_id, "delivered")
        difference = round(self._price_difference(order, item_ids, new_item_ids), 2)
        _require_funds(self._store.user(order["user_id"]), payment_method_id, difference)
        order = {
            **order,
            "status": "exchange requested",
            "exchange_items": sorted(item_ids),
            "exchange_new_items": sorted(new_item_ids),
            "exchange_payment_method_id": payment_method_id,
            "exchange_price_difference": difference,
        }
        return self._save(order_id, order)

    def _save(self, order_id: str, order: Record, user: Record | None = None) -> Record:
        self._store.put_order(order_id, order)
        if user is not None:
            self._store.put_user(order["user_id"], user)
        return order

    def _order_with_status(self, order_id: str, status: str) -> Record:
        order = self._store.order(order_id)
        if order["status"] != status:
            raise ToolRefusal(f"the order is {order['status']}, not {status}")
        return order

    def _price_difference(
        self, order: Record, item_ids: list[str], new_item_ids: list[str]
    ) -> int | float:
        """Check a swap of items and return what it costs more, in dollars and not yet rounded."""
        _require_items(order, item_ids)
        if len(item_ids) != len(new_item_ids):
            raise ToolRefusal("item_ids and new_item_ids must be of the same length")
        items = {item["item_id"]: item for item in reversed(order["items"])}
        difference: int | float = 0
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            item = items[item_id]
            variants = self._store.database.products[item["product_id"]]["variants"]
            variant = variants.get(new_item_id)
            if variant is None or not variant["available"]:
                raise ToolRefusal(f"new item {shown(new_item_id)} not found or not available")
            difference += variant["price"] - item["price"]
        return difference

    def _replaced_items(
        self, items: list[Record], item_ids: list[str], new_item_ids: list[str]
    ) -> list[Record]:
        """Return the items after the swaps, made one after the other as tau-bench makes them.

        A swap takes the first item with its id, even one that an earlier swap put there: swapping
        [A, B] for [B, C] leaves [C, B].
        """
        items = list(items)
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            place = next(n for n, item in enumerate(items) if item["item_id"] == item_id)
            product_id = items[place]["product_id"]
            variant = self._store.database.products[product_id]["variants"][new_item_id]
            items[place] = {
                **items[place],
                "item_id": new_item_id,
                "price": variant["price"],
                "options": variant["options"],
            }
        return items


def _address(*values: str) -> Record:
    return dict(zip(ADDRESS_FIELDS, values, strict=True))


def _payment(kind: Literal["payment", "refund"], amount: int | float, method_id: str) -> Record:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}


def _payment_method(user: Record, method_id: str) -> Record:
    method = user["payment_methods"].get(method_id)
    if method is None:
        raise ToolRefusal("payment method not found")
    return method


def _require_funds(user: Record, method_id: str, amount: int | float) -> None:
    method = _payment_method(user, method_id)
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise ToolRefusal("the gift card balance is too small")


def _require_items(order: Record, item_ids: list[str]) -> None:
    owned = Counter(item["item_id"] for item in order["items"])
    for item_id, count in Counter(item_ids).items():
        if count > owned[item_id]:
            raise ToolRefusal(f"item {shown(item_id)} not found in the order")


def _add_to_gift_card(user: Record, method_id: str, amount: int | float) -> Record:
    """Return the user with a gift card's balance changed; as it is for other payment methods."""
    method = user["payment_methods"][method_id]
    if method["source"] != "gift_card":
        return user
    method = {**method, "balance": round(method["balance"] + amount, 2)}
    return {**user, "payment_methods": {**user["payment_methods"], method_id: method}}
