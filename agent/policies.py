"""Scripted policies: the oracle that shows how gold is played, and the floors.

Every script reads the conversation alone. The oracle knows what gold wants, and still uses no id
before the customer has said it or a tool has returned it. Left out: models and endpoints.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

from agent.conversation import Conversation, Message
from agent.intents import EMAIL, find_customer, identity, method_words, read_intents
from envs.retail import ADDRESS_FIELDS, TOOL_SCHEMAS, WRITE_TOOLS
from scoring.violations import AUTHENTICATION_TOOLS, is_yes
from tasks.audit.grounding import cancel_reason
from tasks.phrasing.grammar import phrase_pattern
from tasks.phrasing.instruction import options_words
from tasks.phrasing.phrases_intents import REASONS

Script = Callable[[Conversation], Iterator[Message]]
"""Yields the messages of one conversation; each is played before the next is asked for."""

_REASON = phrase_pattern(REASONS["why_mistake"] + REASONS["why_not_needed"])
_MAX_ASKS = 6
_REPORTS = {
    "cancel_pending_order": "Order {order_id} has been cancelled.",
    "return_delivered_order_items": "The return for order {order_id} has been requested.",
    "exchange_delivered_order_items": "The exchange for order {order_id} has been requested.",
    "modify_pending_order_items": "The items of order {order_id} have been changed.",
    "modify_pending_order_address": "The address of order {order_id} has been changed.",
    "modify_pending_order_payment": "The payment of order {order_id} has been changed.",
    "modify_user_address": "The address of your account has been changed.",
}
_GOODBYE = "Is there anything else I can help you with?"


class ScriptedPolicy:
    """Plays a script in any number of conversations at once."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._running: WeakKeyDictionary[Conversation, Iterator[Message]] = WeakKeyDictionary()

    def reply(self, conversations: Sequence[Conversation]) -> list[Message]:
        """Return the next message of each; see `agent.conversation.Policy`."""
        return [self._next(conversation) for conversation in conversations]

    def _next(self, conversation: Conversation) -> Message:
        if conversation not in self._running:
            self._running[conversation] = self._script(conversation)
        return next(self._running[conversation], None) or say(_GOODBYE)


def say(text: str) -> Message:
    """Return a message to the customer."""
    return {"role": "assistant", "content": text}


def call(name: str, **arguments: Any) -> Message:
    """Return a message with one tool call."""
    text = json.dumps(arguments, ensure_ascii=False)
    function = {"name": name, "arguments": text}
    return {"role": "assistant", "content": None,
            "tool_calls": [{"type": "function", "function": function}]}


def _heard(talk: Conversation) -> str:
    """Return all that the customer has said."""
    return "\n".join(m["content"] for m in talk.messages if m["role"] == "user")


def _observed(talk: Conversation) -> dict[str, Any]:
    """Return the record that the last call returned, empty when it was refused."""
    last = talk.messages[-1]
    return json.loads(last["content"]) if last["role"] == "tool" and last["content"][:1] == "{" else {}


# -- the oracle --------------------------------------------------------------------------------


def oracle(talk: Conversation, asks: bool = True) -> Iterator[Message]:
    """Play the task's gold calls by talking.

    Args:
        asks: False writes without asking for confirmation: a bad policy, for tests.
    """
    user: dict[str, Any] | None = None
    gold = [a for a in talk.task.gold_actions if a["name"] not in AUTHENTICATION_TOOLS]
    intents = read_intents(talk.task, talk.db, None)
    refused = [i for i, intent in enumerate(intents) if intent.kind == "refused"]
    yield from _authenticate(talk)
    if talk.messages[-1]["role"] != "tool" or " " in talk.messages[-1]["content"]:
        yield say("I am sorry, I cannot find your account.")
        return
    user_id = talk.messages[-1]["content"]
    if any("payment_method_id" in action["arguments"] for action in gold):
        yield call("get_user_details", user_id=user_id)
        user = _observed(talk)
    untold = list(talk.task.outputs)
    answers = len(intents) == len(gold)
    questions = [
        number for number, action in enumerate(gold)
        if action["name"] not in {*WRITE_TOOLS, "transfer_to_human_agents"}
        and number not in refused
    ]
    handing_over = None
    for number, action in enumerate(gold):
        if action["name"] == "transfer_to_human_agents":
            # It ends the conversation, so it waits for all else.
            handing_over = action
            yield say(f"I will hand you over to a human colleague for that at the end. {_GOODBYE}")
        elif action["name"] in WRITE_TOOLS:
            yield from _write(talk, action, user, asks)
        else:
            yield from _read(talk, action)
            if not answers:  # A look-up on the way to a write, as tau-bench's gold has them.
                continue
            # Outputs come in the order of the questions, and each question has one at least.
            num_later = sum(later > number for later in questions)
            most = max(1, len(untold) - num_later) if number in questions else 0
            shown = talk.messages[-1]["content"]
            found = list(takewhile(lambda output: output in shown, untold[:most])) or untold[:most][:1]
            del untold[: len(found)]
            yield say(f"{_found(found)} {_GOODBYE}")
    if untold or not answers:
        yield say(f"{_found(untold)} {_GOODBYE}")
    if handing_over is not None:
        yield call(handing_over["name"], **handing_over["arguments"])


