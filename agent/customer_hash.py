"""A hash of the scripted customers, by which a resumed evaluation knows that they are the same."""

import ast
import hashlib
from functools import cache
from pathlib import Path

_SOURCES = (
    "agent/customers.py", "agent/intents.py", "agent/phrases.py", "agent/speech.py",
    "scoring/violations.py", "tasks/phrasing/*.py",
)
"""The code and the phrases that decide what a customer says."""
_ROOT = Path(__file__).parents[1]


@cache
def customers_hash() -> str:
    """Return the hash, in hexadecimal; comments and docstrings do not change it."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in _ROOT.glob(pattern)):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()
