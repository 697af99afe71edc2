"""The scorer, case by case: parsing, matching, reward, outcome, metrics."""

import copy
import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from example_tasks import (
    call,
    find_card,
    find_orders,
    find_swap_order,
    find_swaps,
    make_task,
    make_tasks,
)

import task_tester
from data_reader import Task, gold_completion
from envs.retail import Episode, RetailDatabase
from task_tester import (
    GoldError,
    RewardWeights,
    Score,
    ignore_refused_gold,
    max_reward,
    parse_failure_table,
    parse_plan,
    per_tool_table,
    replay_gold,
    score_completion,
    summarize,
    summarize_outcome,
)

TAUBENCH = Path(__file__).parents[2] / "shared" / "taubench"


@pytest.fixture(scope="module")
def db() -> RetailDatabase:
    return RetailDatabase.load()


@pytest.fixture(scope="module")
def tasks(db) -> dict[str, Task]:
    return make_tasks(db)


def plan(*calls: dict) -> str:
    return json.dumps({"tool_calls": list(calls)})


# -- parsing -----------------------------------------------------------------------------------

CALL = '{"name":"think","arguments":{"thought":"x"}}'


@pytest.mark.parametrize("text, kind", [
    ("", "empty"),
    (" \n\t\r ", "empty"),
    ("I will cancel it.", "not_json"),
    (f'Sure: {{"tool_calls":[{CALL}]}}', "not_json"),
    (f'{{"tool_calls":[{CALL}]}} Done.', "not_json"),
    (f'```json\n{{"tool_calls":[{CALL}]}}\n```', "not_json"),
    (f'{{"tool_calls":[{CALL}]}}{{"tool_calls":[{CALL}]}}', "not_json"),
    (f'{{"tool_calls":[{CALL},]}}', "not_json"),
    (f'{{"tool_calls":[{CALL}]', "not_json"),
    ("{'tool_calls':[]}", "not_json"),
    (f'\ufeff{{"tool_calls":[{CALL}]}}', "not_json"),
    (f'\u00a0{{"tool_calls":[{CALL}]}}', "not_json"),
    ('{"tool_calls":[{"name":"think","arguments":{"thought":"a\nb"}}]}', "not_json"),
    (f'{{"tool_calls":[],"tool_calls":[{CALL}]}}', "duplicate_key"),
    ('{"tool_calls":[{"name":"a","name":"think","arguments":{}}]}', "duplicate_key"),
    ('{"tool_calls":[{"name":"a","arguments":{"b":"1","b":"2"}}]}', "duplicate_key"),
    ('{"tool_calls":[{"name":"think","arguments":{"a":[{"b":1,"\\u0062":2}]}}]}', "duplicate_key"),
    ('{"tool_calls":[{"name":"think","arguments":{"thought":NaN}}]}', "bad_number"),
    ('{"tool_calls":[{"name":"think","arguments":{"thought":-Infinity}}]}', "bad_number"),
    ('{"tool_calls":[{"name":"think","arguments":{"thought":1e999}}]}', "bad_number"),
    (f'{{"tool_calls":[{"9" * 5_000}]}}', "bad_number"),
    ("[" * 10_000, "too_deep"),
    ('{"a":' * 3_000, "too_deep"),
    ("[" * 40 + "]" * 40, "too_deep"),
    ("[]", "not_object"),
    (f"[{CALL}]", "not_object"),
    ('"text"', "not_object"),
    ("null", "not_object"),
    ("7", "not_object"),
    ("{}", "wrong_keys"),
    (CALL, "wrong_keys"),
    ('{"Tool_calls":[]}', "wrong_keys"),
    ('{"tool_calls":[],"note":"x"}', "wrong_keys"),
    ('{"tool_calls":{}}', "not_list"),
    ('{"tool_calls":null}', "not_list"),
    (f'{{"tool_calls":[{",".join([CALL] * 65)}]}}', "too_many_calls"),
    ('{"tool_calls":[[]]}', "bad_call"),
    ('{"tool_calls":["think"]}', "bad_call"),
    ('{"tool_calls":[{"name":"think"}]}', "bad_call"),
    ('{"tool_calls":[{"name":"think","arguments":{},"id":1}]}', "bad_call"),
    ('{"tool_calls":[{"name":1,"arguments":{}}]}', "bad_call"),
    ('{"tool_calls":[{"name":"think","arguments":"{\\"thought\\":\\"x\\"}"}]}', "bad_call"),
    ('{"tool_calls":[{"name":"think","arguments":null}]}', "bad_call"),
    ('{"tool_calls":[]}' + " " * 20_000, "too_long"),
    ("x" * 10_000_000, "too_long"),
])
def test_texts_that_are_no_plan(text, kind, db, tasks):
    assert parse_plan(text) == ([], kind)
    score = score_completion(tasks["one_write"], text, db)
    assert (score.parse_error, score.reward, score.outcome) == (kind, -1.0, 0.0)
    assert not (score.exact_match or score.db_match or score.ordering or score.complete)


