"""Measure how many three-call completions one core scores a second, store reset included.

Half of the completions are gold, half have a wrong argument in their last call. A cold round pays
for the replay of every gold list; warm rounds find it in the scorer's cache, as in training, where
a group of completions shares a task. Left out: sampling and tokenising, which take far longer.

Run: python benchmarks/score_throughput.py [--tasks F] [--data-dir D]
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_reader import Task, gold_completion, read_tasks  # noqa: E402
from envs.retail import RetailDatabase  # noqa: E402
from task_tester import GoldError, replay_gold, score_completion  # noqa: E402

TAUBENCH_EPISODE_MS = (270.0, 390.0)
"""One scored episode of tau-bench itself, load of the store and two hashes of it included."""

RESULT_PATH = ROOT / "benchmarks" / "results" / "score_throughput.json"


def wrong_completion(task: Task) -> str:
    """Return gold with one text argument of the last call changed."""
    actions = copy.deepcopy(task.gold_actions)
    arguments = actions[-1]["arguments"]
    name = next(key for key, value in arguments.items() if isinstance(value, str))
    arguments[name] += "0"
    return json.dumps({"tool_calls": actions}, separators=(",", ":"))


def load_pairs(path: Path, db: RetailDatabase, num_calls: int) -> list[tuple[Task, str]]:
    """Return (task, completion) pairs of the file's tasks with `num_calls` gold calls."""
    pairs = []
    for task in read_tasks(path):
        if len(task.gold_actions) != num_calls or not task.gold_actions[-1]["arguments"]:
            continue
        try:
            replay_gold(task, db)
        except GoldError:
            continue
        pairs += [(task, gold_completion(task)), (task, wrong_completion(task))]
    return pairs


def time_round(pairs: list[tuple[Task, str]], db: RetailDatabase) -> float:
    """Score every pair once; return completions per second."""
    start_s = time.perf_counter()
    for task, completion in pairs:
        score_completion(task, completion, db)
    return len(pairs) / (time.perf_counter() - start_s)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=Path, default=ROOT / "dataset.jsonl", metavar="F")
    parser.add_argument("--data-dir", type=Path, metavar="D", help="store (default: our own)")
    parser.add_argument("--num-rounds", type=int, default=21, metavar="N", help="warm rounds")
    args = parser.parse_args()
    db = RetailDatabase.load(args.data_dir)
    pairs = load_pairs(args.tasks, db, num_calls=3)
    if not pairs:
        parser.error(f"{args.tasks} holds no task with three gold calls")
    # Replays are kept by store, so a store of its own makes a cold round.
    cold = time_round(pairs, RetailDatabase.load(args.data_dir))
    rounds = [time_round(pairs, db) for _ in range(args.num_rounds)]
    median = statistics.median(rounds)
    result = {
        "completions_per_s_median": round(median),
        "completions_per_s_min": round(min(rounds)),
        "completions_per_s_max": round(max(rounds)),
        "completions_per_s_cold": round(cold),
        "episode_ms_median": round(1000 / median, 4),
        "taubench_episode_ms": list(TAUBENCH_EPISODE_MS),
        "times_faster": [round(ms * median / 1000) for ms in TAUBENCH_EPISODE_MS],
        "num_tasks": len(pairs) // 2,
        "num_rounds": args.num_rounds,
        "tasks": args.tasks.name,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    RESULT_PATH.parent.mkdir(parents=True, exist_ok=True)
    RESULT_PATH.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
