"""The audit: planted faults named by line, no false alarm, own files clean, report current."""

import gzip
import json
import re
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import task_tester
from data_reader import DatasetError, Task, read_tasks, split_tasks
from envs.retail import RetailDatabase
from tasks.audit import report
from tasks.audit.audit import audit_file, audit_files
from tasks.audit.duplicates import NearDuplicates, SplitLeakage, masked_words
from tests.plant_faults import Planted, plant_all

ROOT = Path(__file__).resolve().parent.parent
TAU_DIR = ROOT.parent / "shared" / "taubench"
OWN_FILES = [ROOT / name for name in report.OWN_FILES]
NUM_EACH = 3
# Only rows that claim the plan-mode conventions (tags) or name their customer can break these.
NEED_OPTIONAL_FIELDS = {
    "wishes_swapped", "payments_swapped", "forgotten_wish", "other_subject", "wrong_output",
    "other_user_id", "street_lines_swapped",
}
COUNT_OF_CHECK = {
    "row": "num_unreadable", "gold": "num_failing_gold", "grounding": "num_ungrounded",
    "policy": "num_policy_violations", "duplicate": "num_duplicates",
}


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in OWN_FILES[0].read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def planted(rows, db, tmp_path_factory):
    lines, faults = plant_all(rows, db, NUM_EACH)
    path = tmp_path_factory.mktemp("planted") / "planted.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return audit_file(path), faults


@pytest.fixture(scope="module")
def own_reports():
    return audit_files(OWN_FILES)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def named_faults(audit) -> dict[int, set[tuple[str, str]]]:
    """Return the (check, kind) pairs that the audit names at each line."""
    named: dict[int, set[tuple[str, str]]] = {}
    for reason in audit.reasons:
        named.setdefault(reason.line, set()).add((reason.check, reason.kind))
    return named


def missed(audit, faults: list[Planted]) -> list[str]:
    named = named_faults(audit)
    return [
        f"{p.fault.name} at line {p.line}: {named.get(p.line)}"
        for p in faults
        if (p.fault.check, p.fault.kind) not in named.get(p.line, set())
    ]


# -- planted faults ----------------------------------------------------------------------------


def test_every_planted_fault_is_named_with_its_line(planted):
    audit, faults = planted
    classes = Counter(p.fault.name for p in faults)
    assert len(classes) >= 40 and set(classes.values()) == {NUM_EACH}
    assert missed(audit, faults) == []


def test_no_row_but_the_spoiled_ones_is_named(planted):
    audit, faults = planted
    assert set(named_faults(audit)) == {p.line for p in faults}


def test_counts_are_counts_of_rows_by_question(planted):
    audit, faults = planted
    named = named_faults(audit)
    assert audit.num_tasks - audit.num_valid == len(faults) == len(named)
    for check, name in COUNT_OF_CHECK.items():
        num_rows = sum(any(check == c for c, _ in kinds) for kinds in named.values())
        num_planted = sum(p.fault.check == check for p in faults)
        if check == "row":
            num_rows = num_planted
        assert getattr(audit, name) == num_rows >= num_planted, name
    assert sum(audit.findings.values()) == len(audit.reasons)


def test_faults_are_found_in_rows_with_the_required_fields_only(rows, db, tmp_path):
    lines, faults = plant_all(rows, db, 1)
    bare = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            bare.append(line)
            continue
        fields = ("query", "gold_actions", "gold_final")
        bare.append(json.dumps({name: row[name] for name in fields if name in row}))
    path = tmp_path / "bare.jsonl"
    path.write_text("\n".join(bare) + "\n", encoding="utf-8")
    audit = audit_file(path)
    expected = [
        p for p in faults
        if p.fault.name not in NEED_OPTIONAL_FIELDS and p.fault.kind != "duplicate_task_id"
    ]
    assert missed(audit, expected) == []
    assert set(named_faults(audit)) <= {p.line for p in faults}
    assert {reason.task_id for reason in audit.reasons} == {f"line-{r.line}" for r in audit.reasons}


# -- our own files -----------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(OWN_FILES)), ids=report.OWN_FILES)
def test_own_file_is_clean(own_reports, index):
    audit = own_reports[index]
    assert audit.reasons == []
    assert audit.num_valid == audit.num_tasks >= (800, 3500)[index]
    assert (audit.num_near_duplicates, audit.leakage["num_users_in_two_splits"]) == (0, 0)
    assert audit.leakage["num_queries_in_two_splits"] == 0


def test_own_report_is_current(own_reports):
    path = ROOT / report.OWN_REPORT
    links = report.plot_links(own_reports, path.stem.lower())
    text = report.analysis_text(own_reports, report.OWN_COMMAND, links)
    assert text == path.read_text(encoding="utf-8"), f"run `{report.OWN_COMMAND}`, commit docs/"
    for plot in links:
        assert (path.parent / plot).stat().st_size < 100_000


