"""The law of the reward, by search: nothing scores above gold, and one call more scores less."""

import copy
import itertools
import json
import random
from pathlib import Path

import pytest
from example_tasks import call, make_task, make_tasks

from data_reader import gold_completion, read_tasks
from envs.retail import TOOL_SCHEMAS, WRITE_TOOLS, RetailDatabase
from task_tester import score_completion

DB = RetailDatabase.load()
TASKS = make_tasks(DB)
# Every tool with arguments that the store accepts on its own, and with wrong and with no arguments.
GOOD_CALLS = list(
    {json.dumps(a, sort_keys=True): a for t in TASKS.values() for a in t.gold_actions}.values()
)
POOL = (
    GOOD_CALLS
    + [call(name) for name in TOOL_SCHEMAS]
    + [
        call(name, **{p: "x" for p in schema["function"]["parameters"]["properties"]})
        for name, schema in TOOL_SCHEMAS.items()
    ]
    + [call("", a=1), call("reward_me"), call("tool_calls", tool_calls=[])]
)
SHIPPED_FILES = [Path(__file__).parents[1] / name for name in ("dataset.jsonl", "3.5k.jsonl")]
VALUES = ["", "x", "#W0", "no longer needed", True, 1, None, [], ["x"], ["x", "x"], {}, {"a": []}]


def plan(calls):
    return json.dumps({"tool_calls": calls})


def score(task, calls):
    return score_completion(task, plan(calls), DB)


def argument_changes(calls):
    """Yield the plan with one argument dropped, replaced or added, in every place."""
    for index, one in enumerate(calls):
        for name in one["arguments"]:
            for value in [*VALUES, "DROP"]:
                changed = copy.deepcopy(calls)
                if value == "DROP":
                    del changed[index]["arguments"][name]
                else:
                    changed[index]["arguments"][name] = value
                yield changed
            value = one["arguments"][name]
            if isinstance(value, list):
                for other in (value[1:], value + value[:1], value[:1] * len(value), value[::-1]):
                    changed = copy.deepcopy(calls)
                    changed[index]["arguments"][name] = other
                    yield changed
            elif isinstance(value, str):
                for other in (value.lower(), value.upper(), value + " ", value[1:], value * 2):
                    changed = copy.deepcopy(calls)
                    changed[index]["arguments"][name] = other
                    yield changed
        changed = copy.deepcopy(calls)
        changed[index]["arguments"]["note"] = "x"
        yield changed


def single_changes(calls):
    """Yield the plans one step away: drop, duplicate, reorder, insert, rename, change."""
    for index in range(len(calls)):
        yield calls[:index] + calls[index + 1:]
        for other in TOOL_SCHEMAS:
            yield [*calls[:index], {**calls[index], "name": other}, *calls[index + 1:]]
        for replacement in POOL:
            yield [*calls[:index], replacement, *calls[index + 1:]]
    yield from (list(order) for order in itertools.permutations(calls))
    yield from argument_changes(calls)


def others(calls):
    """Yield plans that try to be generous."""
    yield []
    yield from (calls * n for n in range(2, 9))
    yield from ([one] * n for one in calls for n in (1, 2, 16, 64))
    yield POOL[:64]
    yield calls + POOL[: 64 - len(calls)]
    yield POOL[: 64 - len(calls)] + calls
    yield [one for one in calls for _ in range(8)]
    yield [call("think", thought=plan(calls))]


@pytest.mark.parametrize("name", TASKS)
def test_nothing_scores_above_gold(name):
    task = TASKS[name]
    gold = score(task, task.gold_actions)
    for calls in itertools.chain(single_changes(task.gold_actions), others(task.gold_actions)):
        found = score(task, calls)
        assert -1.0 <= found.reward <= gold.reward and found.outcome <= gold.outcome, calls
        assert (found.reward == gold.reward) == found.exact_match, calls
        if found.exact_match:
            assert found.outcome == 1.0 and found.db_match, calls


