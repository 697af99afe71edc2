"""Plan mode in a model's own format: harmony for GPT-OSS, the chat template for every other model."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from prompting import harmony
from prompting.chat_template import ChatTemplate

Messages = Sequence[Mapping[str, str]]


class PlanFormat(Protocol):
    """How a model reads a request for a plan and writes the plan."""

    end_token: str
    """What ends an answer, as text."""

    def prompt(self, messages: Messages) -> str:
        """Return a prompt up to where the assistant speaks, special tokens written out."""

    def completion(self, final_text: str) -> str:
        """Return what the assistant is trained to write after the prompt, `end_token` included."""

    def final_text(self, completion: str) -> str:
        """Return the answer in a completion that was decoded with its special tokens; never raises."""


class HarmonyPlans:
    """The format of GPT-OSS: the answer is the text on the final channel."""

    end_token = harmony.RETURN

    def prompt(self, messages: Messages) -> str:
        """Return the prompt as harmony text."""
        return harmony.render_prompt(messages)

    def completion(self, final_text: str) -> str:
        """Return one final message."""
        return harmony.render_completion(final_text)

    def final_text(self, completion: str) -> str:
        """Return the final channel's text, "" when there is none."""
        return harmony.parse_completion(completion).final


class TemplatePlans:
    """A chat template's format: the answer is all of the assistant's text but its thinking.

    Raises:
        TemplateError: There is no chat template, or it cannot render a request and an answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._template = ChatTemplate(tokenizer)
        self.end_token = self._template.end_token
        ends = sorted({self.end_token, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._end = re.compile("|".join(map(re.escape, ends)))

    def prompt(self, messages: Messages) -> str:
        """Return the prompt by the chat template, without thinking where it can be switched off."""
        turns = [
            {"role": "system" if message["role"] == "developer" else message["role"],
             "content": self._template.defuse(message["content"])} for message in messages
        ]
        return self._template.render(turns, enable_thinking=False)

    def completion(self, final_text: str) -> str:
        """Return the answer as the chat template writes it."""
        return self._template.lead + self._template.defuse(final_text) + self.end_token

    def final_text(self, completion: str) -> str:
        """Return the text before the first special token, thinking left out."""
        return self._template.split_thinking(self._end.split(completion, maxsplit=1)[0])[1]


HARMONY: PlanFormat = HarmonyPlans()


@lru_cache(maxsize=8)
def plan_format(tokenizer: Any) -> PlanFormat:
    """Return harmony for a tokenizer whose chat template writes it, else that template's format.

    Args:
        tokenizer: transformers' tokenizer; one with harmony's tokens needs no template.

    Raises:
        TemplateError: It has neither.
    """
    has_tokens = {harmony.RETURN, harmony.CHANNEL} <= tokenizer.get_added_vocab().keys()
    is_harmony = has_tokens and harmony.CHANNEL in str(tokenizer.chat_template or harmony.CHANNEL)
    return HARMONY if is_harmony else TemplatePlans(tokenizer)
