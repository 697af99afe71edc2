"""The scripted policies played against the scripted customer: the oracle, the floors, the bad ones."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from agent import Conversation, play
from agent.customers import ScriptedCustomer
from agent.policies import SCRIPTS, ScriptedPolicy, call, oracle, scripted_policy
from data_reader import read_tasks
from envs.retail import WRITE_TOOLS, RetailDatabase
from scoring.episode import score_episode
from scoring.reward import GoldError, replay_gold
from scoring.violations import AUTHENTICATION_TOOLS

ROOT = Path(__file__).parents[1]
TAUBENCH = ROOT.parent / "shared" / "taubench"
ID = re.compile(r"\b(?:credit_card|gift_card|paypal)_\d+|\b\d{10}\b|\b[a-z]+_[a-z]+_\d{4}\b|#W\d{7}")


@pytest.fixture(scope="module")
def tasks():
    return read_tasks(ROOT / "dataset.jsonl")


@pytest.fixture(scope="module")
def many():
    return read_tasks(ROOT / "3.5k.jsonl")


def played(tasks, db, policy, seed=0):
    talks = [Conversation(task, db, ScriptedCustomer(task, seed)) for task in tasks]
    play(talks, policy)
    return talks


def scored(talks, db):
    return [score_episode(talk.task, talk.messages, db, talk.termination) for talk in talks]


def assert_perfect(talks, db):
    for talk, score in zip(talks, scored(talks, db), strict=True):
        assert score.success and score.reward == score.max_reward, (talk.task.task_id, score)
        assert score.violations == () and score.num_refusals == 0
        assert talk.termination in ("customer_satisfied", "transferred"), talk.task.task_id


def assert_grounded(talk):
    """Check that every id in a call was said by the customer or returned by a tool before."""
    known = ""
    for message in talk.messages:
        for made in message.get("tool_calls", ()):
            for found in ID.findall(made["function"]["arguments"]):
                assert found in known, (talk.task.task_id, found)
        if message["role"] != "assistant":
            known += message["content"]


def test_oracle_solves_tasks_and_uses_no_id_before_it_is_known(db, tasks):
    talks = played(tasks[:200], db, scripted_policy("oracle"))
    assert_perfect(talks, db)
    for talk in talks:
        assert_grounded(talk)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_oracle_solves_every_generated_task(db, tasks, many, seed):
    talks = played(tasks + many, db, scripted_policy("oracle"), seed)
    assert_perfect(talks, db)
    for talk in talks:
        assert_grounded(talk)


def test_oracle_solves_taubench():
    if not TAUBENCH.is_dir():
        pytest.skip("../shared/taubench is missing")
    db = RetailDatabase.load(TAUBENCH)

    def replays(task):
        try:
            return replay_gold(task, db)
        except GoldError:
            return False

    tasks = [
        task for name in ("tasks_train.json", "tasks_dev.json")
        for task in read_tasks(TAUBENCH / name, skip_invalid=True) if replays(task)
    ]
    assert len(tasks) >= 385 + 15
    talks = played(tasks, db, scripted_policy("oracle"))
    assert_perfect(talks, db)
    for talk in talks:
        assert_grounded(talk)


@pytest.mark.parametrize("name", ["nothing", "all-tools", "transfer"])
def test_floors_pass_no_task_that_has_a_write(db, many, name):
    talks = played(many[:512], db, scripted_policy(name))
    scores = scored(talks, db)
    assert sum(score.success for score in scores) == 0
    with_write = [
        score for score, talk in zip(scores, talks, strict=True)
        if any(action["name"] in WRITE_TOOLS for action in talk.task.gold_actions)
    ]
    assert len(with_write) > 300 and not any(score.success for score in with_write)


def play_at_once(talk):
    """Make the gold calls without authenticating the customer."""
    for action in talk.task.gold_actions:
        if action["name"] not in AUTHENTICATION_TOOLS:
            yield call(action["name"], **action["arguments"])


def snoop(talk):
    """Look up and cancel another customer's order, then play the oracle."""
    order_id = next(
        order_id for order_id, order in talk.db.orders.items()
        if order["user_id"] != talk.task.user_id and order["status"] == "pending"
        and order_id not in str(talk.messages)
    )
    yield call("get_order_details", order_id=order_id)
    yield call("cancel_pending_order", order_id=order_id, reason="no longer needed")
    yield from oracle(talk)


BAD = {
    "unauthenticated": play_at_once,
    "unconfirmed_write": partial(oracle, asks=False),
    "other_customer": snoop,
}


def assert_caught(tasks, db, kind):
    for score in scored(played(tasks, db, ScriptedPolicy(BAD[kind])), db):
        assert kind in {violation.kind for violation in score.violations}, score
        assert score.reward < score.max_reward