@pytest.mark.parametrize("name", TASKS)
def test_any_call_added_anywhere_scores_less(name):
    task = TASKS[name]
    gold = score(task, task.gold_actions)
    for one in [*POOL, *task.gold_actions]:
        for place in range(len(task.gold_actions) + 1):
            calls = [*task.gold_actions[:place], one, *task.gold_actions[place:]]
            found = score(task, calls)
            assert found.reward <= gold.reward - 0.3 + 1e-9 and not found.exact_match, calls
            if found.outcome == 1.0:  # then the store is gold's and every call was accepted
                assert found.db_match and all(c.ok for c in found.calls), calls


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: path.name)
def test_every_shipped_task_keeps_the_law(path):
    rng = random.Random(path.name)
    for task in read_tasks(path):
        gold = score_completion(task, gold_completion(task), DB)
        assert gold.reward == gold.max_reward and gold.outcome == 1.0 and gold.exact_match
        assert gold.complete and gold.ordering and gold.db_match
        place = rng.randrange(len(task.gold_actions) + 1)
        for calls in [
            [],
            task.gold_actions[1:],
            task.gold_actions[:-1],
            [*task.gold_actions[:place], rng.choice(POOL), *task.gold_actions[place:]],
        ]:
            found = score(task, calls)
            assert found.reward < gold.reward and not found.exact_match, (task.task_id, calls)
        assert score(task, []).outcome == 0.0, task.task_id
        if task.gold_actions[-1]["name"] in WRITE_TOOLS:
            assert score(task, task.gold_actions[:-1]).outcome == 0.0, task.task_id


@pytest.mark.parametrize("seed", range(3))
def test_random_walks_never_pass_gold(seed):
    rng = random.Random(seed)
    for task in TASKS.values():
        gold = score(task, task.gold_actions)
        for _ in range(60):
            calls = copy.deepcopy(task.gold_actions)
            for _ in range(rng.randrange(1, 6)):
                calls = rng.choice(
                    [
                        lambda c: c + [rng.choice(POOL)],
                        lambda c: [rng.choice(POOL), *c],
                        lambda c: rng.sample(c, len(c)),
                        lambda c: c[: rng.randrange(len(c) + 1)],
                        lambda c: c * rng.randrange(1, 3),
                        lambda c: rng.choice(list(argument_changes(c)) or [c]),
                    ]
                )(calls)[:64]
            found = score(task, calls)
            assert -1.0 <= found.reward <= gold.reward and found.outcome <= gold.outcome, calls
            assert (found.reward == gold.reward) == found.exact_match, calls


@pytest.mark.parametrize("name", TASKS)
def test_text_around_or_besides_the_plan_is_no_plan(name):
    task = TASKS[name]
    answer = gold_completion(task)
    for text in [
        f"Here you are: {answer}", f"{answer}\nDone.", f"```json\n{answer}\n```", answer * 2,
        f"[{answer}]", json.dumps(answer), answer[:-1], answer + "}", f"<final>{answer}</final>",
        answer.replace('"', "'"), answer.replace("{", '{"thought":"x",', 1), f"\ufeff{answer}",
        answer.replace('"name"', '"name":"think","name"', 1),
        answer.replace('{"tool_calls"', '{"tool_calls":[],"tool_calls"', 1),
    ]:
        found = score_completion(task, text, DB)
        assert (found.reward, found.outcome) == (-1.0, 0.0) and found.parse_error, text


def reference_reward(gold, predicted):
    """Return the best reward over all one-to-one matchings, by trying every one.

    Best means most equal pairs, then most pairs of equal names, then gold's order kept.
    """
    best = (0, 0, False)
    slots = [*range(len(predicted)), *[None] * len(gold)]
    for choice in set(itertools.permutations(slots, len(gold))):
        pairs = [(g, predicted[i], i) for g, i in zip(gold, choice, strict=True) if i is not None]
        if any(g["name"] != p["name"] for g, p, _ in pairs):
            continue
        places = [i for *_, i in pairs]
        ordered = len(pairs) == len(gold) and places == sorted(places)
        best = max(best, (sum(g == p for g, p, _ in pairs), len(pairs), ordered))
    num_equal, num_pairs, ordered = best
    return num_pairs + 0.5 * num_equal + 0.5 * ordered - 0.3 * (len(predicted) - num_pairs)


def test_matching_is_the_best_of_all_matchings():
    rng = random.Random(7)
    order_id = next(iter(DB.orders))
    letters = [call("think", thought=t) for t in "ab"] + [
        call("calculate", expression=e) for e in ("1 + 1", "2 + 2")
    ] + [call("get_order_details", order_id=order_id)]
    for _ in range(600):
        gold = [rng.choice(letters) for _ in range(rng.randrange(1, 5))]
        predicted = [rng.choice(letters) for _ in range(rng.randrange(0, 5))]
        found = score(make_task("t", *gold), predicted)
        wanted = max(-1.0, reference_reward(gold, predicted))
        assert found.reward == pytest.approx(wanted), (gold, predicted)
