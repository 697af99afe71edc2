"""Check that every argument of a gold call is in the query, or follows from it by a rule below.

- an order id may be written without its "#"; an email, a name, a street or a city in other case;
- composed and decomposed letters, kinds of white space and invisible characters are the same to a
  reader, so they are the same here (`common.reader_text`), though not to the tools' own look-ups;
- `reason` follows from the words next to the order id (see `cancel_reason`);
- `address2` is "" when nothing is between the street and the city, or words say "none";
- `expression` needs its numbers, thousands separators aside; `thought` is free;
- `new_item_ids` go with `item_ids` in the order in which the query pairs them.

Kinds: ungrounded, address_scattered, name_scattered, swapped_pair, reason_contradicts.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from common.reader_text import folded, plain
from common.user_error import quoted
from data_reader import Task
from envs.retail import Episode, RetailDatabase
from envs.retail.store import ADDRESS_FIELDS
from tasks.audit.finding import Finding, call_label

MISTAKE = "ordered by mistake"
NOT_NEEDED = "no longer needed"

# The longest passage, in characters, that still reads as one address, or as one name.
MAX_ADDRESS_SPAN = 200
MAX_NAME_SPAN = 60

MISTAKE_CUE = re.compile(
    r"\b(?:mistak\w*|mistook|accident\w*|in error|(?:an|some|my|human) error|error on my|"
    r"unintentional\w*|unintended|inadvertent\w*|mis-?click\w*|wrong button|"
    r"(?:did ?n[o']?t|did not|never) (?:mean|intend)\w*|not mean to|meant to order|"
    r"ordered (?:it )?twice|placed (?:it )?twice|double[- ]?order\w*|duplicate order|"
    r"wrong (?:order|one|thing|product)|wrongly (?:ordered|placed))\b",
    re.IGNORECASE,
)
NO_MISTAKE_CUE = re.compile(
    r"\b(?:not|no|without|n't)\s+(?:an?\s+|by\s+)*(?:mistake|error|accident)\b", re.IGNORECASE
)
NO_SECOND_LINE_CUE = re.compile(
    r"\b(?:no|without|none|n/a|not any|nothing|blank|empty)\b|[-–—]{1,2}", re.IGNORECASE
)
ADDRESS_LABEL = re.compile(
    r"\b(?:line (?:2|two)|address|street|line|city|town|apt|apartment|unit|suite|second|floor|"
    r"number|for|or|the|a|an|in|is|it|that|of|with|and|there's|there|house|flat|extra|part|"
    r"details?|field)\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
ORDER_ID = re.compile(r"#?\bW\d{7}\b")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def find_value(text: str, value: str, start: int = 0) -> int:
    """Return the first position at which a value stands as a token of its own, or -1.

    Inside a longer number, word, id or email it does not count.

    Args:
        value: The value; "" is never found.
    """
    if not value:
        return -1
    is_number, worded = value.isdigit(), value[0].isalnum()
    position = text.find(value, start)
    while position != -1:
        end = position + len(value)
        before = text[position - 1] if position else " "
        after = text[end] if end < len(text) else " "
        next_one = text[end + 1] if end + 1 < len(text) else " "
        inside = (
            before.isalnum()
            or before in "_@"
            or after.isalnum()
            or after in "_@"
            or unicodedata.category(after)[0] == "M"  # an accent that has no composed letter
            # "me@x.com" in "me@x.com.au", "12" in "12.50"; but "12.Thanks" only lacks a space.
            or (after in ".-" and (next_one.isdigit() if is_number else next_one.isalnum()))
            or (before in ".-+" and worded and position > 1 and text[position - 2].isalnum())
        )
        if not inside:
            return position
        position = text.find(value, position + 1)
    return -1


def find_all(text: str, value: str) -> list[int]:
    """Return every such position of a value."""
    places = []
    position = find_value(text, value)
    while position != -1:
        places.append(position)
        position = find_value(text, value, position + 1)
    return places


class SearchText:
    """A text prepared for finding values in it."""

    def __init__(self, text: str):
        self.text = plain(text)
        self.folded = folded(text)

    def places(self, field: str, value: str) -> list[int]:
        """Return the places of an argument's value, by the rules of its field."""
        if not value.strip():
            return []
        if field == "state" or field.endswith(("_id", "_ids")):
            # "OR", "IN" and "ME" are states, "or", "in" and "me" are not.
            found = find_all(self.text, plain(value))
            if not found and field == "order_id":
                found = find_all(self.text, plain(value).lstrip("#"))
            return found
        return find_all(self.folded, folded(value))

    def has(self, field: str, value: str) -> bool:
        """Tell whether the text contains the value."""
        return bool(self.places(field, value))


