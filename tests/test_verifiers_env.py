"""verifiers' own evaluation runs our environment against a loopback endpoint and gives our verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_chat_server import FakeChatServer, Reply

from agent.trajectories import play_gold
from data_reader import read_tasks, task_to_json

vf = pytest.importorskip(
    "verifiers", reason="the optional package is not installed: pip install verifiers==0.1.14"
)
pytest.importorskip("verifiers.envs", reason="verifiers before 0.2 is needed: verifiers==0.1.14")

ROOT = Path(__file__).resolve().parent.parent


def answer(message):
    """Return a turn of a recorded conversation as an endpoint's reply."""
    calls = message.get("tool_calls")
    sent = {"role": "assistant", "content": message["content"] or None, "tool_calls": calls}
    choice = {"index": 0, "message": sent, "finish_reason": "tool_calls" if calls else "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "toy",
            "choices": [choice], "usage": usage}
    return Reply(body=json.dumps(body).encode())


def test_its_evaluation_gives_our_verdicts(db, tmp_path):
    tasks = read_tasks(ROOT / "dataset.jsonl")[:6]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(task_to_json(task) + "\n" for task in tasks), encoding="utf-8")
    talks = {row["messages"][0]["content"]: row for _, row in play_gold(tasks, db, 0)}
    bad = tasks[0].task_id
    tools = []

    def play(request):
        heard = [m for m in request["messages"] if m["role"] != "system"]
        tools[:] = [tool["function"]["name"] for tool in request["tools"]]
        row = talks[heard[0]["content"]]
        if row["task_id"] == bad:
            return answer({"content": "Good day to you."})
        return answer(row["messages"][len(heard)])

    with FakeChatServer(play) as server:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("vf-eval")), "agent.verifiers_env",
             "--api-base-url", server.base_url, "--api-key-var", "PATH", "--model", "toy",
             "--num-examples", "6", "--rollouts-per-example", "1", "--disable-env-server",
             "--disable-tui", "--save-results", "--output-dir", str(tmp_path / "out"),
             "--env-args", json.dumps({"tasks": str(path)})],
            cwd=ROOT, env={"PATH": "x", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=300,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results.jsonl")
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert len(rows) == 6 and len(tools) == 16
    for row in rows:
        is_bad = row["info"]["task_id"] == bad
        expected = next(r for r in talks.values() if r["task_id"] == row["info"]["task_id"])
        assert row["success"] == float(not is_bad)
        assert is_bad or row["reward"] == pytest.approx(expected["reward"])
