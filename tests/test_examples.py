"""What the notebook shows of a run: a sampled group, and six requests marked at every stage."""

from types import SimpleNamespace

from data_reader import Task, gold_completion, read_tasks
from envs.retail import RetailDatabase
from scoring.reward import score_completion
from training.examples import KINDS, choose_examples, show_examples

DB = RetailDatabase.load()
TASKS = read_tasks("dataset.jsonl")


def evaluation(label: str, tasks: list[Task], completions: list[str]) -> SimpleNamespace:
    pairs = list(zip(tasks, completions, strict=True))
    return SimpleNamespace(
        label=label, scores=[score_completion(task, text, DB) for task, text in pairs],
        completions=[{"task_id": task.task_id, "completion": text} for task, text in pairs],
    )


def test_one_example_of_each_kind():
    chosen = choose_examples(TASKS)
    assert list(chosen) == list(KINDS)
    for kind, task in chosen.items():
        assert task.tags["wishes"] == [KINDS[kind]]
    untagged = [Task(t.query, t.gold_actions, "", t.task_id) for t in TASKS[:9]]
    assert [t.task_id for t in choose_examples(untagged).values()] == [
        t.task_id for t in untagged[:6]
    ]


def test_examples_are_marked_by_what_the_calls_do(capsys):
    shown = list(choose_examples(TASKS).values())
    gold = evaluation("sft", shown, [gold_completion(task) for task in shown])
    nothing = evaluation("base", shown, ["I would rather not."] * len(shown))
    show_examples([nothing, gold], TASKS, DB)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["request", "base", "SFT"]
    assert [line.split()[-2:] for line in lines[1:7]] == [["wrong", "right"]] * 6
    assert sum("outcome 1" in line for line in lines) == 6