def says_mistake(text: str) -> bool:
    """Tell whether words call something a mistake."""
    return bool(MISTAKE_CUE.search(NO_MISTAKE_CUE.sub(" ", text)))


def cancel_reason(text: str, order_id: str) -> str | None:
    """Return the cancel reason that the words around an order id give.

    The sentence with the id counts and the one after it, unless that names another order; the one
    before it counts when no other order has been named so far.

    Returns:
        One of the two reasons; None when the text does not name the order, or when a sentence
        names several orders and a mistake without saying which order it was.
    """
    bare_id = order_id.lstrip("#")
    sentences = [s for s in SENTENCE_END.split(text) if s.strip()]
    orders = [[found.lstrip("#") for found in ORDER_ID.findall(s)] for s in sentences]
    others = [any(found != bare_id for found in named) for named in orders]
    places = [n for n, s in enumerate(sentences) if find_value(s.replace("#", " "), bare_id) != -1]
    if not places:
        return None
    first_other = others.index(True) if True in others else len(others)
    for n in places:
        if not others[n]:
            if says_mistake(sentences[n]):
                return MISTAKE
        elif says_mistake(sentences[n]):
            own = sentences[n][sentences[n].find(bare_id) :]
            following = ORDER_ID.search(own, len(bare_id))
            own = own[: following.start()] if following else own
            return MISTAKE if says_mistake(own) else None
        if n + 1 < len(sentences) and not others[n + 1] and says_mistake(sentences[n + 1]):
            return MISTAKE
        if 0 < n <= first_other and says_mistake(sentences[n - 1]):
            return MISTAKE
    return NOT_NEEDED


def smallest_span(places: list[list[int]]) -> int:
    """Return the length of the shortest passage that holds a position from every list."""
    tagged = sorted((p, n) for n, found in enumerate(places) for p in found)
    last: dict[int, int] = {}
    best = 1 << 30
    for place, n in tagged:
        last[n] = place
        if len(last) == len(places):
            best = min(best, place - min(last.values()))
    return best


def second_line_is_empty(words: SearchText, address1: str, city: str) -> bool:
    """Tell whether the words give a street without a second address line.

    True when only labels, punctuation or words such as "no apartment" are between a street and
    the city after it.
    """
    address1, city = folded(address1), folded(city)
    for start in find_all(words.folded, address1):
        begin = start + len(address1)
        # At most 80 characters between the two; those around them show where each ends.
        after = words.folded[begin - 1 : begin + 80 + len(city) + 2]
        end = find_value(after, city, 1)
        rest = ADDRESS_LABEL.sub(" ", NO_SECOND_LINE_CUE.sub(" ", after[1:end]))
        if end != -1 and not re.search(r"[a-z0-9]", rest):
            return True
    return False


def ground_address(words: SearchText, arguments: dict) -> list[tuple[str, str]]:
    """Check that the address fields are in the query, all close together."""
    findings = []
    places = []
    for field in ADDRESS_FIELDS:
        value = arguments[field]
        if field == "address2" and value == "":
            if not second_line_is_empty(words, arguments["address1"], arguments["city"]):
                findings.append(("ungrounded", "address2 is empty, the query does not say so"))
            continue
        found = words.places(field, value)
        if not found:
            findings.append(("ungrounded", f"{field} {quoted(value)} is not in the query"))
        places.append(found)
    if not findings and smallest_span(places) > MAX_ADDRESS_SPAN:
        findings.append(("address_scattered", "its fields are not close together in the query"))
    return findings


