"""What a simulated customer wants and knows, read from a task.

In generated rows each intent is one sentence of `instruction`; its facts (which items, which card) come
from the gold calls and the customer's records, in words a customer would use. Other rows, such as
tau-bench's, hold free text: their intents are the gold writes, and the text itself is a question if
there are `outputs` or no writes. Ids that a customer would not know (of items, payment methods,
products and users) are never used. Left out: how the customer words it all (`agent.speech`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from data_reader import Task
from envs.retail import ADDRESS_FIELDS, WRITE_TOOLS, Episode, RetailDatabase
from scoring.violations import AUTHENTICATION_TOOLS
from tasks.phrasing.instruction import QUESTIONS, WORDS

SWAP_TOOLS = ("modify_pending_order_items", "exchange_delivered_order_items")

_INTENT = re.compile(
    r"^(?:You (?:also )?want to|You would like to|Your wish is to|You contact the store to|"
    r"After that, you want to|Then you would like to) (.*)\.$",
    re.S,
)
_GENERATED = re.compile(r"You are .+? and your (?:email|zip code) is ")
_SENTENCE_END = re.compile(
    r"(?<=\.) (?=You |Your wish|After that, you|Then you|Order #|When the agent|If you are)"
)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_ZIP = re.compile(r"\bzip(?: code)?(?: is|:)? (\d{5})\b", re.I)
_KNOWN_FROM_RECORDS = re.compile(
    r", (?:which (?:was \w+ already|is still pending|a relative placed on another account)"
    r"|although (?:it is out of stock|its balance is too small))$"
)
_REFUSED = (
    (re.compile("cancel "), "cancel", ("cancel_pending_order",)),
    (re.compile("return (?P<thing>.+) from order "), "return", ("return_delivered_order_items",)),
    (re.compile(r"swap, in order \S+, (?P<thing>.+)"), "swap", SWAP_TOOLS),
    (re.compile("change the address "), "address", ("modify_pending_order_address",)),
    (re.compile(r"pay order \S+ with (?P<thing>.+)"), "pay", ("modify_pending_order_payment",)),
    (re.compile(""), "payment", ("modify_pending_order_payment",)),
)
"""How a refused intent begins, the end of its phrases' name, and the tools that could serve it."""
_WRITE_PHRASES = {
    "cancel_pending_order": "do_cancel",
    "return_delivered_order_items": "do_return",
    "exchange_delivered_order_items": "do_exchange",
    "modify_pending_order_items": "do_change_items",
    "modify_pending_order_address": "do_change_address",
    "modify_pending_order_payment": "do_change_payment",
    "modify_user_address": "do_change_profile_address",
}


@dataclass
class Intent:
    """One thing that the customer wants, and the state of the conversation about it."""

    kind: str
    """`write`, `refused` (a change that gold does not make), `question` or `transfer`."""
    words: str
    """The intent, to follow "I want to"."""
    tools: tuple[str, ...] = ()
    """Write tools that can serve it."""
    order_id: str | None = None
    phrase: str = ""
    """Name of the phrases that can word it; empty: only `words` can."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the phrases name: `order`, `names` of what is in it, `items` (each with its new options, None
    where it is not to be another), `reason` (as the tool takes it), `payment`, `address` (its fields), and
    `thing`: what a question, a refused intent or a hand-over is about."""
    slots: dict[str, str] = field(default_factory=dict)
    """The customer's words for what an agent may ask: `order`, `reason`, `payment`, `items`, `address`."""
    action: dict[str, Any] = field(default_factory=dict)
    """The gold call of a `write`, with which proposals are compared."""
    said: set[str] = field(default_factory=set)
    """Slots the agent has been told, and `words` once the intent itself was told."""
    confirmed: bool = False
    closed: bool = False
    failed: bool = False
    """Closed because the agent refused."""
    num_refusals: int = 0


