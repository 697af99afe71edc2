"""Measure what agent mode itself costs: 200 conversations at once, the oracle and the scripted customer.

Environment time is what `Conversation.step` takes: the calls, the customer, the messages. Left out:
a model, which takes far longer. The floors are measured on the way.

Run: python benchmarks/agent_speed.py [--tasks F] [--num-conversations N]
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent import Conversation, play  # noqa: E402
from agent.customers import ScriptedCustomer  # noqa: E402
from agent.policies import SCRIPTS, scripted_policy  # noqa: E402
from data_reader import Task, read_tasks  # noqa: E402
from envs.retail import WRITE_TOOLS, RetailDatabase  # noqa: E402
from scoring.episode import score_episode  # noqa: E402
from scoring.trials import summarize_trials  # noqa: E402

RESULT_PATH = ROOT / "benchmarks" / "results" / "agent_speed.json"


def time_turns(tasks: list[Task], db: RetailDatabase, num_at_once: int) -> dict[str, float]:
    """Play every task with the oracle; return milliseconds by turn and by scored episode."""
    step_s, score_s = [], []
    for start in range(0, len(tasks), num_at_once):
        chunk = tasks[start : start + num_at_once]
        talks = [Conversation(task, db, ScriptedCustomer(task)) for task in chunk]
        policy, waiting = scripted_policy("oracle"), talks
        while waiting:
            for talk, message in zip(waiting, policy.reply(waiting), strict=True):
                began = time.perf_counter()
                talk.step(message)
                step_s.append(time.perf_counter() - began)
            waiting = [talk for talk in waiting if not talk.done]
        for talk in talks:
            began = time.perf_counter()
            assert score_episode(talk.task, talk.messages, db).success, talk.task.task_id
            score_s.append(time.perf_counter() - began)
    percentiles = statistics.quantiles(step_s, n=100)
    return {
        "num_turns": len(step_s),
        "median_ms_per_turn": round(1000 * statistics.median(step_s), 4),
        "p99_ms_per_turn": round(1000 * percentiles[98], 4),
        "max_ms_per_turn": round(1000 * max(step_s), 4),
        "median_ms_per_scored_episode": round(1000 * statistics.median(score_s), 4),
    }


def measure_policy(name: str, tasks: list[Task], db: RetailDatabase) -> dict[str, object]:
    """Play a scripted policy; return its metrics and the successes among tasks with a write."""
    talks = [Conversation(task, db, ScriptedCustomer(task)) for task in tasks]
    play(talks, scripted_policy(name))
    scores = [score_episode(talk.task, talk.messages, db, talk.termination) for talk in talks]
    has_write = [any(a["name"] in WRITE_TOOLS for a in task.gold_actions) for task in tasks]
    return {
        **summarize_trials(scores),
        "num_tasks_with_write": sum(has_write),
        "num_successes_with_write": sum(
            score.success for score, writes in zip(scores, has_write, strict=True) if writes
        ),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=Path, default=ROOT / "3.5k.jsonl", metavar="F")
    parser.add_argument("--num-conversations", type=int, default=200, metavar="N", help="at once")
    args = parser.parse_args()
    db, tasks = RetailDatabase.load(), read_tasks(args.tasks)[:1000]
    result = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one core",
        "num_conversations_at_once": args.num_conversations,
        "num_tasks": len(tasks),
        **time_turns(tasks, db, args.num_conversations),
        "policies": {name: measure_policy(name, tasks[:512], db) for name in SCRIPTS},
    }
    RESULT_PATH.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "policies"}, indent=2))
    for name, metrics in result["policies"].items():
        rate = metrics["success_rate"]
        print(f"{name}: success {rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}], with a "
              f"write {metrics['num_successes_with_write']}/{metrics['num_tasks_with_write']}")


if __name__ == "__main__":
    main()
