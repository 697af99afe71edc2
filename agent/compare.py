"""Two evaluations of agent mode side by side.

    python -m agent.compare outputs/before outputs/after --tasks F --output compare.html

The paired differences are printed; the page opens with them and with the tasks that flipped, and shows
each episode of the first run beside the same task and trial of the second.
"""

import argparse
import json
import sys
from pathlib import Path

from agent.evaluation import score_of_row
from agent.viewer import write_viewer
from common.outputs import add_overwrite, check_files, writing
from common.user_error import UserError, cut
from data_reader import read_tasks
from envs.retail import RetailDatabase
from envs.retail.store import store_files
from scoring.metrics import format_estimate
from scoring.trials import compare_trials


class CompareError(UserError, ValueError):
    """The runs cannot be compared; the message is one line."""


def read_trajectories(folder: Path) -> list[dict]:
    """Return the episodes of an evaluation.

    Raises:
        CompareError: `trajectories.jsonl` is missing or damaged.
    """
    path = folder / "trajectories.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except OSError as error:
        raise CompareError(
            f"{cut(str(path))}: cannot be read ({error.strerror}); name a folder that `task_tester.py "
            "evaluate --mode agent` wrote"
        ) from error
    except ValueError as error:
        raise CompareError(f"{path}: not valid JSON ({error}); evaluate again") from error
    for number, row in enumerate(rows, start=1):
        _check_row(row, f"{path}:{number}")
    return rows


def _check_row(row: object, place: str) -> None:
    try:
        score_of_row(row)
        is_whole = isinstance(row["task_id"], str) and all(
            isinstance(message, dict) and {"role", "content"} <= message.keys()
            for message in row["messages"]
        ) and isinstance(row["trial"], int)
    except (TypeError, KeyError):
        is_whole = False
    if not is_whole:
        raise CompareError(f"{place}: is no episode of an evaluation; evaluate again")


def compare(before: Path, after: Path, task_path: Path, output: Path, db: RetailDatabase) -> str:
    """Write the page of two evaluations on one store, and return the paired differences as text.

    Raises:
        CompareError: A folder holds no evaluation, or one of other tasks.
        OSError: The page cannot be written.
        DatasetError: The task file cannot be read.
    """
    runs = [read_trajectories(folder) for folder in (before, after)]
    tasks = read_tasks(task_path, skip_invalid=True)
    unknown = {row["task_id"] for rows in runs for row in rows} - {task.task_id for task in tasks}
    if unknown:
        raise CompareError(
            f"{task_path}: lacks {len(unknown)} tasks that were played, such as {min(unknown)}; "
            "name the file that both evaluations read"
        )
    try:
        gains = compare_trials(*([score_of_row(row) for row in rows] for rows in runs))
    except (ValueError, KeyError) as error:
        raise CompareError(f"{before}, {after}: {error}") from error
    lines = [f"{after} minus {before}, {gains.pop('num_tasks')} tasks, 95 % intervals"]
    lines += [f"{name}: {format_estimate(gain, '+')}" for name, gain in gains.items()]
    text = "\n".join(lines)
    write_viewer(output, runs[0], tasks, db, runs[1], text)
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="agent.compare", description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="folder of an evaluation")
    parser.add_argument("after", type=Path, help="folder of another")
    parser.add_argument("--tasks", type=Path, required=True, help="the tasks that both played")
    parser.add_argument("--output", type=Path, required=True, help="the page to write, HTML")
    parser.add_argument("--data-dir", help="folder of the store; the shipped one by default")
    add_overwrite(parser)
    args = parser.parse_args(arguments)
    try:
        played = [folder / "trajectories.jsonl" for folder in (args.before, args.after)]
        inputs = [args.tasks, *played, *store_files(args.data_dir)]
        check_files("compare", [args.output], inputs, overwrite=args.overwrite)
        db = RetailDatabase.load(args.data_dir)
        with writing("compare", args.output) as (page,):
            text = compare(args.before, args.after, args.tasks, page, db)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); choose another --output"
        print(f"error: {cut(str(args.output))}: {reason}", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