def ground_pairs(words: SearchText, item_ids: list[str], new_item_ids: list[str]) -> list[tuple[str, str]]:
    """Check that the query pairs old and new items as gold does: n-th old with n-th new."""
    pairs = []
    for old, new in zip(item_ids, new_item_ids):
        old_places, new_places = find_all(words.text, old), find_all(words.text, new)
        # An id that occurs twice has no single place to compare.
        if len(old_places) == 1 and len(new_places) == 1:
            pairs.append((old_places[0], new_places[0], old, new))
    pairs.sort()
    for (_, first_new, _, _), (_, second_new, old, new) in zip(pairs, pairs[1:]):
        if second_new < first_new:
            return [("swapped_pair", f"the query does not pair {old} with {new}")]
    return []


def number(text: str) -> float:
    """Return the value of a match of `NUMBER`, thousands separators aside."""
    return float(text.replace(",", ""))


def ground_expression(words: SearchText, expression: str) -> list[tuple[str, str]]:
    """Check that every number of an expression is in the query."""
    known = {number(text) for text in NUMBER.findall(words.text)}
    return [
        ("ungrounded", f"the number {n} of expression is not in the query")
        for n in NUMBER.findall(expression)
        if number(n) not in known
    ]


def ground_name(words: SearchText, arguments: dict) -> list[tuple[str, str]]:
    """Check that first name, last name and zip are in the query, the names close together."""
    findings = [
        ("ungrounded", f"{field} {quoted(arguments[field])} is not in the query")
        for field in ("first_name", "last_name", "zip")
        if not words.has(field, arguments[field])
    ]
    names = [words.places(field, arguments[field]) for field in ("first_name", "last_name")]
    if not findings and smallest_span(names) > MAX_NAME_SPAN:
        findings.append(("name_scattered", "first and last name are not close together"))
    return findings


def ground_reason(words: SearchText, arguments: dict, num_cancels: int) -> list[tuple[str, str]]:
    """Check a cancel reason against the words next to the order id."""
    stated = cancel_reason(words.text, arguments["order_id"])
    if stated is None or stated == arguments["reason"]:
        return []
    # With one cancellation the apology may be anywhere in the query.
    if arguments["reason"] == MISTAKE and num_cancels == 1:
        if says_mistake(words.text):
            return []
    return [("reason_contradicts", f"reason is {arguments['reason']!r}, the words say {stated!r}")]


def ground_call(words: SearchText, action: dict, num_cancels: int) -> list[tuple[str, str]]:
    """Return (kind, detail) of each argument of a call that the words do not give."""
    name, arguments = action["name"], action["arguments"]
    findings: list[tuple[str, str]] = []
    if name == "find_user_id_by_name_zip":
        return ground_name(words, arguments)
    if name == "calculate":
        return ground_expression(words, arguments["expression"])
    for field, value in arguments.items():
        if field in ADDRESS_FIELDS or field in ("reason", "thought"):
            continue
        for one in value if isinstance(value, list) else [value]:
            if not words.has(field, one):
                findings.append(("ungrounded", f"{field} {quoted(one)} is not in the query"))
    if "address1" in arguments:
        findings += ground_address(words, arguments)
    if "new_item_ids" in arguments:
        findings += ground_pairs(words, arguments["item_ids"], arguments["new_item_ids"])
    if "reason" in arguments:
        findings += ground_reason(words, arguments, num_cancels)
    return findings


def check_grounding(task: Task, db: RetailDatabase) -> list[Finding]:
    """Check the plan view: every argument is in the query or follows from it by a stated rule.

    Calls must fit the tool schemas (`check_format` first).

    Args:
        db: Not used: the query alone counts.
    """
    words = SearchText(task.query)
    num_cancels = sum(a["name"] == "cancel_pending_order" for a in task.gold_actions)
    return [
        Finding(kind, f"{call_label(index, action)}: {detail}")
        for index, action in enumerate(task.gold_actions)
        for kind, detail in ground_call(words, action, num_cancels)
    ]


