"""Fuzz and adversaries: no text breaks the scorer, slows it down or gains over honest work."""

import json
import random
import string
import time

import numpy as np
import pytest
from example_tasks import call, make_tasks

from data_reader import gold_completion
from envs.retail import TOOL_SCHEMAS, RetailDatabase
from prompting.harmony import SPECIAL_TOKENS, find_special_token, parse_completion, render_completion
from task_tester import score_completion

DB = RetailDatabase.load()
TASKS = list(make_tasks(DB).values())
P99_LIMIT_S = 0.005
SCRAPS = [
    '{"tool_calls":[', "]}", '{"name":', '"arguments":', '{"', '"}', "[", "]", "{", "}", ",", ":",
    '"', "null", "true", "NaN", "-Infinity", "1e999", "9" * 400, "\\u0000", "\\ud800", "\ud800",
    "\u200b", "\ufeff", "\x00", "\n", "é", "＃W", "𝟙", "#W0000000", "```json", "final",
    *SPECIAL_TOKENS, *TOOL_SCHEMAS, '{"name":"think","arguments":{"thought":"x"}}', "[" * 500,
    '{"a":' * 200, " " * 300,
]


def random_value(rng, depth=0):
    """Return any JSON value, biased to what tools take."""
    kind = rng.randrange(10 if depth < 4 else 6)
    if kind < 3:
        return rng.choice(["", "x", "#W0000000", "\ud800", "é" * 50, "(" * 400, "1+" * 200 + "1"])
    if kind < 6:
        return rng.choice([True, None, 0, -1, 10**90, 1.5, "9" * 300 + "*" + "9" * 300])
    if kind < 8:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice("abc"): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def random_call(rng):
    """Return a call of a real or an invented tool with any arguments."""
    name = rng.choice([*TOOL_SCHEMAS, "", "nope", "__class__", "call"])
    if name in TOOL_SCHEMAS and rng.random() < 0.8:
        names = TOOL_SCHEMAS[name]["function"]["parameters"]["properties"]
        return call(name, **{key: random_value(rng) for key in names if rng.random() < 0.9})
    arguments = {rng.choice("xyz"): random_value(rng)}
    return {"name": name, "arguments": rng.choice([arguments, random_value(rng)])}


LOOK_ALIKES = str.maketrans({"a": "\u0430", "e": "\u0435", "o": "\u043e", "0": "\uff10", "_": "\uff3f"})


def trick(rng, task):
    """Return the gold answer with one of the known tricks played at a random place or number."""
    gold, answer = task.gold_actions, gold_completion(task)
    spot = rng.choice([i for i, letter in enumerate(answer) if letter == "{"])
    again = rng.choice(['"tool_calls":[],', '"name":"think",', '"arguments":{},'])
    nested = rng.choice([answer, {"tool_calls": gold}, [answer], gold])
    spoiled = [dict(one) for one in gold]
    chosen = rng.choice(spoiled)
    chosen["arguments"] = dict.fromkeys(chosen["arguments"], nested)
    start, end = sorted(rng.choices(range(len(answer) + 1), k=2))
    other_type = [dict(one) for one in gold]
    rng.choice(other_type)["arguments"] = rng.choice([None, [], "", answer, json.dumps(chosen), 1])
    return rng.choice([
        json.dumps({"tool_calls": (gold * 64)[:rng.randrange(1, 66)]}),
        json.dumps({"tool_calls": [*gold, *(call(name) for name in TOOL_SCHEMAS)]}),
        rng.choice(["Sure! ", "", "```json\n"]) + answer + rng.choice([" Done.", "\n```", answer]),
        answer[:spot + 1] + again + answer[spot + 1:],
        answer + rng.choice(" x]}") * rng.choice([1, 19_000, 200_000]),
        answer[:start] + answer[start:end].translate(LOOK_ALIKES) + answer[end:],
        json.dumps({"tool_calls": spoiled}),
        json.dumps({"tool_calls": other_type}),
    ])


def random_completion(rng, task):
    """Return one completion: scraps, damaged gold, random calls, gold and more, or a trick."""
    kind = rng.randrange(7)
    if kind == 6:
        return trick(rng, task)
    if kind == 0:
        return "".join(rng.choice(SCRAPS) for _ in range(rng.randrange(30)))
    if kind == 1:
        return "".join(rng.choice(string.printable) for _ in range(rng.randrange(200)))
    text = gold_completion(task)
    if kind in (2, 3):
        for _ in range(rng.randrange(1, 5)):
            place, end = sorted(rng.choices(range(len(text) + 1), k=2))
            piece = rng.choice([rng.choice(SCRAPS), rng.choice(string.printable), text[place:end]])
            text = text[:place] + piece + text[place if rng.random() < 0.5 else end:]
        return text
    calls = [random_call(rng) for _ in range(rng.choice([0, 1, 2, 3, 5, 64]))]
    if kind == 5:
        calls = rng.sample([*task.gold_actions, *calls][:64], min(64, len(calls) + 1))
    return json.dumps({"tool_calls": calls}, ensure_ascii=rng.random() < 0.5)


