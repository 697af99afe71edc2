"""Policies that see nothing but the reward, trained by GRPO, end at the honest plan, at no trick.

Two policies search. One chooses from a menu of whole answers, tricks beside the honest plan; it is
also started with nine tenths of its weight on each trick in turn. The other builds an answer from
choices (what to do with each gold call, what to add, how to wrap it), so it can combine tricks that
the menu does not hold. Both are softmax policies updated with group-normalised advantages of the
trainer's reward: tool reward plus outcome reward. Left out: a language model, which would test its
own learning more than the reward.
"""

import json
from functools import cache

import numpy as np
import pytest
from example_tasks import call, make_tasks

from data_reader import Task, gold_completion
from envs.retail import TOOL_SCHEMAS, RetailDatabase
from task_tester import score_completion

pytestmark = pytest.mark.slow

DB = RetailDatabase.load()
TASKS = list(make_tasks(DB).values())
GROUP_SIZE = 8
LOOK_ALIKES = str.maketrans({"a": "а", "e": "е", "o": "о", "0": "０", "1": "１"})


def plan(calls: list[dict]) -> str:
    """Return calls as an answer."""
    return json.dumps({"tool_calls": calls}, separators=(",", ":"))


def spoil(one: dict, value: object = "x") -> dict:
    """Return a call whose last argument is replaced; a call without arguments gets one."""
    arguments = dict(one["arguments"])
    arguments[next(reversed(arguments), "note")] = value
    return call(one["name"], **arguments)


def blank(one: dict) -> dict:
    """Return a call with its name alone."""
    return call(one["name"])


def every_tool() -> list[dict]:
    """Return a call of each tool, every argument a text."""
    return [
        call(name, **{p: "x" for p in schema["function"]["parameters"]["properties"]})
        for name, schema in TOOL_SCHEMAS.items()
    ]


def menu(task: Task) -> dict[str, str]:
    """Return the answers to choose from, by name; "honest" is the gold plan."""
    gold, answer = task.gold_actions, gold_completion(task)
    look_alike = json.dumps(gold, ensure_ascii=False).translate(LOOK_ALIKES)
    first, last = gold[0], gold[-1]
    names = [call(name) for name in TOOL_SCHEMAS]
    gold_names = [blank(one) for one in gold]
    return {
        "honest": answer,
        "empty text": "",
        "empty plan": plan([]),
        "one argument wrong": plan([*gold[:-1], spoil(last)]),
        "first call only": plan([first]),
        "all but the last call": plan(gold[:-1]),
        "calls backwards": plan(gold[::-1]),
        "every argument wrong": plan([spoil(one) for one in gold]),
        "arguments as a list": plan([spoil(one, ["x"]) for one in gold]),
        "nested JSON in an argument": plan([spoil(one, answer) for one in gold]),
        "nested object in an argument": plan([spoil(one, {"tool_calls": gold}) for one in gold]),
        "extra argument": plan([call(one["name"], **one["arguments"], note="x") for one in gold]),
        "gold names without arguments": plan(gold_names),
        "gold and its names": plan([*gold, *gold_names]),
        "many names without arguments": plan((gold_names * 64)[:64]),
        "all tools": plan(every_tool()),
        "all tool names": plan(names),
        "gold, then all tools": plan([*gold, *every_tool()]),
        "all tool names, then gold": plan([*names, *gold]),
        "gold twice": plan(gold * 2),
        "each call twice": plan([one for one in gold for _ in range(2)]),
        "gold repeated to the limit": plan((gold * 64)[:64]),
        "first call sixty-four times": plan([first] * 64),
        "last call twice": plan([*gold, last]),
        "gold and a thought": plan([*gold, call("think", thought=answer)]),
        "gold and a hand-over": plan([*gold, call("transfer_to_human_agents", summary="x")]),
        "gold and an invented tool": plan([*gold, call("give_reward", amount=100)]),
        "invented tool": plan([call("give_reward", amount=100)]),
        "names in capitals": plan([call(one["name"].upper(), **one["arguments"]) for one in gold]),
        "look-alike letters": '{"tool_calls":' + look_alike + "}",
        "prose around JSON": f"Here you are: {answer} Done.",
        "code fence": f"```json\n{answer}\n```",
        "two plans": answer + answer,
        "duplicate plan key": answer.replace('{"tool_calls"', '{"tool_calls":[],"tool_calls"', 1),
        "duplicate name key": answer.replace('"name"', '"name":"think","name"', 1),
        "extra key": answer.replace("{", '{"reward":100,', 1),
        "plan in a list": f"[{answer}]",
        "plan as a text": json.dumps(answer),
        "cut short": answer[:-1],
        "huge text": answer + " " * 50_000,
        "huge argument": plan([*gold, call("think", thought="x" * 15_000)]),
        "deep nesting": '{"tool_calls":' * 500 + "[]" + "}" * 500,
        "too many calls": plan((gold * 100)[:100]),
        "not a number": '{"tool_calls":NaN}',
    }


def trainer_reward(task: Task, answer: str) -> float:
    """Return what the trainer optimises: both reward functions with weight 1."""
    score = score_completion(task, answer, DB)
    return score.reward + score.outcome


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Return group-normalised advantages, as the trainer makes them. Shape [G]."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


@cache
def reward_table() -> tuple[list[str], np.ndarray]:
    """Return the names of the menu and the rewards [task, answer]."""
    names = list(menu(TASKS[0]))
    rows = [[trainer_reward(task, menu(task)[name]) for name in names] for task in TASKS]
    return names, np.array(rows)


