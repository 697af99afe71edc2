"""Episodes of held-out tasks in agent mode, played batch by batch by the model that is trained.

As in plan mode each finished batch is a file, so that a killed evaluation goes on with the same
batches and ends with the same episodes, and processes share the batches out.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import configs
from accelerate import PartialState
from agent.conversation import Conversation, Limits
from agent.conversation import play as play_all
from agent.customers import ScriptedCustomer
from agent.evaluation import Plan, episode_row
from common.files import read_json, write_json_atomic
from data_reader import Task
from envs.retail import RetailDatabase
from gptoss.model_types import Model, Tokenizer
from prompting.dialogue import HarmonyFormat
from training.conversations import RolloutPolicy


def conversation_limits(config: configs.RunConfig) -> Limits:
    """Return the limits of a run's conversations: its turns; tokens are bounded by the context."""
    turns = config.agent.max_turns
    return Limits(max_turns=turns, max_calls=turns, max_tokens=config.model.max_seq_length * 8)


def rollout_policy(
    model: Model, tokenizer: Tokenizer, config: configs.RunConfig, temperature: float | None,
    batch_size: int,
) -> RolloutPolicy:
    """Return a model as the agent of a run's conversations."""
    return RolloutPolicy(
        model, tokenizer, HarmonyFormat(style=config.data.prompt_style),
        config.agent.max_turn_tokens, config.model.max_seq_length, temperature, batch_size,
    )


def start_conversation(
    task: Task, db: RetailDatabase, config: configs.RunConfig, customer_seed: int, seed: int
) -> Conversation:
    """Return a conversation with a scripted customer; `seed` is for the draws of the agent."""
    customer = ScriptedCustomer(task, customer_seed)
    return Conversation(task, db, customer, conversation_limits(config), seed)


def play_tasks(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase,
    config: configs.RunConfig, parts_dir: Path,
) -> list[dict[str, Any]]:
    """Play every task with the model, batch by batch; finished batches are kept in `parts_dir`.

    Returns:
        Lines of `trajectories.jsonl`, by task and trial, the same on every process.
    """
    settings = config.evaluation
    episodes = list(Plan(tasks, config.agent.num_trials, config.data.split_seed).episodes())
    temperature = None if settings.greedy else settings.temperature

    def play(number: int) -> list[dict[str, Any]]:
        batch = episodes[number * settings.batch_size:(number + 1) * settings.batch_size]
        policy = rollout_policy(model, tokenizer, config, temperature, settings.batch_size)
        talks = [start_conversation(task, db, config, seed, seed) for task, _, seed in batch]
        play_all(talks, policy)
        return [
            episode_row(talk, trial, num_tokens=talk.num_tokens, failures=policy.failures_of(talk))
            for talk, (_, trial, _) in zip(talks, batch, strict=True)
        ]

    return list(chain.from_iterable(in_parts(parts_dir, -(-len(episodes) // settings.batch_size), play)))


def in_parts(parts_dir: Path, count: int, make: Callable[[int], Any]) -> list[Any]:
    """Make `count` parts of an evaluation, each process its share; return them on every process.

    Each is kept as JSON in a file of the folder, and one that is there already is not made again.
    """
    state = PartialState()
    paths = [parts_dir / f"batch-{number:04d}.json" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists() and number % state.num_processes == state.process_index:
            write_json_atomic(path, make(number))
    state.wait_for_everyone()
    return [read_json(path, None) for path in paths]


def count_failures(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return how many turns of all episodes could not be read, by kind."""
    return dict(sum((Counter(row["failures"]) for row in rows), Counter()))
