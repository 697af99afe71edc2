"""Task files that outgrow memory: tasks read from disk as they are asked for, rows kept on disk.

A task file is scanned once, row by row; what stays in memory of a task is 20 bytes (offset and
number of its line, sizes of its texts), and while the file is scanned 8 more for the digest of its
task id. The rows that TRL trains on are written to a memory-mapped Arrow file in the run folder.
Left out on purpose: compressed and remote files, and files that are one JSON array (tau-bench's),
which are read whole: their rows cannot be found by line.
"""

import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from accelerate import PartialState
from common.files import disk_full_error, is_disk_full
from common.user_error import quoted
from data_reader import (
    DatasetError,
    Splits,
    Task,
    check_split_sizes,
    gold_completion,
    scan_tasks,
    split_number,
    task_from_json,
)
from envs.retail import RetailDatabase
from scoring.reward import GoldError, replay_gold
from tasks.audit.duplicates import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_BYTES = 1 << 22
ROWS_PER_BATCH = 1000
"""Rows of one Arrow batch: what is in memory at a time while rows are written."""


class StoredTasks(Sequence[Task]):
    """Tasks of a JSONL file; each is read and checked anew whenever it is asked for."""

    def __init__(
        self, path: Path, offsets: np.ndarray, lines: np.ndarray, sizes: np.ndarray
    ) -> None:
        """Remember the places of the tasks.

        Args:
            path: The file; it must not change while these tasks are in use.
            offsets: Byte at which each task's line begins. Shape [N], uint64.
            lines: Number of each task's line, from 1. Shape [N], uint32.
            sizes: What `text_sizes` returns. Shape [N, 2], uint32.
        """
        self.path = path
        self.offsets = offsets
        self.lines = lines
        self.sizes = sizes
        self._stamp = _stamp(path)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int | slice) -> "Task | StoredTasks":
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        number = range(len(self))[index]  # raises IndexError, and counts from the end, as lists do
        with self.path.open("rb") as stream:
            return self._read(stream, number)

    def __iter__(self) -> Iterator[Task]:
        with self.path.open("rb") as stream:
            for number in range(len(self)):
                yield self._read(stream, number)

    def select(self, indices: Sequence[int]) -> "StoredTasks":
        """Return some of the tasks, in the order given, without reading them."""
        chosen = np.fromiter(indices, np.int64, len(indices))
        return StoredTasks(
            self.path, self.offsets[chosen], self.lines[chosen], self.sizes[chosen]
        )

    def _read(self, stream: BinaryIO, number: int) -> Task:
        if _stamp(self.path) != self._stamp:
            raise DatasetError([f"{self.path}: changed while it was in use; start the run again"])
        stream.seek(int(self.offsets[number]))
        return task_from_json(stream.readline().decode(), int(self.lines[number]))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def select_tasks(tasks: Sequence[Task], indices: Sequence[int]) -> Sequence[Task]:
    """Return some of the tasks in the order given; those on disk stay there."""
    if isinstance(tasks, StoredTasks):
        return tasks.select(indices)
    return [tasks[index] for index in indices]


def text_size(task: Task) -> tuple[int, int]:
    """Return the bytes of a task's query and of its gold completion."""
    return len(task.query.encode()), len(gold_completion(task).encode())


def text_sizes(tasks: Sequence[Task]) -> np.ndarray:
    """Return the `text_size` of each task, without reading those on disk. Shape [N, 2]."""
    if isinstance(tasks, StoredTasks):
        return tasks.sizes
    return np.array([text_size(task) for task in tasks], np.uint32).reshape(-1, 2)


def _line_starts(path: Path) -> np.ndarray:
    """Return the byte at which each line of a file begins. Shape [lines + 1], uint64."""
    parts, position = [np.zeros(1, np.uint64)], 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            parts.append(ends.astype(np.uint64) + np.uint64(position + 1))
            position += len(chunk)
    return np.concatenate(parts)


def _is_one_value(path: Path) -> bool:
    """Tell whether a file is an array or one object over several lines, not an object a line."""
    with path.open("rb") as stream:
        head = stream.read(CHUNK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"[") or head.partition(b"\n")[0].strip() == b"{"


def _find_repeats(tasks: StoredTasks, digests: np.ndarray) -> dict[int, str]:
    """Return a finding for each task (by line) whose id an earlier task has.

    Digests only tell which ids may be equal; these few are then compared as they are.
    """
    ordered = np.sort(digests)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    places: dict[str, int] = {}
    findings = {}
    for number in np.flatnonzero(np.isin(digests, suspects)):
        line, task_id = int(tasks.lines[number]), tasks[int(number)].task_id
        earlier = places.setdefault(task_id, line)
        if earlier != line:
            findings[line] = (
                f"{tasks.path}:{line}: task_id: {quoted(task_id)} is at {tasks.path}:{earlier} too; "
                "name each task once"
            )
    return findings