def test_report_of_any_file_has_its_plots_and_faults(planted, tmp_path):
    audit, _ = planted
    path = tmp_path / "deep" / "Faults.md"
    path.parent.mkdir()
    report.write_report([audit], path)
    text = path.read_text(encoding="utf-8")
    assert f"| tasks | {audit.num_tasks} |" in text
    first = audit.reasons[0]
    assert f"- line {first.line}, {first.task_id}: {first.kind}: {first.reason}" in text
    for fault, _ in report.KNOWN_FINDINGS:
        assert re.search(rf"^\| {re.escape(fault)} \| [1-9]\d* \|$", text, re.M), fault
    links = report.plot_links([audit], "faults")
    assert len(links) == 3 and all(f"]({link})" in text for link in links)
    assert all((path.parent / link).read_bytes().startswith(b"\x89PNG") for link in links)


def test_json_and_text_agree(planted, capsys):
    audit, _ = planted
    data = json.loads(json.dumps(audit.to_json()))
    assert len(data["reasons"]) == len(audit.reasons)
    assert data["reasons"][0].keys() == {"line", "task_id", "check", "kind", "reason"}
    audit.print()
    printed = capsys.readouterr().out
    for name in ("num_tasks", "num_valid", *COUNT_OF_CHECK.values()):
        assert f"{name:<22} {data[name]:>7}\n" in printed
    # The mix is wrapped for a notebook's width, never between a name and its figure.
    for name, count in audit.mix["tools"].items():
        assert re.search(rf"^.{{0,80}}{name} {count}(,|$)", printed, re.M)


# -- files of other origin ---------------------------------------------------------------------