@pytest.mark.parametrize("text, num_calls", [
    (f'{{"tool_calls":[{CALL}]}}', 1),
    (f' \n{{ "tool_calls" : [ {CALL} ] }}\r\n\t', 1),
    ('{"tool_calls":[]}', 0),
    (f'{{"tool_calls":[{",".join([CALL] * 64)}]}}', 64),
    ('{"tool_calls":[{"arguments":{"a":true},"name":""}]}', 1),
    ('{"tool_calls":[{"name":"\\ud800","arguments":{"\\udfff":"\\ud83d"}}]}', 1),
])
def test_texts_that_are_a_plan(text, num_calls):
    calls, kind = parse_plan(text)
    assert (len(calls), kind) == (num_calls, None)


# -- reward ------------------------------------------------------------------------------------


def test_gold_scores_the_maximum(db, tasks):
    for task in tasks.values():
        score = score_completion(task, gold_completion(task), db)
        best = 1.5 * len(task.gold_actions) + 0.5
        assert score.reward == score.max_reward == max_reward(task) == best, task.task_id
        assert score.outcome == 1.0 and score.exact_match and score.db_match, task.task_id
        assert score.ordering and score.complete and score.parse_error is None
        assert score.num_correct == score.num_gold == score.num_predicted


def test_reward_adds_up_part_by_part(db, tasks):
    task = tasks["three_calls"]
    auth, address, items = task.gold_actions
    wrong_zip = call(address["name"], **{**address["arguments"], "zip": "00000"})
    short = call(items["name"], **{k: v for k, v in items["arguments"].items() if k != "item_ids"})
    extra = call("think", thought="hm")
    unknown = call("refund_everything")
    for calls, reward, reason in [
        ([], 0.0, "an empty plan earns and costs nothing"),
        ([auth], 1.5, "one of three"),
        ([auth, items], 3.0, "no order without all"),
        ([auth, address, items], 5.0, "gold"),
        ([auth, items, address], 3.0 + 1.0, "address after items is refused: its name counts"),
        ([address, auth, items], 4.5, "all correct, out of order"),
        ([auth, wrong_zip, items], 4.5, "one argument is wrong"),
        ([auth, address, short], 1.5 + 1.5 + 1.0 + 0.5 - 0.4, "one required argument is missing"),
        ([auth, address, items, extra], 4.7, "one incorrect action"),
        ([extra, auth, address, items], 4.7, "wherever it stands"),
        ([auth, address, items, unknown], 4.7, "unknown tools have no required arguments"),
        ([auth, address, items, call("think")], 5.0 - 0.3 - 0.4, "incorrect and incomplete"),
        ([auth, auth, address, items], 4.7, "a gold call counts once"),
        ([unknown] * 3, -0.9, "only incorrect actions"),
        ([unknown] * 64, -1.0, "never less than an unparsable answer"),
        ([call("modify_user_address")] * 2, -1.0, "the floor again"),
    ]:
        assert score_completion(task, plan(*calls), db).reward == pytest.approx(reward), reason


