"""The scripted customer: what it says to an agent that asks in plain words, and what it never says."""

import re
from functools import cache
from pathlib import Path
from random import Random

import pytest

from agent import Conversation, play, scripted_policy, speech
from agent.customers import PERSONAS, ScriptedCustomer
from agent.intents import EMAIL, read_intents
from agent.phrases import CUSTOMER
from data_reader import Task, read_tasks
from scoring.violations import asks_for_confirmation, is_yes
from tasks.audit.grounding import says_mistake
from tasks.phrasing.grammar import Grammar
from tasks.phrasing.query import VOICES

ROOT = Path(__file__).parents[1]
SECRET = re.compile(r"\b(?:credit_card|gift_card|paypal)_\d+|\b\d{10}\b|\b[a-z]+_[a-z]+_\d{4}\b")


@cache
def tasks():
    return read_tasks(ROOT / "dataset.jsonl")


def one(*wishes, **tags):
    """Return the first task with these wishes."""
    return next(
        task for task in tasks() if task.tags["wishes"] == list(wishes)
        and all(task.tags[name] == value for name, value in tags.items())
    )


def customer(task, db, name):
    """Return an open customer of this persona, and its first words."""
    for seed in range(200):
        made = ScriptedCustomer(task, seed)
        if made.persona.name == name:
            return made, made.open(db).text
    raise AssertionError(name)


def ask(made, *texts):
    """Return the customer's last turn after these words of the agent."""
    messages = []
    for text in texts:
        messages.append({"role": "assistant", "content": text})
        turn = made.reply(messages)
        messages.append({"role": "user", "content": turn.text})
    return turn


def test_every_generated_row_has_an_intent_for_every_gold_call(db):
    for task in tasks():
        intents = read_intents(task, db, db.users[task.user_id])
        assert len(intents) == len(task.gold_actions) - 1
        for intent, action in zip(intents, task.gold_actions[1:], strict=True):
            assert "you" not in intent.words.split() and "your" not in intent.words.split()
            assert (intent.kind == "write") == (intent.action == action)


def test_the_same_seed_says_the_same_and_seeds_differ(db):
    task = one("cancel")
    openings = [[ScriptedCustomer(task, seed).open(db).text for seed in range(20)] for _ in "12"]
    assert openings[0] == openings[1] and len(set(openings[0])) > 5
    assert {ScriptedCustomer(task, seed).persona for seed in range(60)} == set(PERSONAS)


EMAIL_ASKS = [
    "May I have your email address?",
    "To get started, please provide your email, or your full name and zip code.",
    "I'll need to verify your identity first. Could you share your email?",
    "Before we continue I need your user ID.",
    "What's your name and zip code?",
    "Can you confirm your email, please?",
]


@pytest.mark.parametrize("words", EMAIL_ASKS)
def test_tells_who_it_is_when_asked(db, words):
    task = one("cancel")
    made, opening = customer(task, db, "brief")
    arguments = task.gold_actions[0]["arguments"]
    facts = [v for k, v in arguments.items()]
    assert not any(fact in opening for fact in facts)
    turn = ask(made, words)
    assert all(fact in turn.text for fact in facts) and turn.end is None and not is_yes(turn.text)


def test_an_email_address_is_no_shipping_address(db):
    task = one("change_address")
    made, _ = customer(task, db, "brief")
    address = task.gold_actions[1]["arguments"]["address1"]
    assert address not in ask(made, "May I have your email address, or your full name and zip code?").text
    assert address in ask(made, "What is the new address?").text


def test_a_customer_without_an_email_says_so(db):
    task = next(t for t in tasks() if t.gold_actions[0]["name"] == "find_user_id_by_name_zip")
    made, _ = customer(task, db, "brief")
    arguments = task.gold_actions[0]["arguments"]
    text = ask(made, "What is your email?").text
    assert "email" in text and "@" not in text and all(value in text for value in arguments.values())


@pytest.mark.parametrize(
    ("wish", "words", "slot"),
    [
        ("cancel", "Which order would you like to cancel?", "order"),
        ("cancel", "Please tell me the order number.", "order"),
        ("cancel", "What is the reason for the cancellation?", "reason"),
        ("cancel", "Why would you like to do that?", "reason"),
        ("return", "What items should go back?", "items"),
        ("return", "Where should the refund go?", "payment"),
        ("return", "Which payment method would you like to use?", "payment"),
        ("exchange", "Which variant would you prefer instead?", "items"),
        ("exchange", "Could you tell me which item, and which color or size you need?", "items"),
        ("change_items", "How would you like to pay the difference?", "payment"),
        ("change_address", "What's the new address?", "address"),
        ("change_profile_address", "Please provide the full street address, city and zip.", "address"),
        ("change_payment", "Which card shall it be?", "payment"),
    ],
)
def test_tells_each_thing_when_asked(db, wish, words, slot):
    made, opening = customer(one(wish), db, "brief")
    (intent,) = made.intents
    value = intent.slots[slot]
    assert value not in opening
    turn = ask(made, "Your email or name and zip code, please?", words)
    assert value.casefold() in turn.text.casefold() and not is_yes(turn.text)


