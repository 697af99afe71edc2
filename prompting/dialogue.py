"""Harmony for whole conversations: OpenAI-style messages to a prompt, a completion to a message.

What anybody wrote, tool results included, is text: a control token in it is taken apart, so nothing
but the renderer opens or closes a message. The format is described in OpenAI's harmony response format.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prompting.agent import agent_tools, brief_result, with_instructions
from prompting.harmony import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    START,
    STOP_TOKENS,
    Parsed,
    parse_completion,
    render_prompt,
)
from prompting.plan import PromptStyle

Message = dict[str, Any]
"""A message in OpenAI's form: role, content, and tool_calls or tool_call_id where they belong."""

Tools = Sequence[Mapping[str, Any]]
"""OpenAI-style schemas."""

ReplyFailure = Literal[
    "cut_off", "no_message", "only_analysis", "words_and_calls", "bad_arguments"
]
"""What is wrong with a completion.

- cut_off: no stop token at its end; nothing of it is used
- no_message: it stopped, and neither a final message nor a call nor analysis can be read
- only_analysis: the model thought and said nothing
- words_and_calls: a final message beside a call; the call is used
- bad_arguments: the arguments of a call are no JSON object; the store refuses the call in words
"""

_CONTROL = re.compile(r"<(?=\|\w+\|>)")
_NAME_GAPS = re.compile(r"[\s<>|]+")


@dataclass(frozen=True)
class Reply:
    """A completion, read."""

    message: Message
    """The assistant message; content "" and no calls when nothing can be used."""
    analysis: str = ""
    """The model's thinking; for its own next turns, never for the customer."""
    failure: ReplyFailure | None = None
    """What is wrong with the completion, None when nothing is."""


def defuse(text: str) -> str:
    """Return the text with every control token, `<|word|>`, taken apart: `< |word|>`.

    An inserted space can join nothing to a new token, whatever stood around it.
    """
    return _CONTROL.sub("< ", text)


def render_call(name: str, arguments: str) -> str:
    """Render a native call as GPT-OSS writes it, from the channel to `<|call|>`."""
    body = f"{CONSTRAIN}json{MESSAGE}{defuse(arguments)}{CALL}"
    return f"{CHANNEL}commentary to=functions.{_recipient(name)} {body}"


