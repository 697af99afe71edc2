"""The conventions of plan mode, which only generated rows (tagged with their intents) must keep.

Kinds: call_count, first_call, authentication_method, tool_of_wish, wish_order, unused_id,
expression_form, transfer_subject, refusal_not_needed.
"""

import re

from data_reader import Task
from envs.retail import RetailDatabase
from tasks.audit.finding import Finding, call_label
from tasks.audit.grounding import SearchText, find_value
from tasks.audit.policy import AUTHENTICATION_TOOLS

# The subjects outside the tools, as wiki.md lists them.
TRANSFER_SUBJECTS = (
    "lost parcel", "warranty claim", "price match", "coupon request", "damaged on arrival",
    "invoice correction",
)
TOOL_OF_INTENT = {
    "cancel": "cancel_pending_order",
    "return": "return_delivered_order_items",
    "exchange": "exchange_delivered_order_items",
    "change_items": "modify_pending_order_items",
    "change_address": "modify_pending_order_address",
    "change_payment": "modify_pending_order_payment",
    "change_profile_address": "modify_user_address",
    "ask_order": "get_order_details",
    "ask_product": "get_product_details",
    "ask_product_types": "list_all_product_types",
    "ask_account": "get_user_details",
    "calculate_sum": "calculate",
    "calculate_difference": "calculate",
    "transfer": "transfer_to_human_agents",
    "refuse_cancel": "get_order_details",
    "refuse_order_change": "get_order_details",
    "refuse_return": "get_order_details",
    "refuse_other_customer": "get_order_details",
    "refuse_unavailable": "get_product_details",
    "refuse_gift_card": "get_user_details",
}
EXPRESSION_FORMS = {
    "calculate_sum": re.compile(r"\d+(?:\.\d+)?(?: \+ \d+(?:\.\d+)?)+"),
    "calculate_difference": re.compile(r"\d+(?:\.\d+)?(?: - \d+(?:\.\d+)?)+"),
}
# Ids as a customer writes them; a refused intent may name ids that no call needs.
ID = re.compile(r"#W\d{7}\b|\b\d{10}\b|\b(?:credit_card|paypal|gift_card)_\d+\b")


def is_generated(task: Task) -> bool:
    """Tell whether a row is of this project's generator, which claims the plan-mode conventions."""
    intents = task.tags.get("wishes")
    return isinstance(intents, list) and all(isinstance(intent, str) for intent in intents)


def passages_in_order(task: Task) -> bool:
    """Tell whether the query gives each call its own passage, in gold's order.

    The calls after the first each need a stretch of the query that holds all of their values; the
    stretches must not overlap and must follow each other as the calls do.
    """
    words = SearchText(task.query)
    start = 0
    for action in task.gold_actions[1:]:
        end = start
        for field, value in action["arguments"].items():
            if field in ("reason", "thought") or value in ("", []):
                continue
            values = value if isinstance(value, list) else [value]
            if field == "expression":
                values = re.findall(r"[\d.]+", value)
            for one in values:
                later = [p for p in words.places(field, one) if p >= start]
                if not later:
                    return False
                end = max(end, later[0] + 1)
        start = end
    return True


def numbers_in_order(task: Task, expression: str) -> bool:
    """Tell whether the query gives an expression's numbers in the expression's order."""
    start, text = 0, SearchText(task.query).text
    for number in re.findall(r"[\d.]+", expression):
        start = find_value(text, number, start) + 1
        if not start:
            return False
    return True


def unused_ids(task: Task) -> list[str]:
    """Return the ids in the query that gold leaves out and that no tag accounts for."""
    may_be_spare = task.tags.get("distractor") or any(
        intent.startswith("refuse_") for intent in task.tags["wishes"]
    )
    if may_be_spare:
        return []
    used = {
        one
        for action in task.gold_actions
        for value in action["arguments"].values()
        for one in (value if isinstance(value, list) else [value])
    }
    return sorted(set(ID.findall(SearchText(task.query).text)) - used)


def refusal_needed(intent: str, action: dict, customer_id: str | None, db: RetailDatabase) -> bool:
    """Tell whether the record that gold reads shows why the intent is refused."""
    arguments = action["arguments"]
    if intent == "refuse_unavailable":
        product = db.products.get(arguments["product_id"], {"variants": {}})
        return any(not variant["available"] for variant in product["variants"].values())
    if intent == "refuse_gift_card":
        methods = db.users.get(arguments["user_id"], {"payment_methods": {}})["payment_methods"]
        return any(method["source"] == "gift_card" for method in methods.values())
    order = db.orders.get(arguments["order_id"])
    if order is None:
        return False
    if intent == "refuse_other_customer":
        return order["user_id"] != customer_id
    return order["status"] != ("delivered" if intent == "refuse_return" else "pending")


def check_intent(task: Task, intent: str, index: int, db: RetailDatabase) -> list[Finding]:
    """Check the call that answers one intent.

    Args:
        index: Position of its call in gold, from 0.
    """
    action = task.gold_actions[index]
    label = call_label(index, action)
    if action["name"] != TOOL_OF_INTENT.get(intent):
        return [Finding("tool_of_wish", f"{label}: not the call for the intent {intent!r}")]
    if intent in EXPRESSION_FORMS:
        expression = action["arguments"]["expression"]
        plain = EXPRESSION_FORMS[intent].fullmatch(expression)
        if not plain or not numbers_in_order(task, expression):
            return [Finding("expression_form", f"{label}: {expression}")]
    if intent == "transfer" and action["arguments"]["summary"] not in TRANSFER_SUBJECTS:
        return [Finding("transfer_subject", f"{label}: {action['arguments']['summary']}")]
    if intent.startswith("refuse_") and not refusal_needed(intent, action, task.user_id, db):
        return [Finding("refusal_not_needed", f"{label}: nothing forbids the intent {intent!r}")]
    return []


def check_conventions(task: Task, db: RetailDatabase) -> list[Finding]:
    """Check the conventions of plan mode, on generated rows, whose tags hold "wishes"."""
    if not is_generated(task):
        return []
    findings, intents = [], task.tags["wishes"]
    names = [action["name"] for action in task.gold_actions]
    if len(names) != len(intents) + 1:
        findings.append(Finding("call_count", f"{len(names)} calls for {len(intents)} intents"))
    if not names or names[0] not in AUTHENTICATION_TOOLS:
        return [*findings, Finding("first_call", "gold does not begin by authenticating")]
    if names[0] == "find_user_id_by_name_zip" and task.user_id in db.users:
        if SearchText(task.query).has("email", db.users[task.user_id]["email"]):
            findings.append(Finding("authentication_method", "the query gives the email"))
    for index, intent in enumerate(intents[: len(names) - 1], 1):
        findings += check_intent(task, intent, index, db)
    if not passages_in_order(task):
        findings.append(Finding("wish_order", "gold does not follow the order of the query"))
    spare = unused_ids(task)
    if spare:
        findings.append(Finding("unused_id", f"the query names {', '.join(spare)}, gold does not"))
    return findings
