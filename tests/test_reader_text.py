"""What is the same to a reader is the same to the audit, and nothing else is."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from common.reader_text import folded, plain
from data_reader import Task
from envs.retail import RetailDatabase
from tasks.audit.audit import audit_file
from tasks.audit.duplicates import UniquenessCheck, masked_words
from tasks.audit.grounding import check_grounding

ROOT = Path(__file__).resolve().parent.parent
FIELD = ROOT.parent / "shared" / "field" / "unicode"


@pytest.mark.parametrize("one, other, same", [
    ("Zoë", unicodedata.normalize("NFD", "Zoë"), True),
    ("Nguyễn Thị", unicodedata.normalize("NFD", "NGUYỄN THỊ"), True),
    ("Straße", "STRASSE", True),
    ("GROẞ", "gross", True),
    ("Σίσυφος", "ΣΊΣΥΦΟΣ", True),
    ("Ana\u202fPérez", "ana  pérez", True),
    ("Ana\xa0\n Pérez", "Ana Pérez", True),
    ("\u202bמשה\u202c\u200f", "משה", True),
    ("soft\xadhyphen", "softhyphen", True),
    ("O\u2019Brien\u2011Smith", "O'Brien-Smith", True),
    ("６１６６０", "61660", True),
    ("\u2764\ufe0f", "\u2764", True),
    ("İpek", "ipek", False),
    ("Yılmaz", "Yilmaz", False),
    ("Zoë", "Zoe", False),
    ("10½", "101", False),
])
def test_folded_text(one, other, same):
    assert (folded(one) == folded(other)) is same
    assert folded(folded(one)) == folded(one)


def test_plain_text_keeps_case_and_lines():
    assert plain("In OR:\n  Zoe\u0308\u200e ") == "In OR:\n  Zoë "


def name_task(query, first_name, last_name):
    arguments = {"first_name": first_name, "last_name": last_name, "zip": "12345"}
    return Task(query, [{"name": "find_user_id_by_name_zip", "arguments": arguments}], "", "t")


@pytest.mark.parametrize("said, grounded", [
    ("Zoe\u0308 Straße", True), ("ZOË STRASSE", True), ("\u202bZoë\u200f\u202fStraße\u202c", True),
    ("Zoe Straße", False), ("Zoë\u0323 Straße", False),  # a dot below makes it another letter
    ("Zoë Straßen", False),
])
def test_a_name_is_grounded_as_a_reader_sees_it(said, grounded, db):
    task = name_task(f"I am {said}, zip 12345.", "Zoë", "Straße")
    assert (check_grounding(task, db) == []) is grounded


def test_an_id_is_grounded_behind_direction_marks(db):
    action = {"name": "get_order_details", "arguments": {"order_id": "#W1234567"}}
    assert check_grounding(Task("Order #W123\u200f4567 please", [action], "", "t"), db) == []


@pytest.mark.parametrize("zero", [0x660, 0x6F0, 0x966, 0xFF10, 0x1D7CE, 0xE50])
def test_the_digits_of_every_script_are_read(zero):
    digits = str.maketrans({str(n): chr(zero + n) for n in range(10)})
    actions = [{"name": "get_order_details", "arguments": {"order_id": "#W1234567"}},
               {"name": "calculate", "arguments": {"expression": "1200.50 + 3"}}]
    query = "Order #W1234567; what are 1200.50 and 3?".translate(digits)
    assert check_grounding(Task(query, actions, "", "t"), db=None) == []
    other = query.replace(chr(zero + 7), chr(zero + 8))
    assert len(check_grounding(Task(other, actions, "", "t"), db=None)) == 1
    assert folded(query) == folded(query.translate({zero + n: str(n) for n in range(10)}))
    assert plain("\u0661\u066c\u0662\u0660\u0660\u066b\u0665") == "1,200.5"


def test_a_query_is_repeated_in_any_form():
    unique = UniquenessCheck()
    assert unique.check(name_task("Zoë Straße writes", "", "")) == []
    again = unique.check(name_task("ZOE\u0308\u202fSTRASSE writes!", "", ""))
    assert "duplicate_query" in {fault.kind for fault in again}
    assert masked_words("Zoë Straße") == masked_words("ZOE\u0308 STRASSE")


@pytest.mark.skipif(not FIELD.is_dir(), reason="shared/field is not beside the repository")
def test_rows_of_the_field(tmp_path):
    (tmp_path / "envs" / "retail").mkdir(parents=True)
    (tmp_path / "envs" / "retail" / "data").symlink_to(ROOT / "envs" / "retail" / "data")
    script = FIELD / "make_store_and_rows.py"
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=60)
    store = tmp_path / "field_ustore"
    valid = {
        name: audit_file(tmp_path / f"u-{name}.jsonl", store).num_valid
        for name in ("same", "nfd-query", "rtl", "nnbsp", "smart")
    }
    assert set(valid.values()) == {8}, valid
    upper = audit_file(tmp_path / "u-upper.jsonl", store)
    assert {reason.line for reason in upper.reasons} == {2}  # YILMAZ: a dotless i is no i
    # The look-ups are tau-bench's: a decomposed name is not the store's composed one.
    decomposed = audit_file(tmp_path / "u-nfd-both.jsonl", store)
    assert {r.kind for r in decomposed.reasons} == {"refused_call", "unauthenticated"}
    assert RetailDatabase.load(store).users
