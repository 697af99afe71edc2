"""What the notebook shows of a run: a sampled group, and six requests marked at every stage."""

from types import SimpleNamespace

import configs
from agent.conversation import Conversation, play
from agent.customers import ScriptedCustomer
from agent.evaluation import episode_row
from agent.policies import scripted_policy
from data_reader import Task, gold_completion, read_tasks
from envs.retail import RetailDatabase
from scoring.reward import score_completion
from training.evaluation import score_rows
from training.examples import (
    KINDS,
    choose_examples,
    reward_source,
    show_answer,
    show_examples,
    show_headline,
    show_mistakes,
    show_this_model,
)

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


def test_conversations_are_shown_as_plans_are(capsys):
    shown = list(choose_examples(TASKS).values())
    evaluations = []
    for label, name in (("base", "nothing"), ("sft", "oracle")):
        talks = [Conversation(task, DB, ScriptedCustomer(task, 0)) for task in shown]
        play(talks, scripted_policy(name))
        rows = [episode_row(talk, 0, failures={}) for talk in talks]
        evaluations.append(score_rows(rows, configs.get_preset("cpu", "agent"), label))
    show_headline(evaluations[1])
    show_answer(evaluations[0], shown)
    show_examples(evaluations, TASKS, DB)
    show_this_model(evaluations[1], None, None, shown, DB)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "success 1.000" and "conversation:" in lines
    table = lines.index(next(line for line in lines if line.startswith("request ")))
    assert [line.split()[-2:] for line in lines[table + 1:table + 7]] == [["wrong", "right"]] * 6
    assert sum(line.startswith("ended: ") for line in lines[table:]) == 6
    assert lines[-1].split()[:3] == ["this", "model", "1.000"] and lines[-1].endswith("(6 tasks)")


def test_mistakes_and_their_price(capsys):
    show_mistakes(TASKS[0], DB, "plan")
    assert "no plan (not_json)" in capsys.readouterr().out
    show_mistakes(TASKS[0], DB, "agent")
    out = capsys.readouterr().out
    assert "unconfirmed_write" in out and out.count("ended: ") == 2
    assert reward_source("plan").startswith("def reward_parts(")
    assert "class EpisodeWeights" in reward_source("agent")
