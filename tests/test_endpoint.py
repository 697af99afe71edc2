"""An agent and a customer behind a chat endpoint on loopback."""

import json

import pytest

from agent.conversation import Conversation, CustomerTurn
from agent.endpoint import GIVE_UP, STOP, EndpointCustomer, EndpointPolicy
from data_reader import Task
from envs.retail import RetailDatabase
from tasks.llm.client import ChatClient, LlmError, LlmUnavailable
from tests.fake_chat_server import FakeChatServer, Reply, config, in_turn

TASK = Task(
    "Cancel my order.", [{"name": "list_all_product_types", "arguments": {}}], "done", "t",
    instruction="You are Ann and want your order cancelled.",
)


def message_reply(message, tokens=(10, 5)):
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Reply(body=json.dumps({"choices": [{"message": message}], "usage": usage}).encode())


def call_reply(name, arguments="{}"):
    function = {"name": name, "arguments": arguments}
    return message_reply({"role": "assistant", "content": None, "reasoning_content": "secret plan",
                          "tool_calls": [{"id": "c", "type": "function", "function": function}]})


class Silent:
    """A customer who says one thing and leaves."""

    def open(self, db):
        return CustomerTurn("Hi")

    def reply(self, messages):
        return CustomerTurn("", "satisfied")


def conversation(customer=None, seed=0):
    return Conversation(TASK, RetailDatabase.load(), customer or Silent(), seed=seed)


def test_policy_calls_a_tool_reads_the_result_and_speaks():
    with FakeChatServer(in_turn(call_reply("list_all_product_types"), Reply("Done."))) as server:
        policy = EndpointPolicy(ChatClient(config(server)))
        talk = conversation(seed=3)
        while not talk.done:
            talk.step(policy.reply([talk])[0])
    first, second = server.requests
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert "Acoustic Guitar" in second["messages"][3]["content"] and len(first["tools"]) == 16
    assert talk.num_tokens == 10
    assert "secret plan" not in json.dumps(talk.messages) and "secret plan" not in str(second)
    assert talk.termination == "customer_satisfied"


def test_many_conversations_do_not_mix():
    def script(request):
        return Reply("echo " + request["messages"][1]["content"], delay_s=0.05)

    with FakeChatServer(script) as server:
        talks = [conversation() for _ in range(12)]
        for number, talk in enumerate(talks):
            talk.messages[0]["content"] = f"I am {number}"
        replies = EndpointPolicy(ChatClient(config(server, num_workers=6))).reply(talks)
    assert [reply["content"] for reply in replies] == [f"echo I am {n}" for n in range(12)]


def test_a_conversation_that_is_refused_gets_no_answer_and_others_do():
    def script(request):
        is_long = "long" in request["messages"][1]["content"]
        return Reply(status=400) if is_long else Reply("Hi")

    with FakeChatServer(script) as server:
        talks = [conversation(), conversation()]
        talks[0].messages[0]["content"] = "too long"
        replies = EndpointPolicy(ChatClient(config(server))).reply(talks)
    assert replies[0] is None and replies[1]["content"] == "Hi"


@pytest.mark.parametrize("status, error", [(500, LlmUnavailable), (401, LlmError)])
def test_a_lost_endpoint_raises(status, error):
    with FakeChatServer(in_turn(Reply(status=status))) as server:
        with pytest.raises(error):
            EndpointPolicy(ChatClient(config(server))).reply([conversation()])


@pytest.mark.parametrize("message", [
    {}, {"content": 7}, {"content": None, "tool_calls": [None, {"function": 3}]},
    {"content": "x", "tool_calls": "f"}, {"content": "x", "num_prompt_tokens": "many", "failure": []},
    {"tool_calls": [{"function": {"name": None, "arguments": [1]}}]},
])
def test_malformed_messages_never_break_the_conversation(message):
    with FakeChatServer(in_turn(message_reply(message))) as server:
        talk = conversation()
        talk.step(EndpointPolicy(ChatClient(config(server))).reply([talk])[0])
    assert talk.termination in ("broken_message", "customer_satisfied") or not talk.done
    assert talk.episode.changed_records() == {"orders": {}, "users": {}}


@pytest.mark.parametrize("said, text, end", [
    ("Yes, please.", "Yes, please.", None),
    (STOP, "", "satisfied"),
    (f"Thanks! {STOP}", "Thanks!", "satisfied"),
    (GIVE_UP, "", "gave_up"),
    (f"Bye {STOP} {GIVE_UP}", "Bye", "gave_up"),
])
def test_customer_speaks_and_ends(said, text, end):
    with FakeChatServer(in_turn(Reply(said))) as server:
        turn = EndpointCustomer(TASK, ChatClient(config(server))).open(RetailDatabase.load())
    assert turn == CustomerTurn(text, end)


def test_customer_hears_words_alone_and_speaks_as_the_assistant():
    with FakeChatServer(in_turn(Reply("Hello, cancel it."), Reply("Yes."))) as server:
        customer = EndpointCustomer(TASK, ChatClient(config(server)))
        talk = conversation(customer)
        talk.step({"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "list_all_product_types", "arguments": "{}"}}]})
        talk.step({"role": "assistant", "content": "Shall I?"})
    heard = server.requests[-1]["messages"]
    assert [m["role"] for m in heard] == ["system", "user", "assistant", "user"]
    assert heard[2]["content"] == "Hello, cancel it." and heard[3]["content"] == "Shall I?"
    assert TASK.instruction in heard[0]["content"] and "Acoustic Guitar" not in json.dumps(heard)
    assert "tools" not in server.requests[-1] and talk.messages[-1]["content"] == "Yes."