def render_turn(message: Mapping[str, Any]) -> list[str]:
    """Render an assistant message as history has it: each call, or the words with `<|end|>`."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    if calls:
        return [render_call(call["name"], call["arguments"]) for call in calls]
    return [f"{CHANNEL}final{MESSAGE}{defuse(message['content'] or '')}{END}"]


def render_answers(
    reply: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], style: PromptStyle = "full"
) -> str:
    """Render what follows an assistant message: its calls' results, or the customer's words.

    Args:
        reply: the assistant message.
        answers: the messages that follow it; the k-th tool message answers its k-th call.
        style: "brief" shortens results, see `brief_result`.

    Raises:
        ValueError: a message has another role, or a tool message answers no call.
    """
    awaiting = [call["function"]["name"] for call in reply.get("tool_calls") or ()]
    parts = []
    for message in answers:
        role, content = message["role"], message["content"] or ""
        if role == "user":
            parts.append(f"{START}user{MESSAGE}{defuse(content)}{END}")
        elif role == "tool" and awaiting:
            name = awaiting.pop(0)
            content = defuse(brief_result(name, content) if style == "brief" else content)
            header = f"{START}functions.{_recipient(name)} to=assistant{CHANNEL}commentary{MESSAGE}"
            parts.append(f"{header}{content}{END}")
        elif role == "tool":
            raise ValueError("a tool message answers no call; put it behind its assistant message")
        else:
            raise ValueError(f"message role {role!r}: must be user, assistant or tool")
    return "".join(parts)


def _recipient(name: str) -> str:
    return _NAME_GAPS.sub("_", name) or "_"


def render_dialogue(
    messages: Sequence[Mapping[str, Any]],
    tools: Tools,
    analyses: Mapping[int, str] | None = None,
    reasoning: str = "low",
    date: str = "2025-06-28",
    style: PromptStyle = "full",
) -> str:
    """Render a conversation up to the point where the assistant speaks.

    Thinking that led to the calls since the assistant's last words stays, as harmony asks for;
    earlier thinking is left out. So a prompt continues the last prompt and completion exactly
    while the assistant calls tools in the canonical form.

    Args:
        messages: OpenAI form: an optional system message first, then user, assistant and tool
            messages. The k-th tool message after an assistant message answers its k-th call.
        tools: OpenAI-style schemas.
        analyses: thinking by the index of the assistant message that it led to.
        reasoning: reasoning effort named in the system message: low, medium or high.
        date: current date named in the system message, YYYY-MM-DD.
        style: "brief" shortens results, see `brief_result`.

    Returns:
        Text that ends with `<|start|>assistant`.

    Raises:
        ValueError: a message has another role, or a tool message answers no call.
    """
    turns = list(enumerate(messages))
    first = []
    if turns and turns[0][1]["role"] in ("system", "developer"):
        first = [{"role": "developer", "content": defuse(turns.pop(0)[1]["content"])}]
    assistant = START + "assistant"
    parts = [render_prompt(first, tools, reasoning, date).removesuffix(assistant)]
    last_words = max((index for index, m in turns if _is_words(m)), default=-1)
    reply: Mapping[str, Any] = {}
    answers: list[Mapping[str, Any]] = []
    for index, message in turns:
        if message["role"] != "assistant":
            answers.append(message)
            continue
        parts.append(render_answers(reply, answers, style))
        reply, answers = message, []
        thinking = (analyses or {}).get(index)
        if thinking and index > last_words:
            parts.append(f"{assistant}{CHANNEL}analysis{MESSAGE}{defuse(thinking)}{END}")
        parts += [assistant + text for text in render_turn(message)]
    parts.append(render_answers(reply, answers, style))
    return "".join(parts) + assistant


class HarmonyFormat:
    """How GPT-OSS reads and writes conversations.

    Args:
        reasoning: reasoning effort: low, medium or high.
        style: "full" shows policy, tools and whole results; "brief" one line and short results, for
            a model that learns the rest from examples.
        tools: OpenAI-style schemas; None shows the store's in the full style.
    """

    def __init__(
        self, reasoning: str = "low", style: PromptStyle = "full", tools: Tools | None = None
    ) -> None:
        self._reasoning, self.style = reasoning, style
        self._tools = tools or (agent_tools() if style == "full" else [])

    def render(self, messages: Sequence[Mapping[str, Any]], analyses: Mapping[int, str]) -> str:
        """Return the prompt of a conversation, policy and tools included; arguments as `render_dialogue`.

        A system message before the others replaces the policy.
        """
        whole = with_instructions(messages, self.style)
        shift = len(whole) - len(messages)
        shifted = {index + shift: text for index, text in analyses.items()}
        return render_dialogue(whole, self._tools, shifted, self._reasoning, style=self.style)

    def parse(self, completion: str) -> Reply:
        """Read a completion, see `parse_reply`."""
        return parse_reply(completion)


def _is_words(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


def parse_reply(text: str) -> Reply:
    """Read a completion as an assistant message; never raises.

    Args:
        text: what follows the prompt's `<|start|>assistant`, special tokens included.
    """
    parsed = parse_completion(text)
    if not parsed.complete:
        stopped = any(token in text for token in STOP_TOKENS)
        return Reply(assistant_message(""), parsed.analysis, "no_message" if stopped else "cut_off")
    names = [call["name"] for call in parsed.tool_calls]
    message = assistant_message(
        "" if names else parsed.final, list(zip(names, parsed.call_texts, strict=True))
    )
    return Reply(message, parsed.analysis, _failure(parsed))


def _failure(parsed: Parsed) -> ReplyFailure | None:
    if not parsed.tool_calls and not parsed.final:
        return "only_analysis" if parsed.analysis else "no_message"
    if any(isinstance(call["arguments"], str) for call in parsed.tool_calls):
        return "bad_arguments"
    return "words_and_calls" if parsed.tool_calls and parsed.final else None


def assistant_message(content: str, calls: Sequence[tuple[str, str]] = ()) -> Message:
    """Return an assistant message in OpenAI's form.

    Args:
        calls: name and arguments, as JSON text, of each call.
    """
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function",
             "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(calls)
        ]
    return message