def test_every_missing_argument_counts_once(db, tasks):
    task = tasks["three_calls"]
    items = task.gold_actions[2]
    weights = RewardWeights(unparsable=-100.0)
    score = score_completion(task, plan(call(items["name"])), db, weights)
    assert score.parts["missing_argument"] == pytest.approx(4 * -0.4)
    assert score.reward == pytest.approx(1.0 - 1.6)


def test_item_order_makes_no_difference_when_pairs_stay(db):
    order, swaps, card = find_swap_order(db, "pending")
    old, new = [list(ids) for ids in zip(*swaps, strict=True)]

    def change(item_ids, new_item_ids):
        return call(
            "modify_pending_order_items", order_id=order["order_id"], item_ids=item_ids,
            new_item_ids=new_item_ids, payment_method_id=card,
        )

    task = make_task("t", change(old, new))
    score = score_completion(task, plan(change(old[::-1], new[::-1])), db)
    assert score.exact_match and score.db_match and score.reward == score.max_reward
    torn = score_completion(task, plan(change(old, new[::-1])), db)
    assert not torn.exact_match and torn.reward <= 1.5 and torn.outcome == 0.0


def test_return_items_are_compared_as_a_set_with_repeats(db, tasks):
    gold = tasks["return"].gold_actions
    turned = copy.deepcopy(gold)
    turned[1]["arguments"]["item_ids"].reverse()
    assert score_completion(tasks["return"], plan(*turned), db).exact_match
    turned[1]["arguments"]["item_ids"].append(turned[1]["arguments"]["item_ids"][0])
    assert not score_completion(tasks["return"], plan(*turned), db).exact_match


def test_chained_swaps_keep_their_order_in_the_key():
    def key(item_ids, new_item_ids):
        return task_tester.call_key("f", {"item_ids": item_ids, "new_item_ids": new_item_ids})

    assert key(["1", "2"], ["3", "4"]) == key(["2", "1"], ["4", "3"])
    assert key(["1", "2"], ["3", "4"]) != key(["1", "2"], ["4", "3"])
    assert key(["1", "2"], ["2", "3"]) != key(["2", "1"], ["3", "2"])
    assert key(["1", "2"], ["1", "3"]) == key(["2", "1"], ["3", "1"])
    assert key([], []) != key(["1"], ["2"])


@pytest.mark.parametrize("value", [True, 1, 1.0, None, ["#W1"], {"order_id": "#W1"}, 10**90])
def test_ill_typed_arguments_are_never_correct(value, db, tasks):
    cancel = tasks["one_write"].gold_actions[0]
    wrong = call(cancel["name"], **{**cancel["arguments"], "order_id": value})
    score = score_completion(tasks["one_write"], plan(wrong), db)
    assert score.num_correct == 0 and not score.calls[0].ok and score.outcome == 0.0
    assert score.reward == 1.0 + 0.5


def test_look_alike_text_is_another_text(db, tasks):
    cancel = tasks["one_write"].gold_actions[0]
    for old, new in [("#", "\uff03"), ("W", "w"), ("#", " #"), ("#", "#\u200b")]:
        order_id = cancel["arguments"]["order_id"].replace(old, new)
        wrong = call(cancel["name"], **{**cancel["arguments"], "order_id": order_id})
        assert score_completion(tasks["one_write"], plan(wrong), db).num_correct == 0


def test_repeated_gold_calls_are_matched_one_to_one(db, tasks):
    task = tasks["identical_calls"]
    look = task.gold_actions[0]
    rewards = [score_completion(task, plan(*[look] * n), db).reward for n in range(6)]
    assert rewards == [0.0, 1.5, 3.0, 5.0, 4.7, 4.4]


