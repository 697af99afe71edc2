"""Supervised warm-up on gold tool calls, or on conversations, through TRL's SFTTrainer.

Prompts and completions are plain text in the model's format, so no chat template runs and nothing is
added to them: the loss sees the completion's tokens, its end token included, and no other.
Of a conversation it sees the agent's tokens (`conversations.py`). Left out on purpose: packing. It
would mix tasks in one row, and the rows are short.
"""

import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from trl import SFTConfig

import configs
from data_reader import Task, sft_rows
from gptoss.model_types import Model, Tokenizer
from prompting.plan_format import plan_format
from training.task_store import ROWS_PER_BATCH, drop_rows, select_tasks, store_rows
from training.trainer import (
    CheckpointMarker,
    RunLogger,
    common_arguments,
    count_steps,
    run_trainer,
    text_tokenizer,
    world_size,
)
from training.trl_private import OrderedSftTrainer

BATCHES_PER_BLOCK = 16


class Block(NamedTuple):
    """Rows that are sorted by length together."""

    rows: array
    """Their numbers, shuffled."""
    batches: list[int]
    """The order in which the batches come that the sorted rows are cut into."""


def row_lengths(tokenizer: Tokenizer, rows: Dataset) -> Sequence[int]:
    """Return the tokens of each row of a dataset: `input_ids`, else its `prompt` and `completion`."""
    if "input_ids" in rows.column_names:
        return array("I", (len(row["input_ids"]) for row in rows))
    names = [name for name in ("prompt", "completion") if name in rows.column_names]
    lengths = array("I")
    for batch in rows.iter(batch_size=ROWS_PER_BATCH):
        texts = ["".join(parts) for parts in zip(*(batch[name] for name in names), strict=True)]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        lengths.extend(len(row) for row in ids)
    return lengths


def choose_rows(
    num_rows: int, batch_size: int, num_batches: int, seed: int
) -> tuple[array, list[Block]]:
    """Choose the rows that a run shows; only these are ever written, measured and tokenized.

    Args:
        batch_size: Rows per forward pass of all processes.
        num_batches: Forward passes of the run.

    Returns:
        The numbers of the rows, ascending, each once; and the blocks that they come in, whose rows
        are places among these numbers.
    """
    draws = random.Random(seed)
    blocks: list[Block] = []
    missing = batch_size * num_batches
    left_over = array("I")  # four bytes a row: a list of numbers would take forty
    while missing > 0:
        rows = array("I", range(num_rows))
        draws.shuffle(rows)
        rows = left_over + rows
        whole = len(rows) - len(rows) % batch_size
        left_over = rows[whole:]
        for start in range(0, whole, BATCHES_PER_BLOCK * batch_size):
            if missing <= 0:
                break
            block = rows[start:min(start + BATCHES_PER_BLOCK * batch_size, whole)]
            batches = list(range(len(block) // batch_size))
            draws.shuffle(batches)
            blocks.append(Block(block, batches))
            missing -= len(block)
    shown = np.unique(np.concatenate([np.zeros(0, np.uint32), *(block.rows for block in blocks)]))
    places = [
        Block(array("I", np.searchsorted(shown, block.rows).tolist()), block.batches)
        for block in blocks
    ]
    return array("I", shown.tolist()), places


def order_rows(
    blocks: Sequence[Block], lengths: Sequence[int], batch_size: int, num_batches: int
) -> Sequence[int]:
    """Lay out the rows of a whole run in batches of about the same length.

    Rows are shuffled in every pass, sorted by length within blocks of 16 batches, and the batches
    of a block are shuffled, so little padding is computed and no batch is predictable.

    Args:
        blocks: What `choose_rows` returned, for the same batches.
        lengths: Tokens of each row that is shown.

    Returns:
        `batch_size * num_batches` places among the rows that are shown.
    """
    ordered = array("I")
    for block in blocks:
        rows = sorted(block.rows, key=lengths.__getitem__)
        for batch in block.batches:
            ordered.extend(rows[batch * batch_size:(batch + 1) * batch_size])
    return ordered[:batch_size * num_batches]


def rows_dir(config: configs.RunConfig) -> Path:
    """Return the folder that holds the rows while the stage trains."""
    return Path(config.output_dir) / "sft" / "rows"


def build_sft_trainer(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], config: configs.RunConfig,
    rows: Dataset | None = None,
) -> OrderedSftTrainer:
    """Return TRL's trainer for this stage, ready to train.

    Args:
        tokenizer: What ends an answer is its end-of-sequence token.
        rows: Stored rows of `input_ids` and `labels` that are trained on in place of the tasks'
            gold plans.
    """
    stage = config.sft
    num_rows = len(tasks if rows is None else rows)
    steps = count_steps(stage, num_rows, world_size())
    # One batch of the order is what all processes take at a time, so the rows of a step depend on
    # the batch of all of them alone, not on their number.
    batch_size = world_size() * stage.per_device_train_batch_size
    num_batches = stage.gradient_accumulation_steps * steps
    shown, blocks = choose_rows(num_rows, batch_size, num_batches, config.seed)
    if rows is None:
        chosen = select_tasks(tasks, shown)
        plans = plan_format(tokenizer)
        rows = store_rows(sft_rows(chosen, config.data.prompt_style, plans), rows_dir(config))
    else:
        rows = rows.select(shown)
    lengths = row_lengths(tokenizer, rows)
    order = order_rows(blocks, lengths, batch_size, num_batches)

    common = common_arguments(config, stage, Path(config.output_dir) / "sft", model)
    arguments = SFTConfig(
        **common | {"max_steps": steps},
        num_train_epochs=1,
        weight_decay=stage.weight_decay,
        max_length=config.model.max_seq_length,
        completion_only_loss=True,
        packing=False,
    )
    return OrderedSftTrainer(
        order, model=model, args=arguments, train_dataset=rows, processing_class=text_tokenizer(tokenizer),
        callbacks=[RunLogger(config, "sft"), CheckpointMarker()],
    )


def run_sft(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], config: configs.RunConfig,
    resume: bool = False, rows: Dataset | None = None,
) -> dict[str, float]:
    """Train the adapter, in place, on gold completions, or on rows of tokens.

    Args:
        resume: Go on from the newest whole checkpoint, if there is one.
        rows: As `build_sft_trainer`.

    Returns:
        The trainer's closing figures (`train_loss`, `train_runtime` in seconds, ...).

    Raises:
        RunError: The disk is full.
    """
    if config.sft.max_steps == 0:
        return {}
    trainer = build_sft_trainer(model, tokenizer, tasks, config, rows)
    figures = run_trainer(trainer, resume)
    drop_rows(rows_dir(config))
    model.eval()
    return figures
