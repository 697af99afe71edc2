"""The optional LLM steps, against a real HTTP server on loopback."""

import argparse
import json
import re
from dataclasses import replace

import pytest

from data_reader import Task, task_to_json
from envs.retail import RetailDatabase
from tasks.audit.audit import audit_file
from tasks.generate.pipeline import TaskStream
from tasks.llm.check import rewording_findings
from tasks.llm.client import ChatClient, LlmError
from tasks.llm.rewording import (
    MAX_FAILURES_IN_A_ROW,
    LlmSteps,
    add_llm_arguments,
    apply_llm_steps,
    in_order,
)
from tests.fake_chat_server import FakeChatServer, Reply, config, in_turn

ADDRESS = {
    "address1": "1 Elm Street", "address2": "", "city": "Austin", "country": "USA", "state": "TX",
    "zip": "78701",
}
QUERY = (
    "Hi, I am ann.lee1@example.com. Please cancel order #W1000001, I no longer need it. Then swap "
    "item 1111111111 for 2222222222 in order #W1000002 and use paypal_1000001 for the difference."
)
NEW_WORDS = (
    "Hello! ann.lee1@example.com here. I no longer need #W1000001, so do cancel it. After that, in "
    "#W1000002 replace 1111111111 by 2222222222; paypal_1000001 settles what is left."
)


def order(order_id, items):
    payment = {"transaction_type": "payment", "amount": 10.0, "payment_method_id": "paypal_1000001"}
    return {
        "order_id": order_id, "user_id": "ann_lee_1001", "address": ADDRESS, "items": items,
        "fulfillments": [], "status": "pending", "payment_history": [payment],
    }


@pytest.fixture(scope="module")
def db():
    variants = {
        item_id: {"item_id": item_id, "options": {"color": color}, "available": True, "price": 10.0}
        for item_id, color in (("1111111111", "red"), ("2222222222", "blue"))
    }
    product = {"name": "Mug", "product_id": "3333333333", "variants": variants}
    item = {
        "name": "Mug", "product_id": "3333333333", "item_id": "1111111111", "price": 10.0,
        "options": {"color": "red"},
    }
    user = {
        "name": {"first_name": "Ann", "last_name": "Lee"}, "address": ADDRESS,
        "email": "ann.lee1@example.com", "orders": ["#W1000001", "#W1000002"],
        "payment_methods": {"paypal_1000001": {"source": "paypal", "id": "paypal_1000001"}},
    }
    orders = {order_id: order(order_id, [item]) for order_id in user["orders"]}
    return RetailDatabase({"ann_lee_1001": user}, orders, {"3333333333": product})


@pytest.fixture
def task():
    actions = [
        {"name": "find_user_id_by_email", "arguments": {"email": "ann.lee1@example.com"}},
        {
            "name": "cancel_pending_order",
            "arguments": {"order_id": "#W1000001", "reason": "no longer needed"},
        },
        {
            "name": "modify_pending_order_items",
            "arguments": {
                "order_id": "#W1000002", "item_ids": ["1111111111"],
                "new_item_ids": ["2222222222"], "payment_method_id": "paypal_1000001",
            },
        },
    ]
    return Task(QUERY, actions, "cancelled one order, changed one item", "t-1", "ann_lee_1001")


def words(text):
    return Reply(json.dumps({"query": text}))


def vote(accept, reason="because"):
    return Reply(json.dumps({"accept": accept, "reason": reason}))


def is_review(request):
    return "review tasks" in request["messages"][0]["content"]


# -- rewording ---------------------------------------------------------------------------------