def test_order_is_found_among_interchangeable_pairs(db, tasks):
    task = tasks["same_read_twice"]  # auth, look, think, look
    auth, look, think, _ = task.gold_actions
    score = score_completion(task, plan(auth, look, look, think, look), db)
    assert score.ordering and score.reward == 6.5 - 0.3
    score = score_completion(task, plan(auth, look, look, think), db)
    assert not score.ordering and score.num_correct == 4 and score.reward == 6.0


def test_a_refused_gold_call_is_not_correct(db, tasks):
    task = tasks["auth_and_write"]
    auth, cancel = task.gold_actions
    score = score_completion(task, plan(auth, cancel, cancel), db)
    assert [c.ok for c in score.calls] == [True, True, False]
    assert score.num_correct == 2 and score.outcome == 0.0 and not score.exact_match
    assert score.db_match and score.reward == 3.5 - 0.3


def test_an_accepted_repeat_takes_the_place_of_a_refused_call(db):
    order, _, card = find_swap_order(db, "pending")
    cancel = call("cancel_pending_order", order_id=order["order_id"], reason="no longer needed")
    task = make_task("t", cancel)
    unknown = call("cancel_pending_order", order_id="#W", reason="no longer needed")
    score = score_completion(task, plan(unknown, cancel), db)
    assert [c.kind for c in score.calls] == ["unexpected", "correct"] and score.reward == 1.7


# -- outcome -----------------------------------------------------------------------------------


def test_outcome_where_gold_writes(db, tasks):
    task = tasks["auth_and_write"]
    auth, cancel = task.gold_actions
    other = tasks["same_name_writes"].gold_actions[2]
    for calls, outcome, reason in [
        ([cancel], 1.0, "the store is what counts"),
        ([auth, cancel, call("list_all_product_types")], 1.0, "an accepted look-up does no harm"),
        ([auth, cancel, call("get_order_details", order_id="#W0")], 0.0, "a refused call"),
        ([auth, cancel, other], 0.0, "another order is cancelled too"),
        ([auth], 0.0, "nothing done"),
        ([], 0.0, "nothing at all"),
        ([auth, call("undo"), cancel], 0.0, "no such tool"),
    ]:
        assert score_completion(task, plan(*calls), db).outcome == outcome, reason


@pytest.mark.parametrize("name", ["only_reads", "transfer", "sum", "no_arguments"])
def test_outcome_where_gold_writes_nothing(name, db, tasks):
    task = tasks[name]
    cancel = tasks["one_write"].gold_actions[0]
    think = call("think", thought="hm")
    same_address = tasks["write_that_changes_nothing"].gold_actions[1]
    for calls, outcome, reason in [
        (task.gold_actions, 1.0, "gold"),
        ([*task.gold_actions, think], 1.0, "gold and a thought"),
        (task.gold_actions[::-1], 1.0, "the order of look-ups is no outcome"),
        ([], 0.0, "doing nothing never passes"),
        (task.gold_actions[:1], 0.0, "a gold call is missing"),
        ([*task.gold_actions, cancel], 0.0, "a write"),
        ([*task.gold_actions, same_address], 0.0, "a write that changes nothing is a write"),
        ([*task.gold_actions, call("think")], 0.0, "a refused call"),
    ]:
        assert score_completion(task, plan(*calls), db).outcome == outcome, reason


def test_outcome_of_a_gold_write_that_changes_nothing(db, tasks):
    task = tasks["write_that_changes_nothing"]
    auth, address = task.gold_actions
    assert score_completion(task, plan(auth, address), db).outcome == 1.0
    assert score_completion(task, plan(auth), db).outcome == 0.0
    assert score_completion(task, plan(auth, address, address), db).outcome == 0.0