def fuzz(num_completions, seed):
    """Score many random completions; return the seconds that each took."""
    rng = random.Random(seed)
    seconds = []
    for number in range(num_completions):
        task = TASKS[number % len(TASKS)]
        text = random_completion(rng, task)
        # As the trainer scores: from the raw text, which is the answer in harmony or anything else.
        raw = render_completion(text) if number % 2 and find_special_token(text) is None else text
        start_s = time.process_time()
        final = parse_completion(raw).final
        score = score_completion(task, final, DB)
        seconds.append(time.process_time() - start_s)
        assert -1.0 <= score.reward <= score.max_reward, text
        assert score.outcome in (0.0, 1.0), text
        assert (score.reward == score.max_reward) == score.exact_match, text
        if score.parse_error is not None:
            assert (score.reward, score.outcome) == (-1.0, 0.0), text
    return seconds


def test_random_completions_are_scored_within_bounds():
    assert np.quantile(fuzz(8_000, seed=1), 0.99) < P99_LIMIT_S


@pytest.mark.slow
def test_100_000_random_completions_are_scored_within_bounds():
    assert np.quantile(fuzz(100_000, seed=2), 0.99) < P99_LIMIT_S


def adversaries(task):
    """Yield (name, text) of answers that try to earn without doing, or more than work is worth."""
    gold, answer = task.gold_actions, gold_completion(task)

    def plan(calls):
        return json.dumps({"tool_calls": calls})

    every_tool = [
        call(name, **{p: "x" for p in schema["function"]["parameters"]["properties"]})
        for name, schema in TOOL_SCHEMAS.items()
    ]
    for count in (2, 8, 64):
        yield f"first gold call {count} times", plan(gold[:1] * count)
        yield f"gold {count} times", plan((gold * count)[:64])
    yield "too many calls", plan(gold * 65)
    yield "every tool", plan(every_tool)
    yield "every tool, four times", plan(every_tool * 4)
    yield "gold, then every tool", plan(gold + every_tool)
    yield "every tool without arguments", plan([call(name) for name in TOOL_SCHEMAS])
    yield "gold names, no arguments", plan([call(a["name"]) for a in gold])
    yield "empty plan", plan([])
    yield "prose before", f"Certainly! {answer}"
    yield "prose after", f"{answer} I hope that helps."
    yield "code fence", f"```json\n{answer}\n```"
    yield "two plans", f"{plan([])}{answer}"
    yield "duplicate tool_calls", '{"tool_calls":[],' + answer[1:]
    yield "duplicate name", answer.replace('"name":', '"name":"think","name":', 1)
    yield "a million spaces", answer + " " * 1_000_000
    yield "ten million letters", "x" * 10_000_000
    yield "a plan of ten million characters", plan([call("think", thought="x" * 10_000_000)])
    yield "look-alike digits", answer.translate({ord(str(d)): 0xFF10 + d for d in range(10)})
    yield "look-alike letters", answer.replace("o", "\u043e")
    yield "zero-width space in names", answer.replace("_", "_\u200b")
    yield "full-width quotes", answer.replace('"', "\uff02")
    yield "gold as text in an argument", plan([call("think", thought=answer)])
    yield "gold as an object in an argument", plan([call("think", thought={"tool_calls": gold})])
    yield "gold inside gold", plan([{**gold[0], "arguments": {"tool_calls": gold}}])
    yield "nested plans", '{"tool_calls":' * 5 + answer + "}" * 5
    yield "deep arrays in an argument", plan([]).replace("[]", "[" * 9_000 + "]" * 9_000)
    yield "extra keys", plan([{**a, "reward": 100} for a in gold])
    conversions = {"JSON text": json.dumps, "keys": list, "a list of one": lambda a: [a]}
    for kind, convert in conversions.items():
        as_other = [{**a, "arguments": convert(a["arguments"])} for a in gold]
        yield f"arguments as {kind}", plan(as_other)
    yield "extra argument", plan([{**a, "arguments": {**a["arguments"], "ok": 1}} for a in gold])
    yield "upper-case names", plan([{**a, "name": a["name"].upper()} for a in gold])
    yield "a list around", f"[{answer}]"
    yield "huge number", '{"tool_calls":[' + "9" * 19_000 + "]}"
    yield "long sums", plan([call("calculate", expression="1+" * 140 + "1")] * 64)


def test_no_adversary_gains_over_honest_work():
    for task in TASKS:
        honest = score_completion(task, gold_completion(task), DB)
        assert honest.reward == honest.max_reward and honest.outcome == 1.0
        for name, text in adversaries(task):
            start_s = time.process_time()
            score = score_completion(task, text, DB)
            assert time.process_time() - start_s < 0.1, name
            assert -1.0 <= score.reward < honest.reward, (task.task_id, name)
            assert not score.exact_match, (task.task_id, name)


def test_doing_nothing_never_passes():
    for task in TASKS:
        for text in ["", "{}", '{"tool_calls":[]}', "I cannot help with that."]:
            score = score_completion(task, text, DB)
            assert score.outcome == 0.0 and score.reward <= 0.0, task.task_id


def test_doing_less_earns_less():
    for task in TASKS:
        rewards = []
        for count in range(len(task.gold_actions) + 1):
            text = json.dumps({"tool_calls": task.gold_actions[:count]})
            rewards.append(score_completion(task, text, DB).reward)
        assert rewards == sorted(set(rewards)), task.task_id