def open_splits(
    path: str | Path,
    db: RetailDatabase,
    seed: int,
    fractions: tuple[float, float, float],
    skip_invalid: bool = False,
    min_tasks: tuple[int, int, int] = (1, 1, 1),
) -> Splits:
    """Check a task file in one pass, gold plans replayed on the store, and split it as `split_tasks` does.

    Args:
        path: JSONL file, or a JSON array, which is read into memory.
        skip_invalid: Leave invalid rows and failing plans out, and say how many.

    Returns:
        The splits; their tasks stay on disk.

    Raises:
        DatasetError: A row or a plan is invalid (all findings are listed) and they are not skipped, no
            row is valid, a split is too small, or the file cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DatasetError([f"{path}: is no regular file and can be read once only; save it as one"])
    findings: list[tuple[int, str]] = []
    lines, numbers, digests, sizes = array("I"), array("B"), array("Q"), array("I")
    kept: list[Task] = []
    in_memory = path.is_file() and _is_one_value(path)
    for row in scan_tasks(path, check_ids=in_memory):
        found = [*row.findings, *([] if row.task is None else _gold_findings(path, row.task, db))]
        findings += [(row.line, finding) for finding in found]
        if found:
            continue
        lines.append(row.line)
        numbers.append(split_number(row.task, seed, fractions, db))
        digests.append(fingerprint(row.task.task_id))
        sizes.extend(text_size(row.task))
        if in_memory:
            kept.append(row.task)
    line_numbers = np.array(lines, np.uint32)
    tasks: Sequence[Task] = kept
    if not in_memory:
        starts = _line_starts(path)[line_numbers.astype(np.int64) - 1]
        tasks = StoredTasks(path, starts, line_numbers, np.array(sizes, np.uint32).reshape(-1, 2))
        repeats = _find_repeats(tasks, np.array(digests, np.uint64))
        findings = sorted([*findings, *repeats.items()], key=lambda finding: finding[0])
        line_numbers[np.isin(line_numbers, list(repeats))] = 0
    if findings and not (skip_invalid and line_numbers.any()):
        raise DatasetError(
            [text for _, text in findings],
            "correct these rows, or skip them: --set data.skip_invalid_tasks=1",
        )
    if findings and PartialState().is_main_process:
        count = len(dict(findings))
        print(f"{path}: {count} tasks skipped, their rows or gold plans are faulty")
    chosen = [np.flatnonzero((line_numbers > 0) & (np.array(numbers) == n)) for n in range(3)]
    splits = Splits(*(select_tasks(tasks, indices) for indices in chosen))
    check_split_sizes(splits, fractions, min_tasks)
    return splits


def _gold_findings(path: Path, task: Task, db: RetailDatabase) -> list[str]:
    try:
        replay_gold(task, db)
    except GoldError as error:
        return [f"{path}:{task.line}: gold_actions: {error}; correct the call or drop the row"]
    return []


def store_rows(rows: Iterable[Mapping[str, Any]], folder: Path) -> "Dataset":
    """Write rows to disk, a batch at a time, and return them as a memory-mapped dataset.

    What TRL makes of the rows (their tokens) lands in the same folder.

    Args:
        rows: At least one, with the same names and types in each. Only the main process reads them.
        folder: Emptied first; `drop_rows` deletes it after training.

    Returns:
        The dataset, the same on every process.

    Raises:
        RunError: The disk is full.
    """
    from datasets import Dataset

    state = PartialState()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            _write_arrow(rows, folder / "rows.arrow")
        except OSError as error:
            if is_disk_full(error, folder):
                raise disk_full_error(folder) from error
            raise
    state.wait_for_everyone()
    return Dataset.from_file(str(folder / "rows.arrow"))


def drop_rows(folder: Path) -> None:
    """Delete the rows of a stage once every process is done with them."""
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)


def _write_arrow(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), writer_batch_size=ROWS_PER_BATCH) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()


class TaskLookup:
    """Finds the number of a prompt's task; 16 bytes a row in memory."""

    def __init__(self, rows: "Dataset") -> None:
        """Read rows of `prompt` and `task`, see `data_reader.grpo_rows`, once."""
        digests, numbers = array("Q"), array("Q")
        for batch in rows.iter(batch_size=ROWS_PER_BATCH):
            digests.extend(map(fingerprint, batch["prompt"]))
            numbers.extend(batch["task"])
        # Of equal prompts the first counts.
        self._digests, first = np.unique(np.array(digests, np.uint64), return_index=True)
        self._numbers = np.array(numbers, np.uint64)[first]

    def __getitem__(self, prompt: str) -> int:
        place = np.searchsorted(self._digests, np.uint64(fingerprint(prompt)))
        return int(self._numbers[place])
