"""The store: records that are loaded and checked once, and an episode's copy-on-write view of them.

`RetailDatabase` never changes, so one serves any number of episodes and threads. An episode writes
into its own `StoreOverlay`, where a written record is replaced whole and never edited in place.
Records are plain dicts for speed: callers treat them as read-only, and an episode hands out copies.
"""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from common.json_rows import NUM_HEAD_BYTES, encoding_finding
from common.user_error import UserError

DEFAULT_DATA_DIR = Path(__file__).parent / "data"
FILE_NAMES = ("users.json", "orders.json", "products.json")
MAKE_STORE = "python envs/retail/make_store.py --output-dir"
ADDRESS_FIELDS = ("address1", "address2", "city", "state", "country", "zip")

Record = dict[str, Any]

_KINDS: dict[type, str] = {str: "text", dict: "an object", list: "a list", bool: "true or false"}


class DatabaseError(UserError, ValueError):
    """A store that cannot be loaded; the message names the file, the field and the remedy."""


class ReadOnlyDict(dict[str, Any]):
    """A dict that refuses every change; unlike `MappingProxyType` it can be dumped and pickled."""

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("the database is read-only; write through an Episode")

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and deep-copy as one call of the constructor, since items cannot be set later."""
        return (ReadOnlyDict, (dict(self),))


@dataclass(frozen=True, slots=True, eq=False)
class RetailDatabase:
    """All users, orders and products of a store, with the indexes that the tools need.

    Raises:
        DatabaseError: A record has the wrong shape or points at a record that is not there.
    """

    users: Mapping[str, Record]
    """Every user by user id."""
    orders: Mapping[str, Record]
    """Every order by order id, `#W` and seven digits."""
    products: Mapping[str, Record]
    """Every product type by product id, with its variants by item id."""
    product_types: Mapping[str, str] = field(init=False)
    """Product id by product name, sorted by name."""
    user_ids_by_email: Mapping[str, str] = field(init=False)
    """User id by lower-case email; the first user wins where two share one."""
    user_ids_by_name: Mapping[tuple[str, str], tuple[str, ...]] = field(init=False)
    """User ids, in the order of the store, by lower-case first and last name."""

    def __post_init__(self) -> None:
        """Check every record, then freeze the mappings and build the indexes."""
        _check_users(self.users)
        _check_products(self.products)
        _check_orders(self.orders, self.users, self.products)
        emails: dict[str, str] = {}
        names: dict[tuple[str, str], tuple[str, ...]] = {}
        for user_id, user in self.users.items():
            emails.setdefault(user["email"].lower(), user_id)
            key = (user["name"]["first_name"].lower(), user["name"]["last_name"].lower())
            names[key] = (*names.get(key, ()), user_id)
        types = {product["name"]: product_id for product_id, product in self.products.items()}
        # A frozen dataclass can only be filled this way, and only here.
        for name in ("users", "orders", "products"):
            object.__setattr__(self, name, ReadOnlyDict(getattr(self, name)))
        object.__setattr__(self, "product_types", ReadOnlyDict(sorted(types.items())))
        object.__setattr__(self, "user_ids_by_email", ReadOnlyDict(emails))
        object.__setattr__(self, "user_ids_by_name", ReadOnlyDict(names))

    @classmethod
    def load(cls, data_dir: str | Path | None = None) -> "RetailDatabase":
        """Load a store from a folder, or from one file.

        >>> db = RetailDatabase.load()
        >>> len(db.products) == len(db.product_types)
        True

        Args:
            data_dir: Folder with users.json, orders.json and products.json, or one JSON file with
                users, orders and products (tau2-bench's db.json); None means the store that comes
                with the project.

        Raises:
            DatabaseError: The folder or a file is missing, unreadable or has the wrong shape.
        """
        folder = DEFAULT_DATA_DIR if data_dir is None else Path(data_dir)
        if folder.is_file():
            return cls._load_file(folder)
        if not folder.is_dir():
            raise DatabaseError(f"{folder}: no such folder; {_remedy(folder)}")
        users, orders, products = (_read_file(folder / name) for name in FILE_NAMES)
        try:
            return cls(users=users, orders=orders, products=products)
        except DatabaseError as error:
            raise DatabaseError(f"{folder}/{error}; {_remedy(folder)}") from None

    @classmethod
    def _load_file(cls, path: Path) -> "RetailDatabase":
        store = _read_file(path)
        kinds = [name.removesuffix(".json") for name in FILE_NAMES]
        for kind in kinds:
            if not isinstance(store.get(kind), dict):
                raise DatabaseError(
                    f"{path}: field '{kind}' must be an object of records by id, as in tau2-bench's "
                    f"db.json; {_remedy(path.parent)}"
                )
        try:
            return cls(**{kind: store[kind] for kind in kinds})
        except DatabaseError as error:
            finding = str(error).replace(".json", "", 1)
            raise DatabaseError(f"{path}: {finding}; {_remedy(path.parent)}") from None


def store_files(data_dir: str | Path | None = None) -> list[Path]:
    """Return the paths of a store's three files; None means the store of the project."""
    return [Path(data_dir or DEFAULT_DATA_DIR) / name for name in FILE_NAMES]


def _remedy(folder: Path) -> str:
    """Say how to make a store, never over what is in a folder that exists."""
    where = f"make a store in another folder with `{MAKE_STORE} NEW_FOLDER`"
    return where if folder.exists() else f"make a store with `{MAKE_STORE} {shlex.quote(str(folder))}`"


def _read_file(path: Path) -> dict[str, Record]:
    if not path.is_file():
        raise DatabaseError(f"{path}: no such file; {_remedy(path.parent)}")
    try:
        raw = path.read_bytes()
        finding = encoding_finding(raw[:NUM_HEAD_BYTES])
        if finding:
            raise DatabaseError(f"{path}: {finding}")
        records = json.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise DatabaseError(f"{path}: cannot be read ({error.strerror}); check it") from error
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise DatabaseError(f"{where}: not valid JSON ({error.msg}); {_remedy(path.parent)}") from error
    except UnicodeDecodeError as error:
        where = f"{path}:{raw[: error.start].count(10) + 1}"
        raise DatabaseError(f"{where}: not UTF-8; save the file as UTF-8") from error
    except RecursionError as error:
        raise DatabaseError(f"{path}: not a JSON text file; {_remedy(path.parent)}") from error
    if not isinstance(records, dict):
        raise DatabaseError(f"{path}: must be one JSON object of records by id; {_remedy(path.parent)}")
    return records


def _get(record: Any, name: str, kind: type, where: str) -> Any:
    """Return a field of a record after checking that it is there and of the right kind."""
    if not isinstance(record, dict):
        raise DatabaseError(f"{where}: must be an object")
    if name not in record:
        raise DatabaseError(f"{where}: field '{name}' is missing")
    value = record[name]
    if not isinstance(value, kind):
        raise DatabaseError(f"{where}: field '{name}' must be {_KINDS[kind]}")
    return value


def _check_money(record: Any, name: str, where: str) -> None:
    value = _get(record, name, object, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DatabaseError(f"{where}: field '{name}' must be a finite number")


def _check_address(record: Any, where: str) -> None:
    address = _get(record, "address", dict, where)
    for name in ADDRESS_FIELDS:
        _get(address, name, str, f"{where}: address")


def _check_users(users: Mapping[str, Any]) -> None:
    for user_id, user in users.items():
        where = f"users.json: user '{user_id}'"
        names = _get(user, "name", dict, where)
        _get(names, "first_name", str, f"{where}: name")
        _get(names, "last_name", str, f"{where}: name")
        _get(user, "email", str, where)
        _check_address(user, where)
        for method_id, method in _get(user, "payment_methods", dict, where).items():
            at_method = f"{where}: payment method '{method_id}'"
            if _get(method, "source", str, at_method) == "gift_card":
                _check_money(method, "balance", at_method)
        if not all(isinstance(order_id, str) for order_id in _get(user, "orders", list, where)):
            raise DatabaseError(f"{where}: field 'orders' must hold text only")


def _check_products(products: Mapping[str, Any]) -> None:
    for product_id, product in products.items():
        where = f"products.json: product '{product_id}'"
        _get(product, "name", str, where)
        for item_id, variant in _get(product, "variants", dict, where).items():
            at_variant = f"{where}: variant '{item_id}'"
            _get(variant, "options", dict, at_variant)
            _get(variant, "available", bool, at_variant)
            _check_money(variant, "price", at_variant)


def _check_orders(
    orders: Mapping[str, Any], users: Mapping[str, Record], products: Mapping[str, Record]
) -> None:
    for order_id, order in orders.items():
        where = f"orders.json: order '{order_id}'"
        user_id = _get(order, "user_id", str, where)
        if user_id not in users:
            raise DatabaseError(f"{where}: user '{user_id}' is not in users.json")
        _get(order, "status", str, where)
        _check_address(order, where)
        for number, item in enumerate(_get(order, "items", list, where)):
            at_item = f"{where}: items[{number}]"
            _get(item, "item_id", str, at_item)
            _get(item, "options", dict, at_item)
            _check_money(item, "price", at_item)
            product_id = _get(item, "product_id", str, at_item)
            if product_id not in products:
                raise DatabaseError(f"{at_item}: product '{product_id}' is not in products.json")
        history = _get(order, "payment_history", list, where)
        if not history:
            raise DatabaseError(f"{where}: field 'payment_history' must not be empty")
        methods = users[user_id]["payment_methods"]
        for number, entry in enumerate(history):
            at_entry = f"{where}: payment_history[{number}]"
            _get(entry, "transaction_type", str, at_entry)
            _check_money(entry, "amount", at_entry)
            method_id = _get(entry, "payment_method_id", str, at_entry)
            if method_id not in methods:
                raise DatabaseError(f"{at_entry}: '{method_id}' is no payment method of {user_id}")


class ToolRefusal(Exception):
    """A call that the store refuses; the message is what the caller gets to read."""


class StoreOverlay:
    """The store as one episode sees it: the shared database under the episode's own records."""

    __slots__ = ("_orders", "_users", "database")

    def __init__(self, database: RetailDatabase) -> None:
        self.database = database
        self._orders: dict[str, Record] = {}
        self._users: dict[str, Record] = {}

    def order(self, order_id: str) -> Record:
        """Return an order as this episode sees it, read-only, or raise a ToolRefusal."""
        record = self._orders.get(order_id) or self.database.orders.get(order_id)
        if record is None:
            raise ToolRefusal("order not found")
        return record

    def user(self, user_id: str) -> Record:
        """Return a user as this episode sees it, read-only, or raise a ToolRefusal."""
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

    def changed_records(self) -> dict[str, dict[str, Record]]:
        """Return the records that differ from the database, whole, by kind and id."""
        pairs = (("orders", self._orders, self.database.orders), ("users", self._users, self.database.users))
        return {
            kind: {key: record for key, record in own.items() if not _same_json(record, shared[key])}
            for kind, own, shared in pairs
        }


def _same_json(one: Record, other: Record) -> bool:
    """Return whether two records are the same JSON text, where a balance of 9 is not one of 9.0.

    tau-bench hashes the text of its records, so a gift card that a zero payment turned from 9 into
    9.0 counts as changed there, and it does here.
    """
    if one is other:
        return True
    return one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
