"""Word a blueprint as a scenario for a simulated customer, in the second person.

Items are named by product and options, payment methods by what is printed on them. Of ids only order
ids appear, since customers have them in a confirmation. Small talk is left to the simulated customer.
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
QUESTIONS = {
    ("ask_order", "status"): "ask what the status of order {} is",
    ("ask_order", "items"): "ask what order {} contains",
    ("ask_order", "amount"): "ask what order {} cost",
    ("ask_order", "address"): "ask where order {} is being shipped",
    ("ask_product", "count"): "ask how many options of the {} are available",
    ("ask_product", "cheapest"): "ask what the cheapest available {} costs",
    ("ask_product", "dearest"): "ask what the most expensive available {} costs",
    ("ask_account", "balance"): "ask how much is left on your gift card",
    ("ask_account", "address"): "ask which address your account shows",
    ("ask_account", "orders"): "ask which orders your account lists",
}
CHANGES = {
    "cancel": "cancel", "address": "change the address of", "payment": "change the payment of",
    "return": "return",
}
WORDS = {
    "cancel": "cancel order {order} because {why}",
    "return": "return {items} from order {order} and get the refund on {method}",
    "exchange":
        "exchange, in your delivered order {order}, {pairs}, with any difference on {method}",
    "change_items":
        "change, in your pending order {order}, {pairs}, with any difference on {method}",
    "change_address": "have order {order} shipped to {address}",
    "change_profile_address": "change the address of your account to {address}",
    "change_payment": "pay order {order} with {method} instead",
    "ask_product_types": "ask how many kinds of products the store has",
    "calculate_sum": "ask what {sum} makes",
    "calculate_difference": "ask what {difference} makes",
    "transfer": "get help with this subject: {subject}",
    "refuse_cancel": "{change} order {order}, {status}",
    "refuse_order_change": "{change} order {order}, {status}",
    "refuse_return": "return {item} from order {order}, {status}",
    "refuse_other_customer": "cancel order {order}, which a relative placed on another account",
    "refuse_unavailable": "swap, in order {order}, {pair}, although it is out of stock",
    "refuse_gift_card": "pay order {order} with {method}, although its balance is too small",
}
"""The wording of each kind of intent after "You want to"."""


def options_words(options: dict[str, Any]) -> str:
    """Word options as "color blue, size M"."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def item_words(item: dict[str, Any]) -> str:
    """Word an item by name and options."""
    if not item["options"]:
        return f"the {item['name']}"
    return f"the {item['name']} ({options_words(item['options'])})"


def pair_words(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Word an item and the options that should change."""
    changed = {k: v for k, v in new["options"].items() if old["options"].get(k) != v}
    return f"{item_words(old)} for the one with {options_words(changed or new['options'])}"


def address_words(address: dict[str, str]) -> str:
    """Word an address with all six fields."""
    return ", ".join(address[name] or "no second line" for name in ADDRESS_FIELDS)


def intent_words(intent: Intent) -> str:
    """Word an intent, to follow "You want to"."""
    facts, kind = intent.facts, intent.kind
    slots = {"order": facts.get("order_id"), "subject": facts.get("subject")}
    if "method" in facts:
        slots["method"] = f"your {facts['method']['label']}"
    if "reason" in facts:
        mistake = facts["reason"] == MISTAKE
        slots["why"] = "you ordered it by mistake" if mistake else "you no longer need it"
    if "items" in facts:
        slots["items"] = join_words([item_words(item) for item in facts["items"]])
    if "pairs" in facts:
        slots["pairs"] = join_words([pair_words(pair["old"], pair["new"]) for pair in facts["pairs"]])
    if "address" in facts:
        slots["address"] = address_words(facts["address"])
    if "numbers" in facts:
        slots |= {"sum": " plus ".join(facts["numbers"]), "difference": " minus ".join(facts["numbers"])}
    if "item" in facts:
        slots["item"] = item_words(facts["item"])
    if "new" in facts:
        slots["pair"] = pair_words(facts["item"], facts["new"])
    if "status" in facts:
        slots |= {"change": CHANGES[facts["change"]], "status": STATUS_WORDS[facts["status"]]}
    if "aspect" in facts:
        return QUESTIONS[kind, facts["aspect"]].format(facts.get("name", slots["order"]))
    return WORDS[kind].format_map(slots)


def distractor_words(distractor: Distractor) -> str:
    """Word what must be left alone."""
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
