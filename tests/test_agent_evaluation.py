"""Evaluations of conversations: what is written, what a kill leaves, what an endpoint's loss leaves."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import resume_run

import configs
import task_tester
from agent.conversation import CustomerTurn
from agent.evaluation import PART_NAME, Plan, evaluate_agent
from common.files import RunError
from data_reader import task_to_json
from envs.retail import RetailDatabase
from prompting.dialogue import assistant_message
from tasks.llm.client import LlmError, LlmUnavailable
from tests.fake_chat_server import FakeChatServer, Reply, interrupt
from tests.tiny_random import make_model_dir, make_tasks

ROOT = Path(__file__).resolve().parent.parent
DB = RetailDatabase.load()
SETTINGS = {"model": "toy", "seed": 0}


class Asker:
    """A customer who says its seed and leaves after some answers."""

    def __init__(self, task, seed):
        self._task, self._seed, self._left = task, seed, 1 + seed % 3

    def open(self, db):
        return CustomerTurn(f"{self._task.query} ({self._seed})")

    def reply(self, messages):
        self._left -= 1
        return CustomerTurn("Go on.") if self._left else CustomerTurn("", "satisfied")


class Echo:
    """Repeats the customer's first words; counts which conversations it was asked for."""

    def __init__(self):
        self.asked, self.sizes, self._lock = Counter(), [], threading.Lock()

    def reply(self, conversations):
        with self._lock:
            self.sizes.append(len(conversations))
            self.asked.update(c.task.task_id for c in conversations)
        return [assistant_message("You said: " + c.messages[0]["content"]) for c in conversations]


def evaluate(folder, policy=None, customer=Asker, settings=SETTINGS, num_tasks=12, **plan):
    plan = Plan(make_tasks(num_tasks), **{"num_trials": 2, **plan})
    return evaluate_agent(plan, DB, policy or Echo(), customer, settings, folder)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "trajectories.jsonl").read_bytes().splitlines()]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("lanes, lane_size, threads", [(1, 5, 1), (6, 1, 1), (1, 5, 5)])
def test_files_do_not_depend_on_what_is_played_at_once(tmp_path, lanes, lane_size, threads):
    evaluate(tmp_path / "one", lane_size=1)
    policy = Echo()
    evaluate(tmp_path / "many", policy, lanes=lanes, lane_size=lane_size, step_threads=threads)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")
    assert set(files_of(tmp_path / "many")) == {
        "trajectories.jsonl", "episodes.html", "evaluation.json"}
    assert max(policy.sizes) == lane_size


def test_rows_are_in_the_order_of_tasks_and_trials_and_do_not_mix(tmp_path):
    metrics = evaluate(tmp_path, lane_size=7)
    rows = rows_of(tmp_path)
    assert [(r["task_id"], r["trial"]) for r in rows] == [
        (f"tiny-{n}", trial) for n in range(12) for trial in range(2)]
    assert len({row["seed"] for row in rows}) == 24
    for row, task in zip(rows[::2], make_tasks(12), strict=True):
        first, second = row["messages"][:2]
        assert first["content"].startswith(task.query) and str(row["seed"]) in first["content"]
        assert second["content"].endswith(first["content"])
        assert row["termination"] == "customer_satisfied"
    assert metrics == json.loads((tmp_path / "evaluation.json").read_text())
    assert metrics["num_tasks"] == 12 and metrics["success_rate"]["value"] <= 1


