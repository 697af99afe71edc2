"""Whether every task fits into the model, checked before any stage: prompt and answer are never cut.

A text has at most as many tokens as bytes, so only tasks that are long in bytes are tokenized.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

import configs
from data_reader import Task, gold_completion, plan_prompt
from gptoss.model_types import Model, Tokenizer
from prompting.plan_format import plan_format
from training.task_store import ROWS_PER_BATCH, select_tasks, text_sizes

MAX_NAMED = 3
"""Tasks that are named beside the first one; the others are counted."""


class Demand(NamedTuple):
    """Tasks, and what must fit behind their prompts."""

    path: str
    tasks: Sequence[Task]
    setting: str = ""
    """The setting that says how many tokens; without one, those of each task's own gold calls."""
    reserve: int = 0
    """Its value."""


def run_demands(
    config: configs.RunConfig, train: Sequence[Task], grpo_train: Sequence[Task],
    validation: Sequence[Task], test: Sequence[Task],
) -> list[Demand]:
    """Return what the stages of a run demand of its tasks."""
    data, stage = config.data, config.grpo
    demands = []
    if config.sft.max_steps:
        demands.append(Demand(data.dataset_path, train))
    if stage.max_steps:
        setting = ("grpo.max_completion_length", stage.max_completion_length)
        path = data.grpo_dataset_path or data.dataset_path
        demands.append(Demand(path, grpo_train, *setting))
    setting = ("evaluation.max_new_tokens", config.evaluation.max_new_tokens)
    path = data.eval_dataset_path
    return [*demands, *(Demand(path, tasks, *setting) for tasks in (validation, test))]


def find_long_tasks(
    demand: Demand, tokenizer: Tokenizer, style: str, limit: int
) -> Iterator[tuple[int, int]]:
    """Yield (line, tokens) of each task whose prompt and answer need more than `limit` tokens."""

    def count(texts: Iterable[str]) -> np.ndarray:
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([len(row) for row in ids], np.int64)

    # Query and calls have a control token or a line end on either side, so their tokens simply add up.
    with_gold, plans = not demand.setting, plan_format(tokenizer)
    frame = plan_prompt(Task("", [], "", ""), style, plans)
    fixed = count([frame + plans.completion("") if with_gold else frame])[0] + demand.reserve
    most = text_sizes(demand.tasks)[:, : 1 + with_gold].sum(axis=1)
    suspects = select_tasks(demand.tasks, np.flatnonzero(fixed + most > limit))
    for start in range(0, len(suspects), ROWS_PER_BATCH):
        batch = list(suspects[start:start + ROWS_PER_BATCH])
        tokens = fixed + count(task.query for task in batch)
        if with_gold:
            tokens += count(map(gold_completion, batch))
        for number in np.flatnonzero(tokens > limit):
            yield batch[number].line, int(tokens[number])


def describe_long_tasks(
    demands: Sequence[Demand], model: Model, tokenizer: Tokenizer, config: configs.RunConfig,
    remedy: str = "use",
) -> str:
    """Say in one line which tasks do not fit.

    Args:
        demands: Tasks and their answers; the first task that does not fit is described.
        model: Its own limit counts where `model.max_seq_length` is beyond it.
        remedy: What to do with a larger `model.max_seq_length`, where the model could read more.

    Returns:
        The line, with file and line of the first few tasks and the setting to change; "" when all
        tasks fit.
    """
    context = model.config.get_text_config().max_position_embeddings
    allowed = config.model.max_seq_length
    first, found = "", {}
    for demand in demands:
        answer = f"{demand.setting}={demand.reserve}" if demand.setting else "the gold calls"
        for line, tokens in find_long_tasks(
            demand, tokenizer, config.data.prompt_style, min(allowed, context)
        ):
            place = f"{demand.path}:{line}"
            first = first or f"{place}: the prompt and {answer} need {tokens} tokens"
            found[place] = max(tokens, found.get(place, 0))
    if not found:
        return ""
    others, longest = list(found)[1:], max(found.values())
    if others:
        more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        first += f" (also too long: {', '.join(others[:MAX_NAMED])}{more})"
    bound = "the model reads at most {1}" if context < allowed else "model.max_seq_length is {0}"
    raised = f"{remedy} --set model.max_seq_length={longest}, or " if longest <= context else ""
    return f"{first}, {bound.format(allowed, context)}; {raised}leave these tasks out"
