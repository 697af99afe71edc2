"""A local model as the agent of many conversations at once: one generate call a turn for all.

Left out: scores, customers, and training on what is kept (`SampledTurn`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class SampledTurn:
    """One turn as the model saw and wrote it, for training."""

    message_index: int
    """Position of the assistant message in the conversation."""
    prompt_ids: list[int]
    completion_ids: list[int]
    """Up to and including the stop token."""
    log_probs: list[float]
    """Nats of each completion token, as it was sampled (at temperature 1 for the likeliest)."""


@dataclass
class _Memory:
    analyses: dict[int, str] = field(default_factory=dict)
    turns: list[SampledTurn] = field(default_factory=list)


class ModelPolicy:
    """A local model that plays any number of conversations at once.

    Args:
        model: A causal model with stop tokens in its generation config.
        tokenizer: Its tokenizer, padding on the left.
        max_new_tokens: Tokens of a turn at most.
        temperature: Sampling temperature; None takes the likeliest token each time. Draws depend
            on a conversation's seed and turn (on a GPU with fast sampling on the whole batch).
        batch_size: Conversations in one generate call at most.
        format: How it reads and writes; None takes `make_format`'s.
        max_context: Tokens of prompt and turn that the model can take; a longer conversation gets
            no answer. None: the model's own limit.
        keep_turns: Keep token ids and log-probabilities of every turn.

    Attributes:
        failures: How many completions had which failure, by kind.

    Raises:
        ModelError: The tokenizer has no usable chat template, or a turn may be longer than the
            model's context.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_new_tokens: int = 256,
        temperature: float | None = None, batch_size: int = 16, format: Format | None = None,
        max_context: int | None = None, keep_turns: bool = False,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._max_new_tokens, self._temperature = max_new_tokens, temperature
        self._batch_size, self._keep_turns = batch_size, keep_turns
        limit = getattr(model.config, "max_position_embeddings", None)
        self._max_context = max_context or limit or 2**31
        if max_new_tokens >= self._max_context:
            raise ModelError(
                f"a turn of {max_new_tokens} tokens leaves no room in its context of "
                f"{self._max_context}; allow fewer (--max-new-tokens)"
            )
        self._format = format or make_format(model, tokenizer)
        self._memories: WeakKeyDictionary[Any, _Memory] = WeakKeyDictionary()
        self.failures: Counter[str] = Counter()

    def turns(self, conversation: ConversationLike) -> list[SampledTurn]:
        """Return the turns that were sampled in a conversation; empty without `keep_turns`."""
        return self._memory(conversation).turns

    def reply(self, conversations: Sequence[ConversationLike]) -> list[Message | None]:
        """Write the next message of each conversation.

        Returns:
            Messages in OpenAI's form with `num_prompt_tokens`, `num_tokens` and `failure` (what is
            wrong with the completion, or None); None where the conversation has outgrown the
            model's context.
        """
        memories = [self._memory(conversation) for conversation in conversations]
        prompts = [
            self._tokenizer(
                self._format.render(conversation.messages, memory.analyses),
                add_special_tokens=False,
            )["input_ids"]
            for conversation, memory in zip(conversations, memories, strict=True)
        ]
        room = self._max_context - self._max_new_tokens
        fitting = [index for index, ids in enumerate(prompts) if len(ids) <= room]
        replies: list[Message | None] = [None] * len(prompts)
        self.failures["context_full"] += len(prompts) - len(fitting)
        for batch in split_batches([len(prompts[index]) for index in fitting], self._batch_size):
            rows = [fitting[index] for index in batch]
            seeds = [_turn_seed(conversations[row]) for row in rows]
            completions = complete(
                self._model, [prompts[row] for row in rows], self._max_new_tokens,
                self._temperature, seeds,
            )
            for row, completion in zip(rows, completions, strict=True):
                ids = completion.ids
                reply = self._format.parse(self._tokenizer.decode(ids, skip_special_tokens=False))
                index = len(conversations[row].messages)
                memories[row].analyses[index] = reply.analysis
                if reply.failure:
                    self.failures[reply.failure] += 1
                if self._keep_turns:
                    turn = SampledTurn(index, prompts[row], ids, completion.log_probs)
                    memories[row].turns.append(turn)
                replies[row] = {
                    **reply.message, "num_prompt_tokens": len(prompts[row]), "num_tokens": len(ids),
                    "failure": reply.failure,
                }
        return replies

    def _memory(self, conversation: ConversationLike) -> _Memory:
        return self._memories.setdefault(conversation, _Memory())


def make_format(
    model: Any, tokenizer: Any, reasoning: str = "low", style: PromptStyle = "full",
    tools: Tools | None = None,
) -> Format:
    """Return harmony for GPT-OSS, and any other model's own chat template.

    Args:
        reasoning: Reasoning effort in the prompt: low, medium or high.
        style: How much harmony's prompt shows, see `HarmonyFormat`.
        tools: OpenAI-style schemas that it shows; None shows the store's.

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


def join_turns(turns: Sequence[SampledTurn]) -> list[tuple[list[int], list[int], list[float]]]:
    """Join the turns of a conversation to as few training rows as give each its own context.

    A turn joins the row before it when its prompt goes on exactly where that row ended, as it does
    from a call to the turn that reads the result.

    Returns:
        Rows of token ids, mask (1 on tokens that the model wrote, 0 on all others) and
        log-probabilities (0.0 where the mask is 0), equally long.
    """
    rows: list[tuple[list[int], list[int], list[float]]] = []
    for turn in turns:
        known = rows[-1][0] if rows else []
        if not rows or turn.prompt_ids[: len(known)] != known:
            rows.append(([], [], []))
        ids, mask, log_probs = rows[-1]
        given = turn.prompt_ids[len(ids):]
        ids += given + turn.completion_ids
        mask += [0] * len(given) + [1] * len(turn.completion_ids)
        log_probs += [0.0] * len(given) + turn.log_probs
    return rows


def _turn_seed(conversation: ConversationLike) -> int:
    return (conversation.seed * 1_000_003 + len(conversation.messages)) % 2**63
