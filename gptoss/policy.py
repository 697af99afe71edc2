"""A local model as the agent of many conversations at once: one generate call a turn for all.

Left out: scores, customers, and training (`training/conversations.py` has its own agent).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from gptoss.generation import complete, split_batches
from gptoss.preflight import ModelError
from prompting.chat_template import TemplateError, TemplateFormat
from prompting.dialogue import HarmonyFormat, Message, Reply, Tools
from prompting.plan import PromptStyle


class ConversationLike(Protocol):
    """What a policy reads of a conversation (`agent.Conversation`)."""

    messages: list[Message]
    seed: int


class Format(Protocol):
    """How a model reads and writes conversations."""

    def render(self, messages: Sequence[Mapping[str, Any]], analyses: Mapping[int, str]) -> str:
        """Return a conversation's prompt."""

    def parse(self, completion: str) -> Reply:
        """Read a completion."""


class ModelPolicy:
    """A local model that plays any number of conversations at once.

    Args:
        model: A causal model with stop tokens in its generation config.
        tokenizer: Its tokenizer, padding on the left.
        max_new_tokens: Most tokens of a turn.
        temperature: Sampling temperature; None takes the likeliest token each time. Draws depend
            on a conversation's seed and turn (on a GPU with fast sampling on the whole batch).
        batch_size: Most conversations in one generate call.
        format: How the model reads and writes; None chooses by `make_format`.
        max_context: Most tokens of prompt and turn together; a longer conversation gets no answer.
            None takes the model's own limit.

    Attributes:
        failures: Number of faulty completions by kind of failure.

    Raises:
        ModelError: The tokenizer has no usable chat template, or a turn may be longer than the
            model's context.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_new_tokens: int = 256,
        temperature: float | None = None, batch_size: int = 16, format: Format | None = None,
        max_context: int | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._max_new_tokens, self._temperature = max_new_tokens, temperature
        self._batch_size = batch_size
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._max_context = max_context or limit or 2**31
        if max_new_tokens >= self._max_context:
            raise ModelError(
                f"a turn of {max_new_tokens} tokens leaves no room in its context of "
                f"{self._max_context}; allow fewer (--max-new-tokens)"
            )
        self._format = format or make_format(model, tokenizer)
        self._analyses: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()
        self.failures: Counter[str] = Counter()

    def reply(self, conversations: Sequence[ConversationLike]) -> list[Message | None]:
        """Write the next message of each conversation.

        Returns:
            Messages in OpenAI's form with `num_prompt_tokens`, `num_tokens` and `failure` (what is
            wrong with the completion, or None); None where the conversation no longer fits the
            model's context.
        """
        analyses = [self._analyses.setdefault(talk, {}) for talk in conversations]
        prompts = [
            self._tokenizer(self._format.render(talk.messages, own), add_special_tokens=False)["input_ids"]
            for talk, own in zip(conversations, analyses, strict=True)
        ]
        room = self._max_context - self._max_new_tokens
        fitting = [index for index, ids in enumerate(prompts) if len(ids) <= room]
        replies: list[Message | None] = [None] * len(prompts)
        self.failures["context_full"] += len(prompts) - len(fitting)
        for batch in split_batches([len(prompts[index]) for index in fitting], self._batch_size):
            rows = [fitting[index] for index in batch]
            seeds = [turn_seed(conversations[row]) for row in rows]
            completions = complete(
                self._model, [prompts[row] for row in rows], self._max_new_tokens,
                self._temperature, seeds,
            )
            for row, completion in zip(rows, completions, strict=True):
                ids = completion.ids
                reply = self._format.parse(self._tokenizer.decode(ids, skip_special_tokens=False))
                analyses[row][len(conversations[row].messages)] = reply.analysis
                if reply.failure:
                    self.failures[reply.failure] += 1
                replies[row] = {
                    **reply.message, "num_prompt_tokens": len(prompts[row]), "num_tokens": len(ids),
                    "failure": reply.failure,
                }
        return replies


def make_format(
    model: Any, tokenizer: Any, reasoning: str = "low", style: PromptStyle = "full",
    tools: Tools | None = None,
) -> Format:
    """Return harmony for GPT-OSS, and the chat template of any other model.

    Args:
        reasoning: Reasoning effort in the prompt: low, medium or high.
        style: How much harmony's prompt shows, see `HarmonyFormat`.
        tools: OpenAI-style schemas to show; None shows the store's.

    Raises:
        ModelError: There is no usable chat template.
    """
    if model.config.model_type == "gpt_oss":
        return HarmonyFormat(reasoning, style, tools)
    stops = model.generation_config.eos_token_id
    try:
        stop_tokens = tokenizer.convert_ids_to_tokens(stops)
        return TemplateFormat(tokenizer, stop_tokens, reasoning, tools)
    except TemplateError as error:
        raise ModelError(str(error)) from error


def turn_seed(conversation: ConversationLike) -> int:
    """Return the seed of a conversation's next turn."""
    return (conversation.seed * 1_000_003 + len(conversation.messages)) % 2**63
