"""What a simulated customer wants and knows, read from a task.

In generated rows each intent is one sentence of `instruction`; its facts (which items, which card) come
from the gold calls and the customer's records, in words a customer would use. Other rows, such as
tau-bench's, hold free text: their intents are the gold writes, and the text itself is a question if
there are `outputs` or no writes. Ids that a customer would not know (of items, payment methods,
products and users) are never used.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_reader import Task
from envs.retail import WRITE_TOOLS, Episode, RetailDatabase
from scoring.violations import AUTHENTICATION_TOOLS
from tasks.phrasing.instruction import address_words, item_words, options_words

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
_REFUSED_TOOLS = (
    ("cancel", ("cancel_pending_order",)),
    ("return", ("return_delivered_order_items",)),
    ("swap", SWAP_TOOLS),
    ("change the address", ("modify_pending_order_address",)),
    ("", ("modify_pending_order_payment",)),
)


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
    slots: dict[str, str] = field(default_factory=dict)
    """Answers to what an agent may ask: `order`, `reason`, `payment`, `items`, `address`."""
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


def _intent(
    words: str, action: dict[str, Any], db: RetailDatabase, user: dict[str, Any] | None
) -> Intent:
    if action["name"] in WRITE_TOOLS:
        return _write_intent(words, action, db, user)
    if action["name"] == "transfer_to_human_agents":
        return Intent("transfer", words)
    named = re.search(r"#W\d+", words)
    order_id = named.group() if named else None
    if words.startswith("ask "):
        return Intent("question", words, order_id=order_id)
    tools = next(tools for start, tools in _REFUSED_TOOLS if words.startswith(start))
    words = _KNOWN_FROM_RECORDS.sub("", words)
    slots = {"order": f"it is order {order_id}", "items": f"I want to {words}"}
    return Intent("refused", words, tools, order_id, slots)


def _write_intent(
    words: str, action: dict[str, Any], db: RetailDatabase, user: dict[str, Any] | None
) -> Intent:
    """Make an intent from a gold write; empty `words` are composed from its slots."""
    arguments, tool = action["arguments"], action["name"]
    order_id = arguments.get("order_id")
    slots: dict[str, str] = {}
    if order_id is not None:
        slots["order"] = f"it is order {order_id}"
    if "item_ids" in arguments:
        slots["items"] = _items_words(arguments, db.orders.get(order_id, {"items": []}), db)
    if "reason" in arguments:
        mistake = arguments["reason"] == "ordered by mistake"
        slots["reason"] = "I ordered it by mistake" if mistake else "I no longer need it"
    if "payment_method_id" in arguments and user is not None:
        if arguments["payment_method_id"] in user["payment_methods"]:
            slots["payment"] = f"my {method_words(user, arguments['payment_method_id'])}"
    if "address1" in arguments:
        slots["address"] = address_words(arguments)
    words = words or _composed(tool, order_id, slots)
    return Intent("write", words, (tool,), order_id, slots, action)


def _items_words(arguments: dict[str, Any], order: dict[str, Any], db: RetailDatabase) -> str:
    items = {item["item_id"]: item for item in order["items"]}
    parts = []
    for index, item_id in enumerate(arguments["item_ids"]):
        item = items.get(item_id)
        if item is None:
            continue
        product = db.products[item["product_id"]]
        part = item_words({"name": product["name"], "options": item["options"]})
        if "new_item_ids" in arguments and index < len(arguments["new_item_ids"]):
            new_id = arguments["new_item_ids"][index]
            new = product["variants"].get(new_id, {"options": {}})["options"]
            changed = {k: v for k, v in new.items() if item["options"].get(k) != v}
            wanted = f"one with {options_words(changed)}" if changed else "the very same kind again"
            part += f" for {wanted}"
        parts.append(part)
    return " and ".join(parts)


def _composed(tool: str, order_id: str | None, slots: dict[str, str]) -> str:
    items, payment = slots.get("items", ""), slots.get("payment", "my card")
    return {
        "cancel_pending_order": f"cancel order {order_id} because {slots.get('reason')}",
        "return_delivered_order_items":
            f"return {items} from order {order_id} and get the refund on {payment}",
        "exchange_delivered_order_items":
            f"exchange, in order {order_id}, {items}, with any difference on {payment}",
        "modify_pending_order_items":
            f"change, in order {order_id}, {items}, with any difference on {payment}",
        "modify_pending_order_address":
            f"have order {order_id} shipped to {slots.get('address')}",
        "modify_pending_order_payment": f"pay order {order_id} with {payment} instead",
        "modify_user_address": f"change the address of my account to {slots.get('address')}",
    }[tool]
