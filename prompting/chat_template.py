"""Any chat model's own format: its chat template for prompts, the common forms of calls for replies.

A template that does not show the tools gets them in the system message, and calls and results as
tagged text, in the form that Hermes and Qwen use. GPT-OSS has `prompting/dialogue.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from common import strict_json
from common.user_error import UserError
from prompting.agent import agent_tools, with_instructions
from prompting.dialogue import Message, Reply, Tools, assistant_message

TOOLS_AS_TEXT = (
    "\nYou have these tools:\n{tools}\nTo call one, answer with nothing but\n<tool_call>\n"
    '{{"name": "...", "arguments": {{...}}}}\n</tool_call>\n'
)
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_THINKING = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_TAGGED_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LISTED_CALLS, _PYTHON_TAG = "[TOOL_CALLS]", "<|python_tag|>"


class TemplateError(UserError, ValueError):
    """A chat template that cannot render a conversation; the message is one line."""


class ChatTemplate:
    """A tokenizer's chat template, and what it takes.

    Attributes:
        lead: what it writes between a prompt and the assistant's words.
        end_token: what ends the assistant's words.

    Raises:
        TemplateError: There is no chat template, or it cannot render a request and an answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise TemplateError(
                "the tokenizer has no chat template, as of a base model; use the model's version for "
                "chat (its name often ends in -Instruct or -it), or put a chat_template.jinja into its "
                "folder"
            )
        self._tokenizer = tokenizer
        marks = {token for token in tokenizer.get_added_vocab() if token[0] in "<["}
        marks |= {_LISTED_CALLS, *_TAGS, *tokenizer.all_special_tokens}
        ordered = sorted(filter(None, marks), key=len, reverse=True)
        tokens = "|".join(map(re.escape, ordered))
        self._marks = re.compile(r"<(?=\|\w+\|>)|" + tokens)
        self._takes_system = True
        try:
            self._takes_system = "Be brief." in self.render(
                [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
            )
        except TemplateError:
            self._takes_system = False
        asked = [{"role": "user", "content": "Hi"}]
        prompt = self.render(asked, enable_thinking=False)
        answered = self.render(
            [*asked, {"role": "assistant", "content": "ANSWER"}], add_generation_prompt=False
        )
        before, _, after = answered.rpartition("ANSWER")
        self.lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        end = re.search(tokens, after)
        self.end_token = end.group() if end else tokenizer.eos_token or ""
        if not self.end_token:
            raise TemplateError("its chat template ends no answer, and no end-of-text token is known")

    def render(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str:
        """Return the text of a conversation, up to where the assistant speaks.

        Args:
            messages: In OpenAI's form. A system message goes before the first user message's words
                where the template takes none.

        Raises:
            TemplateError: The template refuses the conversation.
        """
        import jinja2

        if not self._takes_system and messages[0]["role"] == "system":
            system, first, *others = messages
            content = f"{system['content']}\n\n{first['content']}"
            messages = [{**first, "content": content}, *others]
        settings = {"add_generation_prompt": True, "tokenize": False} | settings
        try:
            return self._tokenizer.apply_chat_template(messages, **settings)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())[:200]
            raise TemplateError(
                f"its chat template refuses a conversation ({line}); use another model"
            ) from error

    def defuse(self, text: str) -> str:
        """Return the text with everything taken apart that the tokenizer or `parse` reads as a mark."""
        return self._marks.sub(lambda found: found[0][0] + " " + found[0][1:], text)

    @staticmethod
    def split_thinking(text: str) -> tuple[str, str]:
        """Return the thinking and the other text of a completion."""
        thinking = "\n".join(_THINKING.findall(text)).strip()
        return thinking, _THINKING.sub("", text).removeprefix("</think>").strip()


class TemplateFormat:
    """How a model with a chat template reads and writes conversations.

    Args:
        stop_tokens: tokens that end a reply, as text.
        reasoning: reasoning effort, for templates that take `reasoning_effort`.
        tools: OpenAI-style schemas; None shows the store's.

    Raises:
        TemplateError: There is no chat template, or it cannot render a conversation.
    """

    def __init__(
        self, tokenizer: Any, stop_tokens: Sequence[str], reasoning: str = "low",
        tools: Tools | None = None,
    ) -> None:
        self._template, self._stops = ChatTemplate(tokenizer), tuple(stop_tokens)
        self._defuse, self._reasoning = self._template.defuse, reasoning
        self._tools = tools or agent_tools()
        self._shows_tools = True
        self._shows_tools = self._tools[0]["function"]["name"] in self.render(
            [{"role": "user", "content": "Hi"}], {}
        )

    def render(self, messages: Sequence[Mapping[str, Any]], analyses: Mapping[int, str]) -> str:
        """Return the prompt of a conversation, policy and tools included.

        A system message before the others replaces the policy; thinking stays out of later prompts.

        Raises:
            TemplateError: The template refuses the conversation.
        """
        del analyses
        first, *messages = with_instructions(messages)
        system, tools = self._defuse(first["content"]), self._tools
        if self._shows_tools:
            turns = self._native(messages)
        else:
            listed = "\n".join(json.dumps(tool["function"]) for tool in tools)
            system, tools = system + TOOLS_AS_TEXT.format(tools=listed), None
            turns = self._as_text(messages)
        turns = [{"role": "system", "content": system}, *turns]
        return self._template.render(turns, tools=tools, reasoning_effort=self._reasoning)

    def parse(self, completion: str) -> Reply:
        """Read a completion that was decoded with its special tokens; never raises."""
        ends = [completion.find(token) for token in self._stops if token in completion]
        if not ends:
            return Reply(assistant_message(""), "", "cut_off")
        text = completion[: min(ends)]
        analysis, text = self._template.split_thinking(text)
        calls = _find_calls(text)
        if calls:
            known = all(name and _is_object(arguments) for name, arguments in calls)
            return Reply(assistant_message("", calls), analysis, None if known else "bad_arguments")
        missing = "only_analysis" if analysis else "no_message"
        return Reply(assistant_message(text), analysis, None if text else missing)

    def _native(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        turns, names = [], []
        for message in messages:
            turn = {"role": message["role"], "content": self._defuse(message["content"] or "")}
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            if calls:
                names = [self._defuse(call["name"]) for call in calls]
                turn["tool_calls"] = [
                    {"type": "function", "id": f"call_{n}", "function": {
                        "name": name, "arguments": self._object(call["arguments"])}}
                    for n, (name, call) in enumerate(zip(names, calls, strict=True))
                ]
            elif message["role"] == "tool":
                turn["name"] = names.pop(0) if names else ""
                turn["tool_call_id"] = message.get("tool_call_id", "call_0")
            turns.append(turn)
        return turns

    def _object(self, arguments: str) -> Any:
        """Return the arguments as templates want them: an object where they are one."""
        text = self._defuse(arguments)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return {"unreadable": text}
        return value if isinstance(value, dict) else {"unreadable": text}

    def _as_text(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """Return user and assistant messages that take turns, calls and results tagged."""
        turns: list[Message] = []
        for message in messages:
            role, text = message["role"], self._defuse(message["content"] or "")
            if role == "tool":
                role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
            for call in message.get("tool_calls") or ():
                written = self._defuse(call["function"]["arguments"])
                name = json.dumps(self._defuse(call["function"]["name"]))
                text += f'<tool_call>\n{{"name": {name}, "arguments": {written}}}\n</tool_call>'
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += "\n" + text
            else:
                turns.append({"role": role, "content": text})
        return turns


def _find_calls(text: str) -> list[tuple[str, str]]:
    """Return (name, arguments as JSON text) of every call; ("", text) for one that is no JSON."""
    if _LISTED_CALLS in text:
        bodies = [text.partition(_LISTED_CALLS)[2]]
    elif "<tool_call>" in text:
        bodies = _TAGGED_CALL.findall(text)
    elif text.startswith(("{", _PYTHON_TAG)):
        bodies = [text.removeprefix(_PYTHON_TAG)]
        if not _read_call(_load(bodies[0])):
            return []
    else:
        return []
    calls = []
    for body in bodies:
        value = _load(body)
        for item in value if isinstance(value, list) else [value]:
            calls.append(_read_call(item) or ("", body.strip()))
    return calls


def _load(text: str) -> Any:
    try:
        return strict_json.loads(text.strip())
    except strict_json.StrictJsonError:
        return None


def _read_call(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return value["name"], text


def _is_object(text: str) -> bool:
    return isinstance(_load(text), dict)
