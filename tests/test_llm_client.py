"""The chat client against a real HTTP server on loopback: retries, waits, time-outs, cost."""

import builtins
import json
import time

import pytest

from tasks.llm.client import (
    BudgetSpent,
    ChatClient,
    LlmConfig,
    LlmError,
    LlmRefused,
    LlmUnavailable,
    RateLimiter,
)
from tests.fake_chat_server import FakeChatServer, Reply, config, in_turn


def ask(client):
    return client.ask([{"role": "user", "content": "x"}])


def test_answer_tokens_and_cost_are_counted():
    with FakeChatServer(in_turn(Reply("hello", tokens=(1000, 200)))) as server:
        client = ChatClient(config(server, input_price=2.0, output_price=10.0, api_key="secret"))
        assert [ask(client), ask(client)] == ["hello", "hello"]
    assert (client.usage.num_requests, client.usage.num_retries) == (2, 0)
    assert (client.usage.prompt_tokens, client.usage.completion_tokens) == (2000, 400)
    assert client.usage.cost == pytest.approx(2 * (1000 * 2 + 200 * 10) / 1e6)
    assert server.keys == ["Bearer secret"] * 2


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=500), Reply(status=503), Reply(status=429), Reply(status=408),
        Reply(body=b"no gzip", headers={"Content-Encoding": "gzip"}), Reply(body=b'{"choices": ['),
        Reply(body=b"<html>"), Reply(body=b"[1]"),
        Reply(body=b'{"choices": []}'), Reply(body=b'{"error": {"message": "no"}}'), Reply(" "),
        Reply(body=b'{"choices": [{"message": {"content": null}}]}'),
    ],
    ids=lambda reply: f"{reply.status} {reply.body or reply.text!r}",
)
def test_a_passing_fault_is_tried_again(fault):
    with FakeChatServer(in_turn(fault, Reply("fine"))) as server:
        client = ChatClient(config(server))
        assert ask(client) == "fine"
    assert client.usage.num_requests == 2 and client.usage.num_retries == 1


def test_a_lasting_fault_ends_after_max_attempts():
    with FakeChatServer(in_turn(Reply(status=500))) as server:
        client = ChatClient(config(server))
        with pytest.raises(LlmUnavailable, match="after 3 attempts: HTTP 500"):
            ask(client)
    assert len(server.requests) == 3 and client.usage.num_unanswered == 1


def test_time_out_is_bounded_and_tried_again():
    with FakeChatServer(in_turn(Reply("late", delay_s=2.0), Reply("fine"))) as server:
        assert ask(ChatClient(config(server, timeout_s=0.2))) == "fine"


def test_no_server_is_an_unavailable_endpoint():
    with FakeChatServer(in_turn(Reply())) as server:
        gone = config(server)
    with pytest.raises(LlmUnavailable, match="connection failed"):
        ask(ChatClient(gone))


def test_retry_after_is_kept_and_bounded():
    waits = []
    replies = [Reply(status=429, headers={"Retry-After": wait}) for wait in ("3", "9999", "soon")]
    with FakeChatServer(in_turn(*replies, Reply("fine"))) as server:
        client = ChatClient(config(server, max_wait_s=7, max_attempts=4), sleep=waits.append)
        assert ask(client) == "fine"
    assert waits[:2] == [3.0, 7.0]
    assert 3 <= waits[2] <= 5  # "soon" is no number: the third backoff, 4 s with jitter


def test_backoff_grows_to_its_bound():
    waits = []
    with FakeChatServer(in_turn(Reply(status=500))) as server:
        client = ChatClient(config(server, max_wait_s=5, max_attempts=5), sleep=waits.append)
        with pytest.raises(LlmUnavailable):
            ask(client)
    assert len(waits) == 4 and waits == sorted(waits) and waits[-1] == 5


def test_a_refused_key_stops_at_once_and_a_refused_request_is_not_repeated():
    with FakeChatServer(in_turn(Reply(status=401))) as server:
        with pytest.raises(LlmError, match="refuses key or model"):
            ask(ChatClient(config(server)))
        assert len(server.requests) == 1
    with FakeChatServer(in_turn(Reply(status=400))) as server:
        with pytest.raises(LlmUnavailable, match="request refused"):
            ask(ChatClient(config(server)))
        assert len(server.requests) == 1


def test_budget_is_a_bound():
    with FakeChatServer(in_turn(Reply("x", tokens=(1_000_000, 0)))) as server:
        client = ChatClient(config(server, input_price=1.0, max_cost=2.0))
        ask(client), ask(client)
        with pytest.raises(BudgetSpent, match="2.0 US dollars"):
            ask(client)
        assert len(server.requests) == 2


