"""Files that survive a kill: atomic writes, and folders known to be whole.

A folder counts as whole when it holds `complete.json`, written last, with the size of every other
file. A checkpoint cut short by a kill or a full disk lacks it, or disagrees with it, and is
skipped. Sizes catch every cut, not a decaying disk.
"""

import csv
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.user_error import UserError

COMPLETE_NAME = "complete.json"


class RunError(UserError, RuntimeError):
    """A run cannot go on; the message is one line that says what to do."""


class SettingsError(RunError):
    """The data cannot be trained on with these settings; others would do."""


def real_path(path: str | Path) -> Path:
    """Return the absolute path without links; unlike `Path.resolve` never raises on a loop of links."""
    return Path(os.path.realpath(path))


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file, and make its folder, so that a kill leaves either the old or the new content.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json_atomic(path: Path, value: object) -> None:
    """Write JSON so that a kill leaves either the old or the new content."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv_atomic(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV, a column for each name in any of them; a kill leaves the old file or the new one."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


def read_json(path: Path, default: object) -> object:
    """Return the JSON of a file, or `default` when there is no such file.

    Raises:
        RunError: The file is cut short or damaged.
    """
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({error}); copy it again") from error


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE_NAME)
    return {str(p.relative_to(folder)): p.stat().st_size for p in files}


def _weighed(sizes: dict[str, int]) -> dict[str, int]:
    # The model card is rewritten after the folder was marked.
    return {name: size for name, size in sizes.items() if name != "README.md"}


def mark_complete(folder: Path) -> None:
    """Declare a folder whole: flush its files to disk, then write the list of their sizes."""
    for name in _sizes(folder):
        descriptor = os.open(folder / name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    write_json_atomic(folder / COMPLETE_NAME, _sizes(folder))


def is_complete(folder: Path) -> bool:
    """Say whether a folder was marked whole and still holds every file at its full size."""
    marker = folder / COMPLETE_NAME
    try:
        return marker.is_file() and _weighed(read_json(marker, {})) == _weighed(_sizes(folder))
    except RunError:
        return False


def build_folder(target: Path, build: Callable[[Path], object]) -> None:
    """Fill a folder under another name, mark it whole, then move it into place.

    Args:
        target: The folder to replace; an older one stays until the new one is whole.
        build: Writes the content into the folder it is given.

    Raises:
        RunError: The disk is full, or a folder of somebody else is in the way; the older folder is
            intact.
    """
    temporary = target.with_name(target.name + ".tmp")
    if os.path.lexists(temporary) and not (temporary / COMPLETE_NAME).exists():
        raise RunError(f"{temporary}: is in the way of {target}; choose another name for either")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # From the start, so that what a kill leaves is known to be ours.
    write_json_atomic(temporary / COMPLETE_NAME, {"unfinished": 0})
    try:
        build(temporary)
        mark_complete(temporary)
    except (OSError, RuntimeError) as error:
        if is_disk_full(error, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            raise disk_full_error(target) from error
        raise
    # A kill between these two lines leaves no target, and the stage that makes it runs again.
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)


def finish_move(target: Path) -> None:
    """Move a whole folder into place that a kill at the end of `build_folder` left beside it."""
    temporary = target.with_name(target.name + ".tmp")
    if is_complete(temporary) and not is_complete(target):
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)


def checkpoint_step(folder: Path) -> int:
    """Return the optimizer step in the name of a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=checkpoint_step)


def latest_complete(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder, None when there is none."""
    whole = [p for p in _checkpoints(folder) if is_complete(p)]
    return whole[-1] if whole else None


def remove_checkpoints(folder: Path, only_incomplete: bool) -> None:
    """Delete the checkpoints of a folder, or only those that were cut short."""
    for path in _checkpoints(folder):
        if not (only_incomplete and is_complete(path)):
            shutil.rmtree(path)


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Say whether an error comes from a full disk.

    torch and safetensors wrap the system's error in their own, so the text and the free space are
    looked at as well.
    """
    full_numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in full_numbers:
        return True
    if re.search(rf"No space left|os error ({'|'.join(map(str, full_numbers))})\b", str(error)):
        return True
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free < 2**20


def disk_full_error(folder: Path) -> RunError:
    """Return the one-line error of a full disk."""
    kept = latest_complete(folder) or latest_complete(folder.parent)
    last = f"{kept.name} is intact" if kept else "no checkpoint was whole yet"
    return RunError(
        f"disk full while writing {folder}: {last}; free some space and start again with --resume"
    )
