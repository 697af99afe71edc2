"""Choose the tasks that RESULTS.md shows before and after GRPO, by a fixed rule.

    python benchmarks/learning_examples.py --tasks held_out.jsonl --model MODEL --seed 1 \\
        --before outputs/learning/MODEL-sft-1 --after outputs/learning/MODEL-grpo-1

The first of each kind in the order of the file: made right by GRPO, made wrong by it, right both times,
wrong both times.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.files import write_text_atomic  # noqa: E402
from data_reader import read_tasks  # noqa: E402
from scoring.parse import parse_plan  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "learning" / "examples.jsonl"
NUM_SHOWN = {"after": 5, "before": 5, "both": 3, "neither": 3}
"""Tasks shown by kind: right after GRPO only, before it only, both times, neither."""
LONGEST = 300
"""Characters of a completion without a plan that are kept."""


def read_completions(run: Path) -> dict[str, dict[str, Any]]:
    """Return a run's last evaluation by task."""
    lines = (run / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["task_id"]: row for row in map(json.loads, lines)}


def calls_of(completion: str) -> list[dict[str, Any]] | str:
    """Return the calls of a completion; its beginning where it has none."""
    calls, error = parse_plan(completion)
    if error:
        return f"{completion[:LONGEST]} ({error})"
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def main() -> None:
    """Write the examples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True, help="run folder of SFT")
    parser.add_argument("--after", type=Path, required=True, help="run folder of SFT+GRPO")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    before, after = read_completions(arguments.before), read_completions(arguments.after)
    kinds = {(True, True): "both", (False, True): "after", (True, False): "before", (False, False): "neither"}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in NUM_SHOWN}
    for task in read_tasks(arguments.tasks):
        if task.task_id not in before or task.task_id not in after:
            continue
        sft, grpo = before[task.task_id], after[task.task_id]
        found[kinds[sft["exact_match"], grpo["exact_match"]]].append({
            "task_id": task.task_id, "query": task.query, "gold": task.gold_actions,
            "sft": calls_of(sft["completion"]), "sft_right": sft["exact_match"],
            "grpo": calls_of(grpo["completion"]), "grpo_right": grpo["exact_match"],
        })
    counts = {kind: len(tasks) for kind, tasks in found.items()}
    about = {"model": arguments.model, "seed": arguments.seed, "num_tasks": sum(counts.values())}
    shown = [task for kind, number in NUM_SHOWN.items() for task in found[kind][:number]]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (about | {"counts": counts}, *shown)]
    write_text_atomic(arguments.output, "".join(lines))
    print(counts)


if __name__ == "__main__":
    main()