def noisy_swaps(db):
    """Find an item change whose price sum depends, in its last digit, on the items' order."""
    for order in (o for o in find_orders(db, "pending") if len(o["items"]) >= 3):
        swaps, card = find_swaps(db, order), find_card(db, order)
        for turned in itertools.permutations(swaps):
            calls = [
                call(
                    "modify_pending_order_items", order_id=order["order_id"],
                    item_ids=[old for old, _ in pairs], new_item_ids=[new for _, new in pairs],
                    payment_method_id=card,
                )
                for pairs in (swaps, turned)
            ]
            records = []
            for one in calls:
                episode = Episode(db)
                if card is not None and episode.call(one["name"], one["arguments"]).ok:
                    records.append(episode.changed_records())
            if len(records) == 2 and records[0] != records[1]:
                return calls
    raise LookupError("the store has no such order")


def test_the_last_binary_digit_of_a_sum_is_no_difference(db):
    first, second = noisy_swaps(db)
    score = score_completion(make_task("t", first), plan(second), db)
    assert score.db_match and score.outcome == 1.0 and score.exact_match


# -- gold and purity ---------------------------------------------------------------------------


def test_gold_that_does_not_replay_is_our_fault(db, tasks):
    cancel = tasks["one_write"].gold_actions[0]
    for actions, reason in [
        ([cancel, cancel], r"task broken: gold call 2 \(cancel_pending_order\) is refused"),
        ([call("nope")], r"task broken: gold call 1 \(nope\) is refused: unknown tool 'nope'"),
        ([], "task broken: has no gold call"),
    ]:
        task = make_task("broken", *actions)
        for _ in range(2):  # a refusal is not remembered as a success
            with pytest.raises(GoldError, match=reason):
                score_completion(task, "nonsense", db)
            with pytest.raises(GoldError, match=reason):
                replay_gold(task, db)


def test_a_refused_gold_call_changes_nothing_by_tau_benchs_rule(db, tasks):
    auth, cancel = tasks["auth_and_write"].gold_actions[0], tasks["one_write"].gold_actions[0]
    lost = call("get_order_details", order_id="#W0000000")
    raw = make_task("t", auth, lost, cancel, cancel)  # the second cancellation is refused too
    task = ignore_refused_gold(raw, db)
    assert task.gold_actions == [auth, cancel] and task.refused_gold == [lost, cancel]
    assert ignore_refused_gold(make_task("t", auth), db).refused_gold == []
    for calls, outcome, reason in (
        ([auth, cancel], 1.0, "the accepted calls"),
        ([auth, lost, cancel, cancel], 1.0, "gold as it is"),
        ([auth, lost, lost, cancel], 0.0, "a refused call more often than gold has it"),
        ([auth, call("get_order_details", order_id="#W0000009"), cancel], 0.0, "another one"),
        ([auth, lost], 0.0, "only what is refused"),
    ):
        score = score_completion(task, plan(*calls), db)
        assert score.outcome == outcome, reason
        assert (score.reward == score.max_reward == 3.5) is bool(outcome), reason
        assert score.exact_match is bool(outcome), reason


def test_without_gold_a_task_is_solved_when_nothing_is_written(db, tasks):
    cancel = tasks["one_write"].gold_actions[0]
    empty = replace(tasks["one_write"], gold_actions=[])
    with pytest.raises(GoldError, match="has no gold call"):
        score_completion(empty, plan(), db)
    task = ignore_refused_gold(empty, db)
    look = call("get_order_details", order_id=cancel["arguments"]["order_id"])
    scores = [score_completion(task, plan(*calls), db) for calls in ([], [look], [cancel])]
    assert [score.outcome for score in scores] == [1.0, 1.0, 0.0]
    assert scores[0].reward == scores[0].max_reward > scores[1].reward
    assert scores[0].complete and scores[0].exact_match and not scores[1].exact_match
    assert score_completion(task, "no plan", db).outcome == 0.0


