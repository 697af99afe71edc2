"""One conversation between a policy and a customer over a store of its own.

A policy's message goes in, observations or the customer's words come out, until the customer ends,
a person takes over or a limit is reached. Whatever a policy writes is answered or ends its own
conversation; it never raises. Left out: prompts, rendering and tokens (the policies), and scores.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from data_reader import Task
from envs.retail import WRITE_TOOLS, Episode, RetailDatabase
from prompting.dialogue import Message
from scoring.transcript import MAX_ARGUMENT_CHARACTERS, run_call
from scoring.violations import asks_for_confirmation

Termination = Literal[
    "customer_satisfied", "customer_gave_up", "customer_left_before_confirmation", "transferred",
    "turn_limit", "call_limit", "token_limit", "time_limit", "broken_message", "policy_error",
]
"""Why a conversation ended.

- customer_satisfied: the customer has nothing left to ask for
- customer_gave_up: the customer lost patience, or was refused what they had a right to
- customer_left_before_confirmation: the customer hung up on the question whether to go ahead,
  while gold has more writes than were made
- transferred: a person took over
- turn_limit, call_limit, token_limit, time_limit: see `Limits`
- broken_message: the policy's message has neither words nor calls, or is no message
- policy_error: the policy itself failed, see `Conversation.abort`
"""

_MAX_TEXT_CHARACTERS = 20_000
_MAX_CALLS_A_MESSAGE = 256
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Limits:
    """How long a conversation may get."""

    max_turns: int = 40
    """Messages of the policy."""
    max_calls: int = 60
    """Tool calls, refused ones included."""
    max_tokens: int = 32_768
    """Tokens that the policy wrote, see `Conversation.step`."""
    max_seconds: float = 3600.0
    """Wall time since the start, the policy's own time included; a guard, not a measure."""

    def __post_init__(self) -> None:
        """Refuse limits that let nothing happen."""
        for name in ("max_turns", "max_calls", "max_tokens", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be above 0, is {getattr(self, name)}")


@dataclass(frozen=True)
class CustomerTurn:
    """What the customer says, and whether the customer then hangs up."""

    text: str
    """Words for the agent; may be empty when the customer ends."""
    end: Literal["satisfied", "gave_up"] | None = None
    """None: the talk goes on."""


class Customer(Protocol):
    """The other side of a conversation; one object serves one conversation."""

    def open(self, db: RetailDatabase) -> CustomerTurn:
        """Return the first words.

        Args:
            db: The store; a customer may read their own records and the catalogue.
        """

    def reply(self, messages: Sequence[Message]) -> CustomerTurn:
        """Answer the last message, which is the agent's and holds words.

        Args:
            messages: The whole conversation; read-only. A customer hears only the words.
        """


class Policy(Protocol):
    """An agent: one model, endpoint or script that plays any number of conversations at once."""

    def reply(self, conversations: Sequence["Conversation"]) -> list[Message]:
        """Return the next assistant message of each conversation, in their order.

        Args:
            conversations: Open ones, each waiting for the policy; only `step` changes them.

        Returns:
            Messages `{"role": "assistant", "content": str | None, "tool_calls"?: [{"id"?, "type"?,
            "function": {"name", "arguments": JSON text or object}}]}`. `num_tokens`, an int, may be
            added: what the message cost, see `Conversation.step`.
        """


class Conversation:
    """A task being talked through.

    Args:
        customer: Speaks first, and belongs to this conversation.
        seed: For the draws of a policy; the conversation itself draws nothing.
    """

    def __init__(
        self, task: Task, db: RetailDatabase, customer: Customer, limits: Limits | None = None,
        seed: int = 0,
    ) -> None:
        self.task, self.db, self.customer, self.seed = task, db, customer, seed
        self.limits = limits or Limits()
        self.episode = Episode(db)
        self.messages: list[Message] = []
        self.termination: Termination | None = None
        self.num_turns = self.num_calls = self.num_tokens = self._num_writes = 0
        self._began = time.monotonic()
        self._hear(customer.open(db))

    @property
    def done(self) -> bool:
        """Whether the conversation has ended; `termination` says why."""
        return self.termination is not None

    def step(self, message: object) -> list[Message]:
        """Play one message of the policy.

        Calls are run in order, and words beside them do not reach the customer. A message without
        calls is said to the customer.

        Args:
            message: See `Policy.reply`. Without `num_tokens` a token counts as 4 characters.

        Returns:
            The messages that follow it: an observation for each call, or the customer's words.
            Empty when it ended the conversation.

        Raises:
            ValueError: The conversation has ended. Nothing else is raised, whatever the message.
        """
        if self.done:
            raise ValueError(f"the conversation has ended ({self.termination}); start another one")
        self.num_turns += 1
        num_messages = len(self.messages) + 1
        clean, num_tokens = clean_message(message)
        self.num_tokens += num_tokens
        calls = clean.get("tool_calls", [])
        room = self.limits.max_calls - self.num_calls
        if len(calls) > room:
            clean["tool_calls"] = calls[:room]
        self.messages.append(clean)
        if self.num_tokens > self.limits.max_tokens:
            clean.pop("tool_calls", None)
            self.termination = "token_limit"
        elif time.monotonic() - self._began > self.limits.max_seconds:
            clean.pop("tool_calls", None)
            self.termination = "time_limit"
        elif calls:
            self._run(calls[:room])
            if len(calls) > room and not self.done:
                self.termination = "call_limit"
        elif not clean["content"].strip():
            self.termination = "broken_message"
        else:
            self._hear(self.customer.reply(self.messages))
        if not self.done and self.num_turns >= self.limits.max_turns:
            self.termination = "turn_limit"
        return self.messages[num_messages:]

    def abort(self) -> None:
        """End a conversation whose policy failed for reasons of its own, such as a lost endpoint."""
        self.termination = "policy_error"

    def _run(self, calls: list[Message]) -> None:
        for position, call in enumerate(calls, start=1):
            self.num_calls += 1
            name = call["function"]["name"]
            ok, content = run_call(self.episode, name, call["function"]["arguments"])
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            observation = {"role": "tool", "tool_call_id": call["id"], "content": text}
            self.messages.append(observation)
            self._num_writes += ok and name in WRITE_TOOLS
            if ok and name == "transfer_to_human_agents":
                # What the policy asked for after the hand-over has not happened.
                del calls[position:]
                asked = next(m for m in reversed(self.messages) if m["role"] == "assistant")
                asked["tool_calls"] = calls
                self.termination = "transferred"
                return

    def _hear(self, turn: CustomerTurn) -> None:
        gold_writes = sum(action["name"] in WRITE_TOOLS for action in self.task.gold_actions)
        asked = self._num_writes < gold_writes and self.num_turns and asks_for_confirmation(
            self.messages[-1]["content"]
        )
        text = _encodable(turn.text[:_MAX_TEXT_CHARACTERS])
        if text:
            self.messages.append({"role": "user", "content": text})
        if turn.end == "satisfied" and not asked:
            self.termination = "customer_satisfied"
        elif turn.end is not None:
            self.termination = "customer_left_before_confirmation" if asked else "customer_gave_up"


def play(conversations: Iterable[Conversation], policy: Policy) -> None:
    """Play conversations to their ends, all open ones a turn at a time.

    Args:
        conversations: Any number, each with a customer of its own.
        policy: Is asked for all open conversations at once; None in the place of a message aborts
            one, such as one that has outgrown a model's context.
    """
    waiting = [conversation for conversation in conversations if not conversation.done]
    while waiting:
        for conversation, message in zip(waiting, policy.reply(waiting), strict=True):
            if message is None:
                conversation.abort()
            else:
                conversation.step(message)
        waiting = [conversation for conversation in waiting if not conversation.done]


# -- what a policy wrote, made safe to keep ----------------------------------------------------


def _encodable(text: str) -> str:
    """Return the text with `?` for every lone surrogate, so that any file can hold it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def clean_message(message: object) -> tuple[Message, int]:
    """Return a message in OpenAI's form, empty for what is none, and the tokens it cost."""
    if not isinstance(message, dict):
        return {"role": "assistant", "content": ""}, 1
    content = message.get("content")
    content = content if isinstance(content, str) else ""
    raw_calls = message.get("tool_calls")
    raw_calls = raw_calls[:_MAX_CALLS_A_MESSAGE] if isinstance(raw_calls, list) else []
    calls = [_clean_call(call, number) for number, call in enumerate(raw_calls)]
    num_tokens = message.get("num_tokens")
    if type(num_tokens) is not int or num_tokens < 0:
        sizes = [len(c["function"]["name"]) + len(c["function"]["arguments"]) for c in calls]
        num_tokens = (len(content) + sum(sizes)) // _CHARACTERS_PER_TOKEN + 1
    for call in calls:
        function = call["function"]
        function["name"] = _encodable(function["name"][:_MAX_TEXT_CHARACTERS])
        # One character more than is read, so that a cut text is refused as too long.
        function["arguments"] = _encodable(function["arguments"][: MAX_ARGUMENT_CHARACTERS + 1])
    clean: Message = {"role": "assistant", "content": _encodable(content[:_MAX_TEXT_CHARACTERS])}
    if calls:
        clean["tool_calls"] = calls
    return clean, num_tokens


def _clean_call(call: object, number: int) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(arguments, str):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            arguments = "null"
    call_id = call.get("id") if isinstance(call, dict) else None
    if not isinstance(call_id, str) or not 0 < len(call_id) <= 64 or not call_id.isascii():
        call_id = f"call_{number}"
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name if isinstance(name, str) else "", "arguments": arguments},
    }