class Tired(Echo):
    """Gives out after some replies, as an endpoint that is lost."""

    def __init__(self, num_replies, error=LlmUnavailable):
        super().__init__()
        self._left, self._error = num_replies, error

    def reply(self, conversations):
        self._left -= 1
        if self._left < 0:
            raise self._error("HTTP 503")
        return super().reply(conversations)


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_lost_endpoint_keeps_what_is_finished_and_the_next_start_plays_the_rest(tmp_path, lanes):
    with pytest.raises(RunError, match=r"of 24 episodes got no answer \(HTTP 503\); the others are"):
        evaluate(tmp_path / "a", Tired(20), lanes=lanes, lane_size=1)
    assert not (tmp_path / "a" / "evaluation.json").exists()
    kept = [json.loads(line) for line in (tmp_path / "a" / PART_NAME).open()][1:]
    done = Counter(row["task_id"] for row in kept)
    assert 3 < len(kept) < 24
    policy = Echo()
    evaluate(tmp_path / "a", policy, lanes=lanes, lane_size=1)
    assert not set(policy.asked) & {task_id for task_id, count in done.items() if count == 2}
    evaluate(tmp_path / "b", lane_size=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_refused_key_ends_all_threads(tmp_path):
    with pytest.raises(LlmError, match="HTTP 503"):
        evaluate(tmp_path, Tired(8, LlmError), lanes=3, lane_size=1)


def test_a_policy_without_an_answer_ends_its_own_conversation(tmp_path):
    class Mute(Echo):
        def reply(self, conversations):
            replies = super().reply(conversations)
            return [None if c.task.task_id == "tiny-3" else r
                    for c, r in zip(conversations, replies, strict=True)]

    evaluate(tmp_path, Mute(), lane_size=4)
    ends = {(row["task_id"], row["termination"]) for row in rows_of(tmp_path)}
    assert ends == {(f"tiny-{n}", "policy_error" if n == 3 else "customer_satisfied")
                    for n in range(12)}


def test_failures_of_completions_are_counted_by_episode(tmp_path):
    class Clumsy(Echo):
        def reply(self, conversations):
            return [{**r, "failure": "words_and_calls"} for r in super().reply(conversations)]

    evaluate(tmp_path, Clumsy(), num_tasks=3)
    for row in rows_of(tmp_path):
        assert row["failures"] == {"words_and_calls": row["num_turns"]}


@pytest.mark.parametrize("cut", [1, 40, 500, 3_000])
def test_a_line_that_a_kill_cut_is_played_again(tmp_path, cut):
    evaluate(tmp_path / "whole", lane_size=3)
    with pytest.raises(RunError):
        evaluate(tmp_path / "cut", Tired(24), lane_size=1)
    part = tmp_path / "cut" / PART_NAME
    part.write_bytes(part.read_bytes()[:-cut])
    evaluate(tmp_path / "cut", lane_size=3)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("spoil, error", [
    (lambda raw: raw.replace(b'"toy"', b'"other"'), "other settings .model is 'other', not 'toy'"),
    (lambda raw: raw.replace(b'"trial"', b'trial', 1), "damaged"),
    (lambda raw: b"[]\n" + raw, "damaged"),
])
def test_a_foreign_or_damaged_part_file_is_refused_and_kept(tmp_path, spoil, error):
    with pytest.raises(RunError):
        evaluate(tmp_path, Tired(20), lane_size=1)
    part = tmp_path / PART_NAME
    spoiled = spoil(part.read_bytes())
    part.write_bytes(spoiled)
    with pytest.raises(RunError, match=error):
        evaluate(tmp_path)
    assert part.read_bytes() == spoiled


def test_two_evaluations_do_not_share_a_folder(tmp_path):
    class Nested(Echo):
        def reply(self, conversations):
            with pytest.raises(RunError, match="another evaluation is writing it"):
                evaluate(tmp_path)
            return super().reply(conversations)

    evaluate(tmp_path, Nested(), num_tasks=1)


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(task_to_json(task) + "\n" for task in make_tasks(6)))
    return path


def words(task_file, output, *more):
    return ["evaluate", "--mode", "agent", "--tasks", str(task_file), "--output", str(output), *more]


def answer(request):
    """Speak in a way that depends on the conversation alone."""
    said = [m["content"] for m in request["messages"] if m["role"] != "system"]
    return Reply(f"Answer {len(said)} to {said[0][:60]}", delay_s=0.05)


