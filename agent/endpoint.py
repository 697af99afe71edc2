"""A policy and a customer behind any OpenAI-compatible chat endpoint.

Retries, rate limit, tokens and cost are the client's (`tasks/llm/client.py`). Left out: streaming,
and models that are called in this process.
"""

import re
from collections.abc import Sequence

from agent.conversation import Conversation, CustomerTurn, Message
from agent.workers import Workers
from data_reader import Task
from envs.retail import RetailDatabase
from prompting.agent import agent_tools, with_instructions
from tasks.llm.client import ChatClient, LlmRefused

STOP, GIVE_UP = "###STOP###", "###GIVE UP###"
CUSTOMER_PROMPT = """\
You play a customer who writes to the support chat of an online shop. Each message that you get is \
from the agent; answer with the customer's next message and nothing else.

- Say only what your scenario says. Do not make up ids, addresses or facts; when asked for what the \
scenario does not hold, say that you do not have it at hand.
- Give what you know bit by bit, when it is asked for. Write in your own words, in one to three \
sentences, as people type in a chat.
- When the agent asks you to confirm a change, compare it with the scenario: say yes when it is what \
you want, else say what is wrong. Never leave while a question to confirm is open.
- When all that you want is done or refused for good, and the agent has confirmed it, or when you \
are handed over to a person, answer with ###STOP### alone. When the agent is of no use at all, \
answer with ###GIVE UP### alone.

Your scenario:
"""
_GREETING = {"role": "user", "content": "Hi! How can I help you today?"}
_MARK = re.compile("|".join(map(re.escape, (STOP, GIVE_UP))))


class EndpointPolicy:
    """An agent behind an endpoint, which the client asks."""

    def __init__(self, client: ChatClient) -> None:
        self.client = client
        self._tools = agent_tools()

    def reply(self, conversations: Sequence[Conversation]) -> list[Message | None]:
        """Ask for the next message of each conversation, several at once.

        Returns:
            The messages; None where the endpoint refuses the conversation, as when it is too long.

        Raises:
            LlmUnavailable: The endpoint gave no answer to one of them, or the budget is spent.
            LlmError: The endpoint refuses key or model name.
        """
        if len(conversations) == 1:
            return [self._ask(conversations[0])]
        with Workers(min(self.client.config.num_workers, len(conversations))) as workers:
            return workers.map(self._ask, conversations)

    def _ask(self, conversation: Conversation) -> Message | None:
        try:
            return self.client.converse(with_instructions(conversation.messages), self._tools)
        except LlmRefused:
            return None


class EndpointCustomer:
    """A customer played by a model behind an endpoint.

    It knows the task's scenario, or its query where there is none, and hears the agent's words only.
    """

    def __init__(self, task: Task, client: ChatClient) -> None:
        self._client = client
        scenario = task.instruction or f"You want this: {task.query}"
        self._system = {"role": "system", "content": CUSTOMER_PROMPT + scenario}

    def open(self, db: RetailDatabase) -> CustomerTurn:
        """Return the first words; the store is not read.

        Raises:
            LlmUnavailable: The endpoint gave no answer, or the budget is spent.
            LlmError: The endpoint refuses key or model name.
        """
        return self._say([_GREETING])

    def reply(self, messages: Sequence[Message]) -> CustomerTurn:
        """Answer the agent's last words; raises as `open`."""
        heard = [_GREETING]
        for message in messages:
            if message["role"] == "user":
                heard.append({"role": "assistant", "content": message["content"]})
            elif message["role"] == "assistant" and not message.get("tool_calls"):
                heard.append({"role": "user", "content": message["content"]})
        return self._say(heard)

    def _say(self, heard: list[Message]) -> CustomerTurn:
        text = self._client.ask([self._system, *heard])
        marks = set(_MARK.findall(text))
        end = "gave_up" if GIVE_UP in marks else "satisfied" if marks else None
        return CustomerTurn(_MARK.sub("", text).strip(), end)