def test_the_fixture_s_own_words_and_new_words_are_fine(task, db):
    assert rewording_findings(task, NEW_WORDS, db) == []


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("#W1000002", "#W1000003", "facts lost"),
        ("#W1000001", "my first order", "facts lost"),
        ("#W1000001", "W1000001", "facts lost"),
        ("ann.lee1@example.com", "Ann Lee", "facts lost"),
        ("paypal_1000001", "my PayPal", "facts lost"),
        ("Hello!", "Hello! My zip is 78701.", "facts added"),
        ("Hello!", "Hello! I am bob_ray_2002.", "facts added"),
        ("Hello!", "Hello!" + " really" * 100, "length"),
        ("replace 1111111111 by 2222222222", "take 2222222222 for 1111111111", "order changed"),
        ("I no longer need #W1000001", "By mistake I placed #W1000001", "reason_contradicts"),
    ],
)
def test_each_kind_of_spoiled_rewording_is_refused(task, db, old, new, kind):
    assert old in NEW_WORDS
    faults = rewording_findings(task, NEW_WORDS.replace(old, new), db)
    assert kind in {fault.kind for fault in faults}


def test_wishes_in_another_order_are_refused(task, db):
    swapped = (
        "ann.lee1@example.com here: in #W1000002 replace 1111111111 by 2222222222, paypal_1000001 "
        "pays. Afterwards cancel #W1000001, I no longer need it."
    )
    assert [fault.kind for fault in rewording_findings(task, swapped, db)] == ["order changed"]


def test_a_value_that_two_wishes_share_does_not_hide_their_order(task, db):
    change = task.gold_actions[2]
    other = {**change, "arguments": {**change["arguments"], "order_id": "#W1000001"}}
    query = (
        "ann.lee1@example.com: swap 1111111111 for 2222222222 with paypal_1000001 in #W1000001, "
        "then the same in #W1000002."
    )
    task = replace(task, query=query, gold_actions=[task.gold_actions[0], other, change])
    swapped = (
        "I pay by paypal_1000001 and I am ann.lee1@example.com. In #W1000002 and then #W1000001, "
        "swap 1111111111 for 2222222222."
    )
    assert [fault.kind for fault in rewording_findings(task, swapped, db)] == ["order changed"]


def reword_tasks(tasks, db, client_config):
    steps = LlmSteps(ChatClient(client_config), db)
    return in_order(steps.reword, tasks, client_config.num_workers)


def test_rewording_keeps_order_gold_and_every_task(task, db):
    tasks = [replace(task, task_id=f"t-{n}", query=f"{QUERY} {'Thanks! ' * n}") for n in range(9)]

    def script(request):
        wish = request["messages"][1]["content"]
        return words(wish.replace("Hi, I am", "Good day, this is"))

    with FakeChatServer(script) as server:
        out = list(reword_tasks(tasks, db, config(server, num_workers=3)))
    assert [t.task_id for t in out] == [t.task_id for t in tasks]
    assert all(t.query.startswith("Good day") and t.tags["reworded"] for t in out)
    assert all(t.gold_actions == task.gold_actions for t in out)


def test_a_dropped_id_gets_one_retry_that_names_it(task, db):
    bad = NEW_WORDS.replace("#W1000002", "my other order")
    with FakeChatServer(in_turn(words(bad), words(NEW_WORDS))) as server:
        steps = LlmSteps(ChatClient(config(server)), db)
        assert steps.reword(task).query == NEW_WORDS
    assert "#W1000002" in server.requests[1]["messages"][1]["content"].split("sent back")[1]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (words(NEW_WORDS.replace("#W1000002", "it")), "facts lost"),
        (words(QUERY), "unchanged"),
        (Reply("Sure! Here is your text"), "broken answer"),
        (Reply('{"query": "a", "query": "b"}'), "broken answer"),
        (Reply('{"query": 5}'), "broken answer"),
        (Reply(json.dumps({"query": NEW_WORDS, "note": "done"})), "broken answer"),
        (Reply(status=500), "no answer"),
    ],
    ids=[
        "dropped id", "same words", "chatter", "two queries", "no text", "more fields",
        "endpoint down",
    ],
)
def test_the_original_words_stay_and_the_reason_is_counted(task, db, reply, reason):
    with FakeChatServer(in_turn(reply)) as server:
        steps = LlmSteps(ChatClient(config(server)), db)
        assert steps.reword(task) == task
    assert steps.report.counts == {f"original words kept: {reason}": 1}