def with_writes(tasks):
    return [t for t in tasks if any(a["name"] in WRITE_TOOLS for a in t.gold_actions)]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_policy_is_caught(db, tasks, kind):
    assert_caught(with_writes(tasks)[:100], db, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_policy_is_caught_every_time(db, many, kind):
    assert_caught(with_writes(many)[:1000], db, kind)


REWORDED = {
    "May I have your email": (
        "Sure! To get started, could you please provide the email address of your account? If you "
        "don't have it, your full name and zip code will work too.",
        "I'd be glad to assist. First I need to verify your identity: please share your email, or "
        "your name and zip code.",
        "Of course! Before I look into this, may I please have your email or full name + ZIP code?",
    ),
    "What would you like": (
        "Thank you! I've located your account. Could you please provide the order number and "
        "describe what you would like to do?",
        "Thanks, I found your profile. Which order is this about, and what are the details?",
        "Great, you're verified. How can I help you today? Please include the order ID.",
    ),
    "Which payment method": (
        "Which payment method would you like to use for this: one on file?",
        "How would you like the payment or refund to be handled?",
        "Please let me know which of your methods (credit card, gift card, PayPal) you'd like to use.",
    ),
    "What is the reason": (
        'Could you tell me the reason for the cancellation: "no longer needed" or "ordered by '
        'mistake"?',
        "May I ask why you'd like to cancel?",
        "To cancel, I need a reason: is it no longer needed, or was it ordered by mistake?",
    ),
    "What is the full new": (
        "Could you please provide the complete new address, including street, city and zip code?",
        "What's the new shipping address?",
        "Please share the new address (street, apartment, city, state, ZIP).",
    ),
    "not possible": (
        "I'm sorry, but I checked and that can't be done under our policy. Would you like me to "
        "help with something else, such as a return?",
        "Unfortunately I'm unable to do that, since the order's status doesn't allow it.",
        "I've reviewed it: this request isn't possible. Would you like to return it instead, or "
        "shall I transfer you to a human agent?",
    ),
}
PROPOSALS = (
    "Here's a summary of what I'm about to do:\n\n- **Action:** {}\n\nPlease note that this can't be "
    "undone, and refunds take 5 to 7 business days. Do you confirm (yes/no) that you'd like me to "
    "proceed?",
    "Thanks for the details! Just to confirm: {} Is that correct, and shall I go ahead?",
    "As to your request, {} Once done, the order cannot be changed or cancelled. Would you like to "
    "proceed?",
)
REPORTS = (
    "All set! {} You'll receive an email with the next steps shortly.",
    "Done! {} The refund will be processed within 5 to 7 business days.",
    "Great news: {} \u2705",
)
GOODBYES = (
    "Is there anything else I can assist you with today?",
    "Let me know if there's anything else you need!", "Can I help you with anything else?",
)


class Reworded(ScriptedPolicy):
    """The oracle in the words of a chat model: the customer has to understand any of them."""

    def __init__(self, style):
        super().__init__(oracle)
        self.style = style

    def _next(self, conversation):
        message = super()._next(conversation)
        text, style = message["content"], self.style
        if text is None:
            return message
        text, goodbye, _ = text.partition("Is there anything else")
        text = text.strip()
        if "Shall I go ahead" in text:
            text = PROPOSALS[style].format(text.partition(" Shall I go ahead")[0])
        elif " been " in text:
            text = REPORTS[style].format(text)
        text = next((w[style] for start, w in REWORDED.items() if start in text), text)
        return {**message, "content": f"{text} {GOODBYES[style] if goodbye else ''}"}


@pytest.mark.parametrize("style", range(3))
def test_a_customer_understands_an_agent_in_other_words(db, many, style):
    assert_perfect(played(many[:300], db, Reworded(style), style), db)


def test_many_conversations_at_once_do_not_meet(db, tasks):
    """200 at once, of every policy and on repeated tasks, are what each is alone."""
    chosen = [(task, seed) for seed in range(5) for task in tasks[:40]]
    scripts = [oracle, SCRIPTS["all-tools"]]

    def start(number):
        task, seed = chosen[number]
        return Conversation(task, db, ScriptedCustomer(task, seed))

    def script(talk):
        return scripts[talk.number % 2](talk)

    together = [start(number) for number in range(200)]
    for number, talk in enumerate(together):
        talk.number = number
    play(together, ScriptedPolicy(script))
    for number, talk in enumerate(together):
        alone = start(number)
        alone.number = number
        play([alone], ScriptedPolicy(script))
        assert alone.messages == talk.messages and alone.termination == talk.termination
        assert alone.episode.changed_records() == talk.episode.changed_records()


def test_a_recorded_conversation_scores_as_the_live_one(db, tasks):
    for talk in played(tasks[:50], db, scripted_policy("oracle")):
        recorded = json.loads(json.dumps(talk.messages))
        live = score_episode(talk.task, talk.messages, db, talk.termination)
        assert score_episode(talk.task, recorded, db, talk.termination) == live
