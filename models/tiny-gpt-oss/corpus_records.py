"""Made-up customers of the pre-training corpus, and how a text says their ids and addresses.

Words and phrases come from `corpus_words.json`, which is written in spintax: `{a|b|}` picks one
alternative (nesting allowed), `<X>` is a slot that is filled after typing errors were made. Left
out: what the customers want (`corpus_wishes.py`) and whole examples (`corpus.py`).
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "corpus_words.json").read_text(encoding="utf-8")
)
ADDRESS_FIELDS = ("address1", "address2", "city", "state", "country", "zip")


@lru_cache(maxsize=None)
def _parse(text: str) -> tuple[Any, ...]:
    """Parse spintax into a sequence whose parts are strings or tuples ("or", alternatives)."""

    def sequence(pos: int, inside: bool) -> tuple[list[Any], int]:
        alternatives: list[list[Any]] = [[]]
        while pos < len(text):
            char = text[pos]
            if char == "{":
                node, pos = sequence(pos + 1, True)
                alternatives[-1].append(("or", tuple(tuple(a) for a in node)))
                continue
            if inside and char in "|}":
                if char == "}":
                    return alternatives, pos + 1
                alternatives.append([])
                pos += 1
                continue
            stop = re.compile(r"[{|}]" if inside else r"\{").search(text, pos)
            end = stop.start() if stop else len(text)
            alternatives[-1].append(text[pos:end])
            pos = end
        return alternatives, pos

    return tuple(sequence(0, False)[0][0])


def spin(rng: random.Random, text: str) -> str:
    """Return one random reading of a spintax text."""

    def walk(parts: tuple[Any, ...]) -> str:
        return "".join(p if isinstance(p, str) else walk(rng.choice(p[1])) for p in parts)

    return walk(_parse(text))


def digits(rng: random.Random, count: int) -> str:
    """Return `count` random digits, the first not 0."""
    return str(rng.randrange(10 ** (count - 1), 10**count))


def pseudo_word(rng: random.Random) -> str:
    """Return a pronounceable made-up word, lower case."""
    ends = ["", "", "n", "r", "s", "l", "t", "ck", "m", "x"]
    return "".join(
        rng.choice("b c d f g h j k l m n p r s t v w z br ch dr gr kl sh st th tr".split())
        + rng.choice("a e i o u a e i o ai ea ou y".split())
        + rng.choice(ends)
        for _ in range(rng.choice((1, 2, 2, 3)))
    )


@dataclass
class Record:
    """One customer with everything a text may mention.

    Attributes:
        first, last, zip, email, user_id: who it is.
        addresses: address dicts with ADDRESS_FIELDS.
        payments, orders, products: ids.
        items: (name with options, item id) pairs.
    """

    first: str
    last: str
    zip: str
    email: str
    user_id: str
    addresses: list[dict[str, str]]
    payments: list[str]
    orders: list[str]
    items: list[tuple[str, str]]
    products: list[str]


class RecordMaker:
    """Makes records and says their values.

    Args:
        seed: seed of the random stream.
        store: (users, orders, products) of a generated store, or None for made-up records only.
    """

    def __init__(self, seed: int, store: tuple[dict, dict, dict] | None = None) -> None:
        self.rng = random.Random(seed)
        self.users, self.orders, self.products = store or ({}, {}, {})
        self.user_ids = sorted(self.users)
        self.item_names = sorted(
            (" ".join([product["name"], *map(str, variant["options"].values())]), item_id)
            for product in self.products.values()
            for item_id, variant in product["variants"].items()
        )

    def _address(self) -> dict[str, str]:
        rng = self.rng
        street = (
            rng.choice(WORDS["streets"]) if rng.random() < 0.6 else pseudo_word(rng).capitalize()
        )
        unit = rng.choice(WORDS["units"])
        number = (
            digits(rng, rng.choice((1, 2, 3, 3)))
            if rng.random() < 0.8
            else rng.choice("ABCDEF") + digits(rng, 1)
        )
        city = rng.choice(WORDS["cities"]) if rng.random() < 0.7 else pseudo_word(rng).capitalize()
        house = digits(rng, rng.choice((1, 2, 3, 3, 3, 4)))
        return {
            "address1": f"{house} {street} {rng.choice(WORDS['street_kinds'])}",
            "address2": "" if rng.random() < 0.25 else f"{unit} {number}",
            "city": city,
            "state": rng.choice(WORDS["states"]),
            "country": "USA" if rng.random() < 0.85 else rng.choice(["Canada", "Mexico", "UK"]),
            "zip": f"{rng.randrange(1000, 99999):05d}",
        }

    def _record(self) -> Record:
        rng = self.rng
        first = (
            rng.choice(WORDS["first_names"])
            if rng.random() < 0.5
            else pseudo_word(rng).capitalize()
        )
        last = (
            rng.choice(WORDS["last_names"]) if rng.random() < 0.5 else pseudo_word(rng).capitalize()
        )
        if rng.random() < 0.05:
            first, last = (
                first + rng.choice(["é", "ë", "ñ", "ø"]),
                rng.choice(["Ö", "Š", "Č", "É"]) + last.lower(),
            )
        tail = digits(rng, rng.choice((2, 3, 4, 4, 4)))
        dot = rng.choice([".", ".", ".", "_", "", "-"])
        host = (
            rng.choice(WORDS["mail_hosts"])
            if rng.random() < 0.8
            else pseudo_word(rng) + rng.choice([".com", ".org", ".net", ".io"])
        )
        record = Record(
            first,
            last,
            f"{rng.randrange(1000, 99999):05d}",
            f"{first}{dot}{last}{tail if rng.random() < 0.85 else ''}@{host}".lower(),
            f"{first}_{last}_{digits(rng, 4)}".lower(),
            [self._address() for _ in range(4)],
            [
                f"{rng.choice(('credit_card', 'paypal', 'gift_card'))}_{digits(rng, 7)}"
                for _ in range(5)
            ],
            [f"#W{digits(rng, 7)}" for _ in range(6)],
            [(self._item_name(), digits(rng, 10)) for _ in range(4)],
            [digits(rng, 10) for _ in range(4)],
        )
        if self.user_ids and rng.random() < 0.4:
            user_id = rng.choice(self.user_ids)
            user = self.users[user_id]
            record.first, record.last = user["name"]["first_name"], user["name"]["last_name"]
            record.email, record.user_id = user["email"], user_id
            record.addresses[0] = {key: user["address"][key] for key in ADDRESS_FIELDS}
            record.zip = user["address"]["zip"]
            record.addresses[1] = {
                key: self.users[rng.choice(self.user_ids)]["address"][key] for key in ADDRESS_FIELDS
            }
            record.payments[:0] = list(user["payment_methods"])
            record.orders[:0] = list(user["orders"])
            record.items = rng.sample(self.item_names, 14)
            record.products[:0] = rng.sample(sorted(self.products), 2)
        for values in (
            record.addresses,
            record.payments,
            record.orders,
            record.items,
            record.products,
        ):
            rng.shuffle(values)
        return record

    def _item_name(self) -> str:
        rng = self.rng
        good = rng.choice(WORDS["goods"]) if rng.random() < 0.8 else pseudo_word(rng)
        option = f"{rng.choice(WORDS['options'])} " if rng.random() < 0.5 else ""
        name = f"{option}{good}" if rng.random() < 0.7 else f"{good} {rng.choice(WORDS['goods'])}"
        return name if rng.random() < 0.5 else name.title().replace("'S", "'s")

    def _say_order(self, order_id: str) -> str:
        lead = WORDS["order_lead"]
        return spin(self.rng, lead) + order_id

    def _say_payment(self, payment_id: str) -> str:
        kind = payment_id.rsplit("_", 1)[0].replace("_", " ")
        return (
            spin(
                self.rng,
                f"{{{{my |the |my other |}}{{{kind}|method|account|card|payment method}} "
                "{(|||id |no. |ending in full: }|||}",
            )
            + payment_id
        )

    def _say_item(self, item: tuple[str, str]) -> str:
        name, item_id = item
        form = self.rng.choice(WORDS["item_forms"])
        return form.format(n=name, i=item_id)

    def _join(self, parts: list[str]) -> str:
        if len(parts) == 1:
            return parts[0]
        last = self.rng.choice(
            [" and ", " and ", ", ", " plus ", ", and ", " & ", "; ", " as well as ", " also "]
        )
        middle = self.rng.choice([", ", ", ", "; ", " and ", " + "])
        return middle.join(parts[:-1]) + last + parts[-1]

    def _say_pairs(self, old: list[tuple[str, str]], new: list[tuple[str, str]]) -> str:
        rng = self.rng
        link = rng.choice(
            [
                " for ",
                " for ",
                " -> ",
                " to ",
                " into ",
                " with ",
                " against ",
                " => ",
                " by ",
                ", new one ",
                ", instead ",
            ]
        )
        if len(old) > 1 and rng.random() < 0.15:
            return (
                self._join([self._say_item(i) for i in old])
                + link
                + self._join([self._say_item(i) for i in new])
            )
        return self._join([self._say_item(a) + link + self._say_item(b) for a, b in zip(old, new)])

    def _say_address(self, address: dict[str, str]) -> str:
        rng = self.rng
        a = dict(address)
        if not a["address2"] and rng.random() < 0.6:
            a["address2"] = rng.choice(WORDS["no_address2"])
        two = f"{a['address2']}, " if a["address2"] else ""
        if rng.random() < 0.25:
            parts = [
                f"{rng.choice(names)}{rng.choice([': ', ' ', ' = '])}{a[key]}"
                for key, names in zip(ADDRESS_FIELDS, WORDS["address_labels"])
                if a[key]
            ]
            if rng.random() < 0.3:
                rng.shuffle(parts)
            return rng.choice([", ", "; ", "\n"]).join(parts)
        return rng.choice(WORDS["address_forms"]).format(
            a["address1"], two, a["city"], a["state"], a["country"], a["zip"]
        )
