"""Which tasks GRPO trains on: those that the policy neither always nor never solves.

A group whose completions all earn the same teaches nothing. The probability of the gold completion
under the policy, one forward pass, is the chance that a completion sampled at temperature 1 is gold
to the letter: it tells such tasks beforehand, without sampling.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from data_reader import Task, sft_rows

ROWS_PER_PASS = 8


def gold_probabilities(
    model: Any, tokenizer: Any, tasks: Sequence[Task], style: str
) -> list[float]:
    """Return the probability that the policy answers each task with gold, to the letter.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        tasks: The tasks.
        style: Prompt style, `data.prompt_style`.

    Returns:
        One probability per task, at temperature 1.
    """
    rows = [
        [tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "completion")]
        for row in sft_rows(tasks, style)
    ]
    by_length = sorted(range(len(rows)), key=lambda number: len(rows[number][0] + rows[number][1]))
    result = [0.0] * len(rows)
    for start in range(0, len(rows), ROWS_PER_PASS):
        numbers = by_length[start:start + ROWS_PER_PASS]
        values = _probabilities(model, [rows[number] for number in numbers])
        for number, value in zip(numbers, values, strict=True):
            result[number] = value
    return result


@torch.inference_mode()
def _probabilities(model: Any, rows: list[list[list[int]]]) -> list[float]:
    """Return the probability of each row's completion after its prompt."""
    ids = [torch.tensor(prompt + completion) for prompt, completion in rows]
    batch = pad_sequence(ids, batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
    longest = batch.shape[1] - min(len(prompt) for prompt, _ in rows)
    # Columns of the logits are those of the tokens before the completions.
    logits = model(input_ids=batch, attention_mask=mask, logits_to_keep=longest + 1).logits
    chosen = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, batch[:, -longest:, None])[..., 0]
    first = batch.shape[1] - longest
    return [
        math.exp(min(0.0, values[len(prompt) - first:len(prompt) + len(completion) - first].sum().item()))
        for values, (prompt, completion) in zip(chosen, rows, strict=True)
    ]
