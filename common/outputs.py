"""What a command may replace: only what an earlier run of the same command wrote there.

The proof is `.written_by.json` in the folder of a file: for each file the command that wrote it and
the SHA-256 of what it wrote. A file that is not listed, or was changed since, is somebody's work. So
outputs keep their bytes, and the record moves along with their folder.
"""

import argparse
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.files import COMPLETE_NAME, read_json, real_path, write_json_atomic
from common.run_folder import MODEL_MARKS, is_artifact, is_living
from common.user_error import UserError

RECORD_NAME = ".written_by.json"


class OutputError(UserError):
    """An output would replace what is not the command's own; the message is one line."""


def _entry(command: str, path: Path) -> dict[str, str]:
    with open(path, "rb") as file:
        return {"command": command, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _recorded(folder: Path) -> dict:
    entries = read_json(folder / RECORD_NAME, {})
    return entries if isinstance(entries, dict) else {}


def _is_own(command: str, path: Path) -> bool:
    return path.is_file() and _recorded(path.parent).get(path.name) == _entry(command, path)


def record(command: str, paths: Iterable[Path]) -> None:
    """Note that a command has just written these files."""
    for path in map(Path.resolve, paths):
        if path.is_file():
            entries = _recorded(path.parent) | {path.name: _entry(command, path)}
            write_json_atomic(path.parent / RECORD_NAME, entries)


def _check_place(path: Path, inputs: Sequence[Path], option: str) -> None:
    """Refuse a place that no command may write to, whatever is there."""
    try:
        os.fspath(path).encode("utf-8")
        place = path.resolve()
        place.stat()
    except FileNotFoundError:
        pass  # what is to be written
    except UnicodeEncodeError:
        raise OutputError(f"{os.fsencode(path)!r}: is no text in UTF-8; choose another {option}") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "a link that leads to itself"
        raise OutputError(
            f"{str(path)[:80]}: cannot be used as a path ({reason}); choose another {option}"
        ) from error
    if RECORD_NAME in place.parts:
        raise OutputError(f"{path}: is the record of who wrote what; choose another {option}")
    for given in inputs:
        if place.exists() and given.exists() and place.samefile(given):
            raise OutputError(f"{path}: is an input ({given}); choose another {option}")
    for folder in place.parents:
        if (folder / COMPLETE_NAME).exists():
            raise OutputError(f"{path}: lies in a saved model ({folder}); choose another {option}")
        top = place.relative_to(folder).parts[0]
        if is_artifact(top) and is_living(folder):
            raise OutputError(
                f"{path}: a run is going on in {folder}; wait for its end or choose another {option}"
            )


def check_files(
    command: str, paths: Iterable[Path], inputs: Sequence[Path] = (), option: str = "--output",
    overwrite: bool | None = None, whole_folder: bool = False,
) -> None:
    """Refuse to write files where that would lose what the command did not write.

    Args:
        option: The option that names the files, for the message.
        overwrite: True replaces a stranger's file, but never an input or a file of a run or a
            model; None when the command has no such option.
        whole_folder: Whether the option names the files' folder, which must be no run and no model.

    Raises:
        OutputError: Names the file and the remedy.
        RunError: A record is damaged.
    """
    for path in paths:
        _check_place(path, inputs, option)
        place = path.resolve()
        marks = [name for name in MODEL_MARKS if (place.parent / name).exists()]
        if whole_folder and (marks or not path.parent.is_dir() and os.path.lexists(path.parent)):
            kind = f"holds {marks[0]} of a run or a model" if marks else "is no folder"
            raise OutputError(f"{path.parent}: {kind}; choose another {option}")
        if not os.path.lexists(place) or _is_own(command, place):
            continue
        is_bound = marks or any(real_path(given) in place.parents for given in inputs)
        may = overwrite is not None and place.is_file() and not is_bound
        if not (may and overwrite):
            kind = "not what an earlier run of this command wrote"
            raise OutputError(
                f"{path}: is {kind if place.is_file() else 'no regular file'}; choose another {option}"
                + (", or replace it with --overwrite" if may else "")
            )


def check_folder(command: str, folder: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse to replace a whole folder unless every file in it is the command's own.

    Raises:
        OutputError: Names the folder and the remedy.
        RunError: A record is damaged.
    """
    _check_place(folder, inputs, "--output")
    if any(given.exists() and folder.resolve() in real_path(given).parents for given in inputs):
        raise OutputError(f"{folder}: an input lies in it; choose another --output")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: is something else than a folder; choose another --output")
    for path in folder.rglob("*"):
        known = path.is_dir() or path.name in (RECORD_NAME, COMPLETE_NAME)
        if not known and not _is_own(command, path):
            raise OutputError(
                f"{folder}: holds something else than an earlier {command} "
                f"({path.relative_to(folder)}); choose another --output"
            )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add the option --overwrite to a command."""
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace an output that this command did not write (never an input, a run or a model)",
    )


@contextmanager
def writing(command: str, *paths: Path) -> Iterator[list[Path]]:
    """Give a temporary file for each path; they take their places, recorded, when all is done.

    A link keeps pointing at what it names.

    Raises:
        OSError: A file cannot be written.
    """
    places = [path.resolve() for path in paths]
    parts = [place.with_name(f".{place.name}.{os.getpid()}.tmp") for place in places]
    try:
        yield parts
        for part, place in zip(parts, places, strict=True):
            os.replace(part, place)
        record(command, places)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