def test_scoring_is_pure(db, tasks):
    records = json.dumps([db.users, db.orders, db.products])
    task = tasks["three_calls"]
    texts = [gold_completion(task), plan(*task.gold_actions[::-1]), "x", plan()]
    first = [score_completion(task, text, db) for text in texts]
    for _ in range(3):
        assert [score_completion(task, text, db) for text in reversed(texts)] == first[::-1]
    assert json.dumps([db.users, db.orders, db.products]) == records


def test_changed_gold_and_another_store_are_replayed_anew(db, tasks):
    cancel = copy.deepcopy(tasks["one_write"].gold_actions[0])
    task = make_task("t", cancel)
    answer = gold_completion(task)
    assert score_completion(task, answer, db).outcome == 1.0
    cancel["arguments"]["reason"] = "ordered by mistake"
    assert score_completion(task, answer, db).outcome == 0.0
    order_id = cancel["arguments"]["order_id"]
    orders = {k: o for k, o in db.orders.items() if k != order_id}
    with pytest.raises(GoldError):
        score_completion(task, answer, RetailDatabase(dict(db.users), orders, dict(db.products)))


@pytest.mark.parametrize("weights, name", [
    ({"incorrect_action": 0.0}, "incorrect_action"),
    ({"unparsable": 0.1}, "unparsable"),
    ({"missing_argument": 1.0}, "missing_argument"),
    ({"order": -0.5}, "order"),
    ({"action_name": float("nan")}, "action_name"),
    ({"action_name": 0.0, "argument_set": 0.0}, "argument_set"),
])
def test_weights_that_would_not_favour_gold_are_refused(weights, name):
    with pytest.raises(ValueError, match=name):
        RewardWeights(**weights)


def test_own_weights_are_used(db, tasks):
    task = tasks["one_write"]
    weights = RewardWeights(action_name=2.0, argument_set=1.0, order=0.0, incorrect_action=-3.0)
    score = score_completion(task, gold_completion(task), db, weights)
    assert score.reward == score.max_reward == max_reward(task, weights) == 3.0
    with_extra = plan(*task.gold_actions, call("think", thought=""))
    assert score_completion(task, with_extra, db, weights).reward == 0.0


# -- metrics -----------------------------------------------------------------------------------

METRICS = {
    "exact_match_rate", "action_precision", "action_recall", "action_f1", "json_parse_success",
    "ordering_accuracy", "completeness_score", "db_match_rate", "mean_reward", "num_tasks",
}


@pytest.fixture(scope="module")
def scores(db, tasks) -> list[Score]:
    three, one = tasks["three_calls"], tasks["one_write"]
    stranger = call("find_user_id_by_email", email="nobody@example.org")
    return [
        score_completion(three, gold_completion(three), db),
        score_completion(one, "sorry", db),
        score_completion(tasks["transfer"], plan(call("nope", a=1), stranger), db),
        score_completion(tasks["auth_and_write"], plan(call("cancel_pending_order")), db),
    ]


def test_metrics_by_hand(scores):
    summary = summarize(scores)
    assert set(summary) == METRICS and summary["num_tasks"] == 4
    value = {name: found["value"] for name, found in summary.items() if name != "num_tasks"}
    # correct 3; predicted 3 + 0 + 2 + 1; gold 3 + 1 + 2 + 2
    assert value["exact_match_rate"] == 1 / 4
    assert value["action_precision"] == 3 / 6
    assert value["action_recall"] == 3 / 8
    assert value["action_f1"] == pytest.approx(2 * (3 / 6) * (3 / 8) / (3 / 6 + 3 / 8))
    assert value["json_parse_success"] == 3 / 4
    assert value["ordering_accuracy"] == 1 / 4
    assert value["completeness_score"] == 1 / 4
    assert value["db_match_rate"] == 2 / 4  # the transfer task's plan changes nothing either
    assert value["mean_reward"] == pytest.approx((5.0 - 1.0 + (1.0 - 0.3) + (1.0 - 0.8)) / 4)
    assert summarize_outcome(scores)["value"] == 1 / 4


