"""A run's folder: what a run leaves there, whether it is one, its lock, and clearing it.

The lock is the system's (flock), held by an object that lives as long as the run, so that a killed
process leaves none behind. Where the file system has no locks, runs go on without.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import TextIO
from weakref import WeakValueDictionary

from common.files import COMPLETE_NAME, RunError, real_path
from common.user_error import system_error

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

ARTIFACTS = (
    "metrics.csv", "evaluation.json", "evaluation_details.json", "completions.jsonl",
    "trajectories.jsonl", "warnings.jsonl", "evaluation_parts", "sft", "grpo_rows",
    "grpo_tasks.json", "best_adapter", "final_model", "merged_model", "plots/loss.png",
    "plots/rewards.png", "plots/health.png",
    "plots/evaluation.png", "plots/failures.png", "tensorboard", "config.json",
)
"""What a run leaves, beside its checkpoints; config.json is moved last: it says that there is a run."""
MODEL_MARKS = ("config.json", "adapter_config.json", COMPLETE_NAME)
"""Files by which a run, a model or an adapter is known."""
LOCK_NAME = "run.lock"
NOTEBOOK = "notebook.ipynb"
"""The executed notebook that `make train` leaves."""


def is_checkpoint(name: str) -> bool:
    """Say whether a name is that of a trainer's checkpoint."""
    return re.fullmatch(r"checkpoint-\d+", name) is not None


def artifacts(folder: Path) -> list[Path]:
    """Return what lies in a folder under the names that a run uses, config.json last."""
    found = [path for path in sorted(folder.glob("checkpoint-*")) if is_checkpoint(path.name)]
    return found + [folder / name for name in ARTIFACTS if (folder / name).exists()]


def is_artifact(top: str) -> bool:
    """Say whether a run writes under a name of its folder."""
    return is_checkpoint(top) or top in {name.partition("/")[0] for name in ARTIFACTS}


def _read_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_run(folder: Path) -> bool:
    """Say whether a run of this project wrote the folder's config.json."""
    return {"settings", "versions"} <= _read_object(folder / "config.json").keys()


def lock_folder(folder: Path, name: str) -> TextIO:
    """Lock a folder, made when missing, by a file of this name, which stays.

    Returns:
        The lock; the system lifts it when it is closed, dropped, or the process is gone.

    Raises:
        RunError: It is locked already, lies in a saved model, or cannot be written.
    """
    for parent in real_path(folder).parents:
        if (parent / COMPLETE_NAME).exists():
            raise RunError(f"{folder}: lies in a saved model; choose another --output-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.write_text("x" * 4096)  # an empty file fits on a full disk
        probe.unlink()
        lock = open(folder / name, "a", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}); choose another --output-dir"
        ) from error
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RunError(
            f"{folder}: another {Path(name).stem} is running there; wait for its end or choose "
            "another --output-dir"
        ) from None
    except OSError:
        pass  # a file system without locks
    return lock


_held: WeakValueDictionary[Path, TextIO] = WeakValueDictionary()


def lock_run(folder: Path) -> TextIO:
    """Lock a run's folder for as long as the result is kept.

    A notebook's cell that is executed again shares the lock that its process holds already.

    Raises:
        RunError: Another process holds it, or the folder cannot be written.
    """
    path = real_path(folder)
    lock = _held.get(path) or lock_folder(folder, LOCK_NAME)
    _held[path] = lock
    return lock


def is_living(folder: Path) -> bool:
    """Say whether a run holds the folder's lock now."""
    try:
        with open(folder / LOCK_NAME, encoding="utf-8") as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def check_new_run(folder: Path) -> None:
    """Refuse a folder whose content a new run would replace or mix with.

    Raises:
        RunError: The folder holds a model, or something under a name that a run uses.
    """
    for name in MODEL_MARKS:
        if (folder / name).exists():
            raise RunError(f"{folder}: holds {name} of a model, no run; choose another --output-dir")
    for path in artifacts(folder):
        raise RunError(
            f"{folder}: holds {path.name} of a run but no config.json; choose another --output-dir"
        )


def _has_own_notebook(folder: Path) -> bool:
    metadata = _read_object(folder / NOTEBOOK).get("metadata")
    return isinstance(metadata, dict) and "papermill" in metadata


def check_notebook(folder: Path) -> None:
    """Refuse a folder in which `make train` cannot run, or would overwrite somebody's notebook.

    Raises:
        RunError: A run is going on there, notebook.ipynb is not an executed notebook of ours, a new
            run would replace something, or the folder cannot be written.
    """
    if is_living(folder):
        raise RunError(
            f"{folder}: another run is running there; wait for its end or choose another --output-dir"
        )
    if (folder / NOTEBOOK).exists() and not _has_own_notebook(folder):
        raise RunError(
            f"{folder / NOTEBOOK}: was not written by `make train`; choose another --output-dir"
        )
    if not is_run(folder):
        check_new_run(folder)
    lock_folder(folder, LOCK_NAME).close()


def clear_run(folder: Path) -> None:
    """Remove what a run wrote into its folder, and the folder when nothing else is in it.

    Raises:
        RunError: The folder holds no run, or one that is going on.
    """
    if not folder.exists():
        return
    found = artifacts(folder) if is_run(folder) else []
    if _has_own_notebook(folder):
        found.append(folder / NOTEBOOK)
    if not found:
        raise RunError(f"{folder}: holds no run; nothing was removed")
    if is_living(folder):
        raise RunError(f"{folder}: a run is running there; nothing was removed")
    for path in [*found, folder / LOCK_NAME]:
        if is_checkpoint(path.name) and not (path / COMPLETE_NAME).exists():
            continue  # another trainer's, or one that a kill cut short
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for emptied in (folder / "plots", folder):
        if emptied.is_dir() and not any(emptied.iterdir()):
            emptied.rmdir()


def main(words: list[str]) -> int:
    """Run what the Makefile needs: `clear FOLDER` or `check FOLDER`; return the exit code."""
    command, folder = words
    try:
        if not folder.strip():
            raise RunError("OUTPUT_DIR: is empty; name a folder")
        {"clear": clear_run, "check": check_notebook}[command](Path(folder))
    except RunError as error:
        print("error:", str(error).replace("--output-dir", "OUTPUT_DIR"), file=sys.stderr)
        return 1
    except OSError as error:
        print("error:", system_error(error, folder), file=sys.stderr)
        return 1
    if command == "clear":
        print(f"{folder}: holds nothing of a run now")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
