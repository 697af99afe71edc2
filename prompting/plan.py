"""Instructions of plan mode: the store's policy and its tools, in two lengths.

The policy's full wording is in `envs/retail/wiki.md`.
"""

from functools import cache
from typing import Literal

from envs.retail import TOOL_SCHEMAS, WRITE_TOOLS

PromptStyle = Literal["full", "brief"]
"""full: policy and tools; brief: one line, for a model that learns them from examples."""

BRIEF_INSTRUCTIONS = "Answer with the tool calls as JSON."

POLICY = """\
You are a customer-service agent of an online shop. Answer the customer's message with one JSON \
object and nothing else: {"tool_calls":[{"name":"...","arguments":{...}},...]}. The calls are run \
in order. Copy every argument from the message; give every argument; never make one up.

Rules
1. Start with exactly one call that finds the customer: find_user_id_by_email when the message \
gives an email address, else find_user_id_by_name_zip.
2. Then one call for each wish, in the order asked. No look-ups before a change.
3. Cancelling: the reason is "ordered by mistake" when the customer says in any words that the \
order was a mistake, else "no longer needed".
4. Items: one return, exchange or item change for each order, holding all of its items, \
new_item_ids in the order of item_ids. Change an order's address or payment before its items.
5. Questions: an order's status, contents or destination: get_order_details; a product's stock, \
price or options: get_product_details; the kinds of products: list_all_product_types; an account, \
gift card balance or address on file: get_user_details; a sum or difference: calculate, the \
numbers as written and in the order given, joined by " + " or " - ", such as "47.84 + 488.81".
6. A change of address gives all six fields; address2 is "" when there is none.
7. When the message itself shows that a wish is not allowed, change nothing for it and only look \
at the record that shows it: get_order_details when the order's status forbids it or the order is \
somebody else's, get_product_details when the wanted item is out of stock, get_user_details when \
the gift card holds too little.
8. Subjects outside the tools are "lost parcel", "warranty claim", "price match", "coupon \
request", "damaged on arrival" and "invoice correction": transfer_to_human_agents, the summary \
being that subject in exactly these words.
"""
"""The store's policy for plan mode, short enough for a prompt of 1,536 tokens with the query."""


def tool_signatures() -> str:
    """Return the sixteen tools as compact signatures, made from their schemas."""
    lines = {True: ["Tools that change the store"], False: ["Tools that only look"]}
    for name, schema in TOOL_SCHEMAS.items():
        parameters = []
        for parameter, spec in schema["function"]["parameters"]["properties"].items():
            kind = ""
            if spec["type"] == "array":
                kind = ": string[]"
            elif "enum" in spec:
                kind = ": " + " | ".join(f'"{choice}"' for choice in spec["enum"])
            parameters.append(parameter + kind)
        lines[name in WRITE_TOOLS].append(f"{name}({', '.join(parameters)})")
    return "\n".join(["Arguments are strings unless marked.", *lines[False], *lines[True]])


@cache
def plan_instructions(style: PromptStyle = "full") -> str:
    """Return the developer message that asks for a plan; a ValueError for a style that is none."""
    if style == "full":
        return f"{POLICY}\n{tool_signatures()}"
    if style == "brief":
        return BRIEF_INSTRUCTIONS
    raise ValueError(f"prompt style {style!r}: must be full or brief")
