"""What rows of other origins hold: the key that is meant, JSON kept as text, rows inside of a row.

Nothing is repaired; these are the words of a remedy.
"""

import json
import re
from collections.abc import Collection, Mapping
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


def inner_rows(row: Mapping[str, Any], fields: Collection[str]) -> str:
    """Say where a row that is none itself holds the rows, and how to get them out.

    Args:
        row: A row without any of the fields.
        fields: Fields by which a row is known.

    Returns:
        "the row has ...; write ...", or "" when it holds no rows.
    """
    path = _path(row, frozenset(fields), 4)
    for key, value in row.items() if path is None and len(row) == 1 else ():
        items = value if isinstance(value, list) else []
        if items and all(isinstance(one, dict) for one in items) and not is_talk(items):
            path = f"{_step(key)}[]"
    if not path:
        return ""
    return (
        f"the row has {shown_keys(row)}; write each object under {path} on a line of its own "
        f"(jq -c '{path}')"
    )


def is_talk(value: Any) -> bool:
    """Tell whether a value is a list of chat messages."""
    return isinstance(value, list) and any(
        isinstance(one, dict) and not {"role", "from"}.isdisjoint(one) for one in value)


def _path(value: Any, fields: frozenset[str], depth: int) -> str | None:
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