def _authenticate(talk: Conversation) -> Iterator[Message]:
    user = talk.db.users.get(find_customer(talk.task, talk.db))
    known = identity(talk.task, user)
    first, _, last = known.get("name", "").partition(" ")
    for action in talk.task.gold_actions:
        if action["name"] == "find_user_id_by_name_zip":
            first, last = action["arguments"]["first_name"], action["arguments"]["last_name"]
    for _ in range(_MAX_ASKS):
        heard = _heard(talk)
        email = EMAIL.search(heard)
        if email:
            yield call("find_user_id_by_email", email=email.group())
            return
        if "zip" in known and known["name"] in heard and known["zip"] in heard:
            yield call("find_user_id_by_name_zip", first_name=first, last_name=last, zip=known["zip"])
            return
        yield say("I am happy to help. May I have your email address, or your full name and zip "
                  "code?")


def _learn_order(talk: Conversation, order_id: str) -> Iterator[Message]:
    for _ in range(_MAX_ASKS):
        if order_id in _heard(talk):
            return
        yield say("What would you like me to do, and what is the order number?")


def _write(
    talk: Conversation, action: dict[str, Any], user: dict[str, Any] | None, asks: bool
) -> Iterator[Message]:
    arguments = action["arguments"]
    order: dict[str, Any] = {}
    if "order_id" in arguments:
        yield from _learn_order(talk, arguments["order_id"])
        yield call("get_order_details", order_id=arguments["order_id"])
        order = _observed(talk)
    items = {item["item_id"]: item for item in order.get("items", ())}
    products: dict[str, Any] = {}
    if "new_item_ids" in arguments:
        for item_id in arguments["item_ids"]:
            product_id = items.get(item_id, {}).get("product_id")
            if product_id is not None and product_id not in products:
                yield call("get_product_details", product_id=product_id)
                products[product_id] = _observed(talk)
    heard: dict[str, Any] | None = None
    for _ in range(_MAX_ASKS if asks else 0):
        question = _question(talk, action, user)
        if question is None:
            # First what the customer named, which may not be what gold has; once corrected, gold.
            heard = action if heard else _as_heard(talk, action, user)
            yield say(f"{_proposal(heard, items, products, user)} Shall I go ahead (yes or no)?")
            if heard == action and is_yes(talk.messages[-1]["content"]):
                break
        else:
            yield say(question)
    yield call(action["name"], **arguments)
    yield say(f"{_REPORTS[action['name']].format(**arguments)} {_GOODBYE}")


def _question(
    talk: Conversation, action: dict[str, Any], user: dict[str, Any] | None
) -> str | None:
    """Ask for what the customer has not said yet, None when all is known."""
    heard = _heard(talk).casefold()
    arguments = action["arguments"]
    if "reason" in arguments and _REASON.search(heard) is None:
        return "What is the reason for the cancellation?"
    if "payment_method_id" in arguments:
        methods = (user or {}).get("payment_methods", {}).values()
        cards = [re.escape(str(method["last_four"])) for method in methods if "last_four" in method]
        if not re.search(rf"\b(?:{'|'.join(['gift card', 'paypal', *cards])})\b", heard):
            return "Which payment method shall I use?"
    if "address1" in arguments and arguments["address1"].casefold() not in heard:
        return "What is the full new address?"
    return None