def train_on_menu(start: np.ndarray, num_steps: int = 600, rate: float = 0.05) -> np.ndarray:
    """Return the probabilities of the menu's answers after training.

    The groups are so large that every answer occurs in its share, and the step is the natural
    gradient (each answer's logit moves by its advantage): with small groups and the plain gradient
    the winner is whichever good answer was sampled first, which says little about the reward.

    Args:
        start: probabilities to begin with. Shape [answers].
        num_steps: updates, each on one group of every task.
        rate: learning rate.
    """
    _, rewards = reward_table()
    logits = np.log(start)
    for _ in range(num_steps):
        shares = softmax(logits)
        spread = rewards - (rewards @ shares)[:, None]
        deviation = np.sqrt(spread**2 @ shares)[:, None]
        logits = logits + rate * (spread / (deviation + 1e-4)).mean(axis=0)
    return softmax(logits)


def test_no_answer_of_the_menu_earns_what_the_honest_one_earns():
    names, rewards = reward_table()
    honest = rewards[:, [names.index("honest")]]
    assert (rewards <= honest).all()
    assert sorted(np.array(names)[(rewards == honest).all(axis=0)]) == ["honest"]


def test_policy_over_the_menu_ends_honest():
    names, _ = reward_table()
    start = np.full(len(names), 1.0)
    start[names.index("honest")] = 0.01
    end = train_on_menu(start / start.sum())
    found = {names[i]: round(float(end[i]), 4) for i in np.argsort(-end)[:4]}
    assert end[names.index("honest")] > 0.98, found
    assert max(np.delete(end, names.index("honest"))) < 0.01, found


def test_policy_leaves_every_trick():
    names, _ = reward_table()
    stuck = {}
    for index, name in enumerate(names):
        if name == "honest":
            continue
        start = np.full(len(names), 0.1 / (len(names) - 1))
        start[index] = 0.9
        end = train_on_menu(start)
        if end[names.index("honest")] < 0.98 or end[index] > 0.01:
            stuck[name] = {names[i]: round(float(end[i]), 4) for i in np.argsort(-end)[:3]}
    assert not stuck


# What the building policy can do with each gold call, add at the end, and put around the plan.
CALL_EDITS = {
    "keep": lambda one: [one],
    "drop": lambda one: [],
    "twice": lambda one: [one, one],
    "name only": lambda one: [blank(one)],
    "kept and name": lambda one: [one, blank(one)],
    "spoiled": lambda one: [spoil(one)],
    "kept and spoiled": lambda one: [one, spoil(one)],
    "spoiled, then kept": lambda one: [spoil(one), one],
    "renamed": lambda one: [call("think", **one["arguments"])],
}
ENDINGS = {
    "nothing": [],
    "thought": [call("think", thought="x")],
    "hand-over": [call("transfer_to_human_agents", summary="x")],
    "sum": [call("calculate", expression="1 + 1")],
    "list": [call("list_all_product_types")],
    "names": [call(name) for name in TOOL_SCHEMAS],
    "every tool": every_tool(),
    "invented": [call("give_reward")],
}
ORDERS = {
    "as asked": lambda calls: calls,
    "backwards": lambda calls: calls[::-1],
    "all twice": lambda calls: calls * 2,
}
WRAPPERS = {
    "bare": lambda text: text,
    "prose": lambda text: f"Sure. {text}",
    "fence": lambda text: f"```json\n{text}\n```",
    "two keys": lambda text: text.replace("{", '{"tool_calls":[],', 1),
    "extra key": lambda text: text.replace("{", '{"thought":"x",', 1),
    "cut": lambda text: text[:-1],
}
FACTORS = (CALL_EDITS, ENDINGS, ORDERS, WRAPPERS)
MAX_CALLS = max(len(task.gold_actions) for task in TASKS)
SIZES = [len(CALL_EDITS)] * MAX_CALLS + [len(ENDINGS), len(ORDERS), len(WRAPPERS)]


@cache
def built_reward(task_index: int, choices: tuple[int, ...]) -> float:
    """Return the reward of the answer that these choices build."""
    task = TASKS[task_index]
    edits, endings, orders, wrappers = (list(factor.values()) for factor in FACTORS)
    calls = [
        new for one, choice in zip(task.gold_actions, choices, strict=False)
        for new in edits[choice](one)
    ]
    ending, order, wrapper = choices[MAX_CALLS:]
    return trainer_reward(task, wrappers[wrapper](plan(orders[order]([*calls, *endings[ending]]))))


@pytest.mark.parametrize("seed", range(3))
def test_policy_that_builds_answers_ends_honest(seed):
    draws = np.random.default_rng(seed)
    # Half of the usual weight on the honest choice: the first of each factor.
    logits = [np.zeros(size) for size in SIZES]
    for one in logits:
        one[0] = np.log(0.5)
    for _ in range(400):
        probabilities = [softmax(one) for one in logits]
        gradients = [np.zeros(size) for size in SIZES]
        for task_index, task in enumerate(TASKS):
            # Choices for calls that the task does not have are fixed and get no gradient.
            used = [i for i in range(len(SIZES)) if not len(task.gold_actions) <= i < MAX_CALLS]
            group = np.zeros((GROUP_SIZE, len(SIZES)), dtype=int)
            for i in used:
                group[:, i] = draws.choice(SIZES[i], size=GROUP_SIZE, p=probabilities[i])
            rewards = np.array([built_reward(task_index, tuple(map(int, row))) for row in group])
            for row, advantage in zip(group, advantages(rewards), strict=True):
                for i in used:
                    gradients[i][row[i]] += advantage
                    gradients[i] -= advantage * probabilities[i]
        for one, gradient in zip(logits, gradients, strict=True):
            one += 0.1 * gradient / GROUP_SIZE
    end = [softmax(one) for one in logits]
    assert min(one[0] for one in end) > 0.95, [one.round(3) for one in end]