def first_person(text: str) -> str:
    """Rewrite "you" and "your" in the first person."""
    text = re.sub(r"\byou are\b", "I am", text, flags=re.I)
    text = re.sub(r"\byour\b", "my", text, flags=re.I)
    return re.sub(r"\byou\b", "I", text, flags=re.I)


def method_words(user: dict[str, Any], method_id: str) -> str:
    """Describe a payment method as its owner would."""
    method = user["payment_methods"][method_id]
    if method["source"] == "credit_card":
        return f"{method.get('brand', 'credit')} card ending in {method.get('last_four', '?')}"
    if method["source"] == "paypal":
        return "PayPal account"
    cards = [m for m in user["payment_methods"].values() if m["source"] == "gift_card"]
    return "gift card" + (f" with {method['balance']} dollars on it" if len(cards) > 1 else "")


def find_customer(task: Task, db: RetailDatabase) -> str | None:
    """Return the customer's user id, from the row or from the gold calls."""
    if task.user_id in db.users:
        return task.user_id
    for action in task.gold_actions:
        name, arguments = action["name"], action["arguments"]
        if name in AUTHENTICATION_TOOLS:
            found = Episode(db).call(name, arguments)
            if found.ok:
                return found.content
        if arguments.get("user_id") in db.users:
            return arguments["user_id"]
        if arguments.get("order_id") in db.orders and name in WRITE_TOOLS:
            return db.orders[arguments["order_id"]]["user_id"]
    return None


def identity(task: Task, user: dict[str, Any] | None) -> dict[str, str]:
    """Return how customers identify themselves: `name`, and `email` or `zip`."""
    text = task.instruction or task.query
    for action in task.gold_actions:
        arguments = action["arguments"]
        if action["name"] == "find_user_id_by_email":
            named = re.match(r"You are (.+?) and your email", text)
            name = named.group(1) if named else _full_name(user)
            return {"name": name, "email": arguments["email"]}
        if action["name"] == "find_user_id_by_name_zip":
            name = f"{arguments['first_name']} {arguments['last_name']}"
            return {"name": name, "zip": arguments["zip"]}
    name = _full_name(user)
    emails, zip_code = EMAIL.findall(text), _ZIP.search(text)
    if emails:
        on_file = [email for email in emails if user and email == user["email"]]
        return {"name": name, "email": (on_file or emails)[0]}
    if zip_code:
        return {"name": name, "zip": zip_code.group(1)}
    return {"name": name, "email": user["email"]} if user else {}


def _full_name(user: dict[str, Any] | None) -> str:
    return " ".join(user["name"][part] for part in ("first_name", "last_name")) if user else ""


def read_intents(task: Task, db: RetailDatabase, user: dict[str, Any] | None) -> list[Intent]:
    """Return what the customer wants, in the order of the instruction (else of gold).

    Args:
        db: The store, of which the customer's records and the catalog are read.
        user: The customer's record; None if unknown.
    """
    silent = {*AUTHENTICATION_TOOLS, "think"}
    actions = [action for action in task.gold_actions if action["name"] not in silent]
    sentences = list(_intent_sentences(task.instruction or ""))
    if len(sentences) == len(actions):
        pairs = zip(sentences, actions, strict=True)
        return [_intent(words, action, db, user) for words, action in pairs]
    intents = [_write_intent("", a, db, user) for a in actions if a["name"] in WRITE_TOOLS]
    if any(action["name"] == "transfer_to_human_agents" for action in actions):
        intents.append(Intent("transfer", "speak to a person about this"))
    if task.outputs or not intents:
        text = first_person(task.instruction or task.query).strip()
        intents.append(Intent("question", f"ask about this: {text}"))
    return intents


def _intent_sentences(instruction: str) -> Iterator[str]:
    if not _GENERATED.match(instruction):
        return
    for sentence in _SENTENCE_END.split(instruction.strip()):
        match = _INTENT.match(sentence)
        if match:
            yield first_person(match.group(1))


