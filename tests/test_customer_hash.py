"""The hash of the scripted customers: code and phrases change it, comments and docstrings do not."""

import ast
import shutil
from pathlib import Path

import pytest

from agent import customer_hash

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("name", "old", "new", "is_same"), [
    ("agent/customers.py", '"""', '"""More. ', True),
    ("agent/customers.py", "\nimport re\n", "\n# Patterns.\nimport re\n", True),
    ("scoring/violations.py", '    """One breach of the policy."""\n', "", True),
    ("scoring/episode.py", "import re\n", "import re\nWIDTH = 7\n", False),
    ("agent/customers.py", "patience: int = 6", "patience: int = 7", False),
    ("agent/speech.py", "_WHY_SHARE = 0.25", "_WHY_SHARE = 0.5", False),
    ("agent/phrases.py", '"one quick thing"', '"a quick thing"', False),
    ("tasks/phrasing/naming.py", "{city}, {state} {zip_code}", "{city} {state} {zip_code}", False),
    ("scoring/violations.py", "please do|", "", False),
])
def test_what_a_customer_says_changes_the_hash(tmp_path, monkeypatch, name, old, new, is_same):
    for folder in ("agent", "scoring", "tasks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    path, text = tmp_path / name, (ROOT / name).read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    before = customer_hash.customers_hash()
    monkeypatch.setattr(customer_hash, "_ROOT", tmp_path)
    assert (customer_hash.customers_hash.__wrapped__() == before) is is_same


def test_the_hash_is_that_of_any_version_of_python():
    source = 'def f(x, y=3):\n    """Words."""\n    return [x, f"{y}"]\n'
    plain = customer_hash._shape(ast.parse(source))
    newer = ast.parse(source)
    newer.body[0].type_params = []  # from 3.12 on
    newer.body[0]._fields = (*newer.body[0]._fields, "type_params")
    assert customer_hash._shape(newer) == plain
    assert "Words." not in repr(plain)