def leaves(value: Any) -> Iterator[str]:
    """Yield every value of a record as text."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from leaves(one)
    elif value is not None:
        yield str(value)


class Shown:
    """What a careful agent has seen so far: the customer's records and what calls returned."""

    def __init__(self, db: RetailDatabase):
        """Start with the catalogue, which everybody may read."""
        self.db = db
        self._values: set[str] = set()
        self.add({p["name"]: product_id for product_id, p in db.products.items()})

    def add(self, content: Any) -> None:
        """Add a record, or what a call returned."""
        self._values.update(leaves(content))

    def add_customer(self, user_id: str | None) -> None:
        """Add a customer's profile, orders, and all variants of the products in them."""
        user = self.db.users.get(user_id)
        if user is None:
            return
        self.add([user_id, user])
        orders = [self.db.orders[one] for one in user["orders"] if one in self.db.orders]
        products = {item["product_id"] for order in orders for item in order["items"]}
        self.add([*orders, *(self.db.products[one] for one in sorted(products))])

    def has(self, value: str) -> bool:
        """Tell whether a record shows exactly this value, letter case aside."""
        # Folding every value is slow, and few values need it.
        return value in self._values or folded(value) in map(folded, self._values)

    def numbers(self) -> set[float]:
        """Return every number that a record shows as a value of its own."""
        return {number(text) for text in self._values if NUMBER.fullmatch(text)}


def unknown_arguments(said: SearchText, shown: Shown, arguments: dict) -> list[tuple[str, str]]:
    """Return a reason for each argument that is neither said nor shown."""

    def is_known(field: str, value: str) -> bool:
        if field == "expression":
            known = shown.numbers() | {number(text) for text in NUMBER.findall(said.text)}
            return all(number(text) in known for text in NUMBER.findall(value))
        if field == "address2" and value == "":
            place = arguments["address1"], arguments["city"]
            return shown.has("") or second_line_is_empty(said, *place)
        return said.has(field, value) or shown.has(value)

    return [
        ("ungrounded", f"{field} {quoted(one)} is neither said nor shown")
        for field, value in arguments.items()
        if field not in ("reason", "thought")
        for one in (value if isinstance(value, list) else [value])
        if not is_known(field, one)
    ]


def check_agent_grounding(task: Task, db: RetailDatabase, scenario: bool = False) -> list[Finding]:
    """Check the agent view: arguments are in `instruction` or in what an earlier lookup shows.

    Lookups show the customer's profile, orders and products, the catalogue and what gold's earlier
    calls return. Who the customer is, a new address, a sum and a subject must be in `instruction`,
    unless the row is a scenario. Rows without an instruction have no findings here.

    Args:
        scenario: The row is a scenario for a simulated customer, as tau-bench's: the records of its
            `user_id` show what that customer knows, and what "my other address" is.
    """
    if not task.instruction:
        return []
    said, shown, episode = SearchText(task.instruction), Shown(db), Episode(db)
    shown.add_customer(task.user_id)
    num_cancels = sum(a["name"] == "cancel_pending_order" for a in task.gold_actions)
    findings = []
    for index, action in enumerate(task.gold_actions):
        name, arguments = action["name"], action["arguments"]
        finds_customer = name.startswith("find_user_id")
        said_alone = (
            finds_customer or "address1" in arguments or name in ("calculate", "transfer_to_human_agents")
        )
        problems = []
        if said_alone:
            own = {field: value for field, value in arguments.items() if field != "user_id"}
            problems = ground_call(said, {"name": name, "arguments": own}, num_cancels)
        if not said_alone or (scenario and any(kind == "ungrounded" for kind, _ in problems)):
            problems = unknown_arguments(said, shown, arguments)
            if "reason" in arguments:
                problems += ground_reason(said, arguments, num_cancels)
        label = call_label(index, action)
        findings += [Finding(kind, f"{label}: {detail}") for kind, detail in problems]
        observation = episode.call(name, arguments)
        if observation.ok:
            shown.add(observation.content)
            if finds_customer:
                shown.add_customer(observation.content)
    return findings