@pytest.mark.parametrize(
    "words",
    ["Shall I go ahead and cancel order {id} ({reason})?",
     "I'll cancel order {id} as {reason}. Do you confirm (yes/no)?",
     "To confirm: you want to cancel {id}, reason: {reason}. Is that correct?",
     "I can cancel {id} ({reason}) for you. Would you like me to proceed?"],
)
def test_says_yes_to_what_it_wants(db, words):
    task = one("cancel")
    arguments = task.gold_actions[1]["arguments"]
    made, _ = customer(task, db, "plain")
    words = words.format(id=arguments["order_id"], reason=arguments["reason"])
    turn = ask(made, words)
    assert is_yes(turn.text) and made.intents[0].confirmed
    end = ask(made, f"Order {arguments['order_id']} has been cancelled. Anything else I can do?")
    assert end.end == "satisfied"


def test_no_yes_before_everything_is_known(db):
    task = one("cancel")
    order_id = task.gold_actions[1]["arguments"]["order_id"]
    made, _ = customer(task, db, "brief")
    first = ask(made, f"Shall I cancel order {order_id}?")
    assert not is_yes(first.text) and made.intents[0].slots["reason"] in first.text.casefold().replace(
        " i ", " I ").replace("i ordered", "I ordered").replace("i no longer", "I no longer")
    assert is_yes(ask(made, f"Shall I cancel order {order_id}?").text)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("cancel", "Shall I cancel order #W0000001?"),
        ("cancel", "Shall I return the items of {id} for a refund?"),
        ("cancel", "I'll cancel {id}, reason: {other_reason}. Go ahead?"),
        ("return", "Shall I cancel order {id}?"),
        ("return", "I will return the items of {id} to your card ending in 0000. Is that right?"),
        ("change_address", "I'll ship {id} to 1 Wrong Street, Nowhere, TX, 00000. OK?"),
        ("change_payment", "Shall I cancel {id} instead?"),
    ],
)
def test_says_no_to_what_it_did_not_ask_for(db, wish, words):
    task = one(wish)
    arguments = task.gold_actions[1]["arguments"]
    reasons = ["no longer needed", "ordered by mistake"]
    other = reasons[arguments.get("reason") == reasons[0]]
    made, _ = customer(task, db, "plain")
    turn = ask(made, words.format(id=arguments["order_id"], other_reason=other))
    assert turn.text.startswith("No") and not is_yes(turn.text) and not made.intents[0].confirmed


def test_corrects_a_wrong_variant(db):
    task = next(
        t for t in tasks() if t.tags["wishes"] == ["exchange"]
        and len(t.gold_actions[1]["arguments"]["item_ids"]) == 1
    )
    arguments = task.gold_actions[1]["arguments"]
    order = db.orders[arguments["order_id"]]
    item = next(i for i in order["items"] if i["item_id"] == arguments["item_ids"][0])
    product = db.products[item["product_id"]]
    wanted = product["variants"][arguments["new_item_ids"][0]]["options"]
    wrong = next(
        v["options"] for v in product["variants"].values()
        if any(v["options"][k] != wanted[k] != item["options"][k] and v["options"][k] != item["options"][k] for k in wanted)
    )
    words = f"Shall I exchange in {arguments['order_id']} the {product['name']} for {{}}?"
    made, _ = customer(task, db, "plain")
    assert ask(made, words.format(", ".join(wrong.values()))).text.startswith("No")
    assert is_yes(ask(made, words.format(", ".join(wanted.values()))).text)


def test_a_wavering_customer_ends_where_gold_is(db):
    task = one("cancel")
    arguments = task.gold_actions[1]["arguments"]
    made, opening = customer(task, db, "wavering")
    assert made.intents[0].slots["reason"] not in opening
    proposal = "Shall I cancel {order_id}? Reason: {reason}."
    other = {"no longer needed", "ordered by mistake"} - {arguments["reason"]}
    turn = ask(made, proposal.format(order_id=arguments["order_id"], reason=other.pop()))
    assert turn.text.startswith("No, ") and made.intents[0].slots["reason"] in turn.text
    assert is_yes(ask(made, proposal.format(**arguments)).text)


