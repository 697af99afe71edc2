"""A model as the agent of many conversations at once: tokens/s, seconds a turn, peak memory.

    python benchmarks/gpu_agent.py --model MODEL --output benchmarks/results/gpu_agent.json

Every turn is the model's work as in `task_tester.py evaluate --mode agent`: the conversation so far is
rendered, completed and parsed. With random weights no completion is a message, so the oracle's is
played in its place: conversations grow as real ones do. Says nothing about quality. Runs on a CPU
too, as a check: `--model models/tiny-gpt-oss --conversations 2 --max-new-tokens 8`.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from agent import Conversation, play  # noqa: E402
from agent.customers import ScriptedCustomer  # noqa: E402
from agent.policies import scripted_policy  # noqa: E402
from benchmarks.gpu_pipeline import GIB, device_name  # noqa: E402
from common.files import write_json_atomic  # noqa: E402
from data_reader import read_tasks  # noqa: E402
from envs.retail import RetailDatabase  # noqa: E402
from training.evaluation import load_agent_policy  # noqa: E402


class DrivenPolicy:
    """Times a model's replies and plays the oracle's."""

    def __init__(self, policy: Any) -> None:
        """Wrap a `gptoss.policy.ModelPolicy`."""
        self._policy, self._oracle = policy, scripted_policy("oracle")
        self.rounds: list[dict[str, float]] = []
        """One for each call: conversations, tokens of the longest prompt, tokens written, seconds."""

    def reply(self, talks: Sequence[Conversation]) -> list[dict[str, Any]]:
        """Return the oracle's messages after the model has written its own."""
        begin = time.perf_counter()
        written = [message for message in self._policy.reply(talks) if message]
        self.rounds.append({
            "conversations": len(talks),
            "longest_prompt": max((m["num_prompt_tokens"] for m in written), default=0),
            "tokens": sum(message["num_tokens"] for message in written),
            "seconds": round(time.perf_counter() - begin, 3),
        })
        print(self.rounds[-1], flush=True)
        return self._oracle.reply(talks)


def measure(policy: Any, num_conversations: int, tasks_path: Path) -> dict[str, Any]:
    """Play the first tasks and return the figures; the first call, which compiles, is apart."""
    db = RetailDatabase.load()
    tasks = read_tasks(tasks_path)[:num_conversations]
    talks = [Conversation(task, db, ScriptedCustomer(task), seed=n) for n, task in enumerate(tasks)]
    driven = DrivenPolicy(policy)
    play(talks, driven)
    first, *later = driven.rounds
    seconds, tokens = (sum(each[name] for each in later) for name in ("seconds", "tokens"))
    return {
        "first_call_seconds": first["seconds"],
        "num_turns": sum(each["conversations"] for each in driven.rounds),
        "tokens_per_s": round(tokens / seconds, 1),
        "seconds_per_turn": round(seconds / sum(each["conversations"] for each in later), 3),
        "median_seconds_per_call": round(statistics.median(each["seconds"] for each in later), 2),
        "longest_prompt_tokens": max(each["longest_prompt"] for each in driven.rounds),
        "failures": dict(policy.failures),
        "terminations": dict(Counter(talk.termination for talk in talks)),
        "calls": driven.rounds,
    }


def main() -> None:
    """Load the model, play, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder or hub name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, default=ROOT / "dataset.jsonl")
    parser.add_argument("--conversations", type=int, default=64, help="at once (64)")
    parser.add_argument("--max-new-tokens", type=int, default=192, help="of a turn (192)")
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    begin = time.perf_counter()
    policy = load_agent_policy(
        args.model, args.conversations, args.max_new_tokens, args.temperature or None, "low"
    )
    result = {
        "command": " ".join(sys.argv), "device": device_name() if has_gpu else "cpu",
        "load_seconds": round(time.perf_counter() - begin, 1),
        **measure(policy, args.conversations, args.tasks),
    }
    if has_gpu:
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        result["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    write_json_atomic(args.output, result)
    print(json.dumps({k: v for k, v in result.items() if k != "calls"}, indent=2))


if __name__ == "__main__":
    main()
