"""Word a blueprint as a scenario for a simulated customer: second person, ids only of orders.

Items go by name and options, payment methods by what is printed on them, products by name; order
ids stay, since customers have them in a confirmation. The simulated customer makes its own small
talk.
"""

from random import Random
from typing import Any

from envs.retail.store import ADDRESS_FIELDS
from tasks.audit.grounding import MISTAKE
from tasks.blueprint import Blueprint, Distractor, Intent
from tasks.phrasing.naming import join_words

MANNERS = {
    "polite": ("You are polite and patient.", "You are friendly and say please."),
    "brisk": ("You are in a hurry and keep it short.", "You write short sentences."),
    "chatty": ("You like to talk about your day.", "You wander off the subject at times."),
    "annoyed": ("You are annoyed by how long this takes.", "You are impatient, but not rude."),
    "anxious": ("You are unsure and ask twice.", "You worry that something goes wrong."),
    "formal": ("You are formal and precise.", "You write in full, formal sentences."),
}
LINKS = ("You want to", "You would like to", "Your wish is to", "You contact the store to")
LATER_LINKS = ("You also want to", "After that, you want to", "Then you would like to")
REFUSED = (
    "If you are told that this is not possible, you accept it.",
    "When the agent says no, you do not insist.",
    "You accept a refusal if the agent explains it.",
)
STATUS_WORDS = {
    "delivered": "which was delivered already",
    "processed": "which was processed already",
    "cancelled": "which was cancelled already",
    "pending": "which is still pending",
}
ASK_ORDER = {
    "status": "ask what the status of order {} is",
    "items": "ask what order {} contains",
    "amount": "ask what order {} cost",
    "address": "ask where order {} is being shipped",
}
ASK_PRODUCT = {
    "count": "ask how many options of the {} are available",
    "cheapest": "ask what the cheapest available {} costs",
    "dearest": "ask what the most expensive available {} costs",
}
ASK_ACCOUNT = {
    "balance": "ask how much is left on your gift card",
    "address": "ask which address your account shows",
    "orders": "ask which orders your account lists",
}


def options_words(options: dict[str, Any]) -> str:
    """Say options as "color blue, size M"."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def item_words(item: dict[str, Any]) -> str:
    """Say an item by name and options."""
    if not item["options"]:
        return f"the {item['name']}"
    return f"the {item['name']} ({options_words(item['options'])})"


def pair_words(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say an item and what is to be different about it."""
    changed = {k: v for k, v in new["options"].items() if old["options"].get(k) != v}
    return f"{item_words(old)} for the one with {options_words(changed or new['options'])}"


def address_words(address: dict[str, str]) -> str:
    """Say an address with all six fields."""
    return ", ".join(address[name] or "no second line" for name in ADDRESS_FIELDS)


def intent_words(intent: Intent) -> str:
    """Say an intent so that it follows "You want to"."""
    facts, kind = intent.facts, intent.kind
    order = facts.get("order_id", "")
    method = f"your {facts['method']['label']}" if "method" in facts else ""
    if kind == "cancel":
        mistake = facts["reason"] == MISTAKE
        why = "you ordered it by mistake" if mistake else "you no longer need it"
        return f"cancel order {order} because {why}"
    if kind == "return":
        items = join_words([item_words(item) for item in facts["items"]])
        return f"return {items} from order {order} and get the refund on {method}"
    if kind in ("exchange", "change_items"):
        pairs = join_words([pair_words(pair["old"], pair["new"]) for pair in facts["pairs"]])
        verb = "exchange" if kind == "exchange" else "change"
        state = "delivered" if kind == "exchange" else "pending"
        return f"{verb}, in your {state} order {order}, {pairs}, with any difference on {method}"
    if kind == "change_address":
        return f"have order {order} shipped to {address_words(facts['address'])}"
    if kind == "change_profile_address":
        return f"change the address of your account to {address_words(facts['address'])}"
    if kind == "change_payment":
        return f"pay order {order} with {method} instead"
    if kind == "ask_order":
        return ASK_ORDER[facts["aspect"]].format(order)
    if kind == "ask_product":
        return ASK_PRODUCT[facts["aspect"]].format(facts["name"])
    if kind == "ask_product_types":
        return "ask how many kinds of products the store has"
    if kind == "ask_account":
        return ASK_ACCOUNT[facts["aspect"]]
    if kind == "calculate_sum":
        return f"ask what {' plus '.join(facts['numbers'])} makes"
    if kind == "calculate_difference":
        return f"ask what {facts['numbers'][0]} minus {facts['numbers'][1]} makes"
    if kind == "transfer":
        return f"get help with this subject: {facts['subject']}"
    return refused_words(intent, order, method)


def refused_words(intent: Intent, order: str, method: str) -> str:
    """Say an intent that will be refused."""
    facts = intent.facts
    if intent.kind == "refuse_other_customer":
        return f"cancel order {order}, which a relative placed on another account"
    if intent.kind == "refuse_unavailable":
        pair = pair_words(facts["item"], facts["new"])
        return f"swap, in order {order}, {pair}, although it is out of stock"
    if intent.kind == "refuse_gift_card":
        return f"pay order {order} with {method}, although its balance is too small"
    status = STATUS_WORDS[facts["status"]]
    if intent.kind == "refuse_return":
        return f"return {item_words(facts['item'])} from order {order}, {status}"
    change = {"cancel": "cancel", "address": "change the address of"}.get(
        facts["change"], "change the payment of"
    )
    return f"{change} order {order}, {status}"


def distractor_words(distractor: Distractor) -> str:
    """Say what is to be left alone."""
    facts = distractor.facts
    if distractor.kind == "order":
        return f"Order {facts['order_id']} is to stay as it is."
    if distractor.kind == "item":
        return f"You keep {item_words(facts['item'])}."
    return f"You do not want to use your {facts['method']['label']}."


def write_instruction(rng: Random, blueprint: Blueprint, persona: str) -> str:
    """Write the scenario for a simulated customer.

    Args:
        persona: A name of `tasks.mix.PERSONAS`.
    """
    who = f"{blueprint.first_name} {blueprint.last_name}"
    if blueprint.authentication == "email":
        sentences = [f"You are {who} and your email is {blueprint.email}."]
    else:
        sentences = [f"You are {who} and your zip code is {blueprint.zip}. You do not remember your email."]
    sentences.append(rng.choice(MANNERS[persona]))
    for index, intent in enumerate(blueprint.intents):
        link = rng.choice(LATER_LINKS if index else LINKS)
        sentences.append(f"{link} {intent_words(intent)}.")
        distractor = blueprint.distractor
        if distractor is not None and distractor.intent == index:
            sentences.append(distractor_words(distractor))
    if any(intent.forbidden is not None for intent in blueprint.intents):
        sentences.append(rng.choice(REFUSED))
    return " ".join(sentences)