def test_intervals_hold_the_value_and_shrink_with_tasks(scores):
    few = summarize(scores)
    many = summarize(
        [s for n in range(50) for s in _renamed(scores, str(n))]
    )
    assert many["num_tasks"] == 200
    for name in METRICS - {"num_tasks"}:
        assert many[name]["value"] == pytest.approx(few[name]["value"])
        assert many[name]["low"] <= many[name]["value"] <= many[name]["high"]
        assert many[name]["high"] - many[name]["low"] < few[name]["high"] - few[name]["low"]
    width = many["exact_match_rate"]["high"] - many["exact_match_rate"]["low"]
    assert width == pytest.approx(2 * 1.96 * (0.25 * 0.75 / 200) ** 0.5, rel=0.25)


def _renamed(scores, suffix):
    return [Score(**{**vars(s), "task_id": s.task_id + suffix}) for s in scores]


def test_trials_of_a_task_are_resampled_together(scores):
    once, thrice = summarize(scores), summarize(scores * 3)
    assert thrice["num_tasks"] == once["num_tasks"] == 4
    for name in METRICS - {"num_tasks"}:
        assert thrice[name] == pytest.approx(once[name])


def test_metrics_are_deterministic_and_follow_the_seed(scores):
    assert summarize(scores) == summarize(scores)
    one, other = (summarize(scores, num_bootstrap=20, seed=seed) for seed in (1, 2))
    assert one != other


def test_no_scores_is_a_clear_error():
    with pytest.raises(ValueError, match="no scores"):
        summarize([])


def test_nothing_predicted_is_no_division_by_zero(db, tasks):
    summary = summarize([score_completion(tasks["one_write"], plan(), db)])
    assert summary["action_precision"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert summary["action_f1"]["value"] == 0.0 and summary["completeness_score"]["value"] == 0.0


def test_tables(scores):
    assert per_tool_table(scores) == {
        "(unknown tool)": {"called": 1, "correct": 0, "wrong_arguments": 0, "refused": 1},
        "cancel_pending_order": {"called": 1, "correct": 0, "wrong_arguments": 1, "refused": 1},
        "find_user_id_by_email": {"called": 2, "correct": 1, "wrong_arguments": 1, "refused": 1},
        "modify_pending_order_address": {
            "called": 1, "correct": 1, "wrong_arguments": 0, "refused": 0},
        "modify_pending_order_items": {
            "called": 1, "correct": 1, "wrong_arguments": 0, "refused": 0},
    }
    assert parse_failure_table(scores) == {"not_json": 1}
    assert parse_failure_table(scores[:1]) == {}


# -- against tau-bench's own replay ------------------------------------------------------------


@pytest.mark.skipif(not TAUBENCH.is_dir(), reason="../shared/taubench is not there")
def test_db_match_agrees_with_taubench():
    db = RetailDatabase.load(TAUBENCH)
    with gzip.open(TAUBENCH / "replay_train.jsonl.gz", "rt") as stream:
        cases = [json.loads(line) for line in stream]
    gold = {case["task_index"]: case["actions"] for case in cases if case["kind"] == "gold"}
    num_scored = num_unplayable = 0
    for case in cases:
        task = make_task(case["case_id"], *gold[case["task_index"]])
        try:
            score = score_completion(task, plan(*case["actions"]), db)
        except GoldError:
            num_unplayable += 1
            continue
        num_scored += 1
        assert score.db_match == case["db_matches_gold"], case["case_id"]
        assert [c.ok for c in score.calls] == [step["ok"] for step in case["steps"]]
        assert score.reward <= score.max_reward
    assert num_scored > 1_500 and num_unplayable > 0


def test_public_names_are_importable():
    for name in task_tester.__all__:
        assert getattr(task_tester, name) is not None
