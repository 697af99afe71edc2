"""SFT: what the loss sees, how rows are laid out, and that a few steps lower the loss."""

import pytest
import tiny_random

from data_reader import build_sft_dataset, gold_completion
from gptoss.load import load_model
from prompting.harmony import render_completion
from training.sft import (
    build_sft_trainer,
    choose_rows,
    count_steps,
    order_rows,
    run_sft,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(tiny_random.tiny_config(folder).model)


def test_the_loss_sees_the_completion_and_nothing_else(folder, loaded):
    model, tokenizer = loaded
    tasks = tiny_random.make_tasks(5)
    trainer = build_sft_trainer(model, tokenizer, tasks, tiny_random.tiny_config(folder))
    rows = build_sft_dataset(tasks, "brief")
    for task, prompt, row in zip(tasks, rows["prompt"], trainer.train_dataset, strict=True):
        trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True)
                   if label != -100]
        hidden = [token for token, label in zip(row["input_ids"], row["labels"], strict=True)
                  if label == -100]
        completion = tokenizer.decode(trained)
        assert completion == render_completion(gold_completion(task))
        assert completion.endswith("<|return|>") and completion.count("<|return|>") == 1
        assert tokenizer.decode(hidden) == prompt
        assert prompt.startswith("<|start|>") and "<|startoftext|>" not in prompt
        assert row["input_ids"] == hidden + trained, "completion tokens are not one block at the end"


def test_the_mask_survives_batching(folder, loaded):
    model, tokenizer = loaded
    tasks = tiny_random.make_tasks(4)
    trainer = build_sft_trainer(model, tokenizer, tasks, tiny_random.tiny_config(folder))
    texts = {render_completion(gold_completion(task)) for task in tasks}
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert tokenizer.decode(ids[labels != -100]) in texts


def lay_out(lengths: list[int], num_batches: int, seed: int) -> list[int]:
    shown, blocks = choose_rows(len(lengths), 4, num_batches, seed)
    places = order_rows(blocks, [lengths[row] for row in shown], 4, num_batches)
    return [shown[place] for place in places]


def test_rows_are_laid_out_in_batches_of_like_length():
    lengths = [(7 * n) % 100 for n in range(70)]
    order = lay_out(lengths, 35, seed=1)
    assert sorted(order) == sorted([*range(70), *range(70)]), "two passes, each row twice"
    spans = [max(part) - min(part) for part in (
        [lengths[row] for row in order[start:start + 4]] for start in range(0, 140, 4))]
    assert sum(spans) / len(spans) < 20
    assert order == lay_out(lengths, 35, seed=1) != lay_out(lengths, 35, seed=2)


def test_a_short_run_asks_for_few_rows_and_shows_what_a_long_one_shows_first():
    lengths = [(7 * n) % 1000 for n in range(5000)]
    shown, _ = choose_rows(5000, 4, num_batches=5, seed=1)
    assert len(shown) == 16 * 4 and list(shown) == sorted(set(shown))
    assert lay_out(lengths, 5, seed=1) == lay_out(lengths, 1000, seed=1)[:20]
    assert list(choose_rows(5000, 4, num_batches=0, seed=1)[0]) == []


def test_steps_of_an_epoch(folder):
    stage = tiny_random.tiny_config(folder, sft__max_steps=-1, sft__num_train_epochs=1.5).sft
    assert count_steps(stage, num_rows=10) == 4
    assert count_steps(stage, num_rows=10, world_size=2) == 2


def test_a_few_steps_lower_the_loss(folder):
    config = tiny_random.tiny_config(folder, sft__learning_rate=1e-2, sft__max_steps=5)
    model, tokenizer = load_model(config.model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    figures = run_sft(model, tokenizer, tiny_random.make_tasks(20), config)
    assert figures["train_loss"] > 0
    table = (folder / "run" / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[table[0].split(",").index("loss")]) for row in table[1:]]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.2
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.equal(frozen[name]), f"{name} changed though it is frozen"


def test_zero_steps_skip_the_stage(folder, loaded):
    config = tiny_random.tiny_config(folder, sft__max_steps=0)
    assert run_sft(*loaded, tiny_random.make_tasks(2), config) == {}
