"""What the model reads before a conversation: the store's policy and its tools, kept short.

The message format is in `prompting/dialogue.py`, the policy's full wording in `envs/retail/wiki.md`.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from envs.retail import ADDRESS_FIELDS, TOOL_SCHEMAS, WRITE_TOOLS
from prompting.plan import PromptStyle

BRIEF_INSTRUCTIONS = "Serve the customer with the tools."
"""For a model that learns policy and tools from examples."""

POLICY = """\
You serve the customers of an online shop by chat. With your tools you look up orders, products and \
profiles, cancel or change pending orders, return or exchange items of delivered orders, and change \
default addresses.

- First find out who the customer is: by email, or by first name, last name and zip code, even when \
they give a user id. Serve only this customer, with all they ask; refuse anything about another \
customer's orders or profile.
- Before every change list what will be done (order, items, payment method) and get an explicit yes.
- Say only what the customer, the tools or this policy says. Make one tool call at a time, and do \
not write to the customer in the same turn.
- Refuse what this policy forbids. Transfer to a human agent only what is outside of your tools.
- Check an order's status before acting. Only pending and delivered orders can be acted on. After a \
change of items, a return or an exchange an order takes no further action: collect all items first, \
and remind the customer to name them all.
- Order ids begin with "#W". Product ids and item ids are unrelated. A new item must \
be an available variant of the same product.
- Cancel (pending): the customer gives the reason, "no longer needed" or "ordered by mistake", no \
other. Refunds take 5 to 7 business days, to a gift card none.
- Change (pending): shipping address, payment method or options of items, nothing else; items last.
- New payment method: one method of the profile, other than the first; a gift card must hold the \
whole amount.
- Return (delivered): the refund goes to the original payment method or a gift card of the profile.
- Change or exchange of items: the customer names the payment method for the difference; a gift card \
must hold enough.
"""

_PARAMETER_NOTES = {"new_item_ids": "in the order of item_ids"}
"""What a parameter's name alone does not say; every other description is left out."""


def agent_instructions() -> str:
    """Return the text of the system message: the policy, about 400 tokens."""
    return POLICY


def with_instructions(
    messages: Sequence[Mapping[str, Any]], style: PromptStyle = "full"
) -> list[Mapping[str, Any]]:
    """Return a conversation that begins with a system message: its own, else the policy."""
    if messages and messages[0]["role"] == "system":
        return list(messages)
    text = BRIEF_INSTRUCTIONS if style == "brief" else agent_instructions()
    return [{"role": "system", "content": text}, *messages]


def agent_tools() -> list[dict[str, Any]]:
    """Return the sixteen tools as OpenAI-style schemas whose parameters speak by their names."""
    tools = deepcopy(list(TOOL_SCHEMAS.values()))
    for tool in tools:
        for name, spec in tool["function"]["parameters"]["properties"].items():
            del spec["description"]
            if name in _PARAMETER_NOTES:
                spec["description"] = _PARAMETER_NOTES[name]
    return tools


def brief_result(name: str, content: str) -> str:
    """Return a tool's result without its JSON, about a third as long; of a change only the status.

    Args:
        content: Its result as the store gives it; an error or a plain value stays as it is.
    """
    try:
        value = json.loads(content)
    except ValueError:
        return content
    if not isinstance(value, dict):
        return content
    if name in WRITE_TOOLS:
        return value.get("status", "done")
    if name == "get_order_details":
        lines = [f"{value['status']}, {value['user_id']}", _address_line(value["address"])]
        lines += [f"{_item_line(item)} of {item['product_id']} {item['name']}" for item in value["items"]]
        paid = dict.fromkeys(p["payment_method_id"] for p in value["payment_history"])
        return "\n".join([*lines, f"paid by {', '.join(paid)}"])
    if name == "get_product_details":
        lines = [
            _item_line(variant) + ("" if variant["available"] else " out of stock")
            for variant in value["variants"].values()
        ]
        return "\n".join([f"{value['product_id']} {value['name']}", *lines])
    if name == "get_user_details":
        methods = [
            " ".join([key, *(str(v) for k, v in method.items() if k not in ("id", "source"))])
            for key, method in value["payment_methods"].items()
        ]
        lines = [" ".join(value["name"].values()), value["email"], _address_line(value["address"])]
        return "\n".join([*lines, *methods, " ".join(value["orders"])])
    return "\n".join(f"{key} {text}" for key, text in value.items())


def _address_line(address: Mapping[str, str]) -> str:
    return ", ".join(address[name] for name in ADDRESS_FIELDS if address.get(name))


def _item_line(item: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in item["options"].items())
    return f"{item['item_id']} {item['price']} {options}"
