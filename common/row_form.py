"""What rows of other origins hold: the key that is meant, JSON kept as text, rows inside of a row.

Nothing is repaired; these are the words of a remedy.
"""

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from difflib import get_close_matches
from typing import Any

from common import strict_json
from common.json_rows import shown_keys

_MAX_KEY = 40


def bare(name: str) -> str:
    """Return a name's letters and digits in lower case: "orderId" and "ORDER-ID" are "orderid"."""
    return re.sub(r"[\W_]", "", name[:_MAX_KEY].lower())


def nearest(name: str, names: Collection[str]) -> str | None:
    """Return the one of several names that another name probably means, None when it is none."""
    known = {bare(one): one for one in names}
    word = bare(name)
    if word in known:
        return known[word]
    within = [one for one in known if len(min(one, word, key=len)) > 2 and (one in word or word in one)]
    found = within[:1] or get_close_matches(word, known, 1, 0.7)
    return known[found[0]] if found else None


def as_json(value: Any) -> Any:
    """Return the object or list that a text holds; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return strict_json.loads(value)
        except strict_json.StrictJsonError:
            return value
    return value


def missing_finding(
    row: Mapping[str, Any], required: Mapping[str, str],
    fits: Mapping[str, Callable[[str, Any], bool]], fields: Sequence[str] = (),
) -> str:
    """Say which required fields a row lacks, what it has instead and what to write.

    Args:
        row: A row that lacks a field, or holds null in it.
        required: The fields that it lacks, or may lack, each with what to add in words.
        fits: For a field whether another key and its value may be what is meant.
        fields: More fields by which a row is known, this one or one inside of it.

    Returns:
        "field: ..., the row has ...; what to write".
    """
    keys = shown_keys(row) or "no key"
    known = {*required, *fields}
    if path := known.isdisjoint(row) and _rows_path(row, known):
        return (
            f"row: holds its rows inside, the row has {keys}; write each object under {path} on a "
            f"line of its own (jq -c {shlex.quote(path)})"
        )
    missing = [name for name in required if row.get(name) is None]
    others = [key for key, value in row.items() if key not in known and value is not None]
    steps = []
    for name in missing:
        meant = nearest(name, others)
        alike = [key for key in others if name in fits and fits[name](key, row[key])]
        if meant is None and len(alike) == 1:
            meant = alike[0]
        if meant is None:
            steps.append(f"add {required[name]}")
        elif isinstance(row[meant], str) and isinstance(as_json(row[meant]), list):
            steps.append(f"rename {meant[:_MAX_KEY]} to {name}, as a list, not as text")
        else:
            steps.append(f"rename {meant[:_MAX_KEY]} to {name}")
    talks = [key[:_MAX_KEY] for key in others if _is_talk(row[key])]
    hint = f" (the customer's words and the calls are in {talks[0]})" if talks else ""
    states = {name: "is null" if name in row else "is missing" for name in missing}
    also = [f"{name} {states[name]}" for name in missing[1:]]
    if also and len(set(states.values())) == 1:
        also = [f"{', '.join(missing[1:])} too"]
    where = f" ({', '.join(also)})" if also else ""
    return f"{missing[0]}: {states[missing[0]]}{where}, the row has {keys}; {' and '.join(steps)}{hint}"


def _rows_path(row: Mapping[str, Any], fields: Set[str]) -> str | None:
    """Return jq's path to the rows inside of a row, None when there are none."""
    for key, value in row.items() if len(row) == 1 else ():
        items = value if isinstance(value, list) else []
        if items and all(isinstance(one, dict) for one in items) and not _is_talk(items):
            return _path(row, fields, 4) or f"{_step(key)}[]"
    return _path(row, fields, 4)


def _is_talk(value: Any) -> bool:
    """Tell whether a value is a list of chat messages."""
    return isinstance(value, list) and any(
        isinstance(one, dict) and not {"role", "from"}.isdisjoint(one) for one in value)


def _path(value: Any, fields: Set[str], depth: int) -> str | None:
    """Return jq's path to the first object with one of the fields, "" for the value itself."""
    if isinstance(value, list):
        found = _path(value[0], fields, depth) if value and isinstance(value[0], dict) else None
        return None if found is None else f"[]{found}"
    if not isinstance(value, dict) or depth == 0:
        return None
    if fields & value.keys():
        return ""
    paths = {key: _path(one, fields, depth - 1) for key, one in value.items()}
    found = [key for key, path in paths.items() if path is not None]
    if not found:
        return None
    step = ".[]" if len(found) > 1 and set(found) == value.keys() else _step(found[0])
    return f"{step}{paths[found[0]]}"


def _step(key: str) -> str:
    return f".{key}" if re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII) else f".[{json.dumps(key[:_MAX_KEY])}]"
