"""The nine tools that leave the store as it is.

Nothing searches by product name or order content: the customer or a record gives the id.
What a tool returns may be a shared record; `Episode.call` copies it before anyone sees it.
"""

from envs.retail.store import Record, StoreOverlay, ToolRefusal
from envs.retail.tools.calculator import CalculatorError, evaluate
from envs.retail.tools.schema import read


class ReadTools:
    """Look-ups, arithmetic, a note and the way out to a person; a part of `RetailTools`."""

    _store: StoreOverlay
    """The store as one episode sees it."""

    @read
    def find_user_id_by_email(self, email: str) -> str:
        """Find a customer's user id by email address; letter case does not matter.

        Args:
            email: The customer's email address, such as 'someone@example.com'.

        Raises:
            ToolRefusal: No user has this address.
        """
        user_id = self._store.database.user_ids_by_email.get(email.lower())
        if user_id is None:
            raise ToolRefusal("user not found")
        return user_id

    @read
    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:
        """Find a customer's user id by name and zip code; use it when there is no email.

        Args:
            first_name: The customer's first name; letter case does not matter.
            last_name: The customer's last name; letter case does not matter.
            zip: The zip code of the customer's address, such as '12345'.

        Raises:
            ToolRefusal: No user has this name and zip code.
        """
        key = (first_name.lower(), last_name.lower())
        for user_id in self._store.database.user_ids_by_name.get(key, ()):
            # Asked of the overlay, since this episode may have moved the customer.
            if self._store.user(user_id)["address"]["zip"] == zip:
                return user_id
        raise ToolRefusal("user not found")

    @read
    def get_user_details(self, user_id: str) -> Record:
        """Get a user's name, email, address, payment methods with balances, and order ids.

        Args:
            user_id: The user id, such as 'jane_doe_1234'.

        Raises:
            ToolRefusal: There is no such user.
        """
        return self._store.user(user_id)

    @read
    def get_order_details(self, order_id: str) -> Record:
        """Get an order's status, items, address, shipments and payments.

        Args:
            order_id: The order id, such as '#W0000000'; the '#' belongs to it.

        Raises:
            ToolRefusal: There is no such order.
        """
        return self._store.order(order_id)

    @read
    def get_product_details(self, product_id: str) -> Record:
        """Get all variants of a product with options, price and availability.

        Args:
            product_id: The product id, such as '1234567890'; it is not an item id.

        Raises:
            ToolRefusal: There is no such product.
        """
        product = self._store.database.products.get(product_id)
        if product is None:
            raise ToolRefusal("product not found")
        return product

    @read
    def list_all_product_types(self) -> dict[str, str]:
        """List the name and product id of every kind of product in the store."""
        return dict(self._store.database.product_types)

    @read
    def calculate(self, expression: str) -> str:
        """Work out an arithmetic expression and give the result rounded to 2 decimals.

        Args:
            expression: Numbers, + - * / and brackets, such as '12.50 + 3 * (4 - 1)'.

        Raises:
            ToolRefusal: The expression is malformed, too long or has no finite value.
        """
        try:
            return evaluate(expression)
        except CalculatorError as error:
            raise ToolRefusal(str(error)) from error

    @read
    def think(self, thought: str) -> str:
        """Note a thought; nothing is looked up and nothing changes.

        Args:
            thought: The thought to note.
        """
        return ""

    @read
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the customer over to a human agent, when no other tool can serve the request.

        Args:
            summary: What the customer wants, in a few words.
        """
        return "Transfer successful"