def test_an_endpoint_is_measured_by_one_command_and_no_key_is_written(
    task_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeChatServer(answer) as server:
        more = ("--endpoint", server.base_url, "--model", "toy", "--num-trials", "2")
        assert task_tester.main(words(task_file, tmp_path / "out", *more)) == 0
    output = capsys.readouterr()
    assert "success_rate" in output.out and "0 retries, 0 unanswered" in output.err
    assert server.keys[0] == "Bearer sk-secret"
    usage = json.loads((tmp_path / "out" / "usage.json").read_text())
    turns = sum(row["num_turns"] for row in rows_of(tmp_path / "out"))
    assert usage == {"policy": {
        "num_requests": turns, "num_retries": 0, "num_unanswered": 0, "prompt_tokens": 10 * turns,
        "completion_tokens": 5 * turns, "cost": 0.0}}
    written = b"".join(files_of(tmp_path / "out").values())
    assert b"sk-secret" not in written and "sk-secret" not in output.out + output.err
    assert len(rows_of(tmp_path / "out")) == 12
    assert all(row["num_prompt_tokens"] == 10 * row["num_turns"] for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize("policy, success", [
    ("oracle", 1.0), ("nothing", 0.0), ("all-tools", 0.0), ("transfer", 0.0),
])
def test_scripted_policies_are_measured_by_one_command(tmp_path, policy, success):
    more = ("--policy", policy, "--limit", "10", "--num-trials", "2")
    assert task_tester.main(words(ROOT / "dataset.jsonl", tmp_path, *more)) == 0
    metrics = json.loads((tmp_path / "evaluation.json").read_text())
    assert metrics["success_rate"]["value"] == metrics["pass_hat_k"]["2"]["value"] == success
    assert metrics["num_tasks"] == 10 and len(rows_of(tmp_path)) == 20


def test_an_unfinished_evaluation_is_not_finished_with_other_customers(tmp_path, monkeypatch, capsys):
    command = words(ROOT / "dataset.jsonl", tmp_path, "--policy", "nothing", "--limit", "3")
    with monkeypatch.context() as patch:
        patch.setattr("agent.evaluation.write_viewer", interrupt_it)
        assert task_tester.main(command) == 130
    part = tmp_path / PART_NAME
    kept = part.read_text()
    hashed = json.loads(kept.partition("\n")[0])["customers_sha256"]
    earlier = kept.replace(f'"customers_sha256": "{hashed}", ', "")
    for text, then in ((kept.replace(hashed, "other"), "'other'"), (earlier, "None")):
        part.write_text(text)
        capsys.readouterr()
        assert task_tester.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"(customers_sha256 is {then}, not '{hashed}'); repeat its command, at its commit, to" in line
        assert part.read_text() == text
    part.write_text(kept)
    assert task_tester.main(command) == 0


def interrupt_it(*_):
    raise KeyboardInterrupt


def test_both_sides_may_be_endpoints(task_file, tmp_path):
    def script(request):
        is_customer = "You play a customer" in request["messages"][0]["content"]
        return Reply("###STOP###" if is_customer and len(request["messages"]) > 2 else "Hello.")

    with FakeChatServer(script) as server:
        more = ("--endpoint", server.base_url, "--model", "toy", "--customer", "endpoint")
        assert task_tester.main(words(task_file, tmp_path / "out", *more)) == 0
    for row in rows_of(tmp_path / "out"):
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        assert row["termination"] == "customer_satisfied"


@pytest.mark.parametrize("more, error", [
    ((), "nothing to evaluate: give --model, --endpoint with --model, or --policy"),
    (("--endpoint", "http://h/v1"), "nothing to evaluate: give --model NAME"),
    (("--policy", "oracle", "--model", "m"), "--policy: goes with neither --model nor --endpoint"),
    (("--endpoint", "h:80", "--model", "m"), "--endpoint h:80: no URL"),
    (("--endpoint", "http://u:key@h/v1", "--model", "m"), "put it into OPENAI_API_KEY"),
    (("--endpoint", "http://h/v1?key=1", "--model", "m"), "put it into OPENAI_API_KEY"),
    (("--policy", "nothing", "--customer", "endpoint"), "give --customer-endpoint"),
    (("--policy", "nothing", "--customer-model", "m"), "need --customer endpoint"),
    (("--policy", "nothing", "--temperature", "-1"), "--temperature -1.0: must be from 0 to 10"),
    (("--policy", "nothing", "--temperature", "nan"), "--temperature nan: must be from 0 to 10"),
    (("--policy", "nothing", "--num-trials", "1001"), "--num-trials 1001: must be from 1 to 1000"),
    (("--policy", "nothing", "--concurrency", "99999"), "--concurrency 99999: must be from 1 to 1024"),
    (("--policy", "nothing", "--max-new-tokens", "10000000"), "must be from 1 to 131072"),
    (("--policy", "nothing", "--seed", "-1"), "--seed -1: must be from 0 to 4294967295"),
    (("--policy", "nothing", "--timeout", "nan"), "--timeout nan: must be from 0.1 to 86400"),
    (("--policy", "nothing", "--timeout", "0"), "--timeout 0.0: must be from 0.1 to 86400"),
    (("--policy", "nothing", "--rpm", "1e-300"), "--rpm 1e-300: must be 0, for no limit"),
    (("--policy", "nothing", "--price", "1", "inf"), "--price inf: must be from 0 to 1000000"),
    (("--policy", "nothing", "--max-cost", "nan"), "--max-cost nan: must be from 0 to"),
    (("--policy", "nothing", "--tasks", "tau2", "--rpm", "60"), "do not reach tau2-bench"),
    (("--model", "./nowhere"), "--model ./nowhere: no such folder"),
    (("--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--max-cost", "1"), "max_cost needs"),
])
def test_wrong_options_are_one_line(task_file, tmp_path, capsys, monkeypatch, more, error):
    for name in ("OPENAI_BASE_URL", "TASK_LLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    assert task_tester.main(words(task_file, tmp_path / "out", *more)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and error in lines[0]
    assert not (tmp_path / "out").exists()


def test_plan_mode_refuses_such_numbers_too(task_file, tmp_path, capsys):
    more = ["--mode", "plan", "--model", "m", "--num-trials", "99999999"]
    assert task_tester.main([*words(task_file, tmp_path / "out"), *more]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["/proc/none/out", "/dev/null/out"])
def test_an_output_that_cannot_be_written_is_one_line_with_a_remedy(task_file, capsys, path):
    assert task_tester.main(words(task_file, path, "--policy", "nothing")) in (1, 2)
    [line] = capsys.readouterr().err.splitlines()
    assert "/proc/none" in line or "/dev/null" in line
    assert "; check the path" in line or "choose another --output" in line


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["policy", "customer"])
def test_ctrl_c_ends_a_wait_for_an_endpoint_and_the_next_start_goes_on(task_file, tmp_path, silent):
    waiting = threading.Event()

    def script(request):
        is_customer = "You play a customer" in request["messages"][0]["content"]
        name = "customer" if is_customer else "policy"
        if name == silent and len(server.requests) > 12 and not waiting.is_set():
            waiting.set()
        stuck = waiting.is_set() and len(server.requests) < 100
        return Reply("###STOP###" if is_customer and len(request["messages"]) > 2 else "Hello.",
                     delay_s=60 if stuck else 0)

    with FakeChatServer(script) as server:
        more = ("--endpoint", server.base_url, "--model", "toy", "--customer", "endpoint",
                "--concurrency", "3", "--num-trials", "2")
        command = words(task_file, tmp_path / "out", *more)
        status, error, seconds = interrupt(command, waiting.is_set)
        assert status == 130 and seconds < 5
        assert error.splitlines()[-1] == (
            "task_tester.py evaluate: interrupted; the same command goes on where it stopped")
        assert "Traceback" not in error
        kept = (tmp_path / "out" / PART_NAME).read_bytes().count(b"\n") - 1
        assert kept >= 2
        asked = json.loads((tmp_path / "out" / "usage.json").read_text())["policy"]["num_requests"]
        server.requests += [{}] * 100
        assert task_tester.main(command) == 0
    assert len(rows_of(tmp_path / "out")) == 12
    usage = json.loads((tmp_path / "out" / "usage.json").read_text())
    assert usage["policy"]["num_requests"] == asked + 12 - kept


@pytest.mark.slow
def test_a_small_model_is_measured_by_one_command(task_file, tmp_path, monkeypatch):
    monkeypatch.setattr("prompting.agent.agent_instructions", lambda: "Be kind.")
    monkeypatch.setattr("prompting.dialogue.agent_tools", list)
    model = make_model_dir(tmp_path / "model")
    more = ("--model", str(model), "--max-new-tokens", "4", "--num-trials", "2")
    assert task_tester.main(words(task_file, tmp_path / "out", *more)) == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 12 and {row["termination"] for row in rows} == {"broken_message"}
    assert all(sum(row["failures"].values()) == 1 <= row["num_tokens"] <= 4 for row in rows)


def run_command(command):
    assert task_tester.main(command) == 0


@pytest.mark.slow
def test_kill_9_of_a_sampled_local_model_gives_the_same_files(task_file, tmp_path):
    """What it draws depends on task, trial and turn, not on the episodes beside it."""
    run_config = configs.with_overrides(configs.get_preset("cpu"), {
        "mode": "agent", "model.num_threads": 1,  # a fork cannot use the threads of its parent
    })
    (tmp_path / "config.json").write_text(f'{{"settings": {run_config.to_json()}}}')
    (tmp_path / "model").symlink_to(ROOT / "models" / "tiny-gpt-oss")

    def start(output):
        """Fork a process that does the command; return its id."""
        more = ("--model", str(tmp_path / "model"), "--num-trials", "2", "--max-new-tokens", "48",
                "--limit", "6", "--concurrency", "8")
        command = words(ROOT / "dataset.jsonl", output, *more)
        process_id = os.fork()
        if not process_id:
            resume_run.be_child(tmp_path / "log.txt", functools.partial(run_command, command))
        return process_id

    def finish(output):
        assert os.waitpid(start(output), 0)[1] == 0, (tmp_path / "log.txt").read_text()

    finish(tmp_path / "whole")
    part = tmp_path / "cut" / PART_NAME
    for num_lines in (2, 6):
        process_id = start(tmp_path / "cut")
        while not part.exists() or part.read_bytes().count(b"\n") < num_lines:
            assert not os.waitpid(process_id, os.WNOHANG)[0], (tmp_path / "log.txt").read_text()
            time.sleep(0.01)
        resume_run.kill(process_id)
    finish(tmp_path / "cut")
    whole = files_of(tmp_path / "whole")
    assert files_of(tmp_path / "cut") == whole
    rows = rows_of(tmp_path / "whole")
    assert rows[0]["messages"] != rows[1]["messages"], "two trials draw apart"
    assert max(row["num_turns"] for row in rows) > 1


@pytest.mark.slow
def test_kill_9_at_random_moments_gives_the_same_file_and_repeats_no_finished_episode(
    task_file, tmp_path
):
    """Six kills over one evaluation of 72 episodes through the command line."""
    draw = random.Random(0)

    def command(output, url):
        more = ("--endpoint", url, "--model", "toy", "--num-trials", "12", "--concurrency", "3")
        return [sys.executable, "task_tester.py", *words(task_file, output, *more)]

    with FakeChatServer(answer) as server:
        subprocess.run(
            command(tmp_path / "whole", server.base_url), cwd=ROOT, check=True, capture_output=True
        )
        part = tmp_path / "cut" / PART_NAME
        for _ in range(6):
            process = subprocess.Popen(
                command(tmp_path / "cut", server.base_url), cwd=ROOT, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            size = part.stat().st_size if part.exists() else 0
            while (part.stat().st_size if part.exists() else 0) <= size:
                time.sleep(0.01)  # a start that is killed sooner finishes nothing
            time.sleep(draw.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        finished = [json.loads(line) for line in part.read_bytes().split(b"\n")[1:-1]]
        before = len(server.requests)
        subprocess.run(
            command(tmp_path / "cut", server.base_url), cwd=ROOT, check=True, capture_output=True
        )
        asked = len(server.requests) - before
    whole, cut = files_of(tmp_path / "whole"), files_of(tmp_path / "cut")
    for files in (whole, cut):  # a kill costs requests
        assert json.loads(files.pop("usage.json"))["policy"]["num_requests"] > 0
        files[".written_by.json"] = re.sub(rb'"usage.json": {.*?}', b"", files[".written_by.json"],
                                           flags=re.DOTALL)
    assert cut == whole
    turns = sum(row["num_turns"] for row in rows_of(tmp_path / "whole"))
    assert asked == turns - sum(row["num_turns"] for row in finished)
