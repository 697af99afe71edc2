"""Conversations as tokens: rows for SFT, and an agent whose context is what it wrote, token for token.

A conversation is one growing list of tokens: policy, customer, a turn, its answer, the next turn. What
the model wrote stays as it was sampled, so a whole episode is one training row and nothing is read
twice. As harmony asks for, `<|return|>` after words becomes `<|end|>` once the conversation goes on.
Unlike harmony, thinking of earlier turns would stay; the oracle's conversations have none, so SFT
teaches turns without it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import configs
from accelerate import PartialState
from agent.conversation import Conversation, Message
from agent.trajectories import find_defect, play_gold, read_conversations
from data_reader import DatasetError, Task
from envs.retail import RetailDatabase
from gptoss.decoder import Prefix
from gptoss.generation import Completion, complete, split_batches
from gptoss.model_types import Model, Tokenizer
from gptoss.policy import turn_seed
from prompting.dialogue import HarmonyFormat, render_answers, render_turn
from prompting.harmony import END, RETURN, START
from training.sft import rows_dir
from training.task_store import store_rows

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""Label of a token without loss."""


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def conversation_row(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], format: HarmonyFormat
) -> dict[str, list[int]]:
    """Return a conversation's tokens and their labels.

    Args:
        messages: A conversation that begins with the customer; each turn of the agent holds words or
            one call. What follows the agent's last turn is left out.
        format: Tells the prompt and how results are shown.

    Returns:
        `input_ids` and `labels`: the agent's tokens, `<|return|>` where words end, and `IGNORED` for
        policy, customer and results.

    Raises:
        ValueError: There is no turn, or a turn holds several calls, which no model can write: each
            call ends a completion.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError("the conversation holds no turn of the agent")
    ids = _encode(tokenizer, format.render(messages[: turns[0]], {}))
    labels = [IGNORED] * len(ids)
    end, stop = _encode(tokenizer, END + RETURN)
    for index, following in zip(turns, [*turns[1:], None], strict=True):
        parts = render_turn(messages[index])
        if len(parts) > 1:
            raise ValueError(f"message {index}: holds {len(parts)} calls; give each its own message")
        written = _encode(tokenizer, parts[0])
        ids += written
        labels += [*written[:-1], stop if written[-1] == end else written[-1]]
        if following is not None:
            answers = render_answers(messages[index], messages[index + 1:following], format.style)
            given = _encode(tokenizer, answers + START + "assistant")
            ids += given
            labels += [IGNORED] * len(given)
    return {"input_ids": ids, "labels": labels}


def agent_rows(
    tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase, config: configs.RunConfig
) -> "Dataset":
    """Return the stored SFT rows of agent mode; those of tasks that are not trained on are left out.

    Args:
        config: `agent.trajectories_path`, or `agent.customers_per_task` conversations of the oracle
            with each task's customer; longer ones than `model.max_seq_length` are left out.

    Returns:
        Rows of `input_ids` and `labels` on disk.

    Raises:
        DatasetError: The file of conversations cannot be read, a conversation in it is no training
            data, or none is left.
        RunError: The disk is full.
    """
    path, counts = config.agent.trajectories_path, Counter()
    format = HarmonyFormat(style=config.data.prompt_style)
    most = config.model.max_seq_length

    def rows() -> Iterator[dict[str, list[int]]]:
        for messages in _conversations(tasks, db, config):
            row = conversation_row(tokenizer, messages, format)
            fits = len(row["input_ids"]) <= most
            counts["kept" if fits else "long"] += 1
            if fits:
                yield row

    made = rows()
    first = next(made, None)
    if first is None:
        raise DatasetError([
            f"{path or config.data.dataset_path}: none of {counts['long']} conversations of the "
            f"training tasks fits into model.max_seq_length={most}; raise it"
        ])
    stored = store_rows(chain([first], made), rows_dir(config))
    if counts["long"] and PartialState().is_main_process:
        print(
            f"SFT on {counts['kept']} conversations; {counts['long']} are longer than "
            f"model.max_seq_length={most} and left out"
        )
    return stored


def _conversations(
    tasks: Sequence[Task], db: RetailDatabase, config: configs.RunConfig
) -> Iterator[list[Message]]:
    """Yield conversations about training tasks that end right."""
    if not config.agent.trajectories_path:
        for task, row in play_gold(tasks, db, config.seed, config.agent.customers_per_task):
            if find_defect(row, task, db) is None:
                yield row["messages"]
        return
    by_id = {task.task_id: task for task in tasks}
    for place, row in read_conversations(Path(config.agent.trajectories_path)):
        task = by_id.get(row["task_id"])
        if task is None:
            continue
        if defect := find_defect(row, task, db):
            raise DatasetError([f"{place}: {defect}; make the file again or drop the row"])
        yield row["messages"]


@dataclass
class Context:
    """A conversation as its agent has seen and written it."""

    ids: list[int] = field(default_factory=list)
    """Prompt, turns and answers; the last turn ends as it was sampled."""
    mask: list[int] = field(default_factory=list)
    """1 on tokens that the model wrote, as it wrote them; 0 on all others."""
    log_probs: list[float] = field(default_factory=list)
    """Nats of each token that the model wrote, as it was sampled; 0.0 on all others."""
    num_prompt: int = 0
    """Tokens before the first turn."""
    num_messages: int = 0
    """Messages of the conversation that are in `ids`."""
    prefix: Prefix = field(default_factory=Prefix)
    """What the engine keeps of `ids` from turn to turn."""
    failures: Counter[str] = field(default_factory=Counter)
    """Turns by what is wrong with them, see `prompting.dialogue.ReplyFailure`."""


class RolloutPolicy:
    """A model that plays many conversations at once, each turn one generate call for all.

    Args:
        model: A causal model with stop tokens in its generation config.
        tokenizer: Its tokenizer, padding on the left.
        max_context: Tokens of a conversation at most; one that leaves no room for a turn gets no
            answer.
        temperature: Sampling temperature; None takes the likeliest token each time.
        batch_size: Conversations in one generate call at most.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, format: HarmonyFormat, max_turn_tokens: int,
        max_context: int, temperature: float | None = None, batch_size: int = 128,
    ) -> None:
        self._model, self._tokenizer, self._format = model, tokenizer, format
        self._max_turn_tokens, self._max_context = max_turn_tokens, max_context
        self._temperature, self._batch_size = temperature, batch_size
        self._contexts: WeakKeyDictionary[Conversation, Context] = WeakKeyDictionary()
        self._end, self._stop = _encode(tokenizer, END + RETURN)

    def context(self, conversation: Conversation) -> Context:
        """Return what the model has seen and written in a conversation."""
        return self._contexts.setdefault(conversation, Context())

    def failures_of(self, conversation: Conversation) -> dict[str, int]:
        """Return how many turns of a conversation could not be read, by kind."""
        return dict(self.context(conversation).failures)

    def reply(self, conversations: Sequence[Conversation]) -> list[Message | None]:
        """Write the next message of each; None where the conversation has outgrown the context."""
        contexts = [self.context(conversation) for conversation in conversations]
        for conversation, context in zip(conversations, contexts, strict=True):
            self._read(conversation, context)
        room = self._max_context - self._max_turn_tokens
        fitting = [number for number, context in enumerate(contexts) if len(context.ids) <= room]
        replies: list[Message | None] = [None] * len(contexts)
        for number in set(range(len(contexts))).difference(fitting):
            contexts[number].failures["context_full"] += 1
        lengths = [len(contexts[number].ids) for number in fitting]
        for batch in split_batches(lengths, self._batch_size):
            rows = [fitting[index] for index in batch]
            completions = complete(
                self._model, [contexts[row].ids for row in rows], self._max_turn_tokens,
                self._temperature, [turn_seed(conversations[row]) for row in rows],
                [contexts[row].prefix for row in rows],
            )
            for row, completion in zip(rows, completions, strict=True):
                replies[row] = self._write(contexts[row], completion)
        return replies

    def _read(self, conversation: Conversation, context: Context) -> None:
        """Append what came since the model's last turn."""
        messages = conversation.messages
        if not context.ids:
            given = _encode(self._tokenizer, self._format.render(messages, {}))
            context.num_prompt = len(given)
        else:
            if context.ids[-1] == self._stop:
                # The stop that was sampled is not what stands here, so it bears no loss.
                context.ids[-1], context.mask[-1], context.log_probs[-1] = self._end, 0, 0.0
            turn, *answers = messages[context.num_messages:]
            text = render_answers(turn, answers, self._format.style) + START + "assistant"
            given = _encode(self._tokenizer, text)
        context.ids += given
        context.mask += [0] * len(given)
        context.log_probs += [0.0] * len(given)
        context.num_messages = len(messages)

    def _write(self, context: Context, completion: Completion) -> Message:
        context.ids += completion.ids
        context.mask += [1] * len(completion.ids)
        context.log_probs += completion.log_probs
        text = self._tokenizer.decode(completion.ids, skip_special_tokens=False)
        reply = self._format.parse(text)
        if reply.failure:
            context.failures[reply.failure] += 1
        return {**reply.message, "num_tokens": len(completion.ids), "failure": reply.failure}
