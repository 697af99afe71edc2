"""What is wrong with a recorded call and what to write: calls as people's files really hold them.

Other tools wrap a call, name its parts differently or keep its arguments as text. The finding names
the keys that are there and each change that makes the call this project's own.
"""

import re
from typing import Any

from common.json_rows import shown_keys
from common.row_form import as_json, bare, nearest
from common.user_error import quoted
from envs.retail.tools import TOOLS, check_arguments

_TOOLS = {bare(name): name for name in TOOLS}


def call_finding(action: Any) -> str:
    """Return what is wrong with a recorded call and the remedy, "" when it fits the tool's schema."""
    if not isinstance(action, dict):
        reason = "must be an object with exactly name and arguments"
        if is_call(as_json(action)):
            return f"{reason}, not a text; write the object itself"
        return f'{reason}; write {{"name": "...", "arguments": {{...}}}}'
    if action.keys() != {"name", "arguments"}:
        reason = "must be an object with exactly name and arguments"
        return f"{reason}, not {shown_keys(action) or 'empty'}; {', '.join(_call_steps(action))}"
    name, arguments = action["name"], action["arguments"]
    if isinstance(arguments, str):
        return "arguments must be an object, not a string; write {...}, not its text"
    finding = check_arguments(name, arguments)
    if finding is None:
        return ""
    if finding.startswith("unknown tool"):
        meant = _tool_named(name) or nearest(_last_part(name), TOOLS) if isinstance(name, str) else None
        return f"{finding}; write " + (repr(meant) if meant else "the name of a retail tool")
    properties = TOOLS[name].schema["function"]["parameters"]["properties"]
    if not isinstance(arguments, dict):
        example = ", ".join(f'"{key}": ...' for key in properties)
        return f"{finding}; write {{{example}}}"
    steps = _key_steps(arguments, properties)
    if not steps:
        return f"{finding}; {_value_remedy(arguments, properties)}"
    nulls = [key for key, value in arguments.items() if value is None]
    if nulls:
        finding = f"{name}: arguments holds null ({shown_keys(nulls)})"
    else:
        finding += f" (arguments has {shown_keys(arguments) or 'no key'})"
    return f"{finding}; {', '.join(steps)}"


def is_call(value: Any) -> bool:
    """Tell whether a value is a call, in whatever form; a tool's description is none."""
    return isinstance(value, dict) and "description" not in value and (
        _name_key(value) is not None
        or any(_tool_named(key) or is_call(as_json(one)) for key, one in value.items())
    )


def _last_part(name: str) -> str:
    """Return a tool's name without the name of what it belongs to: "retail.think" is "think"."""
    return re.split(r"[./:]|__", name)[-1]


def _tool_named(name: str) -> str | None:
    return _TOOLS.get(bare(_last_part(name)))


def _name_key(action: dict) -> str | None:
    """Return the key that holds the tool's name."""
    named = [key for key, value in action.items() if isinstance(value, str) and _tool_named(value)]
    if not named and isinstance(action.get("name"), str):
        named = ["name"]  # of no tool here
    return named[0] if named else None


def _call_steps(action: dict) -> list[str]:
    """Return what to change so that a call has exactly name and arguments."""
    name_key = _name_key(action)
    if name_key is None:
        for key, value in action.items():
            tool = _tool_named(key)
            if tool:
                return [f'write {{"name": "{tool}", "arguments": {{...}}}}']
            inner = as_json(value)
            if is_call(inner):
                text = "" if inner is value else " as an object"
                step = f"keep the object under {key[:40]}{text} and nothing else"
                return [step, *_call_steps(inner)]
    rest = [key for key in action if key != name_key]
    given = [key for key in rest if isinstance(as_json(action[key]), dict)]
    key = "arguments" if "arguments" in rest else (given or (rest if len(rest) == 1 else []) or [None])[0]
    tool = TOOLS.get(_tool_named(action[name_key]) or "") if name_key else None
    properties = tool.schema["function"]["parameters"]["properties"] if tool else {}
    flat = [one for one in rest if not given and "arguments" not in rest and nearest(one, properties)]
    steps = ["add the tool's name as name"] if name_key is None else []
    if name_key not in (None, "name"):
        steps.append(f"rename {name_key[:40]} to name")
    if flat:
        steps.append(f"put {shown_keys(flat)} into arguments")
    elif key is None:
        steps.append("add arguments, {} where the tool takes none")
    elif key != "arguments":
        steps.append(f"rename {key[:40]} to arguments")
    if not flat and key is not None and isinstance(action[key], str):
        steps.append("its arguments as an object, not as text")
    extra = [one for one in rest if one != key and one not in flat]
    return steps + [f"drop {shown_keys(extra)}"] * bool(extra)


def _key_steps(arguments: dict, properties: dict) -> list[str]:
    """Return what to change so that the arguments have the tool's keys, none of them null."""
    missing = [key for key in properties if key not in arguments]
    extra = [key for key in arguments if key not in properties]
    steps, dropped = [], []
    for key in extra:
        value = arguments[key]
        meant = nearest(key, missing)
        if meant is None and len(missing) == len(extra) == 1:
            meant = missing[0]
        inner = [one for one in missing if isinstance(value, dict) and one in value]
        if value is None or not (meant or inner):
            dropped.append(key)
        elif inner:
            steps.append(f"take {shown_keys(inner)} out of {key[:40]}")
            missing = [one for one in missing if one not in inner]
        else:
            steps.append(f"rename {key[:40]} to {meant}")
            missing.remove(meant)
    empty = [key for key in properties if key in arguments and arguments[key] is None]
    for verb, keys in (("add", missing), ("give a value to", empty), ("leave out", dropped)):
        if keys:
            steps.append(f"{verb} {shown_keys(keys)}")
    return steps


def _value_remedy(arguments: dict, properties: dict) -> str:
    """Return what to write for the first argument whose value does not fit its type."""
    for key, spec in properties.items():
        value = arguments[key]
        if spec["type"] == "array":
            if isinstance(as_json(value), list) and not isinstance(value, list):
                return f"write the list of {key} itself, not its text"
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                return f'write {key} as ["...", "..."], each id in quotes'
        elif not isinstance(value, str):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return f"write {key} as " + (f'"{value}"' if is_number else "one text in quotes")
        elif "enum" in spec and value not in spec["enum"]:
            return f"write {nearest(value, spec['enum']) or spec['enum'][0]!r}, not {quoted(value)}"
    raise AssertionError("every value fits")
