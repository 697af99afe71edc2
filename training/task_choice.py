"""Which tasks GRPO trains on: those that can be done and are not done each time anyway.

A group whose completions all earn the same teaches nothing. The probability of the gold completion
under the policy, one forward pass, is the chance that a completion sampled at temperature 1 is gold
to the letter: it tells mastered tasks beforehand, without sampling. In agent mode a task whose
conversation outgrows the context fails whatever the policy does.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

import configs
from accelerate import PartialState
from agent.trajectories import play_gold
from common.files import SettingsError, latest_complete, read_json, write_json_atomic
from data_reader import Task, sft_rows
from envs.retail import RetailDatabase
from gptoss.load import uses_unsloth
from prompting.dialogue import HarmonyFormat
from prompting.plan_format import plan_format
from training.conversations import conversation_row
from training.task_store import select_tasks

ROWS_PER_PASS = 8


def leave_out_mastered(
    model: Any, tokenizer: Any, tasks: Sequence[Task], config: configs.RunConfig
) -> Sequence[Task]:
    """Leave out tasks whose gold completion is likelier, after SFT, than `grpo.max_gold_probability`.

    The choice is kept in the run's grpo_tasks.json, so that a resumed run trains on the same tasks.

    Raises:
        SettingsError: No task is left, or the model is Unsloth's, which returns no logits.
    """
    limit = config.grpo.max_gold_probability
    if uses_unsloth(config.model):
        raise SettingsError(
            "grpo.max_gold_probability does not work with Unsloth; use "
            "--set grpo.max_gold_probability=1 and grpo.resample_rounds"
        )

    def choose() -> list[int]:
        probabilities = gold_probabilities(model, tokenizer, tasks, config.data.prompt_style)
        return [number for number, value in enumerate(probabilities) if value <= limit]

    return _keep(tasks, choose, config, "the others are mastered", (
        f"grpo.max_gold_probability={limit} leaves no task: SFT mastered all {len(tasks)}; "
        "raise it, or give GRPO harder tasks (data.grpo_dataset_path)"
    ))


def leave_out_long(
    tokenizer: Any, tasks: Sequence[Task], db: RetailDatabase, config: configs.RunConfig
) -> Sequence[Task]:
    """Leave out tasks of agent mode whose conversation with the oracle outgrows the context.

    The choice is kept as that of `leave_out_mastered`.

    Args:
        config: `model.max_seq_length`, `agent.max_turn_tokens`, which a turn needs free, and `seed`.

    Returns:
        The other tasks, in their order.

    Raises:
        SettingsError: No task is left.
    """
    room = config.model.max_seq_length - config.agent.max_turn_tokens
    format = HarmonyFormat(style=config.data.prompt_style)

    def choose() -> list[int]:
        return [
            number for number, (_, row) in enumerate(play_gold(tasks, db, config.seed))
            if len(conversation_row(tokenizer, row["messages"], format)["input_ids"]) <= room
        ]

    return _keep(tasks, choose, config, f"conversations of the others outgrow {room} tokens", (
        f"model.max_seq_length={config.model.max_seq_length} leaves no task: the conversations of "
        f"all {len(tasks)} outgrow {room} tokens; raise it"
    ))


def _keep(
    tasks: Sequence[Task], choose: Callable[[], list[int]], config: configs.RunConfig, others: str,
    none_left: str,
) -> Sequence[Task]:
    """Return the chosen tasks; the main process chooses, once for the run.

    GRPO that is under way without a choice began before tasks were left out, and keeps them all.
    """
    path, state = Path(config.output_dir) / "grpo_tasks.json", PartialState()
    if state.is_main_process and read_json(path, None) is None:
        began = latest_complete(path.parent) is not None
        chosen = list(range(len(tasks))) if began else choose()
        write_json_atomic(path, chosen)
        if began:
            print(f"GRPO keeps all {len(tasks)} tasks, as it began before tasks were left out")
        elif len(chosen) < len(tasks):
            print(f"GRPO trains on {len(chosen)} of {len(tasks)} tasks: {others}")
    state.wait_for_everyone()
    chosen = read_json(path, [])
    if not chosen:
        raise SettingsError(none_left)
    return select_tasks(tasks, chosen)


def gold_probabilities(
    model: Any, tokenizer: Any, tasks: Sequence[Task], style: str
) -> list[float]:
    """Return the probability, at temperature 1, that the policy answers each task with gold to the letter."""
    rows = [
        [tokenizer(row[part], add_special_tokens=False)["input_ids"] for part in ("prompt", "completion")]
        for row in sft_rows(tasks, style, plan_format(tokenizer))
    ]
    by_length = sorted(range(len(rows)), key=lambda number: sum(map(len, rows[number])))
    result = [0.0] * len(rows)
    for start in range(0, len(rows), ROWS_PER_PASS):
        numbers = by_length[start:start + ROWS_PER_PASS]
        for number, value in zip(numbers, _measure(model, [rows[n] for n in numbers]), strict=True):
            result[number] = value
    return result


@torch.inference_mode()
def _measure(model: Any, rows: list[list[list[int]]]) -> list[float]:
    """Return the probability of each row's completion after its prompt."""
    ids = [torch.tensor(prompt + completion) for prompt, completion in rows]
    batch = pad_sequence(ids, batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
    first = min(len(prompt) for prompt, _ in rows)
    kept = batch.shape[1] - first
    # The logits of a column are those of the token after it.
    logits = model(input_ids=batch, attention_mask=mask, logits_to_keep=kept + 1).logits[:, :-1]
    logps = logits.float().log_softmax(-1).gather(-1, batch[:, first:, None])[..., 0]
    return [
        math.exp(logps[row, len(prompt) - first:len(prompt) + len(completion) - first].sum())
        for row, (prompt, completion) in enumerate(rows)
    ]
