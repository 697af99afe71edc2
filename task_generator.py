"""Write a file of retail tasks: the command over `tasks.generate.pipeline`.

`task_generator.py trajectories` writes conversations about tasks: the one over `agent.trajectories`.
The file appears at once and whole: an interrupted run leaves what was there before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from agent.trajectories import write_trajectories
from common.outputs import add_overwrite, check_files, writing
from common.user_error import UserError, cut
from data_reader import Task, iter_tasks, task_to_json
from envs.retail import RetailDatabase
from envs.retail.store import store_files
from tasks.generate.pipeline import TaskStream, YieldTable
from tasks.llm.client import LlmError
from tasks.llm.rewording import add_llm_arguments, apply_llm_steps

COMMAND = "task_generator.py"
TRAJECTORIES = f"{COMMAND} trajectories"
EXIT_DATA = 1
EXIT_USAGE = 2
PROGRESS_EVERY = 10_000


def yield_path(output_path: Path) -> Path:
    """Return where the yield of a file is saved: F.jsonl -> F.yield.json."""
    return output_path.with_suffix(".yield.json")


def write_tasks(
    stream: TaskStream, output_path: Path, tasks: Iterable[Task] | None = None
) -> YieldTable:
    """Write a stream of tasks, or what later steps made of it, then its yield beside it.

    The file is replaced only when every task is there.

    Raises:
        OSError: The folder cannot be written.
        GenerationError: The store is too small.
    """
    with writing(COMMAND, output_path, yield_path(output_path)) as (tasks_part, yield_part):
        with open(tasks_part, "w", encoding="utf-8", newline="\n") as file:
            for count, task in enumerate(stream if tasks is None else tasks, 1):
                file.write(task_to_json(task, keep_empty=True) + "\n")
                if count % PROGRESS_EVERY == 0:
                    print(f"{count} tasks", file=sys.stderr, flush=True)
        text = json.dumps(stream.table.as_dict(), indent=2) + "\n"
        yield_part.write_text(text, encoding="utf-8")
    return stream.table


def positive_number(text: str) -> int:
    """Return a whole number of at least 1 from an argument."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command's arguments; ends the process with code 2 when they are wrong.

    `work` is the function that does it.
    """
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["trajectories"]:
        words, parser = words[1:], _trajectories_parser()
    else:
        parser = _tasks_parser()
    parser.add_argument(
        "--output", type=Path, required=True, metavar="F", help="file to write (JSON lines)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of a store; default: the project's")
    add_overwrite(parser)
    arguments = parser.parse_args(words)
    output, folder = arguments.output, arguments.output.parent
    if os.path.isdir(output):
        parser.error(f"argument --output: {cut(str(output))} is a folder; name a file in it")
    if not folder.is_dir():
        parser.error(f"argument --output: folder {cut(str(folder))} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        parser.error(f"argument --output: folder {folder} is not writable, choose another")
    return arguments


def _tasks_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Generate retail tasks as JSON lines.",
        epilog=f"`{TRAJECTORIES} --help`: conversations about tasks.",
    )
    parser.set_defaults(work=_tasks)
    parser.add_argument("--num-tasks", type=positive_number, required=True, help="how many tasks")
    parser.add_argument("--seed", type=int, required=True, help="same seed, same file")
    parser.add_argument(
        "--workers", type=positive_number, default=1, help="processes; the file is the same for any"
    )
    add_llm_arguments(parser)
    return parser


def _trajectories_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=TRAJECTORIES,
        description="Let a scripted agent that knows the gold calls talk to scripted customers, and "
        "write the conversations that end right as JSON lines.",
    )
    parser.set_defaults(work=_trajectories)
    parser.add_argument("--tasks", type=Path, required=True, metavar="F", help="task file")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same file (default: 0)")
    parser.add_argument(
        "--customers", type=positive_number, default=1, metavar="N",
        help="conversations of each task, each with another customer (default: 1)",
    )
    return parser


def _fail(code: int, message: str) -> NoReturn:
    print(f"{COMMAND}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def _trajectories(arguments: argparse.Namespace) -> None:
    output, tasks = arguments.output, arguments.tasks
    db = RetailDatabase.load(arguments.data_dir)
    inputs = [tasks, *store_files(arguments.data_dir)]
    check_files(TRAJECTORIES, [output], inputs, overwrite=arguments.overwrite)
    counts = write_trajectories(
        TRAJECTORIES, iter_tasks(tasks), db, output, arguments.seed, arguments.customers
    )
    kept = counts.pop("kept")
    dropped = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(f"wrote {kept} of {kept + counts.total()} conversations to {output}")
    if dropped:
        print(f"left out: {dropped}")


def _tasks(arguments: argparse.Namespace) -> None:
    output = arguments.output
    stream = TaskStream(arguments.num_tasks, arguments.seed, arguments.data_dir, arguments.workers)
    tasks = apply_llm_steps(stream, arguments, RetailDatabase.load(arguments.data_dir))
    check_files(
        COMMAND, [output, yield_path(output)], store_files(arguments.data_dir),
        overwrite=arguments.overwrite,
    )
    table = write_tasks(stream, output, tasks)
    print(table.as_text())
    print(f"wrote {table.num_written} tasks to {output}")


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Raises:
        SystemExit: Code 1 for a store that will not do, code 2 for arguments that will not do.
    """
    arguments = parse_arguments(argv)
    output = arguments.output
    try:
        arguments.work(arguments)
    except LlmError as error:
        _fail(EXIT_USAGE, str(error))
    except UserError as error:
        _fail(EXIT_DATA, str(error))
    except OSError as error:
        _fail(EXIT_USAGE, f"cannot write {output}: {error.strerror}; choose another --output")
    except KeyboardInterrupt:
        _fail(130, f"interrupted, {output} is as it was")


if __name__ == "__main__":
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
