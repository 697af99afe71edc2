"""A tool made from a typed method: its JSON schema, its argument check and its read/write mark.

Arguments are `str`, `Literal[...]` of strings or `list[str]`; `describe` refuses other annotations
when the module is imported.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Access = Literal["read", "write"]
Function = TypeVar("Function", bound=Callable[..., Any])

_ACCESS_MARK = "tool_access"
_MAX_SHOWN_CHARACTERS = 60
_JSON_WORDS: dict[type, str] = {
    bool: "a boolean", dict: "an object", float: "a number", int: "a number", list: "an array",
    str: "a string", type(None): "null",
}


def read(function: Function) -> Function:
    """Mark a method as a tool that never changes the store."""
    setattr(function, _ACCESS_MARK, "read")
    return function


def write(function: Function) -> Function:
    """Mark a method as a tool that changes the store when it is accepted."""
    setattr(function, _ACCESS_MARK, "write")
    return function


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: how it is called, described and checked."""

    name: str
    """Name that the policy calls."""
    access: Access
    """Whether an accepted call may change the store."""
    function: Callable[..., Any]
    """The unbound method; takes the toolbox and the arguments by keyword."""
    schema: dict[str, Any]
    """OpenAI-style function schema."""
    check: Callable[[object], str | None]
    """Says in words what is wrong with an arguments value, or None."""


def collect_tools(owner: type) -> dict[str, Tool]:
    """Return the methods of a class with a `read` or `write` mark as tools, by name in alphabetical order.

    Raises:
        TypeError: A marked method has an annotation or a docstring that no schema can be made of.
    """
    tools = {}
    for name, function in inspect.getmembers(owner, inspect.isfunction):
        access = function.__dict__.get(_ACCESS_MARK)
        if access is not None:
            schema = describe(function)
            check = compile_check(name, schema["function"]["parameters"])
            tools[name] = Tool(name, access, function, schema, check)
    return tools


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """Make an OpenAI-style function schema of a typed method with a Google docstring.

    Raises:
        TypeError: The summary is not one line, an argument has no description, or an annotation is
            none of `str`, `Literal[...]` and `list[str]`.
    """
    name = function.__name__
    summary, arguments = _split_docstring(name, inspect.getdoc(function) or "")
    hints = get_type_hints(function)
    properties: dict[str, Any] = {}
    for parameter in list(inspect.signature(function).parameters)[1:]:
        if parameter not in arguments:
            raise TypeError(f"{name}: argument {parameter} has no description")
        properties[parameter] = {
            **_type_schema(name, parameter, hints[parameter]),
            "description": arguments[parameter],
        }
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": summary, "parameters": parameters},
    }


def compile_check(name: str, parameters: dict[str, Any]) -> Callable[[object], str | None]:
    """Turn a tool's parameter schema into a fast check of any value as its arguments.

    Every property is required, and nothing else is allowed.

    Returns:
        A function that says in words what is wrong with a value, or returns None when it fits.
    """
    properties = parameters["properties"]
    names = frozenset(properties)
    arrays = tuple(key for key, spec in properties.items() if spec["type"] == "array")
    texts = tuple(key for key, spec in properties.items() if spec["type"] == "string")
    enums = tuple((key, tuple(spec["enum"])) for key, spec in properties.items() if "enum" in spec)

    def check(arguments: object) -> str | None:
        if not isinstance(arguments, dict):
            return f"{name}: arguments must be an object, not {_json_word(arguments)}"
        if arguments.keys() != names:
            missing = [key for key in properties if key not in arguments]
            if missing:
                return f"{name}: missing argument {', '.join(missing)}"
            extra = next(key for key in arguments if key not in names)
            return f"{name}: unexpected argument {shown(extra)}"
        for key in texts:
            if not isinstance(arguments[key], str):
                return f"{name}: {key} must be a string, not {_json_word(arguments[key])}"
        for key in arrays:
            value = arguments[key]
            if not isinstance(value, list):
                return f"{name}: {key} must be an array of strings, not {_json_word(value)}"
            for element in value:
                if not isinstance(element, str):
                    return f"{name}: {key} must hold strings only, not {_json_word(element)}"
        for key, choices in enums:
            if arguments[key] not in choices:
                return f"{name}: {key} must be one of {', '.join(map(repr, choices))}"
        return None

    return check


def shown(value: object) -> str:
    """Return a short ASCII form of any value, safe to print however long or deep the value is."""
    if not isinstance(value, str):
        return _json_word(value)
    cut = "..." if len(value) > _MAX_SHOWN_CHARACTERS else ""
    return ascii(value[:_MAX_SHOWN_CHARACTERS]) + cut


def _json_word(value: object) -> str:
    return _JSON_WORDS.get(type(value), f"a {type(value).__name__}")


def _split_docstring(name: str, text: str) -> tuple[str, dict[str, str]]:
    """Return the summary line and the description of every entry of the `Args:` section."""
    summary, _, rest = text.partition("\n")
    # A second line would leave the comment that the harmony template puts the summary into.
    if not summary or rest.partition("\n")[0].strip():
        raise TypeError(f"{name}: the docstring must begin with a one-line summary")
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", rest, flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    current = ""
    for line in section.group(1).splitlines() if section else ():
        entry = re.fullmatch(r" {4}(\w+): (.+)", line)
        if entry:
            current = entry.group(1)
            arguments[current] = entry.group(2)
        elif line.strip():
            arguments[current] += " " + line.strip()
    return summary, arguments


def _type_schema(name: str, parameter: str, hint: Any) -> dict[str, Any]:
    if hint is str:
        return {"type": "string"}
    if hint == list[str]:
        return {"type": "array", "items": {"type": "string"}}
    if get_origin(hint) is Literal and all(isinstance(choice, str) for choice in get_args(hint)):
        return {"type": "string", "enum": list(get_args(hint))}
    raise TypeError(f"{name}: argument {parameter} has an annotation that is not supported")