def test_rate_limit_spaces_requests():
    now, waits = [0.0], []
    limiter = RateLimiter(30, clock=lambda: now[0], sleep=waits.append)
    for _ in range(3):
        limiter.wait()
    assert waits == [2.0, 4.0]
    now[0] = 100.0
    limiter.wait()
    assert len(waits) == 2


def test_settings_come_from_the_environment(monkeypatch):
    for name in ("TASK_LLM_MODEL", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LlmError, match="TASK_LLM_MODEL"):
        LlmConfig.from_environment()
    monkeypatch.setenv("TASK_LLM_MODEL", "m")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert LlmConfig.from_environment(base_url=None).base_url == "http://127.0.0.1:1/v1"
    assert LlmConfig.from_environment(model="other").model == "other"


@pytest.mark.parametrize(
    "field", [{"timeout_s": 0}, {"num_workers": 0}, {"max_wait_s": -1}, {"max_cost": 1.0}]
)
def test_a_wrong_setting_is_named(field):
    with pytest.raises(LlmError, match=next(iter(field))):
        LlmConfig(model="m", **field)


def test_missing_package_names_the_command(monkeypatch):
    real = builtins.__import__

    def without_openai(name, *args, **kwargs):
        if name == "openai":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_openai)
    with pytest.raises(LlmError, match="pip install 'openai"):
        ChatClient(LlmConfig(model="m"))


CALL_MESSAGE = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}


def test_messages_with_calls_come_back_whole_and_tools_are_sent():
    body = json.dumps({"choices": [{"message": CALL_MESSAGE}],
                       "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()
    with FakeChatServer(in_turn(Reply(body=body))) as server:
        client = ChatClient(config(server))
        message = client.converse([{"role": "user", "content": "x"}], [{"type": "function"}])
    sent = {"content": None, "tool_calls": CALL_MESSAGE["tool_calls"]}
    assert message == sent | {"num_prompt_tokens": 7, "num_tokens": 3}
    assert server.requests[0]["tools"] == [{"type": "function"}]
    assert client.usage.completion_tokens == 3


def test_an_empty_message_is_the_models_own_and_not_asked_again():
    with FakeChatServer(in_turn(Reply(""))) as server:
        assert ChatClient(config(server)).converse([], [])["content"] == ""
    assert len(server.requests) == 1


@pytest.mark.parametrize("status, error", [(400, LlmRefused), (401, LlmError)])
def test_an_endpoint_that_repeats_the_key_does_not_get_it_printed(status, error):
    body = json.dumps({"error": {"message": "bad key sk-secret\n" + "x" * 5_000}}).encode()
    with FakeChatServer(in_turn(Reply(status=status, body=body))) as server:
        with pytest.raises(error) as caught:
            ChatClient(config(server, api_key="sk-secret")).converse([], [])
    assert "sk-secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_key_that_an_answer_repeats_is_taken_out_of_it():
    with FakeChatServer(lambda _request: Reply("Your key is sk-secret-123.")) as server:
        client = ChatClient(config(server, api_key="sk-secret-123"))
        assert ask(client) == "Your key is (key)."


@pytest.mark.parametrize("number", ["9" * 4000, "-1", "true"])
def test_a_count_that_is_none_costs_nothing(number):
    body = f'{{"choices": [{{"message": {{"content": "Hi"}}}}], "usage": {{"prompt_tokens": {number}}}}}'
    with FakeChatServer(lambda _request: Reply(body=body.encode())) as server:
        client = ChatClient(config(server, input_price=1.0))
        assert ask(client) == "Hi" and client.usage.cost == 0


def test_an_answer_that_is_too_long_is_a_failure(monkeypatch):
    monkeypatch.setattr("tasks.llm.client.MAX_ANSWER_BYTES", 1000)
    with FakeChatServer(lambda _request: Reply("x" * 2000)) as server:
        with pytest.raises(LlmUnavailable, match="longer than 1000 bytes"):
            ask(ChatClient(config(server, max_attempts=1)))


def test_an_answer_that_drips_in_is_a_time_out():
    def handle(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            for _ in range(1000):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    with FakeChatServer(lambda _request: Reply("")) as server:
        server._server.RequestHandlerClass.do_POST = handle
        began = time.monotonic()
        with pytest.raises(LlmUnavailable, match="time-out after 0.5 s"):
            ask(ChatClient(config(server, max_attempts=1, timeout_s=0.5)))
        assert time.monotonic() - began < 5
