"""Harmony, the message format of GPT-OSS: render prompts and completions, parse completions.

Prompts and completions are plain text in this format and are tokenised as they are (special tokens
parsed), so training, sampling and scoring share one rendering and one parser. `render_prompt` gives the
text of the stock GPT-OSS chat template; calls and results are rendered by `prompting/dialogue.py`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common import strict_json

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, RETURN, CALL = "<|end|>", "<|return|>", "<|call|>"
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"

SPECIAL_TOKENS = (START_OF_TEXT, END_OF_TEXT, RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL)
"""Every control token that the format uses, as text."""

STOP_TOKENS = (RETURN, CALL)
"""Tokens that end a generation: the turn is over, or a tool result is awaited."""

_HEADER = re.compile(
    r"\s*assistant(?:\s+to=(?P<first>[^\s<]+))?\s*"
    r"<\|channel\|>\s*(?P<channel>analysis|commentary|final)(?:\s+to=(?P<second>[^\s<]+))?"
    r"(?:(?:\s+|\s*<\|constrain\|>\s*)(?i:json|code))?\s*"
)
"""Role, channel, recipient in either place, content type; anything else or a repetition fails."""
_TOOL_PREFIX = "functions."
_SPLIT = re.compile("(" + "|".join(re.escape(token) for token in SPECIAL_TOKENS) + ")")
_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
_VALID_CHANNELS = (
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
_TOOLS_GO_TO = "\nCalls to these tools must go to the commentary channel: 'functions'."


@dataclass(frozen=True)
class Parsed:
    """What a completion says, channel by channel."""

    final: str = ""
    """Text on the final channel, as written; "" when there is none. Several final messages are
    joined by a newline: all of them would be shown to the customer, none is picked."""
    analysis: str = ""
    """Text on the analysis channel, messages joined by a newline."""
    tool_calls: list[dict] = field(default_factory=list)
    """Native calls, in order: `name` and `arguments` (an object, or the raw text when it is no
    strict JSON object: keys repeated, NaN)."""
    call_texts: list[str] = field(default_factory=list)
    """The arguments of each native call as they were written."""
    complete: bool = False
    """True when the last message was closed by a stop token (else it was cut off or is garbage)."""


def find_special_token(text: str) -> str | None:
    """Return the first control token in `text`, None when there is none.

    Such text must not become part of a prompt: it would be tokenised as control tokens.
    """
    match = _SPLIT.search(text)
    return match.group() if match else None


def _content(text: str, role: str) -> str:
    token = find_special_token(text)
    if token is not None:
        raise ValueError(f"{role} message: contains the control token {token}; remove it")
    return text


def _typescript_type(spec: Mapping[str, Any]) -> str:
    if spec["type"] == "array":
        return _typescript_type(spec["items"]) + "[]"
    if spec["type"] == "string" and "enum" in spec:
        return " | ".join(f'"{value}"' for value in spec["enum"])
    names = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
    if spec["type"] not in names:
        raise ValueError(f"parameter type {spec['type']!r} has no harmony rendering here")
    return names[spec["type"]]


def render_tools(tools: Iterable[Mapping[str, Any]]) -> str:
    """Render tool schemas as the TypeScript namespace that GPT-OSS was trained on.

    Args:
        tools: OpenAI-style schemas; parameters are strings, enums, numbers, booleans or arrays of
            those.

    Raises:
        ValueError: a parameter has another type, or a tool's summary has more than one line (its
            second line would fall outside of the comment).
    """
    parts = ["## functions\n\nnamespace functions {\n\n"]
    for tool in tools:
        function = tool["function"]
        if "\n" in function["description"]:
            raise ValueError(f"tool {function['name']}: the description must be one line")
        parts.append(f"// {function['description']}\ntype {function['name']} = ")
        properties = function["parameters"]["properties"]
        if not properties:
            parts.append("() => any;\n\n")
            continue
        parts.append("(_: {\n")
        for name, spec in properties.items():
            if spec.get("description"):
                parts.append(f"// {spec['description']}\n")
            optional = "" if name in function["parameters"]["required"] else "?"
            parts.append(f"{name}{optional}: {_typescript_type(spec)},\n")
        parts.append("}) => any;\n\n")
    return "".join(parts) + "} // namespace functions"


def render_prompt(
    messages: Sequence[Mapping[str, str]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    reasoning: str = "low",
    date: str = "2025-06-28",
) -> str:
    """Render a conversation up to the point where the assistant speaks.

    Args:
        messages: `{"role", "content"}`; an optional first system or developer message, then user
            and (final) assistant messages.
        tools: tool schemas for native calls; None when the prompt itself describes the tools.
        reasoning: reasoning effort named in the system message: low, medium or high.
        date: the system message's current date, YYYY-MM-DD; fixed, so that prompts do not change
            from day to day.

    Returns:
        The text that the stock chat template gives, ending with `<|start|>assistant`.

    Raises:
        ValueError: a role is none of these, or a message contains a control token.
    """
    system = f"{_IDENTITY}Current date: {date}\n\nReasoning: {reasoning}\n\n{_VALID_CHANNELS}"
    parts = [START, "system", MESSAGE, system, _TOOLS_GO_TO if tools else "", END]
    instructions, turns = "", list(messages)
    if turns and turns[0]["role"] in ("system", "developer"):
        instructions = _content(turns.pop(0)["content"], "developer")
    if instructions or tools:
        parts += [START, "developer", MESSAGE]
        if instructions:
            parts.append(f"# Instructions\n\n{instructions}\n\n")
        if tools:
            parts.append(f"# Tools\n\n{render_tools(tools)}")
        parts.append(END)
    for message in turns:
        role = message["role"]
        if role not in ("user", "assistant"):
            raise ValueError(f"message role {role!r}: only user and assistant follow the first")
        channel = CHANNEL + "final" if role == "assistant" else ""
        parts += [START, role, channel, MESSAGE, _content(message["content"], role), END]
    return "".join(parts) + START + "assistant"


def render_completion(final_text: str) -> str:
    """Render what the assistant is trained to write after the prompt: one final message.

    Raises:
        ValueError: `final_text` contains a control token.
    """
    return f"{CHANNEL}final{MESSAGE}{_content(final_text, 'assistant')}{RETURN}"


def _parse_header(header: str) -> tuple[str, str] | None:
    """Return (channel, recipient) of an assistant message's header, None for any other header."""
    found = _HEADER.fullmatch(header)
    if found is None or (found["first"] and found["second"]):
        return None
    return found["channel"], found["first"] or found["second"] or ""