def test_accepts_a_refusal_where_gold_refuses_and_insists_where_it_does_not(db):
    words = "Unfortunately that is not possible."
    refused, _ = customer(one("refuse_cancel"), db, "plain")
    assert ask(refused, words).end == "satisfied"
    wanted, _ = customer(one("cancel"), db, "plain")
    assert ask(wanted, words).end is None
    assert ask(wanted, words, words).end == "gave_up"


def test_a_refused_wish_is_asked_for_without_the_reason_it_fails(db):
    made, opening = customer(one("refuse_cancel"), db, "plain")
    assert "already" not in opening and made.intents[0].order_id in opening


def test_asks_again_until_the_answer_is_there(db):
    task = next(t for t in tasks() if t.tags["wishes"] == ["ask_order"] and len(t.outputs) == 1)
    made, _ = customer(task, db, "plain")
    assert made.intents[0].order_id in ask(made, "Thank you, I found your account.").text
    assert ask(made, "One moment, let me check.").end is None
    assert ask(made, f"The answer is {task.outputs[0]}.").end == "satisfied"


def test_patience_ends(db):
    for persona in PERSONAS:
        made, _ = customer(one("cancel"), db, persona.name)
        ends = [ask(made, "Hello!").end for _ in range(persona.patience + 2)]
        assert "gave_up" in ends and ends.index("gave_up") <= persona.patience + 1


@pytest.mark.parametrize("text", ["", "?", "x" * 100_000, "\ud800?", "confirm " * 5000, "#W" * 9999])
def test_any_words_are_answered(db, text):
    for persona in PERSONAS:
        made, _ = customer(one("change_items"), db, persona.name)
        assert ask(made, text).text


def test_rows_with_only_the_required_fields_have_a_customer(db):
    for task in tasks()[:200]:
        bare = Task(task.query, task.gold_actions, task.gold_final, task.task_id)
        made = ScriptedCustomer(bare)
        assert made.open(db).text
        writes = [a for a in bare.gold_actions if a["name"].startswith(("mod", "can", "ret", "exc"))]
        assert [i.action for i in made.intents if i.kind == "write"] == writes


def test_never_says_an_id_that_the_scenario_does_not_hold(db):
    probes = [
        "What is your user id?", "Which item ids, product ids and payment method id, please?",
        "What would you like?", "Please describe the items and variants in detail.",
        "Shall I go ahead?", "Which payment method, address, order number and reason?",
    ]
    for task in tasks():
        made = ScriptedCustomer(task, 1)
        said = [made.open(db).text] + [ask(made, probe).text for probe in probes]
        for secret in SECRET.findall(" ".join(said)):
            assert secret in task.instruction


def random_phrases(name, count=300):
    """Return drawn expansions of a name of the customer's phrases, facts as short stand-ins."""
    slots = {name: name for name in (
        "vp", "act", "q", "order", "items", "method", "address", "why", "email", "first", "last", "zip", "thing",
        "brand", "digits", "names", "subject", "n0", "n1", "numbers_and", "numbers_plus",
    )}
    slots |= VOICES["first"] | {"refund": "", "difference": "", "pairs_for": "", "pairs_to": "", "pairs_with": ""}
    grammar = Grammar(Random(name), speech.PHRASES)
    return {grammar.pick(name, slots) for _ in range(count)}


@pytest.mark.parametrize(("name", "asks_for"), [
    ("know_product_types", r"\bhow many "),
    ("know_product_count", r"\bhow many .*\b(?:in stock|available|deliver|get right now)\b"),
    ("know_product_cheapest", r"^(?=.*\b(?:costs|price|pay)\b).*\b(?:in stock|available|right now)\b"),
    ("know_product_dearest", r"^(?=.*\b(?:costs?|price|sets|goes for)\b).*\b(?:in stock|available)\b"),
    ("know_account_orders", r"\b(?:which|what) order"),
    ("know_order_status", r"\b(?:status|stands|how far along|happening|state)\b"),
])
def test_questions_ask_for_what_the_outputs_hold(name, asks_for):
    wrong = [text for text in random_phrases(name) if not re.search(asks_for, text)]
    assert wrong == []


def test_only_the_phrases_of_a_yes_read_as_one():
    parts = {"yes_word", "go", "right", *(name for name in CUSTOMER if name.startswith("act_"))}
    for name in CUSTOMER.keys() - parts:
        means_yes = name.startswith("yes") or name == "hand_over_yes"
        wrong = [text for text in random_phrases(name) if is_yes(text) != means_yes]
        assert wrong == [], name


@pytest.mark.parametrize("name", ["wrong", "unasked", "first"])
def test_what_comes_before_a_correction_is_a_no(name):
    assert not any(is_yes(f"{text} Yes, Tulsa, OK.") for text in random_phrases(name))


