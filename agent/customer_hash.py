"""A hash of the scripted customers, by which a resumed evaluation knows that they are the same."""

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

_SOURCES = (
    "agent/conversation.py", "agent/customers.py", "agent/intents.py", "agent/phrases.py",
    "agent/speech.py", "scoring/episode.py", "scoring/violations.py", "tasks/audit/grounding.py",
    "tasks/phrasing/*.py",
)
"""The code and the phrases that decide what a customer says and how an episode is judged."""
_ROOT = Path(__file__).parents[1]


@cache
def customers_hash() -> str:
    """Return the hash, in hexadecimal; comments, docstrings and Python's version do not change it."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in _ROOT.glob(pattern)):
        digest.update(repr(_shape(ast.parse(path.read_bytes()))).encode())
    return digest.hexdigest()


def _shape(node: Any) -> Any:
    """Return a syntax tree as nested lists, without docstrings and without fields that are empty.

    Python's own dump names fields that one version has and another has not.
    """
    if isinstance(node, list):
        return [_shape(part) for part in node if not _is_docstring(part)]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, *((name, _shape(value)) for name, value in fields)]


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