def _parse_arguments(text: str) -> dict | str:
    try:
        value = strict_json.loads(text)
    except strict_json.StrictJsonError:
        return text
    return value if isinstance(value, dict) else text


def parse_completion(text: str) -> Parsed:
    """Parse a completion that was decoded with its special tokens; never raises.

    Both forms of a native call are read: what the released model writes
    (`<|channel|>commentary to=functions.X <|constrain|>json<|message|>{..}<|call|>`) and what the
    chat template renders (` to=functions.X<|channel|>commentary json<|message|>{..}<|call|>`).
    Messages with any other header, or of any other role, and text outside of messages say nothing.
    Reading ends at `<|return|>` or `<|endoftext|>`. Linear in the length of the text.

    Args:
        text: what follows the prompt's `<|start|>assistant`.
    """
    finals: list[str] = []
    analyses: list[str] = []
    tool_calls: list[dict] = []
    call_texts: list[str] = []

    def keep_message() -> None:
        channel, recipient = _parse_header("".join(header)) or ("", "")
        content = "".join(body)
        name = recipient.removeprefix(_TOOL_PREFIX)
        if name not in ("", recipient) and channel != "final":
            tool_calls.append({"name": name, "arguments": _parse_arguments(content)})
            call_texts.append(content)
        elif channel == "final" and not recipient:
            finals.append(content)
        elif channel == "analysis" and not recipient:
            analyses.append(content)

    state, complete = "header", False
    header, body = ["assistant"], []  # the role is in the prompt
    for piece in _SPLIT.split(text):
        if piece == END_OF_TEXT:
            break
        if piece in (START, END, RETURN, CALL):
            if state == "body":
                keep_message()
            complete = state == "body" and piece in STOP_TOKENS
            header, body = [], []
            state = "header" if piece == START else "outside"
            if piece == RETURN:
                break
        elif piece == MESSAGE and state == "header":
            state = "body"
        elif state == "header":
            header.append(piece)
        elif state == "body":
            body.append(piece)
    if state == "body":
        keep_message()
    return Parsed("\n".join(finals), "\n".join(analyses), tool_calls, call_texts, complete)
