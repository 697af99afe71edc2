"""Read a plan: the final message's text to calls, strictly.

The whole text is one JSON object with exactly `tool_calls`, a list of objects with exactly `name`
(text) and `arguments` (an object). Nothing is repaired. The store decides which calls it takes.
"""

from typing import Any, Literal, NamedTuple

from common import strict_json

MAX_CHARACTERS = 20_000
MAX_CALLS = 64

ParseKind = Literal[
    "empty", "too_long", "not_json", "duplicate_key", "bad_number", "too_deep", "not_object",
    "wrong_keys", "not_list", "too_many_calls", "bad_call",
]
"""Why a text is no plan; the first reason that applies, in this order."""


class Call(NamedTuple):
    """One call as the model wrote it."""

    name: str
    arguments: dict[str, Any]


def parse_plan(text: str) -> tuple[list[Call], ParseKind | None]:
    """Return (calls, None), or ([], the reason) when the text is not a plan; never raises.

    >>> parse_plan('{"tool_calls": [{"name": "think", "arguments": {"thought": "..."}}]}')
    ([Call(name='think', arguments={'thought': '...'})], None)
    >>> parse_plan("Certainly!")
    ([], 'not_json')
    """
    if len(text) > MAX_CHARACTERS:
        return [], "too_long"
    if not text.strip(" \t\r\n"):
        return [], "empty"
    try:
        plan = strict_json.loads(text)
    except strict_json.StrictJsonError as error:
        return [], error.kind
    if not isinstance(plan, dict):
        return [], "not_object"
    if plan.keys() != {"tool_calls"}:
        return [], "wrong_keys"
    if not isinstance(plan["tool_calls"], list):
        return [], "not_list"
    if len(plan["tool_calls"]) > MAX_CALLS:
        return [], "too_many_calls"
    calls = []
    for call in plan["tool_calls"]:
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            return [], "bad_call"
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            return [], "bad_call"
        calls.append(Call(call["name"], call["arguments"]))
    return calls, None