def _phrases_of_questions() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Yield the name of the phrases for each kind of question, and its sentence in instructions."""
    templates = {f"{kind}_{aspect}": text for (kind, aspect), text in QUESTIONS.items()}
    kinds = ("ask_product_types", "calculate_sum", "calculate_difference", "transfer")
    for kind, text in (templates | {kind: WORDS[kind] for kind in kinds}).items():
        name = re.sub("^(?:ask|calculate)_", "know_", kind.replace("transfer", "do_transfer"))
        pattern = re.sub(r"\\\{\w*\\\}", "(?P<thing>.+)", re.escape(first_person(text)))
        yield name, re.compile(pattern)


_QUESTIONS = dict(_phrases_of_questions())


def _asked(kind: str, words: str, order_id: str | None = None) -> Intent:
    """Make an intent that only asks, with the phrases of its sentence where that is known."""
    for name, pattern in _QUESTIONS.items():
        match = pattern.fullmatch(words)
        if match:
            facts = match.groupdict() | ({"order": order_id} if order_id else {})
            # This one is a state, the other subjects are things.
            name += "_state" * (facts.get("thing") == "damaged on arrival")
            return Intent(kind, words, order_id=order_id, phrase=name, facts=facts)
    return Intent(kind, words, order_id=order_id)


def _intent(
    words: str, action: dict[str, Any], db: RetailDatabase, user: dict[str, Any] | None
) -> Intent:
    if action["name"] in WRITE_TOOLS:
        return _write_intent(words, action, db, user)
    if action["name"] == "transfer_to_human_agents":
        return _asked("transfer", words)
    named = re.search(r"#W\d+", words)
    order_id = named.group() if named else None
    if words.startswith("ask "):
        return _asked("question", words, order_id)
    words = _KNOWN_FROM_RECORDS.sub("", words)
    match, name, tools = next((m, *rest) for start, *rest in _REFUSED if (m := start.match(words)))
    facts = {"order": order_id, **match.groupdict()}
    return Intent("refused", words, tools, order_id, f"do_wanted_{name}", facts)


def _write_intent(
    words: str, action: dict[str, Any], db: RetailDatabase, user: dict[str, Any] | None
) -> Intent:
    """Make an intent from a gold write; `words` may be empty."""
    arguments, tool = action["arguments"], action["name"]
    order_id = arguments.get("order_id")
    facts: dict[str, Any] = {}
    if order_id is not None:
        items = db.orders.get(order_id, {"items": []})["items"]
        names = [db.products[item["product_id"]]["name"] for item in items]
        facts |= {"order": order_id, "names": list(dict.fromkeys(names))}
    if "item_ids" in arguments:
        facts["items"] = list(_items(arguments, items, db))
    if "reason" in arguments:
        facts["reason"] = arguments["reason"]
    if "payment_method_id" in arguments and user is not None:
        if arguments["payment_method_id"] in user["payment_methods"]:
            facts["payment"] = f"my {method_words(user, arguments['payment_method_id'])}"
    if "address1" in arguments:
        facts["address"] = {name: arguments[name] for name in ADDRESS_FIELDS}
    return Intent("write", words, (tool,), order_id, _WRITE_PHRASES[tool], facts, action=action)


def _items(
    arguments: dict[str, Any], ordered: list[dict[str, Any]], db: RetailDatabase
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    items = {item["item_id"]: item for item in ordered}
    new_ids = arguments.get("new_item_ids") or repeat(None)
    for item_id, new_id in zip(arguments["item_ids"], new_ids, strict=False):
        if item_id not in items:
            continue
        product, options = db.products[items[item_id]["product_id"]], items[item_id]["options"]
        changed = None
        if new_id is not None:
            new = product["variants"].get(new_id, {"options": {}})["options"]
            changed = {k: v for k, v in new.items() if options.get(k) != v}
        yield {"name": product["name"], "options": options}, changed
