"""The one scorer, and its command line: audit tasks, evaluate a model, score completions.

Training's reward and every evaluation call `score_completion` from here. Torch is
imported when `evaluate` runs, not before.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent.command import (
    TAU2,
    USAGE_NAME,
    CommandError,
    add_agent_options,
    check_agent_options,
    check_numbers,
    run_agent_evaluation,
    run_tau2_evaluation,
)
from agent.trajectories import DEFECTS, audit_conversations
from common import outputs
from common.files import RunError
from common.json_rows import read_rows
from common.row_form import missing_finding
from common.user_error import UserError, brief, printable, quoted, shorten, system_error
from data_reader import DatasetError, Task, read_tasks
from envs.retail import DatabaseError, RetailDatabase
from envs.retail.store import store_files
from prompting.dialogue import Tools
from prompting.harmony import find_special_token
from scoring.metrics import (
    metric_line,
    parse_failure_table,
    per_tool_table,
    summarize,
    summarize_outcome,
)
from scoring.parse import MAX_CALLS, MAX_CHARACTERS, Call, ParseKind, parse_plan
from scoring.reward import (
    DEFAULT_WEIGHTS,
    CallScore,
    GoldError,
    GoldReplay,
    RewardWeights,
    Score,
    call_key,
    ignore_refused_gold,
    max_reward,
    replay_gold,
    score_completion,
)
from tasks.audit import REPORT_COMMAND, report_files

__all__ = [
    "DEFAULT_WEIGHTS", "MAX_CALLS", "MAX_CHARACTERS", "Call", "CallScore", "GoldError",
    "GoldReplay", "ParseKind", "RewardWeights", "Score", "call_key", "ignore_refused_gold",
    "max_reward",
    "parse_failure_table", "parse_plan", "per_tool_table", "replay_gold", "score_completion",
    "summarize", "summarize_outcome",
]

INVALID_DATA, USAGE, INTERRUPTED = 1, 2, 130
EVALUATION_FILES = ("evaluation.json", "evaluation_details.json", "completions.jsonl")
AGENT_FILES = ("trajectories.jsonl", "episodes.html", "evaluation.json", USAGE_NAME)

DATA_ERRORS = (DatasetError, DatabaseError, GoldError, outputs.OutputError)
_HOLDS_CALL = re.compile(r"""tool_call|["']arguments["']""")
EXIT_CODES = (
    "exit code: 0 done, 1 invalid data, 2 wrong usage or a file that is not there, 130 interrupted"
)


# -- audit -------------------------------------------------------------------------------------


def _run_audit(args: argparse.Namespace) -> int:
    path = _existing_file(args.file)
    from tasks.audit.audit import audit_file

    if args.trajectories is not None:
        return _audit_trajectories(path, _existing_file(args.trajectories), args)
    against = [_existing_file(other) for other in args.against]
    if args.report is not None:
        _check_kind(args.report)
        outputs.check_files(
            REPORT_COMMAND, report_files(args.report), [path, *against, *store_files(args.data_dir)],
            "--report", args.overwrite,
        )
    report = audit_file(path, args.data_dir, against, **_split_of_run(args.run_dir))
    if args.report is not None:
        from tasks.audit.report import write_report

        write_report([report], args.report)
    if args.json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        report.print()
    return 0 if report.num_valid == report.num_tasks else INVALID_DATA


def _audit_trajectories(path: Path, trajectories: Path, args: argparse.Namespace) -> int:
    from tasks.audit.audit import wrapped

    counts, findings, wording = audit_conversations(
        trajectories, read_tasks(path), RetailDatabase.load(args.data_dir)
    )
    report = {"num_conversations": counts.total(), "num_valid": counts.pop("valid", 0)}
    report |= {f"num_{name}": counts[name] for name in DEFECTS}
    if args.json:
        print(json.dumps(report | {"wording": wording, "reasons": findings}, indent=2))
    else:
        print("\n".join(f"{name:22}{count:8}" for name, count in report.items()))
        print("\n".join(wrapped(name, figures) for name, figures in wording.items()))
        print("\n".join(shorten(findings)), file=sys.stderr, end="\n" if findings else "")
    return INVALID_DATA if findings else 0


def _split_of_run(folder: Path | None) -> dict[str, Any]:
    """Return the seed and the fractions of a run's split; none without a run."""
    if folder is None:
        return {}
    import configs

    try:
        config = configs.read_settings(folder / "config.json")
    except configs.ConfigError as error:
        raise CommandError(f"--run {error}") from None
    if config is None:
        raise CommandError(f"--run {folder}: holds no run; name the output folder of one")
    return {"seed": config.data.split_seed, "fractions": config.data.fractions}


# -- evaluate ----------------------------------------------------------------------------------


def _check_model(model: str) -> None:
    """Refuse a model that must be a folder and is none; other names are left to the loader."""
    path = Path(model).expanduser()
    if path.is_dir():
        return
    is_hub_name = (
        model.count("/") <= 1
        and not model.startswith((".", "/", "~"))
        and not path.is_file()
        and not ("/" in model and Path(path.parts[0]).is_dir())
    )
    if not is_hub_name:
        raise CommandError(f"--model {model}: no such folder; name a saved model's folder")


@contextmanager
def _evaluation_files(args: argparse.Namespace, names: Sequence[str]) -> Iterator[None]:
    """Refuse to replace files that `evaluate` did not write; record those that it writes."""
    written = [args.output / name for name in names]
    model = [Path(args.model).expanduser()] if args.model else []
    outputs.check_files(
        "evaluate", written, [*model, args.tasks, *store_files(args.data_dir)],
        overwrite=args.overwrite, whole_folder=True,
    )
    try:
        yield
    finally:
        # After a failure too: the same command may replace them then.
        with suppress(OSError):  # on a full disk
            outputs.record("evaluate", written)


def _read_judged(args: argparse.Namespace) -> tuple[list[Task], RetailDatabase]:
    """Return the tasks that `evaluate` plays, and the store."""
    tasks = read_tasks(_existing_file(args.tasks), may_be_empty=True)[: args.limit]
    db = RetailDatabase.load(args.data_dir)
    return _judgeable(tasks, args, db), db


def _run_evaluate(args: argparse.Namespace) -> int:
    if args.mode == "agent":
        return _run_evaluate_agent(args)
    check_numbers(args)
    for name in ("policy", "endpoint"):
        if getattr(args, name):
            raise CommandError(f"--{name}: plays conversations; add --mode agent")
    if not args.model:
        raise CommandError("nothing to evaluate: give --model, or --mode agent and --policy")
    _check_model(args.model)
    tasks, db = _read_judged(args)
    with _evaluation_files(args, EVALUATION_FILES):
        is_new = not args.output.exists()
        args.output.mkdir(parents=True, exist_ok=True)  # before the time is spent
        try:
            with _model_errors(args.model):
                from training.evaluation import evaluate_model_dir

                evaluate_model_dir(
                    model=args.model, tasks=tasks, db=db, output_dir=args.output,
                    num_trials=args.num_trials, batch_size=args.batch_size, tasks_path=args.tasks,
                )
        finally:
            if is_new and not any(args.output.iterdir()):
                args.output.rmdir()
    return 0


def _run_evaluate_agent(args: argparse.Namespace) -> int:
    try:
        check_agent_options(args)
        if args.model and not args.endpoint:
            _check_model(args.model)
        if str(args.tasks) == TAU2:
            run_tau2_evaluation(args, _load_policy)
            return 0
        tasks, db = _read_judged(args)
        with _evaluation_files(args, AGENT_FILES):
            run_agent_evaluation(args, tasks, db, _load_policy)
    except DATA_ERRORS:
        raise
    except UserError as error:
        raise CommandError(str(error)) from None
    return 0


@contextmanager
def _model_errors(model: str) -> Iterator[None]:
    """Name the model in what goes wrong with it; data keeps its own errors."""
    try:
        yield
    except ImportError as error:
        remedy = "run `make install`, then `source .venv/bin/activate`"
        raise CommandError(f"a package is missing ({error}); {remedy}") from None
    except DATA_ERRORS:
        raise
    except UserError as error:
        raise CommandError(f"--model {model}: {error}") from None


def _load_policy(args: argparse.Namespace, tools: Tools | None = None) -> Any:
    """Load the local model that plays, with the store's tools or others; this imports torch."""
    temperature = args.temperature
    if temperature is None and args.num_trials > 1:
        temperature = 1.0
    with _model_errors(args.model):
        from training.evaluation import load_agent_policy

        return load_agent_policy(
            args.model, args.concurrency, args.max_new_tokens, temperature or None, args.reasoning,
            tools,
        )


# -- score -------------------------------------------------------------------------------------


def _judgeable(tasks: Sequence[Task], args: argparse.Namespace, db: RetailDatabase) -> list[Task]:
    """Return tasks that every answer gets a verdict on, by the rule of `--refused-gold`.

    Raises:
        DatasetError: gold holds a refused call or none, and the rule is to refuse; or no task is
            left.
    """
    judgeable, findings = [], {}
    for task in tasks:
        try:
            replay_gold(task, db)
        except GoldError as error:
            findings[task.task_id] = f"{args.tasks}:{task.line}: gold_actions: {error}"
            if args.refused_gold == "ignore":
                judgeable.append(ignore_refused_gold(task, db))
        else:
            judgeable.append(task)
    if findings and (args.refused_gold == "refuse" or not judgeable):
        remedy = "correct or drop the rows, or give --refused-gold ignore (tau-bench's rule) or skip"
        raise DatasetError(list(findings.values()), remedy)
    if findings:
        effect = "left out" if args.refused_gold == "skip" else "judged without those gold calls"
        print(
            f"{args.command}: {len(findings)} of {len(tasks)} tasks hold a refused gold call or none: "
            f"{effect} ({_some(findings)})", file=sys.stderr,
        )
    return judgeable


def _some(names: Iterable[str]) -> str:
    names = list(map(brief, names))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _completion_of_row(row: Any, number: int, tasks: dict[str, Task]) -> tuple[Task, str]:
    """Return task and completion of one row; raises ValueError with "field: reason; remedy"."""
    if not isinstance(row, dict):
        raise ValueError("row: must be an object with task_id and completion; write one a line")
    task_id, completion = row.get("task_id"), row.get("completion")
    if completion is None:
        texts = {"completion": lambda key, value: key != "task_id" and isinstance(value, str)}
        raise ValueError(missing_finding(row, {"completion": "the final message's text"}, texts))
    if task_id is None:
        # Matched by line, a row that names its task in another key would be scored for a wrong one.
        for key in row:
            if re.sub("[^a-z]", "", key.lower()) in ("taskid", "id", "task"):
                raise ValueError(f"task_id: is missing, the row has {quoted(key)}; write task_id instead")
        task_id = f"line-{number}"
    if not isinstance(task_id, str) or task_id not in tasks:
        problem = f"must be text, not {type(task_id).__name__}"
        if isinstance(task_id, str):
            problem = f"{quoted(task_id)} names no task of the task file"
        raise ValueError(
            f"task_id: {problem}; write the task's own id, such as \"{brief(next(iter(tasks)))}\" for the "
            'first task (rows without one are "line-<n>")'
        )
    if not isinstance(completion, str):
        raise ValueError(
            f"completion: must be text, not {type(completion).__name__}; give the final message's "
            "text, a plan as the JSON text that the model wrote"
        )
    return tasks[task_id], completion


def _read_completions(path: Path, tasks: dict[str, Task]) -> list[tuple[Task, str, str]]:
    """Return task, completion and place of {"task_id", "completion"} rows.

    Raises:
        DatasetError: a row is invalid or names no task, or there is no row.
    """
    found: list[tuple[Task, str, str]] = []
    findings: list[str] = []
    for _, number, place, row, finding in read_rows(path):
        try:
            if finding:
                raise ValueError(finding)
            found.append((*_completion_of_row(row, number, tasks), place))
        except ValueError as error:
            findings.append(f"{place}: {error}")
    if not findings and not found:
        findings.append(f'{path}: holds no completion; write {{"task_id", "completion"}} a line')
    if findings:
        raise DatasetError(findings)
    return found


def _warn_of_wrapped_plans(
    answers: Sequence[tuple[Task, str, str]], scores: Sequence[Score]
) -> None:
    """Say on stderr when completions are not the final message's text but hold it.

    No error: a model may write such a text itself, and that is a parse failure of its own.
    """
    wrapped = [
        (place, score.parse_error)
        for (_, text, place), score in zip(answers, scores, strict=True)
        if score.parse_error and (find_special_token(text) or _HOLDS_CALL.search(text))
    ]
    if wrapped:
        place, kind = wrapped[0]
        print(
            f"score: warning: {printable(place)}: completion: more or other than a plan ({kind}), as "
            f"{len(wrapped)} of {len(scores)} are, which count as parse failures; give the final "
            'message\'s text alone, {"tool_calls": [{"name", "arguments"}]}, without harmony tokens, '
            "channel names or code fences",
            file=sys.stderr,
        )


def _run_score(args: argparse.Namespace) -> int:
    inputs = [_existing_file(args.tasks), _existing_file(args.completions)]
    if args.output is not None:
        _check_kind(args.output)
        stored = store_files(args.data_dir)
        outputs.check_files("score", [args.output], [*inputs, *stored], overwrite=args.overwrite)
    tasks = {task.task_id: task for task in read_tasks(args.tasks, may_be_empty=True)}
    answers = _read_completions(args.completions, tasks)
    db = RetailDatabase.load(args.data_dir)
    answered = {task.task_id: task for task, _, _ in answers}
    judged = {task.task_id: task for task in _judgeable(list(answered.values()), args, db)}
    answers = [(judged[t.task_id], *rest) for t, *rest in answers if t.task_id in judged]
    scores = [score_completion(task, completion, db) for task, completion, _ in answers]
    _warn_of_wrapped_plans(answers, scores)
    if args.output is not None:
        rows = ({"task_id": score.task_id} | score.figures() for score in scores)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            with outputs.writing("score", args.output) as (part,):
                part.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CommandError(
                f"{args.output}: cannot be written ({error.strerror}); free some space or choose "
                "another --output"
            ) from None
    missing = [task_id for task_id in tasks if task_id not in answered]
    if missing:
        print(
            f"score: {len(missing)} of {len(tasks)} tasks have no completion ({_some(missing)}); "
            f"the metrics are over the other {len(judged)}",
            file=sys.stderr,
        )
    metrics = summarize(scores)
    if args.json:
        print(json.dumps(metrics, indent=2))
    else:
        _print_summary(scores, metrics)
    return 0


def _print_summary(scores: Sequence[Score], metrics: dict[str, Any]) -> None:
    shown = {**metrics, "outcome_rate": summarize_outcome(scores)}
    print(f"{'num_tasks':22}{shown.pop('num_tasks'):8}   (completions: {len(scores)})")
    for name, found in shown.items():
        print(metric_line(name, found))
    print(f"\n{'tool':32}{'called':>9}{'correct':>9}{'wrong args':>12}{'refused':>9}")
    for name, row in per_tool_table(scores).items():
        called, correct, wrong, refused = row.values()
        print(f"{name:32}{called:9}{correct:9}{wrong:12}{refused:9}")
    failures = parse_failure_table(scores)
    print("\nparse failures: " + (", ".join(f"{k} {n}" for k, n in failures.items()) or "none"))


# -- command line ------------------------------------------------------------------------------


def _existing_file(path: Path) -> Path:
    if not path.exists():
        raise CommandError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise CommandError(f"{path}: is a folder; name the file inside of it")
    return path


def _check_kind(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise CommandError(f"{path}: is no regular file; name a file to write")


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 12 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a whole number, 1 or more")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all three commands."""
    parser = argparse.ArgumentParser(
        prog="task_tester.py", description="Audit tasks, evaluate a model, score completions.",
        epilog=EXIT_CODES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str, more: str = ""):
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}".strip(),
            epilog=EXIT_CODES,
        )
        command.set_defaults(run=run)
        command.add_argument(
            "--data-dir", type=Path, metavar="D",
            help="store: a folder with users.json, orders.json, products.json (default: our own)",
        )
        return command

    audit = add("audit", _run_audit, "check every task of a file against the store and the policy")
    audit.add_argument(
        "file", type=Path, metavar="F", help="task file (JSONL, or a JSON array as tau-bench's)"
    )
    audit.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="F",
        help="other task files; customers and queries in another split there are leaks",
    )
    audit.add_argument(
        "--run", type=Path, metavar="DIR", dest="run_dir",
        help="split the tasks as the run in this folder does (default: as the presets do)",
    )
    audit.add_argument(
        "--trajectories", type=Path, metavar="T",
        help="check the conversations of this file about the tasks of F instead of the tasks",
    )
    audit.add_argument("--json", action="store_true", help="print counts and reasons as JSON only")
    audit.add_argument("--report", type=Path, metavar="FILE.md", help="write the reasons here too")
    outputs.add_overwrite(audit)

    evaluate = add("evaluate", _run_evaluate, "let a model answer tasks and score the answers")
    evaluate.add_argument(
        "--mode", choices=("plan", "agent"), default="plan",
        help="plan: one answer with all calls; agent: a conversation (default: plan)",
    )
    evaluate.add_argument("--model", metavar="DIR|NAME", help="model to evaluate")
    evaluate.add_argument(
        "--tasks", type=Path, required=True, metavar="F",
        help="task file (JSONL); in agent mode also tau2: the official tau2-bench",
    )
    evaluate.add_argument("--limit", type=_positive, metavar="N", help="only the first N tasks")
    evaluate.add_argument(
        "--num-trials", type=_positive, default=1, metavar="K", help="answers a task (default: 1)"
    )
    evaluate.add_argument(
        "--batch-size", type=_positive, metavar="N",
        help="tasks answered at once (default: as in the run that trained the model)",
    )
    evaluate.add_argument(
        "--output", type=Path, required=True, metavar="DIR",
        help="folder for evaluation.json and completions.jsonl, in agent mode trajectories.jsonl",
    )
    add_agent_options(evaluate, _positive)
    outputs.add_overwrite(evaluate)

    score = add(
        "score", _run_score, "score completions that were made elsewhere",
        "Several completions of one task are trials of it. Tasks without a completion are counted "
        "on stderr and left out of the metrics.",
    )
    score.add_argument("--tasks", type=Path, required=True, metavar="F", help="task file (JSONL)")
    score.add_argument(
        "--completions", type=Path, required=True, metavar="C.jsonl",
        help='{"task_id", "completion"} a line, in any order; completion is the final message\'s '
        "text; tasks without a task_id are named line-1, line-2, ...",
    )
    for command in (evaluate, score):
        command.add_argument(
            "--refused-gold", choices=("refuse", "ignore", "skip"), default="refuse",
            help="tasks whose gold holds a call that the store refuses, or no call: refuse the file "
            "(default); ignore such calls, as tau-bench does, for which they change nothing (without "
            "any gold call a task is solved when nothing is written); or skip the tasks",
        )
    score.add_argument("--json", action="store_true", help="print the metrics as JSON only")
    score.add_argument("--output", type=Path, metavar="S.jsonl", help="write scores, a line each")
    outputs.add_overwrite(score)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. Errors are lines on stderr, never a traceback."""
    args = build_parser().parse_args(argv)
    try:
        if args.data_dir is not None and not args.data_dir.is_dir():
            raise CommandError(f"--data-dir {args.data_dir}: no such folder; check the path")
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (*DATA_ERRORS, RunError) as error:
        print(f"task_tester.py {args.command}: error: {error}", file=sys.stderr)
        return INVALID_DATA
    except (CommandError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError):
            output = getattr(args, "output", None) or getattr(args, "report", None)
            text = system_error(error, output or "stdout")
        print(f"task_tester.py {args.command}: error: {text}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        more = ""
        if args.command == "evaluate" and args.mode == "agent":
            more = "; the same command goes on where it stopped"
        print(f"task_tester.py {args.command}: interrupted{more}", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
