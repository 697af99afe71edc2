"""Word a blueprint as a customer's message: a grammar that varies persona, channel, order and register.

Each intent gets its own passage with all of its argument values; passages keep the order of the intents.
"""

from dataclasses import dataclass
from random import Random

from tasks.audit.grounding import MISTAKE
from tasks.blueprint import Blueprint, Distractor, Intent
from tasks.mix import PERSONAS, TaskMix
from tasks.phrasing.grammar import (
    Grammar,
    add_slips,
    capitalize,
    fact,
    finish,
    lower_case,
    resolve_articles,
    tidy_punctuation,
)
from tasks.phrasing.naming import (
    address_words,
    amount_words,
    item_words,
    join_words,
    new_item_words,
    pair_words,
)
from tasks.phrasing.phrases_intents import INTENT_PHRASES
from tasks.phrasing.phrases_people import PEOPLE
from tasks.phrasing.phrases_questions import QUESTION_PHRASES
from tasks.phrasing.phrases_talk import TALK

PHRASES = TALK | PEOPLE | INTENT_PHRASES | QUESTION_PHRASES

VOICES = {
    "first": {"I": "I", "my": "my", "me": "me", "am": "I'm"},
    "third": {"I": "they", "my": "their", "me": "them", "am": "they are"},
}
VERB_PHRASES = {
    "refuse_other_customer": "do_refuse_other",
    "refuse_unavailable": "do_refuse_unavailable",
    "refuse_gift_card": "do_refuse_gift_card",
    "refuse_cancel": "do_refuse_cancel",
    "refuse_return": "do_refuse_return",
}
ASPECT_PHRASES = {
    "ask_order": "know_order_{}", "ask_product": "know_product_{}", "ask_account": "know_account_{}",
}
# Share of intents with a reason that no argument depends on.
WHY_SHARE = 0.35
WHY = {
    "return": "why_return",
    "exchange": "why_swap",
    "change_items": "why_swap",
    "change_address": "why_move",
    "change_profile_address": "why_move",
    "change_payment": "why_pay",
}


@dataclass(frozen=True)
class Wording:
    """A query and the choices that shaped it."""

    query: str
    channel: str
    """A name of `tasks.mix.CHANNELS`."""
    persona: str
    """A name of `tasks.mix.PERSONAS`."""


