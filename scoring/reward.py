"""Score one plan: run its calls on the store, match them to the gold calls, add up the reward.

Pure and deterministic: no RNG, clock, print or changed global (a bounded cache of gold replays
aside). What a model wrote lowers its score and never raises; gold that does not replay raises.
`score_completion` is the whole scorer, `reward_parts` its sum; conversations: `scoring/episode.py`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from common.user_error import UserError, brief
from data_reader import Task
from envs.retail import TOOL_SCHEMAS, WRITE_TOOLS, Episode, RetailDatabase
from scoring.parse import Call, ParseKind, parse_plan

CallKind = Literal["correct", "wrong_arguments", "unexpected"]

_REQUIRED = {
    name: tuple(schema["function"]["parameters"]["required"])
    for name, schema in TOOL_SCHEMAS.items()
}


class GoldError(UserError, ValueError):
    """A task whose own gold calls the store refuses; the message names task, call and reason."""


@dataclass(frozen=True)
class RewardWeights:
    """What each part of the reward counts, in reward points."""

    action_name: float = 1.0
    """For each predicted call matched to a gold call of the same name."""
    argument_set: float = 0.5
    """On top of it when the arguments are the gold call's and the store accepts the call."""
    order: float = 0.5
    """Once, when every gold call is matched and the matched calls are in gold's order."""
    incorrect_action: float = -0.3
    """For each predicted call that is matched to no gold call."""
    missing_argument: float = -0.4
    """For each required argument that a predicted call of a known tool lacks."""
    unparsable: float = -1.0
    """For an answer that is no plan; also the least that any answer gets."""

    def __post_init__(self) -> None:
        """Refuse weights with which gold would not be the best answer."""
        for name in ("action_name", "argument_set", "order"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must be 0 or more, is {getattr(self, name)}")
        for name in ("incorrect_action", "unparsable"):
            if not getattr(self, name) < 0:
                raise ValueError(f"{name}: must be below 0, is {getattr(self, name)}")
        if not self.missing_argument <= 0:
            raise ValueError(f"missing_argument: must be 0 or less, is {self.missing_argument}")
        if self.action_name + self.argument_set <= 0:
            raise ValueError("action_name, argument_set: one of them must be above 0")


DEFAULT_WEIGHTS = RewardWeights()


class CallScore(NamedTuple):
    """What became of one predicted call."""

    name: str
    ok: bool
    """The store accepted the call."""
    correct: bool
    """Accepted, and matched to a gold call with the same arguments."""
    kind: CallKind
    """correct; wrong_arguments: matched to a gold call by name alone; unexpected: not matched."""


@dataclass(frozen=True)
class Score:
    """How one answer to one task fares."""

    task_id: str
    reward: float
    """Training reward: `RewardWeights.unparsable` at worst, `max_reward` for gold."""
    outcome: float
    """1.0 when every call was accepted and the store ends as gold leaves it (where gold changes
    nothing: every gold call was made and no other write), else 0.0."""
    max_reward: float
    """Reward of the gold answer."""
    exact_match: bool = False
    """The gold calls, in gold's order, all accepted, and nothing else."""
    db_match: bool = False
    """The answer is a plan, and the store ends as gold leaves it."""
    parse_error: ParseKind | None = None
    """Why the answer is no plan; None for a plan."""
    num_predicted: int = 0
    num_gold: int = 0
    num_correct: int = 0
    """Predicted calls of kind `correct`."""
    ordering: bool = False
    """Every gold call is matched and the matched calls are in gold's order."""
    complete: bool = False
    """The plan has a call (where gold has one), knows every tool that it calls and gives every
    required argument."""
    parts: dict[str, float] = field(default_factory=dict)
    """Reward by weight name, before the floor."""
    calls: tuple[CallScore, ...] = ()
    """The predicted calls, in order, less those that `Task.refused_gold` allows."""

    def figures(self) -> dict[str, Any]:
        """Return what files of scored completions hold, beside the task's id."""
        names = ("reward", "outcome", "max_reward", "exact_match", "db_match", "parse_error")
        return {name: getattr(self, name) for name in names}


class GoldReplay(NamedTuple):
    """What the gold calls do to the store. Shared by all answers to a task: read-only."""

    names: tuple[str, ...]
    keys: tuple[tuple, ...]
    changed_records: dict[str, dict[str, Any]]


def call_key(name: str, arguments: Mapping[str, Any]) -> tuple:
    """Return a key that is equal for two accepted calls exactly when they ask for the same.

    Texts are compared as they are. Item lists are compared as the tools see them: the order of
    `item_ids`, with their paired `new_item_ids`, makes no difference, unless a new item is itself
    one to be replaced (the tools go through the pairs one by one).

    Args:
        arguments: arguments that fit the tool's schema: texts and lists of texts only.
    """
    values = dict(arguments)
    items, new_items = values.get("item_ids"), values.get("new_item_ids")
    if items is not None and new_items is None:
        values["item_ids"] = sorted(items)
    elif items is not None and len(items) == len(new_items):
        pairs = list(zip(items, new_items, strict=True))
        if not {new for old, new in pairs if new != old} & set(items):
            pairs.sort()
        values["item_ids"], values["new_item_ids"] = zip(*pairs, strict=True) if pairs else ((), ())
    return name, *sorted(
        (key, value if isinstance(value, str) else tuple(value)) for key, value in values.items()
    )


# 3,500 tasks fit; a replay of a few calls holds a few kilobytes.
@lru_cache(maxsize=8192)
def _replay_actions(db: RetailDatabase, actions_json: str) -> GoldReplay:
    episode = Episode(db)
    actions = json.loads(actions_json)
    for number, action in enumerate(actions, start=1):
        observation = episode.call(action["name"], action["arguments"])
        if not observation.ok:
            reason = str(observation.content).removeprefix("Error: ")
            raise GoldError(f"gold call {number} ({action['name']}) is refused: {reason}")
    return GoldReplay(
        tuple(action["name"] for action in actions),
        tuple(call_key(action["name"], action["arguments"]) for action in actions),
        episode.changed_records(),
    )


def ignore_refused_gold(task: Task, db: RetailDatabase) -> Task:
    """Return the task by tau-bench's rule: a gold call that the store refuses changes nothing.

    Such calls are no longer asked for, and an answer that makes them is not worse for it. A task
    without any gold call is solved by an answer that writes nothing.
    """
    episode = Episode(db)
    accepted = [episode.call(a["name"], a["arguments"]).ok for a in task.gold_actions]
    calls = list(zip(task.gold_actions, accepted, strict=True))
    return replace(
        task,
        gold_actions=[action for action, ok in calls if ok],
        refused_gold=[action for action, ok in calls if not ok],
    )


def replay_gold(task: Task, db: RetailDatabase) -> GoldReplay:
    """Run the task's gold calls on a fresh store.

    Replays are kept, by the calls' own text, so a changed task is replayed anew.

    Raises:
        GoldError: the store refuses a gold call, or there is none (but see `ignore_refused_gold`).
    """
    if not task.gold_actions and task.refused_gold is None:
        raise GoldError(f"task {brief(task.task_id)}: has no gold call")
    try:
        return _replay_actions(db, json.dumps(task.gold_actions))
    except GoldError as error:
        raise GoldError(f"task {brief(task.task_id)}: {error}") from None


class PlanRun(NamedTuple):
    """A plan's calls after they ran on a fresh store, less refused ones that the task allows."""

    calls: list[Call]
    keys: list[tuple | None]
    """`call_key` of each call; None where the store refused it."""
    changed_records: dict[str, dict[str, Any]]

    @property
    def num_missing(self) -> int:
        """Required arguments that calls of known tools lack."""
        return sum(
            argument not in call.arguments
            for call in self.calls for argument in _REQUIRED.get(call.name, ())
        )


class Matching(NamedTuple):
    """Predicted calls matched to gold calls one to one."""

    kinds: list[CallKind]
    """What became of each predicted call."""
    is_ordered: bool
    """Every gold call is matched and the matched calls are in gold's order."""


def run_plan(task: Task, calls: Sequence[Call], db: RetailDatabase) -> PlanRun:
    """Run a plan's calls on a fresh store, the accepted and the refused ones."""
    episode = Episode(db)
    allowed = list(task.refused_gold or ())
    kept: list[Call] = []
    keys: list[tuple | None] = []
    for call in calls:
        ok = episode.call(call.name, call.arguments).ok
        if not ok and call._asdict() in allowed:
            allowed.remove(call._asdict())
        else:
            kept.append(call)
            keys.append(call_key(call.name, call.arguments) if ok else None)
    return PlanRun(kept, keys, episode.changed_records())


def match_calls(run: PlanRun, gold: GoldReplay) -> Matching:
    """Match predicted calls to gold calls one to one, equal calls first, then equal names.

    Equality by key is finer than equality by name, so taking equal calls in order of appearance
    gives as many pairs of both kinds as any matching could.
    """
    names = [call.name for call in run.calls]
    kinds: list[CallKind] = ["unexpected"] * len(names)
    matched = [-1] * len(gold.names)  # the predicted call of each gold call; -1: none
    for kind, predicted, wanted in (
        ("correct", run.keys, gold.keys),
        ("wrong_arguments", names, gold.names),
    ):
        free: dict[Any, list[int]] = {}
        for index, label in enumerate(wanted):
            if matched[index] < 0:
                free.setdefault(label, []).append(index)
        for index, label in enumerate(predicted):
            if kinds[index] == "unexpected" and label is not None and free.get(label):
                matched[free[label].pop(0)] = index
                kinds[index] = kind
    is_ordered = -1 not in matched and (
        all(one < other for one, other in pairwise(matched))
        or _can_be_ordered(run, gold, kinds.count("correct"))
    )
    return Matching(kinds, is_ordered)


def _can_be_ordered(run: PlanRun, gold: GoldReplay, num_correct: int) -> bool:
    """Return whether some best matching pairs every gold call and keeps gold's order.

    Among equal calls the pairs are interchangeable, so one best matching may be out of order where
    another is not (gold A B A, predicted A A B A).
    """
    # best[j]: most equal pairs when the first j gold calls are paired in order; -1: cannot be.
    best = [0] + [-1] * len(gold.names)
    for call, key in zip(run.calls, run.keys, strict=True):
        for j in range(len(gold.names), 0, -1):
            if call.name == gold.names[j - 1] and best[j - 1] >= 0:
                best[j] = max(best[j], best[j - 1] + (key == gold.keys[j - 1]))
    return best[-1] == num_correct


def reward_parts(
    kinds: Sequence[CallKind], is_ordered: bool, num_missing: int, weights: RewardWeights
) -> dict[str, float]:
    """Return the reward in parts, by weight name; the reward is their sum, floored.

    Args:
        is_ordered: every gold call is matched, in gold's order.
        num_missing: required arguments that the predicted calls lack.
    """
    count = Counter(kinds)
    counts = {
        "action_name": count["correct"] + count["wrong_arguments"],
        "argument_set": count["correct"],
        "order": int(is_ordered),
        "incorrect_action": count["unexpected"],
        "missing_argument": num_missing,
    }
    return {name: n * getattr(weights, name) if n else 0.0 for name, n in counts.items()}


def _total(parts: Mapping[str, float]) -> float:
    return round(sum(parts.values()), 9)  # so that equal answers get equal reward: 0.1 + 0.2 == 0.3


def max_reward(task: Task, weights: RewardWeights = DEFAULT_WEIGHTS) -> float:
    """Return the reward of the gold answer: 1.5 for each gold call and 0.5 by default.

    >>> from data_reader import read_tasks
    >>> task = read_tasks("dataset.jsonl")[0]
    >>> max_reward(task) == 1.5 * len(task.gold_actions) + 0.5
    True
    """
    return _total(reward_parts(["correct"] * len(task.gold_actions), True, 0, weights))


def _in_cents(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: _in_cents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_cents(item) for item in value]
    return value


def same_store(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> bool:
    """Return whether two sets of changed records are the same, amounts compared in cents."""
    if one == other:
        return True
    if any(one[kind].keys() != other[kind].keys() for kind in ("orders", "users")):
        return False
    # Sums of prices depend on the order of the items in the last binary digit, hence the cents.
    return _in_cents(one) == _in_cents(other)


def _passes(run: PlanRun, kinds: Sequence[CallKind], gold: GoldReplay) -> bool:
    """Return whether a plan whose store ends as gold's is a success, see `Score.outcome`."""
    if None in run.keys:
        return False
    if any(gold.changed_records.values()):
        return True
    pairs = zip(run.calls, kinds, strict=True)
    extra_writes = [c.name for c, kind in pairs if c.name in WRITE_TOOLS and kind != "correct"]
    return kinds.count("correct") == len(gold.names) and not extra_writes


def score_completion(
    task: Task, completion: str, db: RetailDatabase, weights: RewardWeights = DEFAULT_WEIGHTS
) -> Score:
    """Score one answer to a task: parse it, run it, match its calls, add up, compare the stores.

    >>> from data_reader import gold_completion, read_tasks
    >>> task, db = read_tasks("dataset.jsonl")[0], RetailDatabase.load()
    >>> score = score_completion(task, gold_completion(task), db)
    >>> score.reward == score.max_reward, score.outcome
    (True, 1.0)
    >>> score_completion(task, "I cannot help.", db).parse_error
    'not_json'

    Args:
        task: the task; its gold calls must replay on `db`.
        completion: text of the final message (`harmony.parse_completion(...).final`).

    Returns:
        The score. Reward is at most `max_reward`, which gold gets, and at least
        `weights.unparsable`; outcome is 1.0 or 0.0.

    Raises:
        GoldError: gold does not replay.
    """
    gold = replay_gold(task, db)
    best = max_reward(task, weights)
    plan, parse_error = parse_plan(completion)
    if parse_error is not None:
        return Score(
            task.task_id, weights.unparsable, 0.0, best, parse_error=parse_error,
            num_gold=len(gold.names), parts={"unparsable": weights.unparsable},
        )
    run = run_plan(task, plan, db)
    kinds, is_ordered = match_calls(run, gold)
    num_missing = run.num_missing
    parts = reward_parts(kinds, is_ordered, num_missing, weights)
    db_match = same_store(run.changed_records, gold.changed_records)
    return Score(
        task_id=task.task_id,
        reward=max(weights.unparsable, _total(parts)),
        outcome=float(db_match and _passes(run, kinds, gold)),
        max_reward=best,
        exact_match=tuple(run.keys) == gold.keys,
        db_match=db_match,
        num_predicted=len(run.calls),
        num_gold=len(gold.names),
        num_correct=kinds.count("correct"),
        ordering=is_ordered,
        complete=bool(run.calls or not gold.names)
        and num_missing == 0 and all(call.name in _REQUIRED for call in run.calls),
        parts=parts,
        calls=tuple(
            CallScore(call.name, key is not None, kind == "correct", kind)
            for call, key, kind in zip(run.calls, run.keys, kinds, strict=True)
        ),
    )
