"""The store generator: the same bytes for the same seed, sound records, another seed other ids."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from envs.retail import RetailDatabase
from envs.retail.make_store import DEFAULT_SEED, NUM_ID_CLASSES, main, make_store
from envs.retail.store import DEFAULT_DATA_DIR

SCRIPT_PATH = DEFAULT_DATA_DIR.parent / "make_store.py"
FILES = ("users.json", "orders.json", "products.json")
STATUSES = {"pending", "processed", "delivered", "cancelled"}


@pytest.fixture(scope="module")
def database() -> RetailDatabase:
    return RetailDatabase.load()


def test_the_committed_store_is_what_the_script_writes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT_PATH), "--output-dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, ".written_by.json"}
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DEFAULT_DATA_DIR / name).read_bytes(), name


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        arguments = ["--seed", "3", "--num-users", "20", "--num-orders", "40"]
        assert main([*arguments, "--output-dir", str(tmp_path / folder)]) == 0
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    database = RetailDatabase.load(tmp_path / "one")
    assert (len(database.users), len(database.orders), len(database.products)) == (20, 40, 50)


@pytest.mark.parametrize("seed", [0, 1, DEFAULT_SEED + 1, 12345])
def test_another_seed_gives_other_people_and_ids(seed: int) -> None:
    assert seed % NUM_ID_CLASSES != DEFAULT_SEED % NUM_ID_CLASSES
    ours, theirs = make_store(DEFAULT_SEED), make_store(seed)
    RetailDatabase(*theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert not set(one) & set(other)

    def inner_ids(store: tuple[dict, dict, dict]) -> set[str]:
        users, _, products = store
        methods = {key for user in users.values() for key in user["payment_methods"]}
        emails = {user["email"] for user in users.values()}
        return methods | emails | {key for p in products.values() for key in p["variants"]}

    assert not inner_ids(ours) & inner_ids(theirs)


def test_more_orders_change_neither_people_nor_products() -> None:
    few, many = make_store(5, 50, 50), make_store(5, 50, 200)
    assert few[2] == many[2]
    for users in (few[0], many[0]):
        for user in users.values():
            user["orders"].clear()
    assert few[0] == many[0]


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (["--num-users", "0"], "num_users must be 1 or more"),
        (["--num-users", "30", "--num-orders", "29"], "num_orders must be at least num_users"),
        (["--num-orders", "80001"], "num_orders must be at most 80000"),
    ],
)
def test_numbers_that_make_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], numbers: list[str], reason: str
) -> None:
    assert main([*numbers, "--output-dir", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_users(database: RetailDatabase) -> None:
    assert len({user["email"] for user in database.users.values()}) == 500
    people = set()
    for user_id, user in database.users.items():
        first, last = user["name"]["first_name"], user["name"]["last_name"]
        assert re.fullmatch(rf"{first}_{last}_\d{{4}}".lower(), user_id)
        assert re.fullmatch(rf"{first}\.{last}\d{{4}}@example\.com".lower(), user["email"])
        people.add((first, last, user["address"]["zip"]))
        assert 1 <= len(user["payment_methods"]) <= 3
        for method_id, method in user["payment_methods"].items():
            assert method["id"] == method_id
            assert re.fullmatch(rf"{method['source']}_\d{{7}}", method_id)
            assert set(method) == {
                "credit_card": {"source", "brand", "last_four", "id"},
                "paypal": {"source", "id"},
                "gift_card": {"source", "balance", "id"},
            }[method["source"]]
        assert user["orders"]
    assert len(people) == 500
    sizes = Counter(len(user["orders"]) for user in database.users.values())
    assert sum(sizes[n] for n in range(1, 5)) > 450


def test_addresses(database: RetailDatabase) -> None:
    words = json.loads((SCRIPT_PATH.parent / "vocabulary.json").read_text(encoding="utf-8"))
    places = {(city, state, prefix) for city, state, prefix in words["cities"]}
    for record in [*database.users.values(), *database.orders.values()]:
        address = record["address"]
        assert len(address) == 6 and all(address.values())
        assert re.fullmatch(r"\d{5}", address["zip"])
        assert (address["city"], address["state"], address["zip"][:3]) in places


def test_orders(database: RetailDatabase) -> None:
    counts = Counter(order["status"] for order in database.orders.values())
    assert set(counts) == STATUSES
    assert min(counts.values()) >= 50
    for order_id, order in database.orders.items():
        assert order["order_id"] == order_id
        assert re.fullmatch(r"#W\d{7}", order_id)
        assert order_id in database.users[order["user_id"]]["orders"]
        for item in order["items"]:
            product = database.products[item["product_id"]]
            variant = product["variants"][item["item_id"]]
            assert (item["name"], item["price"], item["options"]) == (
                product["name"],
                variant["price"],
                variant["options"],
            )
        amount = round(sum(item["price"] for item in order["items"]), 2)
        kinds = ["payment", "refund"] if order["status"] == "cancelled" else ["payment"]
        history = order["payment_history"]
        assert [row["transaction_type"] for row in history] == kinds
        assert {row["amount"] for row in history} == {amount}
        shipped = [i for parcel in order["fulfillments"] for i in parcel["item_ids"]]
        if order["status"] in ("processed", "delivered"):
            assert shipped == [item["item_id"] for item in order["items"]]
        else:
            assert shipped == []
    owned = [order_id for user in database.users.values() for order_id in user["orders"]]
    assert sorted(owned) == sorted(database.orders)


def test_products(database: RetailDatabase) -> None:
    item_ids = [key for product in database.products.values() for key in product["variants"]]
    assert len(set(item_ids) | set(database.products)) == len(item_ids) + 50
    for product_id, product in database.products.items():
        assert re.fullmatch(r"\d{10}", product_id)
        variants = list(product["variants"].values())
        assert len({tuple(v["options"].items()) for v in variants}) == len(variants) >= 8
        assert {v["available"] for v in variants} == {True, False}
        assert sum(v["available"] for v in variants) >= 3
        for item_id, variant in product["variants"].items():
            assert item_id == variant["item_id"]
            assert re.fullmatch(r"\d{10}", item_id)
            assert variant["price"] > 0 and round(variant["price"], 2) == variant["price"]


def test_files_have_one_record_a_line() -> None:
    for name in FILES:
        lines = (DEFAULT_DATA_DIR / name).read_text(encoding="utf-8").splitlines()
        assert lines[0] == "{" and lines[-1] == "}"
        for line in lines[1:-1]:
            json.loads("{" + line.rstrip(",") + "}")
