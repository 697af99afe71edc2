"""Strict JSON: one loader for task files and for what a model wrote.

`json.loads` lets through what a strict reader must not: repeated keys, NaN and Infinity. Nothing
is repaired (quotes, commas, code fences, text around the value).
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

MAX_DEPTH = 32
"""Levels of nesting allowed; a task row needs 5 or so. Keeps the parser off the stack's limit."""

_MAX_DIGITS = 100
"""Digits allowed in a number; Python itself refuses integers of 4,300 digits and more."""

ErrorKind = Literal["not_json", "duplicate_key", "bad_number", "too_deep"]

_skip_blanks = re.compile(r"[ \t\n\r]*").match
_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*"?)([ \t\n\r]*:)?|[{}\[\]]|[^\s{}\[\]:,"]+', re.DOTALL)


class StrictJsonError(ValueError):
    """Text that is not strict JSON; `kind` says in which way, the message says it in words."""

    def __init__(self, kind: ErrorKind, reason: str, text: str = "", position: int = -1) -> None:
        """Keep the reason, and its offset in `text`; -1 when it has no place of its own."""
        place = ""
        if position >= 0:
            line = text.count("\n", 0, position) + 1
            column = position - text.rfind("\n", 0, position)
            place = f" (line {line}, column {column})" if line > 1 else f" (column {column})"
        super().__init__(reason + place)
        self.kind, self.reason, self.position = kind, reason, position


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


def _locate(text: str, start: int, error: StrictJsonError) -> int:
    """Return the offset of the key or number that the decoder's hook refused, which has no place."""
    keys: list[set[str]] = []
    for token in _TOKEN.finditer(text, start):
        word = token.group(1)
        if token.group() in ("{", "["):
            keys.append(set())
        elif token.group() in ("}", "]"):
            keys.pop()
        elif word is None and error.kind == "bad_number":
            try:
                _DECODER.decode(token.group())
            except StrictJsonError:
                return token.start()
        elif token.group(2) and error.kind == "duplicate_key":
            key = json.loads(word, strict=False)
            if key in keys[-1] and error.reason == f"key {key[:80]!r} stands twice":
                return token.start()
            keys[-1].add(key)
    return -1


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


def _decode(text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins at an offset, and where the JSON blanks after it end."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise StrictJsonError("not_json", error.msg, text, error.pos) from None
    except StrictJsonError as error:
        place = _locate(text, start, error)
        raise StrictJsonError(error.kind, error.reason, text, place) from None
    except RecursionError:
        raise StrictJsonError("too_deep", "nested too deeply") from None
    num_open = text.count("{", start, end) + text.count("[", start, end)
    if num_open > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise StrictJsonError("too_deep", f"nested more than {MAX_DEPTH} levels deep")
    return value, _skip_blanks(text, end).end()


def loads(text: str) -> Any:
    """Parse one JSON value with nothing around it but JSON whitespace.

    Returns:
        The value; dicts hold every key once, numbers are finite.

    Raises:
        StrictJsonError: the text is not such a value. Nothing else is raised, whatever the text.
    """
    value, end = _decode(text, _skip_blanks(text).end())
    if end < len(text):
        raise StrictJsonError("not_json", "Extra data", text, end)
    return value


def iter_array(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (offset, item) of a text that is one JSON array, item by item.

    Raises:
        StrictJsonError: at the first place where the text is not such an array.
    """
    position = _skip_blanks(text, text.index("[") + 1).end()
    is_open = not text.startswith("]", position)
    while is_open:
        value, end = _decode(text, position)
        yield position, value
        is_open = text.startswith(",", end)
        if not is_open and not text.startswith("]", end):
            raise StrictJsonError("not_json", "Expecting ',' delimiter", text, end)
        position = _skip_blanks(text, end + 1).end() if is_open else end
        if is_open and text.startswith("]", position):
            raise StrictJsonError("not_json", "a comma before the closing ]", text, position)
    end = _skip_blanks(text, position + 1).end()
    if end < len(text):
        raise StrictJsonError("not_json", "Extra data", text, end)