def test_any_reason_for_a_cancellation_reads_as_the_one_that_is_meant():
    for name, mistake in (("why_mistake", True), ("why_not_needed", False)):
        for text in random_phrases(name):
            assert says_mistake(text) is mistake, text


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (r"[{}\x00-\x1f]", "slot or mark left behind"),
        (r"  |^ | $", "stray space"),
        (r"[,;:][,;.:]|\.\.|!\.|\?\.|\.,|,\?", "doubled punctuation"),
        (r" [,.;!?]", "space before punctuation"),
        (r"(?:^|[.!?] )[a-z]", "small letter at the start of a sentence"),
        (r"\b[Aa] [aeioAEIO][a-z]|\ban? an? ", "wrong article"),
    ],
)
def test_customers_talk_in_clean_sentences(db, pattern, what):
    texts = {m["content"] for talk in played(db) for m in talk.messages if m["role"] == "user"}
    wrong = [text for text in texts if re.search(pattern, EMAIL.sub("@", text))]
    assert len(texts) > 1000 and wrong == [], what


@cache
def played(db):
    """Return conversations of the oracle with a customer each."""
    talks = [Conversation(task, db, ScriptedCustomer(task, 3)) for task in tasks()]
    play(talks, scripted_policy("oracle"))
    return talks


def test_customers_say_facts_word_for_word(db):
    for talk in played(db):
        said = " ".join(m["content"] for m in talk.messages if m["role"] == "user")
        for intent in talk.customer.intents:
            facts = intent.facts
            values = [facts.get("order", ""), *facts.get("address", {}).values()]
            for item, new in facts.get("items", ()):
                values += [item["name"], *item["options"].values(), *(new or {}).values()]
            assert all(str(value) in said for value in values), (said, values)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes, please.", True), ("yes", True), ("Sure, go ahead", True), ("OK, do it.", True),
        ("Yes, I no longer need it.", True), ("I confirm.", True), ("No.", False), ("", False),
        ("No, that is not correct.", False), ("I'm not sure.", False), ("Wait, yes or no what?", False),
        ("Don't proceed.", False), ("Please use my gift card.", False), ("One thing first.", False),
        ("No problem, please do.", True), ("Sure, OK.", True), ("Great, OK.", True), ("Well, Yes, OK.", True),
        ("OK, 12 Elm Street, Tulsa, OK 74101.", True), ("Yes, Tulsa, OK.", True), ("ok, 3 of them", True),
        ("12 Elm Street, no unit, Tulsa, TX 74101. Yes, go ahead.", True),
        # Words of a yes inside of data are none.
        ("It is 12 Elm Street, Suite 3, Tulsa, OK 74101, USA.", False), ("12 Elm Street, Tulsa, OK.", False),
        ("12 Elm Street, Broken Arrow, OK, 74012", False), ("12 Elm Street, tulsa, ok 74101", False),
        ("12 Elm Street, Tulsa, OK, USA 74101", False), ("12 Elm Street, Tulsa, OK, zip 74101", False),
        ("I moved to Tulsa, OK.", False), ("street: 12 Elm; city: Tulsa; state: OK; zip: 74101", False),
        ("The state is OK.", False), ("Send it to 7 Sure Street.", False),
        ("12 Elm Street\nTulsa, OK", False), ("City: Tulsa, OK", False), ("I live in Tulsa (OK).", False),
        ("12 Elm Street, 74101 Tulsa OK", False), ("12 Elm Street, Tulsa, OK, US", False),
        ("12 Elm Street, Tulsa OK-74101", False), ("from Sand Springs West, OK", False),
        ("Well, Correct, OK.", True), ("Hm, Exactly, OK.", True), ("Right, Great, OK.", True),
        ("All of that is Fine, OK.", True), ("OK, 74101 is the right zip.", True),
        ("No unit should be returned. OK?", False), ("12 Elm Street, no unit. Yes.", True),
        ("My e-mail is yes.lee@example.com.", False), ("My name is Sure Lee.", False),
        ("12 Sure Street, Tulsa, OK 74101. No, wait. Yes.", False),
    ],
)
def test_what_counts_as_a_yes(text, yes):
    assert is_yes(text) is yes


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Shall I go ahead?", True), ("Would you like me to proceed?", True), ("Is that right?", True),
        ("Please confirm (yes/no).", True), ("What would you like me to do?", False),
        ("Can you confirm your email?", False), ("Your order has been cancelled.", False),
    ],
)
def test_what_asks_for_a_yes(text, asks):
    assert asks_for_confirmation(text) is asks
