"""A customer's words: phrases by mood from one random stream, around facts that stay as they are."""

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from agent.intents import Intent
from agent.phrases import CUSTOMER
from scoring.violations import is_yes
from tasks.audit.grounding import MISTAKE
from tasks.phrasing import query
from tasks.phrasing.grammar import (
    FACT,
    Grammar,
    capitalize,
    fact,
    finish,
    resolve_articles,
    tidy_punctuation,
)
from tasks.phrasing.naming import address_words, join_words
from tasks.phrasing.query import VOICES, WHY

PHRASES = {
    name: tuple(phrase for phrase in phrases if not is_yes(phrase))
    for name, phrases in query.PHRASES.items()
} | CUSTOMER
"""The phrases of queries but those that a rule would take for the yes to a change, and the customer's."""
_WHY_SHARE = 0.25
"""Share of changes with a reason that no argument depends on."""
_ABOUT_SHARE = 0.5
"""Share of hand-overs with a sentence about what happened."""
_ORDER_PHRASES = ("order_np", "pending_np", "delivered_np")
_CARD = re.compile(r"my (?P<brand>\w+) card ending in (?P<digits>\d{4})")
_NEW_FORMS = (
    "one with {}", "the one with {}", "a version with {}", "one that has {}", "the kind with {}",
)
_NEVER_BARE = ("yes", "no", "none")