def test_a_code_fence_around_the_json_is_fine(task, db):
    fenced = Reply("```json\n" + json.dumps({"query": NEW_WORDS}) + "\n```")
    with FakeChatServer(in_turn(fenced)) as server:
        assert LlmSteps(ChatClient(config(server)), db).reword(task).query == NEW_WORDS


def test_two_tasks_never_get_the_same_words(task, db):
    tasks = [task, replace(task, task_id="t-2", query=QUERY + " Thanks!")]
    with FakeChatServer(in_turn(words(NEW_WORDS))) as server:
        out = list(reword_tasks(tasks, db, config(server, num_workers=1)))
    assert [t.query for t in out] == [NEW_WORDS, QUERY + " Thanks!"]


def test_a_dead_endpoint_is_not_asked_for_ever(task, db):
    tasks = [replace(task, task_id=f"t-{n}") for n in range(40)]
    with FakeChatServer(in_turn(Reply(status=500))) as server:
        out = list(reword_tasks(tasks, db, config(server, max_attempts=1)))
        assert out == tasks
        assert len(server.requests) <= MAX_FAILURES_IN_A_ROW + 2  # two workers in flight


def test_single_failures_do_not_add_up(task, db):
    tasks = [replace(task, task_id=f"t-{n}", query=f"{QUERY} {'Thanks! ' * n}") for n in range(16)]
    asked = []

    def script(request):
        asked.append(request)
        wish = request["messages"][1]["content"]
        return words(wish.replace("Hi,", "Hello,")) if len(asked) % 2 else Reply(status=500)

    with FakeChatServer(script) as server:
        out = list(reword_tasks(tasks, db, config(server, max_attempts=1, num_workers=1)))
    assert sum("reworded" in t.tags for t in out) == 8


def test_tasks_are_read_as_they_are_needed(task, db):
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield replace(task, task_id=f"t-{len(read)}")

    with FakeChatServer(in_turn(words(NEW_WORDS))) as server:
        stream = reword_tasks(endless(), db, config(server, num_workers=2))
        next(stream)
        stream.close()
    assert len(read) <= 4


# -- the committee -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "tally"), [((True, True, False), "2/3"), ((True, True, True), "3/3")]
)
def test_a_majority_accepts(task, db, votes, tally):
    with FakeChatServer(in_turn(*(vote(v) for v in votes))) as server:
        out = LlmSteps(ChatClient(config(server)), db).review(task)
    assert out == replace(task, tags={"review": f"accepted {tally}"})
    assert len(server.requests) == 3


def test_a_rejected_task_gets_one_round_of_feedback(task, db):
    replies = in_turn(
        vote(False, "too stiff"), vote(True), vote(False, "no greeting"), words(NEW_WORDS),
        vote(True), vote(False), vote(True),
    )
    with FakeChatServer(replies) as server:
        steps = LlmSteps(ChatClient(config(server)), db)
        out = steps.review(task)
    assert out.query == NEW_WORDS and out.tags["review"] == "accepted 2/3"
    feedback = server.requests[3]["messages"][1]["content"]
    assert "too stiff; no greeting" in feedback and QUERY in feedback
    assert steps.report.counts == {"review: accepted after feedback": 1}


def test_a_task_rejected_twice_keeps_its_own_words_and_is_marked(task, db):
    script = lambda request: vote(False) if is_review(request) else words(NEW_WORDS)  # noqa: E731
    with FakeChatServer(script) as server:
        steps = LlmSteps(ChatClient(config(server)), db)
        out = steps.review(task)
        assert out == replace(task, tags={"review": "rejected 0/3"})
        assert len(server.requests) == 7  # one round, not more
        reworded = replace(task, query=NEW_WORDS)
        assert steps.review(reworded, original=task) == task
    assert steps.report.counts["review: rejected"] == 2


def test_feedback_that_drops_an_id_is_not_kept(task, db):
    bad = NEW_WORDS.replace("#W1000002", "it")
    script = lambda request: vote(False) if is_review(request) else words(bad)  # noqa: E731
    with FakeChatServer(script) as server:
        out = LlmSteps(ChatClient(config(server)), db).review(task)
    assert out.query == QUERY and len(server.requests) == 4


