"""Loading: what is refused and with which words, and that nothing can be changed afterwards."""

import copy
import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from small_store import CARD, CUP, PENDING, USER, make_records

from envs.retail import DatabaseError, RetailDatabase


def write(folder: Path, records: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in records.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_loads_the_store_of_the_project() -> None:
    database = RetailDatabase.load()
    assert (len(database.users), len(database.orders), len(database.products)) == (500, 1000, 50)
    assert len(database.product_types) == 50


def test_loads_a_folder(tmp_path: Path) -> None:
    records = make_records()
    database = RetailDatabase.load(write(tmp_path, records))
    assert database.users == records["users"]
    assert database.orders == records["orders"]
    assert RetailDatabase.load(str(tmp_path)).products == records["products"]


def test_loads_one_file_with_all_three_kinds(tmp_path: Path) -> None:
    records = make_records()
    path = tmp_path / "db.json"
    path.write_text(json.dumps(records))
    database = RetailDatabase.load(path)
    assert {kind: getattr(database, kind) for kind in records} == records
    del records["orders"][PENDING]["status"]
    path.write_text(json.dumps(records))
    with pytest.raises(DatabaseError, match=r"db\.json: orders: order '.*'status' is missing"):
        RetailDatabase.load(path)
    path.write_text(json.dumps({**records, "users": []}))
    with pytest.raises(DatabaseError, match=r"db\.json: field 'users' must be an object"):
        RetailDatabase.load(path)


def test_missing_folder_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"nowhere: no such folder; make a store with"):
        RetailDatabase.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["users", "orders", "products"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, make_records())
    (tmp_path / f"{name}.json").unlink()
    with pytest.raises(DatabaseError, match=rf"{name}\.json: no such file; make a store"):
        RetailDatabase.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1,\n "b": }', r"orders\.json:2: not valid JSON"),
        (b"", r"orders\.json:1: not valid JSON"),
        (b"[]", r"orders\.json: must be one JSON object"),
        ('{"a": 1}'.encode("utf-16"), r"orders\.json: is UTF-16 text, not UTF-8; save it"),
        ('{"a": 1}'.encode("utf-16-le"), r"orders\.json: is UTF-16 text, not UTF-8; save it"),
        (gzip.compress(b"{}", mtime=0), r"orders\.json: is gzip data, not text; unpack"),
        (b'{"a":\n"\xe9"}', r"orders\.json:2: not UTF-8; save the file as UTF-8"),
        (b'{"a":' + b"[" * 200_000, r"orders\.json: not a JSON text file"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, make_records())
    (tmp_path / "orders.json").write_bytes(content)
    with pytest.raises(DatabaseError, match=reason):
        RetailDatabase.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("users", USER), [], "user 'ana_test_1111': must be an object"),
        (("users", USER, "email"), None, "field 'email' must be text"),
        (("users", USER, "address", "zip"), 12201, "address: field 'zip' must be text"),
        (("users", USER, "payment_methods", "gift_card_1", "balance"), "5", "finite number"),
        (("users", USER, "payment_methods", "gift_card_1", "balance"), True, "finite number"),
        (("users", USER, "payment_methods", CARD), {}, "field 'source' is missing"),
        (("users", USER, "orders"), [5], "field 'orders' must hold text only"),
        (("orders", PENDING, "items"), {}, "field 'items' must be a list"),
        (("orders", PENDING, "items", 0, "price"), float("nan"), r"items\[0\]: field 'price'"),
        (("orders", PENDING, "items", 0, "product_id"), "7", "product '7' is not in products"),
        (("orders", PENDING, "user_id"), "nobody", "user 'nobody' is not in users.json"),
        (("orders", PENDING, "payment_history"), [], "must not be empty"),
        (("orders", PENDING, "payment_history", 0, "payment_method_id"), "x", "no payment method"),
        (("orders", PENDING, "status"), 1, "field 'status' must be text"),
        (("products", CUP, "variants"), [], "field 'variants' must be an object"),
        (("products", CUP, "variants", "2000000001", "available"), 1, "must be true or false"),
    ],
)
def test_wrong_shape_is_named(
    tmp_path: Path, path: tuple[Any, ...], value: Any, reason: str
) -> None:
    records: Any = make_records()
    place = records
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DatabaseError, match=reason) as caught:
        RetailDatabase.load(write(tmp_path, records))
    assert f"{tmp_path}/{path[0]}.json: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path"), [("users", USER, "email"), ("orders", PENDING, "status"), ("products", CUP, "name")]
)
def test_missing_field_is_named(tmp_path: Path, path: tuple[str, str, str]) -> None:
    records = make_records()
    del records[path[0]][path[1]][path[2]]
    with pytest.raises(DatabaseError, match=f"field '{path[2]}' is missing"):
        RetailDatabase.load(write(tmp_path, records))


def test_is_read_only() -> None:
    database = RetailDatabase(**make_records())
    with pytest.raises(AttributeError):
        database.users = {}  # type: ignore[misc]
    for change in (
        lambda: database.users.pop(USER),
        lambda: database.orders.update({}),
        lambda: database.orders.clear(),
        lambda: database.products.setdefault("x", {}),
        lambda: database.users.__setitem__("x", {}),
        lambda: database.users.__delitem__(USER),
        lambda: database.users.__ior__({"x": {}}),
        lambda: database.user_ids_by_email.popitem(),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    assert database.users == make_records()["users"]


def test_mappings_can_be_dumped_copied_and_pickled() -> None:
    database = RetailDatabase(**make_records())
    assert json.loads(json.dumps(database.orders)) == database.orders
    assert copy.deepcopy(database.users) == database.users
    assert pickle.loads(pickle.dumps(database)).orders == database.orders