class Speech:
    """How one customer words what `agent.customers` decides.

    Args:
        rng: The stream that all words are drawn from.
        mood: A name of `tasks.mix.PERSONAS`.
    """

    def __init__(self, rng: Random, mood: str) -> None:
        self._rng = rng
        self._mood = mood
        self._grammar = Grammar(rng, PHRASES)
        self._described: set[str] = set()

    def text(self, parts: Sequence[str]) -> str:
        """Return sentences as one clean text, every fact in it as it was."""
        text = resolve_articles(" ".join(filter(None, parts)))
        facts = iter(FACT.findall(text))
        text = capitalize(tidy_punctuation(FACT.sub(fact("0"), text)))
        return FACT.sub(lambda _: next(facts), text)

    def say(self, name: str, **slots: str) -> str:
        """Return a phrase, in the customer's mood where the table has it so."""
        mood = f"{name}_{self._mood}"
        name = mood if mood in self._grammar.phrases else name
        return self._grammar.pick(name, VOICES["first"] | slots)

    def small_talk(self, share: float) -> str:
        """Return a sentence about something else with this probability, else nothing."""
        return self.say("talk") if self._rng.random() < share else ""

    def opening(self, talk: str, who: str, requests: Sequence[str]) -> str:
        """Return the first message: a greeting, then these in an order that varies."""
        asks = [*requests[:1], *(f"{self.say('joiner')} {request}" for request in requests[1:])]
        orders = ([talk, *asks, who], [*asks, who, talk], [who, talk, *asks], [talk, who, *asks])
        return self.text([self.say("greeting"), *self._rng.choice(orders)])

    # -- who it is -----------------------------------------------------------------------------

    def identity(self, known: dict[str, str], asked: set[str]) -> str:
        """Return who the customer is.

        Args:
            known: `name`, and `email` or `zip`; see `agent.intents.identity`.
            asked: What the agent wants to know: `name`, `email`, `zip` or `identity`.
        """
        if not known:
            return self.say("no_account")
        phrases = self._grammar.phrases
        first, _, last = known["name"].partition(" ")
        slots = {"first": fact(first), "last": fact(last), "email": fact(known.get("email", "")),
                 "zip": fact(known.get("zip", "")), **VOICES["first"]}
        if "email" not in known:
            form = self._rng.choice(phrases["who_name_zip"] + phrases["answer_name_zip"])
            is_open = "email" in asked and "email" not in form
            return self._grammar.expand(form + " {no_email}" * is_open, slots)
        forms = phrases["who_email"] + phrases["answer_email"] * ("name" not in asked)
        if not first:
            forms = [form for form in forms if "{first}" not in form]
        elif "name" in asked:
            forms = [form for form in forms if "{last}" in form]
        return self._grammar.expand(self._rng.choice(forms), slots)

    # -- what the customer wants ---------------------------------------------------------------

    def learn(self, intent: Intent) -> None:
        """Choose, once and for all, the words for the facts of an intent: its `slots`."""
        facts, slots = intent.facts, intent.slots
        if intent.kind not in ("write", "refused"):
            return
        if "order" in facts:
            slots["order"] = facts["order"]
        if "items" in facts:
            pairs = [(self._item(item), self._new(changed)) for item, changed in facts["items"]]
            for name in ("for", "to", "with"):
                parts = [f"{old} {name} {new}" if new else old for old, new in pairs]
                facts[f"pairs_{name}"] = join_words(parts or ["some of it"])
            slots["items"] = facts["pairs_for"]
        elif intent.kind == "refused":
            slots["items"] = f"I want to {intent.words}"
        if "reason" in facts:
            slots["reason"] = self.reason(facts["reason"])
        if "payment" in facts:
            slots["payment"] = self.method(facts["payment"])
        if "address" in facts:
            slots["address"] = finish(address_words(self._rng, facts["address"]))

    def method(self, label: str) -> str:
        """Return a payment method in the customer's words; a card keeps its brand and last digits."""
        card = _CARD.fullmatch(label)
        return self.say("card", **card.groupdict()) if card else label

    def reason(self, reason: str) -> str:
        """Return why an order is to be cancelled, for the reason that the tool takes."""
        return self.say("why_mistake" if reason == MISTAKE else "why_not_needed")

    def _item(self, item: dict[str, Any]) -> str:
        name = self._rng.choice(("the {}", "the {}", "my {}")).format(item["name"])
        form = self._rng.choice(("{} ({})", "{} ({})", "{} with {}"))
        return form.format(name, self._options(item["options"])) if item["options"] else name

    def _new(self, changed: dict[str, Any] | None) -> str:
        if changed is None:
            return ""
        form = self._rng.choice(_NEW_FORMS)
        return form.format(self._options(changed)) if changed else "the very same kind again"

    def _options(self, options: dict[str, Any]) -> str:
        form = self._rng.choice(("{0} {1}", "{0} {1}", "{0}: {1}", "{1}"))
        parts = [
            ("{0} {1}" if str(value).lower() in _NEVER_BARE else form).format(name, value)
            for name, value in options.items()
        ]
        return join_words(parts, self._rng.choice((" and ", ", ")))

    def vague(self, intent: Intent) -> str:
        """Return a request that names only the topic of a change."""
        return self._grammar.frame(f"request_{self._mood}", f"{intent.phrase}_vague", VOICES["first"])

    def request(self, intent: Intent, is_first: bool, **other: str) -> str:
        """Return the sentences that state an intent.

        Args:
            is_first: It was not stated before.
            other: Words that take the place of those of a slot.
        """
        if not intent.phrase:
            return f"I would like to {fact(intent.words)}."
        slots = self._slots(intent, other)
        if intent.phrase.startswith("know_"):
            return self.say("first_know", q=self._grammar.pick(intent.phrase, slots))
        frame = f"request_{self._mood}"
        if intent.phrase == "do_cancel":
            request = self._grammar.pick("do_cancel", slots)
            if self._rng.random() < 0.4:
                return self.say("request", vp=f"{request}{self.say('joint')}{slots['why']}")
            return f"{self.say('request', vp=request)} {slots['why']}."
        sentences = [self._grammar.frame(frame, intent.phrase, slots)]
        about = "about_" + intent.facts.get("thing", "").replace(" ", "_")
        if about in self._grammar.phrases and self._rng.random() < _ABOUT_SHARE:
            sentences.append(self.say(about))
        why = WHY.get(intent.phrase.removeprefix("do_"))
        is_one = len(intent.facts.get("items", "1")) == 1
        if is_first and why and is_one and self._rng.random() < _WHY_SHARE:
            sentences.append(self.say(why) + ".")
        return " ".join(sentences)

    def chase(self, intent: Intent) -> str:
        """Return a question whether an intent is done by now."""
        if not intent.phrase:
            return f"Please tell me when it is done: I wanted to {fact(intent.words)}."
        return self._grammar.frame("chase", intent.phrase, self._slots(intent, {}))

    def answer(self, intent: Intent, slot: str) -> str:
        """Return the sentence that tells one slot of an intent."""
        if slot == "items" and intent.kind == "refused":
            return f"I want to {fact(intent.words)}."
        return self.say(f"answer_{slot}", **self._slots(intent, {}))

    def agree(self, intents: Sequence[Intent]) -> str:
        """Return a yes to a proposal about these intents."""
        (intent,) = intents if len(intents) == 1 else (None,)
        act = f"act_{intent.phrase}" if intent else ""
        slots = self._slots(intent, {}) if intent else dict(VOICES["first"])
        known = act if act in self._grammar.phrases else "go"
        slots["act"] = self._grammar.pick(known, slots)
        return self._grammar.pick(f"yes_{self._mood}", slots)

    def _slots(self, intent: Intent, other: dict[str, str]) -> dict[str, str]:
        """Return what the phrases of an intent may name; an order is described only once."""
        facts = intent.facts
        words = facts | intent.slots | other
        slots = VOICES["first"] | {"though": "", "fact": ""}
        slots["method"] = words.get("payment", "my card")
        for name in ("order", "items", "address", "pairs_for", "pairs_to", "pairs_with", "thing"):
            if name in words:
                slots[name] = fact(words[name])
        if "thing" in facts:
            slots["subject"] = fact(facts["thing"])
            numbers = [fact(number) for number in re.split(" plus | minus ", facts["thing"])]
            slots |= {"numbers_and": join_words(numbers), "numbers_plus": " plus ".join(numbers),
                      "n0": numbers[0], "n1": numbers[-1]}
        if "reason" in facts:
            slots["why"] = words["reason"]
        if "order" in facts:
            names = [fact(name) for name in facts.get("names", ())]
            if names:
                slots["names"] = join_words(names[:2])
            if facts["order"] in self._described or not names:
                slots |= dict.fromkeys(_ORDER_PHRASES, self._grammar.pick("order_ref", slots))
            self._described.add(facts["order"])
        return slots
