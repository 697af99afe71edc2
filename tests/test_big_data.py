"""Task files left on disk give the same tasks, splits, faults and rows as files read whole."""

import json
import tracemalloc
from pathlib import Path

import pytest
import tiny_random
from datasets import Dataset

from common.files import RunError
from data_reader import (
    DatasetError,
    Task,
    build_grpo_dataset,
    build_sft_dataset,
    grpo_rows,
    read_tasks,
    sft_rows,
    split_tasks,
    task_to_json,
)
from envs.retail import RetailDatabase
from training import task_store
from training.grpo import order_by_difficulty
from training.run_data import load_tasks
from training.sft import build_sft_trainer, row_lengths
from training.task_store import StoredTasks, TaskLookup, open_splits, store_rows

FRACTIONS = (0.7, 0.1, 0.2)
DB = RetailDatabase.load()


def open_all(path: Path, skip_invalid: bool = False) -> StoredTasks:
    """Return all tasks of a file as one split."""
    return open_splits(path, DB, 0, (1.0, 0.0, 0.0), skip_invalid).train


def write_lines(path: Path, rows: list[dict | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_rows(count: int) -> list[dict]:
    return [json.loads(task_to_json(task)) for task in tiny_random.make_tasks(count)]


def test_tasks_on_disk_are_those_in_memory(tmp_path):
    path = tiny_random.write_tasks(tmp_path / "tasks.jsonl", 60)
    expected, stored = read_tasks(path), open_all(path)
    assert isinstance(stored, StoredTasks) and len(stored) == 60
    assert list(stored) == expected and [task.line for task in stored] == list(range(1, 61))
    assert (stored[0], stored[-1], stored[59]) == (expected[0], expected[-1], expected[59])
    assert list(stored[5:50:7]) == expected[5:50:7]
    assert list(stored.select([7, 7, 2])) == [expected[7], expected[7], expected[2]]
    for index in (60, -61):
        with pytest.raises(IndexError):
            stored[index]
    splits = split_tasks(expected, seed=3, fractions=FRACTIONS, db=DB)
    found = open_splits(path, DB, 3, FRACTIONS)
    assert [list(part) for part in found] == [list(part) for part in splits]


def test_blank_lines_crlf_byte_order_mark_missing_ids_and_wide_letters(tmp_path, monkeypatch):
    # Chunks of a few bytes, so that line ends fall on every side of a chunk's border.
    monkeypatch.setattr(task_store, "CHUNK_BYTES", 7)
    rows = make_rows(6)
    for row in rows[2:]:
        del row["task_id"]
    rows[3]["query"] += " 訂單 \u2028 café"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\ufeff" + lines[0] + "\r\n\r\n" + lines[1] + "\n   \n" + "\n".join(lines[2:])
    path = tmp_path / "odd.jsonl"
    path.write_bytes(text.encode())
    stored = open_all(path)
    assert list(stored) == read_tasks(path)
    assert [task.task_id for task in stored][2:4] == ["line-5", "line-6"]


def test_all_faults_are_listed_and_can_be_skipped(tmp_path, capsys):
    rows: list = make_rows(12)
    rows[2] = "{not json"
    rows[4]["gold_actions"][0]["arguments"] = {}
    rows[7]["task_id"] = rows[1]["task_id"]
    rows[8]["gold_actions"] = [{"name": "get_order_details", "arguments": {"order_id": "#W0"}}]
    rows[11]["task_id"] = rows[1]["task_id"]
    path = write_lines(tmp_path / "faulty.jsonl", rows)
    with pytest.raises(DatasetError) as found:
        open_all(path)
    *lines, remedy = str(found.value).splitlines()
    numbers = [int(line.removeprefix(f"{path}:").partition(":")[0]) for line in lines]
    assert numbers == [3, 5, 8, 9, 12]
    assert "not valid JSON" in lines[0] and "email" in lines[1]
    assert f"task_id: 'tiny-1' is at {path}:2 too; name each task once" in lines[2]
    assert "gold call 1 (get_order_details) is refused" in lines[3]
    assert "data.skip_invalid_tasks" in remedy
    kept = open_all(path, skip_invalid=True)
    assert [task.line for task in kept] == [1, 2, 4, 6, 7, 10, 11]
    assert "5 tasks skipped" in capsys.readouterr().out
    nothing = write_lines(tmp_path / "nothing.jsonl", ["{}", "[]"])
    with pytest.raises(DatasetError, match=r"nothing.jsonl:2: row: must be a JSON object"):
        open_all(nothing, skip_invalid=True)


def test_equal_digests_of_different_ids_are_no_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(task_store, "fingerprint", lambda _: 7)
    path = tiny_random.write_tasks(tmp_path / "tasks.jsonl", 9)
    assert list(open_all(path)) == read_tasks(path)


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_missing_and_empty_files_say_so(tmp_path, content):
    path = tmp_path / "none.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match="cannot be read|holds no task"):
        open_all(path)
    with pytest.raises(DatasetError, match="is a folder"):
        open_all(tmp_path)


def test_json_arrays_are_read_into_memory(tmp_path):
    rows = make_rows(8)
    path = tmp_path / "array.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert open_all(path) == read_tasks(path)
    rows[5]["task_id"] = rows[0]["task_id"]
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(DatasetError, match="item 6: task_id: 'tiny-0' is at"):
        open_all(path)


def test_a_file_that_changes_under_a_run_is_refused(tmp_path):
    path = tiny_random.write_tasks(tmp_path / "tasks.jsonl", 9)
    stored = open_all(path)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DatasetError, match="changed while it was in use"):
        stored[0]


def test_stored_rows_are_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(task_store, "ROWS_PER_BATCH", 7)
    tasks = tiny_random.make_tasks(25)
    for rows, expected in (
        (sft_rows(tasks, "brief"), build_sft_dataset(tasks, "brief")),
        (grpo_rows(tasks, "full"), build_grpo_dataset(tasks, "full")),
    ):
        stored = store_rows(rows, tmp_path / "rows")
        assert stored.column_names == expected.column_names
        assert stored.to_list() == expected.to_list()
        assert stored.cache_files, "the rows are in memory"
        lengths = row_lengths(tiny_random.make_tokenizer(), stored)
        assert list(lengths) == list(row_lengths(tiny_random.make_tokenizer(), expected))


def test_a_full_disk_while_rows_are_written_is_one_line(tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(task_store, "_write_arrow", fill)
    with pytest.raises(RunError, match="disk full while writing"):
        store_rows(iter([]), tmp_path / "rows")


def test_order_of_tasks_is_the_same_on_disk_and_in_memory(tmp_path):
    path = tiny_random.write_tasks(tmp_path / "tasks.jsonl", 20)
    found = order_by_difficulty(open_all(path), 45, seed=3)
    assert found == order_by_difficulty(read_tasks(path), 45, seed=3)


def test_the_task_of_a_prompt_is_found():
    prompts = [f"prompt {number % 7}" for number in range(10)]
    rows = Dataset.from_dict({"prompt": prompts, "task": [5 + n for n in range(10)]})
    lookup = TaskLookup(rows)
    assert [lookup[prompt] for prompt in prompts] == [5 + n % 7 for n in range(10)], "the first of equal"


def test_the_trainer_keeps_rows_and_tokens_on_disk(tmp_path):
    from gptoss.load import load_model

    config = tiny_random.tiny_config(tmp_path)
    train, _, _, _ = load_tasks(config)
    assert isinstance(train, StoredTasks)
    trainer = build_sft_trainer(*load_model(config.model), train, config)
    rows = Path(config.output_dir) / "sft" / "rows"
    files = {Path(entry["filename"]).parent for entry in trainer.train_dataset.cache_files}
    assert files == {rows.absolute()} or files == {rows}


def test_memory_stays_flat(tmp_path, monkeypatch):
    """Ten times the tasks take no more memory but for the index, 21 bytes a task."""
    monkeypatch.setattr(task_store, "ROWS_PER_BATCH", 100)
    monkeypatch.setattr(task_store, "CHUNK_BYTES", 1 << 14)
    small, large = (tmp_path / f"{count}.jsonl" for count in (400, 4000))
    row = make_rows(1)[0]
    for path, count in ((small, 400), (large, 4000)):
        write_lines(path, [row | {"task_id": f"copy-{n}"} for n in range(count)])
    peaks = []
    for path in (small, small, large):  # the first one warms up the imports and caches
        tracemalloc.start()
        tasks: StoredTasks | list[Task] = open_all(path)
        store_rows(grpo_rows(tasks, "brief"), tmp_path / "rows")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 3600 * 100, peaks
