"""Strict JSON: one loader for task files and for what a model wrote.

`json.loads` lets through what a strict reader must not: repeated keys, NaN and Infinity. Left out
on purpose: any repair (quotes, commas, code fences, text around the value).
"""

import json
import math
from typing import Any, Literal, NoReturn

MAX_DEPTH = 32
"""Levels of nesting allowed; a task row needs 5 or so. Keeps the parser off the stack's limit."""

_MAX_DIGITS = 100
"""Digits allowed in a number; Python itself refuses integers of 4,300 digits and more."""

FaultKind = Literal["not_json", "duplicate_key", "bad_number", "too_deep"]


class StrictJsonError(ValueError):
    """Text that is not strict JSON; `kind` says in which way, the message says it in words."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJsonError("duplicate_key", f"key {key[:80]!r} stands twice")
            seen.add(key)
    return value


def _constant(text: str) -> NoReturn:
    raise StrictJsonError("bad_number", f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise StrictJsonError("bad_number", f"a number has more than {_MAX_DIGITS} digits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > _MAX_DIGITS or not math.isfinite(float(text)):
        raise StrictJsonError("bad_number", f"{text[:20]} is too long or too large a number")
    return float(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
)


def _is_deeper(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)


def loads(text: str) -> Any:
    """Parse one JSON value with nothing around it but JSON whitespace.

    Returns:
        The value; dicts hold every key once, numbers are finite.

    Raises:
        StrictJsonError: the text is not such a value. Nothing else is raised, whatever the text.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise StrictJsonError("not_json", f"{error.msg} ({place}column {error.colno})") from None
    except RecursionError:
        raise StrictJsonError("too_deep", "nested too deeply") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise StrictJsonError("too_deep", f"nested more than {MAX_DEPTH} levels deep")
    return value
