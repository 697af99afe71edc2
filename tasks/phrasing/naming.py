"""Word items, options, money and addresses as variedly as people do.

Values that become arguments are put between fact marks. Option values may spell their unit differently,
since items are identified by id.
"""

import re
from random import Random
from typing import Any

from envs.retail.store import ADDRESS_FIELDS
from tasks.phrasing.grammar import fact

UNIT_SPELLINGS = (
    (re.compile(r"^(\d+)ml$"), ("{} ml", "{} millilitres")),
    (re.compile(r"^([\d.]+)L$"), ("{} litres", "{} L")),
    (re.compile(r"^([\d.]+) liters?$"), ("{} l", "{} litres")),
    (re.compile(r"^(\d+)(?:GB)$"), ("{} GB", "{} gigs")),
    (re.compile(r"^(\d+)TB$"), ("{} TB",)),
    (re.compile(r"^([\d.]+)-inch$"), ("{} inch", "{} inches", '{}"')),
    (re.compile(r"^([\d.]+) inch(?:es)?$"), ("{} in", '{}"')),
    (re.compile(r"^([\d.]+) ?ft$"), ("{} feet", "{} foot", "{}'")),
    (re.compile(r"^([\d.-]+) lbs$"), ("{} pounds", "{} lb")),
    (re.compile(r"^([\d.]+) hours$"), ("{} h", "{} hrs")),
    (re.compile(r"^([\d.]+)mm$"), ("{} mm",)),
    (re.compile(r"^(\d+)mAh$"), ("{} mAh",)),
)
UNIT_SHARE = 0.35
NO_SECOND_LINE = (
    " (no apartment number)", ", no unit number", " (no second line)", ", no apartment",
    " (there's no suite)", ", without a unit",
)


def join_words(parts: list[str], last: str = " and ") -> str:
    """Join parts as in speech: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + last + parts[-1]


def option_value(rng: Random, value: str) -> str:
    """Word an option's value, sometimes with its unit spelled differently."""
    if rng.random() < UNIT_SHARE:
        for pattern, spellings in UNIT_SPELLINGS:
            match = pattern.match(value)
            if match:
                return rng.choice(spellings).format(match.group(1))
    return value


def option_words(rng: Random, options: dict[str, Any], most: int) -> str:
    """Word some of an item's options."""
    names = list(options)
    chosen = sorted(rng.sample(names, min(most, len(names))), key=names.index)
    bare = rng.random() < 0.5
    parts = []
    for name in chosen:
        value = option_value(rng, str(options[name]))
        # "yes" means nothing without its question.
        if value.lower() in ("yes", "no", "none"):
            parts.append(f"{name}: {value}")
        else:
            parts.append(value if bare else f"{name} {value}")
    return fact(", ".join(parts))


def item_words(rng: Random, item: dict[str, Any]) -> str:
    """Word an item by its id, mostly with its name, sometimes with options."""
    item_id, name = fact(item["item_id"]), fact(item["name"])
    forms = [
        f"the {name} (item {item_id})", f"item {item_id}, the {name},", f"the {name} {item_id}",
        f"the {name}, item {item_id},", f"item {item_id} ({name})", f"item {item_id}",
        f"the {name} with item id {item_id}",
    ]
    if item["options"]:
        options = option_words(rng, item["options"], rng.choice((1, 2, 2, 3)))
        forms += [f"the {name} ({options}), item {item_id},", f"item {item_id}, the {name} ({options}),"]
    if "color" in item["options"]:
        forms.append(f"the {name} in {fact(str(item['options']['color']))} (item {item_id})")
    return rng.choice(forms)


def new_item_words(rng: Random, pair: dict[str, Any]) -> str:
    """Word the wanted item by its id, often with the options that differ."""
    new_id = fact(pair["new"]["item_id"])
    old_options = pair["old"]["options"]
    changed = {k: v for k, v in pair["new"]["options"].items() if old_options.get(k) != v}
    forms = [f"item {new_id}", f"{new_id}", f"the one with id {new_id}", f"number {new_id}"]
    if changed:
        options = option_words(rng, changed, 2)
        forms += [
            f"item {new_id} ({options})", f"item {new_id} with {options}", f"{new_id} ({options})",
            f"item {new_id}, that is {options}",
        ]
    if "color" in changed:
        forms.append(f"the {fact(str(changed['color']))} one, item {new_id},")
    return rng.choice(forms)


def pair_words(rng: Random, pair: dict[str, Any], preposition: str) -> str:
    """Word an old item and the one that replaces it."""
    return f"{item_words(rng, pair['old'])} {preposition} {new_item_words(rng, pair)}"


def amount_words(rng: Random, amount: str) -> str:
    """Word an amount of money."""
    form = rng.choice(("${}", "${}", "{} dollars", "USD {}", "{}"))
    return fact(form.format(amount))


def address_lines(rng: Random, address: dict[str, str]) -> str:
    """Word an address with a label before each field."""
    second = address["address2"]
    labels = rng.choice((
        ("street", "unit", "city", "state", "country", "zip"),
        ("address line 1", "address line 2", "city", "state", "country", "zip code"),
        ("street address", "apartment or suite", "town", "state", "country", "postal code"),
    ))
    separator = rng.choice((": ", ": ", " "))
    parts = []
    for label, field in zip(labels, ADDRESS_FIELDS):
        value = fact(address[field])
        if field == "address2" and not second:
            value = rng.choice(("none", "-", "n/a", "no"))
        parts.append(f"{label}{separator}{value}")
    return rng.choice((", ", ", ", "; ")).join(parts)


def address_words(rng: Random, address: dict[str, str]) -> str:
    """Word an address in one line, all six fields in natural order."""
    if rng.random() < 0.2:
        return address_lines(rng, address)
    street, city, state = fact(address["address1"]), fact(address["city"]), fact(address["state"])
    country, zip_code = fact(address["country"]), fact(address["zip"])
    second = ", " + fact(address["address2"]) if address["address2"] else rng.choice(NO_SECOND_LINE)
    tail = rng.choice((
        f"{city}, {state} {zip_code}, {country}", f"{city}, {state}, {zip_code}, {country}",
        f"{city}, {state}, {country} {zip_code}", f"{city}, {state}, {country}, {zip_code}",
        f"{city}, {state}, {country}, zip {zip_code}",
    ))
    return f"{street}{second}, {tail}"