@pytest.mark.skipif(not TAU_DIR.is_dir(), reason="tau-bench's data is not beside the repository")
def test_tau_bench_tasks_whose_gold_its_own_tools_refuse_are_named():
    audit = audit_file(TAU_DIR / "tasks_train.json", TAU_DIR)
    ids = [task.task_id for task in read_tasks(TAU_DIR / "tasks_train.json")]
    refused = set()
    with gzip.open(TAU_DIR / "replay_train.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            case = json.loads(line)
            of_train = case["case_id"].startswith("train")
            if case["kind"] == "gold" and of_train and not all(s["ok"] for s in case["steps"]):
                refused.add(ids[case["task_index"]])
    assert audit.num_tasks == 400 and len(refused) == 15
    assert {r.task_id for r in audit.reasons if r.check == "gold"} == refused
    # The scenario or the customer's records tell every argument; ids in a message are not asked.
    assert audit.num_ungrounded == 0
    assert {r.kind for r in audit.reasons} <= {"refused_call", "gift_card_short", "same_item"}


def test_a_file_that_cannot_be_read_at_all_raises(tmp_path):
    with pytest.raises(DatasetError, match="no such|cannot be read"):
        audit_file(tmp_path / "absent.jsonl")


def test_every_row_broken_is_a_report_and_no_crash(tmp_path):
    path = tmp_path / "broken.jsonl"
    ill_typed = b'{"query": 1, "gold_actions": 2, "gold_final": 3}'
    path.write_bytes(b'{"query": \n\xff\xfe\n[1]\n' + ill_typed + b"\n")
    audit = audit_file(path)
    assert (audit.num_tasks, audit.num_valid, audit.num_unreadable) == (4, 0, 4)
    assert sorted({reason.line for reason in audit.reasons}) == [1, 2, 3, 4]
    report.write_report([audit], tmp_path / "broken.md")


# -- repeated wording, leaks -------------------------------------------------------------------


def test_near_duplicates_ignore_ids_and_see_wording():
    near = NearDuplicates()
    first = (
        "Hi there, my email is a@b.com. I have been a customer for years. Please cancel order "
        "#W1234567, since I no longer need the tablet that I picked in a hurry last Sunday "
        "afternoon, and tell me how much is left on gift_card_1234567. Thanks a lot for your "
        "patience with me."
    )
    second = first.replace("a@b.com", "x@y.org").replace("1234567", "7654321")
    other = (
        "Good evening! The kettle that came with #W1234567 is not for me; send 60.50 back to "
        "paypal_1234567, and mind that my zip code is 12345 now, not what your records say."
    )
    assert masked_words(first) == masked_words(second)
    assert near.check(first) is None
    assert near.check(other) is None
    assert near.check(second) == (0, 1.0)
    index, similarity = near.check(first.replace("in a hurry", "on a whim"))
    assert index == 0 and 0.8 <= similarity < 1
    assert near.check(first[: len(first) // 3] + other) is None
    assert near.check("") is None


def shingles(query):
    words = masked_words(query)
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_similarity_is_the_jaccard_similarity_of_shingles(rows):
    """Against exact figures: edits of every size are found by theirs, and no others are."""
    near = NearDuplicates(threshold=0.01)
    strict = NearDuplicates()
    queries = [row["query"] for row in rows if len(row["query"].split()) >= 50][:150]
    for query in queries:
        near.check(query)
        assert strict.check(query) is None
    errors, num_close, num_found = [], 0, 0
    for index, query in enumerate(queries):
        words = query.split(" ")
        for place in range(1 + index % 4):
            words[5 + 8 * place] = "zebra"
        edited = " ".join(words)
        exact = len(shingles(query) & shingles(edited)) / len(shingles(query) | shingles(edited))
        likeness = near.check(edited)
        if likeness is not None:
            assert likeness[0] == index
            errors.append(likeness[1] - exact)
        num_close += exact >= 0.85
        num_found += exact >= 0.85 and strict.check(edited) is not None
    assert len(errors) >= 0.9 * len(queries)
    assert abs(sum(errors) / len(errors)) < 0.03 and max(map(abs, errors)) < 0.25
    assert num_close >= 30 and num_found >= 0.8 * num_close


def test_the_same_customer_or_words_in_two_splits_are_leaks(rows, tmp_path):
    of_user = [row for row in rows if row["user_id"] == rows[0]["user_id"]]
    leaks = SplitLeakage(RetailDatabase.load())
    task = read_tasks(write_rows(tmp_path / "one.jsonl", of_user[:1]))[0]
    own_split = leaks.split_of(task)
    # The row lies about its customer, so that the split puts it elsewhere.
    other = next(
        row["user_id"] for row in rows
        if leaks.split_of(Task("q", task.gold_actions, "f", "t", row["user_id"])) != own_split
    )
    clean = write_rows(tmp_path / "clean.jsonl", of_user[:1])
    lying = write_rows(tmp_path / "lying.jsonl", [{**of_user[0], "user_id": other}])
    audit = audit_file(clean, against=[lying])
    assert audit.num_valid == 1
    assert audit.leakage["num_users_in_two_splits"] == 1
    assert audit.leakage["num_queries_in_two_splits"] == 1
    assert all("clean.jsonl:1" in e and "lying.jsonl:1" in e for e in audit.leakage["examples"])
    assert audit_file(clean).leakage["num_users_in_two_splits"] == 0


def test_the_audit_splits_as_the_run_does():
    split = {"seed": 7, "fractions": (0.5, 0.2, 0.3)}
    audit = audit_file(OWN_FILES[0], **split)
    parts = split_tasks(read_tasks(OWN_FILES[0]), **split, db=RetailDatabase.load())
    assert audit.mix["splits"] == {name: len(part) for name, part in parts._asdict().items()}
    assert audit.mix["splits"] != audit_file(OWN_FILES[0]).mix["splits"]


def test_nearly_the_same_words_in_two_splits_are_leaks():
    leaks = SplitLeakage(RetailDatabase.load())
    tasks = {leaks.split_of(task): task for task in read_tasks(OWN_FILES[0])[:100]}
    train, held_out = tasks["train"], tasks["test"]
    words = " and one more word".join(["a kettle that no longer heats the water as it should"] * 9)
    leaks.add(replace(train, query=words), "train.jsonl", 1)
    _, near = leaks.add(replace(held_out, query="Well, " + words), "test.jsonl", 2)
    assert near["of_path"] == "train.jsonl" and (near["line"], near["of_line"]) == (2, 1)
    found = leaks.to_dict()
    assert found["num_near_duplicates_in_two_splits"] == 1
    assert found["examples"] == ["near duplicates: train.jsonl:1 (train), test.jsonl:2 (test)"]


@pytest.mark.slow
def test_memory_stays_small(rows, tmp_path):
    """What the audit keeps of a row is far less than the row: 600 of them take 3 MB, kept whole 5.5."""
    peaks = []
    for number in (200, 800):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:number]), encoding="utf-8")
        tracemalloc.start()
        assert audit_file(path).num_tasks == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4.2e6


def test_against_names_customers_who_stand_in_another_split(tmp_path, capsys):
    """A copy of a training row under a test user's name leaks between the files."""
    rows = [json.loads(line) for line in (ROOT / "dataset.jsonl").read_text().splitlines()]
    tasks = split_tasks(read_tasks(ROOT / "dataset.jsonl"))
    test_row = next(row for row in rows if row["task_id"] == tasks.test[0].task_id)
    train_row = next(row for row in rows if row["task_id"] == tasks.train[0].task_id)
    mine, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    mine.write_text(json.dumps(test_row) + "\n")
    other.write_text(json.dumps({**train_row, "query": test_row["query"]}) + "\n")
    task_tester.main(["audit", str(mine), "--against", str(other), "--json"])
    assert json.loads(capsys.readouterr().out)["leakage"]["num_queries_in_two_splits"] == 1