def _as_heard(
    talk: Conversation, action: dict[str, Any], user: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a change with the reason or payment method that the customer named, if not gold's."""
    heard, arguments = _heard(talk), action["arguments"]
    named = [
        method_id for method_id, method in (user or {}).get("payment_methods", {}).items()
        if str(method.get("last_four", method["source"].replace("_", " "))) in heard.casefold()
    ]
    method_id = arguments.get("payment_method_id")
    if method_id and named and method_id not in named:
        return {**action, "arguments": {**arguments, "payment_method_id": named[-1]}}
    if "reason" in arguments:
        reason = cancel_reason(heard, arguments["order_id"]) or arguments["reason"]
        return {**action, "arguments": {**arguments, "reason": reason}}
    return action


def _proposal(
    action: dict[str, Any], items: dict[str, Any], products: dict[str, Any],
    user: dict[str, Any] | None,
) -> str:
    arguments = action["arguments"]
    order_id, method_id = arguments.get("order_id"), arguments.get("payment_method_id")
    variants = {k: v for product in products.values() for k, v in product.get("variants", {}).items()}
    new_ids = arguments.get("new_item_ids", ())
    names = []
    for number, item_id in enumerate(arguments.get("item_ids", ())):
        if item_id in items:
            names.append(f"{items[item_id]['name']} ({options_words(items[item_id]['options'])})")
            if number < len(new_ids) and new_ids[number] in variants:
                names[-1] += f" for {options_words(variants[new_ids[number]]['options'])}"
    listed = "; ".join(names)
    method = _method(user, method_id)
    address = ", ".join(filter(None, (arguments.get(name) for name in ADDRESS_FIELDS)))
    return {
        "cancel_pending_order": f"I will cancel order {order_id}, reason: {arguments.get('reason')}.",
        "return_delivered_order_items":
            f"I will return from order {order_id}: {listed}. The refund goes to your {method}.",
        "exchange_delivered_order_items":
            f"I will exchange in order {order_id} the item {listed}. Your {method} takes the "
            "price difference.",
        "modify_pending_order_items":
            f"I will change in order {order_id} the item {listed}. Your {method} takes the "
            "price difference. This can be done only once.",
        "modify_pending_order_address":
            f"I will change the shipping address of order {order_id} to {address}.",
        "modify_pending_order_payment": f"I will have order {order_id} paid with your {method}.",
        "modify_user_address": f"I will change the address of your account to {address}.",
    }[action["name"]]


def _method(user: dict[str, Any] | None, method_id: str | None) -> str:
    """Say a payment method of the profile; another one by its id."""
    if user and method_id in user.get("payment_methods", ()):
        return method_words(user, method_id)
    return method_id or ""


def _read(talk: Conversation, action: dict[str, Any]) -> Iterator[Message]:
    """Make a gold look-up, once its ids are known."""
    name, arguments = action["name"], action["arguments"]
    known = str(talk.messages)
    if arguments.get("order_id", "") not in known:
        yield from _learn_order(talk, arguments["order_id"])
    elif arguments.get("product_id", "") not in known:
        yield call("list_all_product_types")
    yield call(name, **arguments)


def _found(outputs: list[str]) -> str:
    if outputs:
        return f"Here is what I found: {', '.join(outputs)}."
    return "I am sorry, I have checked and this is not possible."


# -- the floors --------------------------------------------------------------------------------


def nothing(talk: Conversation) -> Iterator[Message]:
    """Greet for ever: does and tells nothing."""
    while True:
        yield say("Hello! How can I help you today?")


def transfer(talk: Conversation) -> Iterator[Message]:
    """Hand every customer over at once."""
    yield call("transfer_to_human_agents", summary="customer request")


def all_tools(talk: Conversation) -> Iterator[Message]:
    """Call every tool with whatever ids are at hand, and confirm nothing."""
    yield from _authenticate(talk)
    user_id = talk.messages[-1]["content"]
    yield call("get_user_details", user_id=user_id)
    user = _observed(talk)
    order_id, order = "#W0000000", {}
    for order_id in user.get("orders", ()):
        yield call("get_order_details", order_id=order_id)
        order = _observed(talk)
    item = next(iter(order.get("items", ())), {"item_id": "0", "product_id": "0"})
    yield call("get_product_details", product_id=item["product_id"])
    new_ids = list(_observed(talk).get("variants", ()))
    methods = list(user.get("payment_methods", ())) or ["gift_card_0000000"]
    values = {
        "email": "someone@example.com", "first_name": "Some", "last_name": "One", "zip": "00000",
        "user_id": user_id, "order_id": order_id, "item_ids": [item["item_id"]],
        "new_item_ids": new_ids[:1], "payment_method_id": methods[0], "reason": "no longer needed",
        "expression": "1 + 1", "thought": "", "summary": "all of it",
        "product_id": item["product_id"],
    }
    names = sorted(TOOL_SCHEMAS, key=lambda name: name == "transfer_to_human_agents")
    for name in names:
        required = TOOL_SCHEMAS[name]["function"]["parameters"]["required"]
        yield call(name, **{key: values.get(key, "1 Any Street") for key in required})


SCRIPTS: dict[str, Script] = {
    "oracle": oracle, "nothing": nothing, "all-tools": all_tools, "transfer": transfer,
}
"""The scripted policies that the command line offers, by name."""


def scripted_policy(name: str) -> ScriptedPolicy:
    """Return a scripted policy by its name in `SCRIPTS`."""
    return ScriptedPolicy(SCRIPTS[name])
