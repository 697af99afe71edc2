"""The words of generated queries: varied, clean, and true to the facts."""

import re
from random import Random

import pytest

from envs.retail import RetailDatabase
from tasks.audit.duplicates import masked_words, wording_figures
from tasks.audit.grounding import check_grounding
from tasks.generate.pipeline import TaskStream
from tasks.generate.sampler import BlueprintSampler
from tasks.generate.store_view import StoreView
from tasks.mix import CHANNELS, DEFAULT_MIX, PERSONAS
from tasks.phrasing.grammar import (
    Grammar,
    add_slips,
    capitalize,
    fact,
    finish,
    resolve_articles,
    tidy_punctuation,
)
from tasks.phrasing.instruction import write_instruction
from tasks.phrasing.naming import UNIT_SPELLINGS, option_value
from tasks.phrasing.phrases_questions import QUESTION_PHRASES
from tasks.phrasing.query import PHRASES

ID = re.compile(r"\b\d{10}\b|\b(?:credit_card|paypal|gift_card)_\d+")


@pytest.fixture(scope="module")
def tasks():
    return list(TaskStream(800, seed=5))


def test_figures_of_400_queries(tasks):
    figures = wording_figures(Random(0).sample([task.query for task in tasks], 400))
    assert figures["num_texts"] == 400
    assert figures["distinct_3"] >= 0.30
    assert figures["distinct_4"] >= 0.45
    assert figures["openers_4"] >= 100
    assert figures["distinct_masked"] == 400
    assert figures["median_words"] < 90
    assert max(len(task.query.split()) for task in tasks) <= 220


def test_figures_on_toy_texts():
    texts = ["cancel #W1234567 now", "cancel #W7654321 now", "a@b.com wrote 12 words"]
    assert masked_words(texts[0]) == ["cancel", "<order>", "now"]
    assert masked_words("user ana_lee_12 paid 3.50 by paypal_7, a@b.com") == [
        "user", "<id>", "paid", "<n>", "by", "<method>", "<email>",
    ]
    figures = wording_figures(texts)
    assert figures["distinct_masked"] == 2
    assert figures["distinct_2"] == round(5 / 7, 3)
    assert wording_figures([])["num_texts"] == 0


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (r"[{}]", "unfilled slot"),
        (r"[\x00-\x09\x0b-\x1f]", "mark left behind"),
        (r"  ", "double space"),
        (r"[,;:][,;.:]|\.\.|!\.|\?\.|\.,|,\?", "doubled punctuation"),
        (r" [,.;!?]", "space before punctuation"),
        (r"\ban? [Aa]n? ", "two articles"),
        (r"\b[Aa] [aeioAEIO][a-z]", "a before a vowel"),
        (r"\b[Aa]n [^aehiouAEIOULHF\W]", "an before a consonant"),
        (r"\bthey (?:is|was|has|am)\b|\bI (?:is|are|has)\b", "wrong verb form"),
        (r"\(\)|\( ", "empty brackets"),
    ],
)
def test_queries_read_cleanly(tasks, pattern, what):
    bad = [t.query for t in tasks if re.search(pattern, t.query)]
    assert bad == [], what


def test_sentences_begin_with_a_capital_unless_all_is_lower_case(tasks):
    num_lower = 0
    for task in tasks:
        first = next(c for c in task.query if c.isalpha() or c == "#")
        if first.islower():
            num_lower += 1
            assert task.tags["channel"] == "chat"
    assert num_lower < len(tasks) * 0.15


def test_every_channel_and_persona_is_used(tasks):
    assert {task.tags["channel"] for task in tasks} == set(CHANNELS)
    assert {task.tags["persona"] for task in tasks} == set(PERSONAS)


def test_values_stand_in_the_query_word_for_word(tasks):
    for task in tasks:
        for action in task.gold_actions:
            for field, value in action["arguments"].items():
                if field in ("reason", "expression") or value == "":
                    continue
                for one in value if isinstance(value, list) else [value]:
                    assert one in task.query
    assert all(check_grounding(task, None) == [] for task in tasks)


def test_instruction_has_no_ids_a_customer_forgets(tasks):
    for task in tasks:
        assert not ID.search(task.instruction), task.instruction
        assert not re.search(r"\b[a-z]+_[a-z]+_\d+\b", task.instruction)
        assert task.instruction.startswith("You are ")
        assert "  " not in task.instruction and ".." not in task.instruction


def test_instruction_is_of_the_task_alone(tasks):
    assert len({task.instruction for task in tasks}) == len(tasks)


def test_every_phrase_can_be_expanded():
    known = set(PHRASES)
    given = {
        "I", "my", "me", "am", "their", "first", "last", "email", "zip", "order", "user", "product",
        "name", "subject", "names", "names_list", "items", "pairs_for", "pairs_to", "pairs_with",
        "item", "new", "address", "method", "balance", "amount", "numbers_and", "numbers_plus",
        "n0", "n1", "vp", "q", "fact", "spare", "pay", "label", "an",
    }  # fmt: skip
    for name, alternatives in PHRASES.items():
        assert alternatives, name
        for text in alternatives:
            unknown = set(re.findall(r"\{(\w+)\}", text)) - known - given
            assert not unknown, (name, text)


def test_phrases_have_no_doubles():
    for name, alternatives in PHRASES.items():
        texts = [text for text in alternatives if text]
        assert len(set(texts)) == len(texts), name
    assert set(QUESTION_PHRASES) <= set(PHRASES)


def test_slots_win_over_phrases_and_unknown_slots_raise():
    grammar = Grammar(Random(0), {"a": ("x {b}",), "b": ("y",)})
    assert grammar.pick("a", {}) == "x y"
    assert grammar.pick("a", {"b": "z"}) == "x z"
    with pytest.raises(KeyError):
        grammar.expand("{nothing}", {})


def test_sentence_rules_leave_facts_alone():
    text = capitalize(f"send {fact('#W1 . a')} now. ok? {fact('x')} is it")
    assert finish(text) == "Send #W1 . a now. Ok? x is it"
    assert finish(resolve_articles(f"\x04 {fact('LED lamp')} and \x04 invoice")) == (
        "a LED lamp and an invoice"
    )
    assert tidy_punctuation("a ,  b,. c!! (d ,)") == "a, b. c! (d)"


def test_typing_slips_spare_facts_and_telling_words():
    text = f"please cancel {fact('wonderful')} because it was a mistake"
    for seed in range(50):
        slipped = add_slips(Random(seed), text, 2)
        assert fact("wonderful") in slipped
        assert "cancel" in slipped and "mistake" in slipped
        assert slipped != text


def test_units_are_spelt_in_several_ways():
    spoken = {option_value(Random(seed), "500 GB".replace(" ", "")) for seed in range(40)}
    assert {"500GB", "500 GB", "500 gigs"} <= spoken
    assert all("{}" in form for _, forms in UNIT_SPELLINGS for form in forms)


def test_instruction_uses_the_stream_it_is_given(tasks):
    sampler = BlueprintSampler(StoreView(RetailDatabase.load()), DEFAULT_MIX)
    blueprint = sampler.sample(Random(3))
    first = write_instruction(Random(1), blueprint, "polite")
    assert first == write_instruction(Random(1), blueprint, "polite")