class Writer:
    """Writes one query."""

    def __init__(self, rng: Random, mix: TaskMix, blueprint: Blueprint):
        self.rng = rng
        self.mix = mix
        self.blueprint = blueprint
        self.grammar = Grammar(rng, PHRASES)
        channels = mix.channel_weights
        self.channel = rng.choices(list(channels), list(channels.values()))[0]
        self.persona = rng.choice(PERSONAS)
        self.frame = {"form": "form", "call_note": "third"}.get(self.channel, "first")
        self.voice = VOICES["third" if self.channel == "call_note" else "first"]

    def slots(self, **more: str) -> dict[str, str]:
        """Return the slots that every phrase may use, and these."""
        who = self.blueprint
        return {
            **self.voice, "their": "their", "first": fact(who.first_name), "last": fact(who.last_name),
            "email": fact(who.email), "zip": fact(who.zip), **more,
        }

    def method_words(self, method: dict[str, str]) -> str:
        """Word a payment method with its id."""
        name = f"method_{method['source']}"
        name = name if name in PHRASES else "method_other"
        return self.grammar.pick(name, self.slots(pay=fact(method["id"]), label=fact(method["label"])))

    def intent_slots(self, intent: Intent) -> dict[str, str]:
        """Return the wording of each fact of an intent."""
        rng, facts = self.rng, intent.facts
        slots = self.slots()
        for name in ("order_id", "user_id", "product_id", "name", "subject"):
            if name in facts:
                slots[name.removesuffix("_id")] = fact(facts[name])
        if facts.get("names"):
            names = [fact(name) for name in facts["names"][: rng.choice((1, 2, 2, 3))]]
            slots["names"] = join_words(names)
            slots["names_list"] = join_words([fact(name) for name in facts["names"]])
        if "items" in facts:
            slots["items"] = join_words([item_words(rng, item) for item in facts["items"]])
        for prepositions in ("for", "to", "with"):
            if "pairs" in facts:
                pairs = [pair_words(rng, pair, prepositions) for pair in facts["pairs"]]
                slots[f"pairs_{prepositions}"] = join_words(pairs, rng.choice((" and ", ", and ")))
        if "item" in facts:
            slots["item"] = item_words(rng, facts["item"])
        if "new" in facts:
            slots["new"] = new_item_words(rng, {"old": facts["item"], "new": facts["new"]})
        if "address" in facts:
            slots["address"] = address_words(rng, facts["address"])
        if "method" in facts:
            slots["method"] = self.method_words(facts["method"])
            if facts["method"]["source"] == "gift_card" and intent.kind == "change_payment":
                slots["instead"] = self.grammar.pick("enough", slots)
        for name in ("balance", "amount"):
            if name in facts:
                slots[name] = amount_words(rng, f"{facts[name]:.2f}".removesuffix(".00"))
        if "numbers" in facts:
            numbers = [amount_words(rng, number) for number in facts["numbers"]]
            slots["numbers_and"] = join_words(numbers)
            slots["numbers_plus"] = " plus ".join(numbers)
            slots["n0"], slots["n1"] = numbers[:2]
        return slots

    def frame_do(self, name: str, slots: dict[str, str]) -> str:
        """Return a sentence that requests an action."""
        return self.grammar.frame(f"{self.frame}_do", name, slots)

    def frame_know(self, name: str, slots: dict[str, str]) -> str:
        """Return a sentence that asks a question."""
        phrase = self.grammar.pick(name, slots)
        return self.grammar.pick(f"{self.frame}_know", slots | {"q": phrase})

    def passage(self, intent: Intent) -> str:
        """Return the sentences about one intent."""
        slots = self.intent_slots(intent)
        kind = intent.kind
        if kind == "cancel":
            return self.cancel_passage(intent, slots)
        if kind in ASPECT_PHRASES:
            return self.frame_know(ASPECT_PHRASES[kind].format(intent.facts["aspect"]), slots)
        if kind == "ask_product_types":
            return self.frame_know("know_product_types", slots)
        if kind.startswith("calculate_"):
            name = kind.replace("calculate_", "know_")
            phrase = self.grammar.pick(name, slots)
            context = self.grammar.pick("prices_of", slots) if self.rng.random() < 0.5 else ""
            return self.grammar.pick(f"{self.frame}_know", slots | {"q": phrase + context})
        if kind == "transfer":
            about = "about_" + intent.facts["subject"].replace(" ", "_")
            # "damaged on arrival" is a state; the other subjects are things.
            thing = intent.facts["subject"] != "damaged on arrival"
            name = "do_transfer" if thing else "do_transfer_state"
            sentences = [self.frame_do(name, slots)]
            if self.rng.random() < 0.7:
                sentences.insert(self.rng.randrange(2), self.grammar.pick(about, slots))
            return self.join_sentences(sentences)
        if kind in ("refuse_cancel", "refuse_order_change", "refuse_return"):
            return self.status_passage(intent, slots)
        name = VERB_PHRASES.get(kind, f"do_{kind}")
        sentences = [self.frame_do(name, slots)]
        # Reasons such as "it doesn't suit me" are in the singular.
        plural = len(intent.action["arguments"].get("item_ids", ())) > 1
        if kind in WHY and not plural and self.rng.random() < WHY_SHARE:
            sentences.append(self.grammar.pick(WHY[kind], slots) + ".")
        return self.join_sentences(sentences)

    def cancel_passage(self, intent: Intent, slots: dict[str, str]) -> str:
        """Word a cancellation, with its reason in the same or the next sentence."""
        why = "why_mistake" if intent.facts["reason"] == MISTAKE else "why_not_needed"
        reason = self.grammar.pick(why, slots)
        form = self.rng.randrange(3)
        phrase = self.grammar.pick("do_cancel", slots)
        if form == 0:
            joint = self.grammar.pick("joint", slots)
            return self.grammar.pick(f"{self.frame}_do", slots | {"vp": phrase + joint + reason})
        request = self.grammar.pick(f"{self.frame}_do", slots | {"vp": phrase})
        if self.channel == "form":
            return f"{request}\nreason: {reason}"
        return self.join_sentences([request, f"{reason}."])

    def status_passage(self, intent: Intent, slots: dict[str, str]) -> str:
        """Word an intent together with the status that forbids it."""
        status = intent.facts["status"]
        name = f"is_{status}"
        if intent.kind == "refuse_return":
            name = "is_pending" if status == "pending" else "is_not_delivered"
        verb = {"address": "do_refuse_address", "payment": "do_refuse_payment"}.get(
            intent.facts["change"], VERB_PHRASES.get(intent.kind, "")
        )
        return self.frame_do(verb, slots | {"fact": self.grammar.pick(name, slots)})

    def distractor_sentence(self, distractor: Distractor) -> str:
        """Return the sentence about an id that must not be used."""
        facts = distractor.facts
        if distractor.kind == "order":
            name, spare = "leave_order", fact(facts["order_id"])
        elif distractor.kind == "item":
            name, spare = "keep_item", item_words(self.rng, facts["item"])
        else:
            name, spare = "not_method", self.method_words(facts["method"])
        return self.grammar.pick(name, self.slots(spare=spare))

    def join_sentences(self, sentences: list[str]) -> str:
        """Join the sentences of a passage, by line in a form."""
        return ("\n" if self.channel == "form" else " ").join(sentences)

    def passages(self) -> list[str]:
        """Return one passage per intent, numbered or linked as the channel does it."""
        passages = []
        for index, intent in enumerate(self.blueprint.intents):
            text = self.passage(intent)
            distractor = self.blueprint.distractor
            if distractor is not None and distractor.intent == index:
                text = self.join_sentences([text, self.distractor_sentence(distractor)])
            passages.append(text)
        if len(passages) == 1:
            return passages
        if self.channel == "form" or self.rng.random() < 0.2:
            style = self.rng.choice(("{}. ", "{}) ", "({}) "))
            return [style.format(n) + text for n, text in enumerate(passages, 1)]
        joined = [passages[0]]
        for index, text in enumerate(passages[1:], 1):
            last = index == len(passages) - 1
            name = "last_joiner" if last and index > 1 and self.rng.random() < 0.6 else "joiner"
            joined.append(f"{self.grammar.pick(name, self.slots())} {text}")
        return joined

    def query(self) -> str:
        """Return the finished message."""
        compose = getattr(self, self.channel)  # each channel has a method
        text = tidy_punctuation(resolve_articles(compose()))
        if self.rng.random() < self.mix.typo_share:
            text = add_slips(self.rng, text, self.rng.choice((1, 1, 2, 3)))
        casual = self.channel == "chat" and self.persona in ("brisk", "chatty", "annoyed")
        hurried = casual and self.rng.random() < 0.35
        return finish(lower_case(text) if hurried else capitalize(text))

    def talk(self, share: float) -> list[str]:
        """Return a sentence of small talk with this probability, else nothing."""
        if self.rng.random() >= share:
            return []
        return [self.grammar.pick(f"talk_{self.persona}", self.slots())]

    def identity(self, prefix: str) -> str:
        """Return the sentence that identifies the customer."""
        return self.grammar.pick(f"{prefix}_{self.blueprint.authentication}", self.slots())

    def chat(self) -> str:
        """Write a chat message: one paragraph."""
        parts = [self.grammar.pick(f"greeting_{self.persona}", self.slots())]
        who, intents = [self.identity("who")], self.passages()
        talk = self.talk(0.4)
        orders = (talk + intents + who, intents + who + talk, who + talk + intents, talk + who + intents)
        parts += orders[self.rng.randrange(4)]
        if self.rng.random() < 0.7:
            parts.append(self.grammar.pick(f"closing_{self.persona}", self.slots()))
        return " ".join(part for part in parts if part)

    def email(self) -> str:
        """Write an email: salutation, paragraphs, signature."""
        grammar, slots = self.grammar, self.slots()
        intents, who = self.passages(), self.identity("who")
        greeting = grammar.pick(f"greeting_{self.persona}", slots)
        separator = "\n\n" if len(intents) > 2 and self.rng.random() < 0.5 else " "
        body = separator.join(intents)
        talk = " ".join(self.talk(0.5))
        sign_off = "sign_off_formal" if self.persona == "formal" else "sign_off"
        signature = f"{grammar.pick(sign_off, slots)},\n{slots['first']} {slots['last']}"
        if self.rng.random() < 0.35:
            if self.blueprint.authentication == "email":
                signature += f"\n{slots['email']}"
            else:
                signature += f"\n{self.rng.choice(('zip ', '', 'zip code '))}{slots['zip']}"
            who = ""
        lead = f"{who} {talk}" if self.rng.random() < 0.6 else f"{talk} {who}"
        closing = grammar.pick(f"closing_{self.persona}", slots) if self.rng.random() < 0.6 else ""
        paragraphs = [greeting, f"{lead} {body}", closing, signature]
        if self.rng.random() < 0.25:
            paragraphs[1:2] = [body, lead]
        return "\n\n".join(p.strip() for p in paragraphs if p.strip())

    def form(self) -> str:
        """Write a form: labelled lines."""
        lines = [self.grammar.pick("form_start", self.slots())]
        who, intents = self.identity("form"), self.passages()
        lines += [who, *intents] if self.rng.random() < 0.6 else [*intents, who]
        lines.append(self.grammar.pick("form_end", self.slots()))
        return "\n".join(line for line in lines if line)

    def call_note(self) -> str:
        """Write an agent's note about a phone call."""
        parts = [self.grammar.pick("note_start", self.slots())]
        who, intents = [self.identity("third")], self.passages()
        parts += who + intents if self.rng.random() < 0.7 else intents + who
        parts.append(self.grammar.pick("note_end", self.slots()))
        return " ".join(part for part in parts if part)


def word(rng: Random, mix: TaskMix, blueprint: Blueprint) -> Wording:
    """Write a blueprint's query."""
    writer = Writer(rng, mix, blueprint)
    return Wording(writer.query(), writer.channel, writer.persona)