def test_unreadable_votes_do_not_count_and_need_a_quorum(task, db):
    with FakeChatServer(in_turn(Reply("yes!"), vote(True), vote(True))) as server:
        steps = LlmSteps(ChatClient(config(server)), db)
        assert steps.review(task).tags["review"] == "accepted 2/2"
    with FakeChatServer(in_turn(Reply("yes!"), Reply('{"accept": "true"}'), vote(False))) as server:
        steps = LlmSteps(ChatClient(config(server)), db)
        assert steps.review(task) == task
    assert steps.report.counts["review: too few votes"] == 1


def test_the_committee_takes_its_models_in_turn_and_must_be_odd(task, db):
    with FakeChatServer(in_turn(vote(True))) as server:
        client = ChatClient(config(server))
        LlmSteps(client, db, num_reviewers=3, review_models=["a", "b"]).review(task)
        assert [request["model"] for request in server.requests] == ["a", "b", "a"]
        with pytest.raises(LlmError, match="odd"):
            LlmSteps(client, db, num_reviewers=2)


# -- the command line --------------------------------------------------------------------------


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_llm_arguments(parser)
    return parser.parse_args(arguments)


def test_without_the_options_tasks_pass_and_no_package_is_needed(task, db, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    assert list(apply_llm_steps([task], parse(), db)) == [task]


def test_both_steps_from_the_command_line(task, db, capsys):
    script = lambda request: vote(True) if is_review(request) else words(NEW_WORDS)  # noqa: E731
    with FakeChatServer(script) as server:
        args = parse(
            "--reword", "--review", "--llm-base-url", server.base_url, "--llm-model", "toy",
            "--llm-rpm", "0", "--llm-price", "1", "2",
        )
        (out,) = apply_llm_steps([task], args, db)
    assert out.query == NEW_WORDS and out.tags == {"reworded": True, "review": "accepted 3/3"}
    report = capsys.readouterr().err
    assert "reworded: 1" in report and "4 requests" in report and "0.0001 US dollars" in report


def test_a_missing_model_name_is_told_before_any_task_is_read(db, monkeypatch):
    monkeypatch.delenv("TASK_LLM_MODEL", raising=False)
    with pytest.raises(LlmError, match="--llm-model"):
        apply_llm_steps(iter(()), parse("--reword"), db)


def test_a_refused_key_surfaces_from_the_pool(task, db):
    with FakeChatServer(in_turn(Reply(status=401))) as server:
        args = parse("--reword", "--llm-base-url", server.base_url, "--llm-model", "toy")
        with pytest.raises(LlmError, match="refuses key or model"):
            list(apply_llm_steps([task] * 30, args, db))
        assert len(server.requests) <= 10


def test_a_careless_model_cannot_spoil_a_generated_file(tmp_path):
    """Whatever is dropped, added or turned around, the written file passes the audit."""
    spoils = [
        lambda text: f"Hello dear team. {text}",
        lambda text: re.sub(r"\d{3,}", "", text, count=1),
        lambda text: re.sub(r"\S+@\S+", "my mail", text),
        lambda text: f"{text} My other order is #W7777777.",
        lambda text: text.replace("mistake", "need").replace("no longer", "still"),
        lambda text: " ".join(reversed(re.split(r"(?<=[.?!])\s", text))),
        lambda text: text[: len(text) // 2],
        lambda text: text.upper(),
    ]
    asked = []

    def script(request):
        asked.append(request)
        wish = request["messages"][1]["content"].split("\n\nA first try was sent back")[0]
        return words(spoils[len(asked) % len(spoils)](wish))

    path = tmp_path / "reworded.jsonl"
    with FakeChatServer(script) as server:
        tasks = TaskStream(60, 5)
        out = list(reword_tasks(tasks, RetailDatabase.load(), config(server, num_workers=1)))
    path.write_text("".join(task_to_json(task, keep_empty=True) + "\n" for task in out), encoding="utf-8")
    audit = audit_file(path)
    assert audit.reasons == []
    assert 5 <= sum("reworded" in task.tags for task in out) < 60
