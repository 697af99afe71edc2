"""A scripted customer: deterministic given a task and a seed, for any agent that writes in words.

The customer answers questions, confirms a proposal only if it matches the intent and the agent knows all
of it, corrects what is wrong, rejects what was not requested, and ends the conversation. The seed changes
how the customer talks, never what they want. The customer knows only what a person could know, does not
see the agent's calls, and recognizes questions by plain words. Left out: the words (`agent.speech`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from agent.conversation import CustomerTurn, Message
from agent.intents import (
    SWAP_TOOLS,
    Intent,
    find_customer,
    identity,
    method_words,
    read_intents,
)
from agent.speech import Speech
from data_reader import Task
from envs.retail import RetailDatabase
from scoring.episode import is_told
from scoring.violations import ACTION_WORDS, ORDER_ID, asks_for_confirmation
from tasks.audit.grounding import MISTAKE, NOT_NEEDED


@dataclass(frozen=True)
class Persona:
    """How a customer talks."""

    name: str
    moods: tuple[str, ...]
    """Names of `tasks.mix.PERSONAS`, one of which shapes the words."""
    opening: str = "first"
    """`all` intents, the `first` one, or `vague`: only the topic of the first."""
    names_self: bool = True
    """Identifies themselves before being asked."""
    patience: int = 6
    """Messages in a row without progress before giving up."""
    small_talk: bool = False
    changes_mind: bool = False
    """First names another payment method or reason, then corrects it."""


PERSONAS = (
    Persona("plain", ("polite", "formal", "chatty")),
    Persona("brief", ("brisk", "formal"), opening="vague", names_self=False),
    Persona("chatty", ("chatty",), opening="all", small_talk=True),
    Persona("impatient", ("annoyed", "brisk"), opening="all", patience=4),
    Persona("forgetful", ("anxious", "chatty", "polite"), opening="vague"),
    Persona("wavering", ("anxious", "polite", "annoyed"), names_self=False, changes_mind=True),
)

_TALK_SHARE, _TALK_SHARE_OF_OTHERS = 0.9, 0.3
"""Shares of customers who like small talk, and of others, with a sentence of it in the opening."""

_SENTENCES = re.compile(r"(?<=[.!?:])\s+|\n+")
_CUE = re.compile(
    r"\?|\b(?:please|provide|tell me|share|let me know|give me|need|confirm|which|what|may i|could|"
    r"verify)\b",
    re.I,
)
_ASKED = {
    "email": re.compile(r"\be-?mail", re.I),
    "name": re.compile(r"\b(?:full|first|last|your) names?\b|\bname and\b|\bwho (?:are|am)\b", re.I),
    "zip": re.compile(r"\bzip|\bpost(?:al)? ?code", re.I),
    "identity": re.compile(r"\bidentity|\bverify you|\bauthenticat|\buser ?id\b", re.I),
    "order": re.compile(
        r"\border (?:number|id|no\b)|\b(?:which|what) order|\border(?:'s)? (?:number|id)", re.I
    ),
    "reason": re.compile(r"\breason|\bwhy\b", re.I),
    "payment": re.compile(r"\bpay|\brefund|\bgift card|\bcard\b", re.I),
    "items": re.compile(
        r"\bitems?\b|\bproducts?\b|\bvariants?\b|\boptions?\b|\bcolou?r|\bsize|\bprefer\b|"
        r"\bwhich one\b|\binstead\b",
        re.I,
    ),
    "address": re.compile(r"(?<!mail )\baddress|\bstreet|\bcity\b|\bshipped to\b", re.I),
    "words": re.compile(
        r"\bhow (?:can|may) i (?:help|assist)|\bwhat (?:can|may) i (?:do|help)|\bmore details?\b|"
        r"\bwhat would you like|\bwhat do you (?:want|need)|\bdetails\b|\bspecif|\bdescribe\b",
        re.I,
    ),
}
_IDENTITY = ("email", "name", "zip", "identity")
_ELSE = re.compile(r"\b(?:anything|something|what) else\b|\bfurther (?:help|assist)|\bother (?:"
                   r"questions|requests|matters)", re.I)
_WAIT = re.compile(r"\b(?:one moment|please (?:hold|wait)|let me (?:check|look)|just a (?:moment|"
                   r"second))\b", re.I)
_CANNOT = re.compile(
    r"\b(?:can ?not|can't|unable|impossible|not (?:possible|able|allowed|available|permitted|"
    r"eligible)|too (?:small|low)|insufficient|out of stock|declined?|refuse)\b|"
    r"n't (?:be |possible|able|allow|available|permit|eligible)",
    re.I,
)
_OFFER = re.compile(r"\binstead\b|\bsuch as\b|\bfor example\b|\balternativ", re.I)
_SORRY = re.compile(r"\b(?:unfortunately|sorry)\b", re.I)
_HAND_OVER = re.compile(r"\btransfer|\bhuman\b|\bcolleague|\bhand (?:you|this) over", re.I)
_DONE = re.compile(
    r"(?:\bbeen|\bhave|'ve|\bnow|\bsuccessfully|\bis|\bare) (?:\w+ )?(?:cancell?ed|returned|refunded|"
    r"exchanged|changed|modified|updated|swapped|replaced|processed|submitted|requested|placed|"
    r"completed?|done)\b|^done\b",
    re.I | re.M,
)
_PLANS = re.compile(
    r"\b(?:i'll|i will|i can|i am going to|i'm going to|you want to|you would like to)\b[^?]{0,200}?"
    r"\b(?:cancel|return|refund|exchang|chang|modif|updat|swap|replac|ship|switch)",
    re.I | re.S,
)
_LAST_FOUR = re.compile(r"\bending (?:in|with) (\d{4})\b", re.I)


class ScriptedCustomer:
    """A customer who follows a task.

    Args:
        task: Its intents are those of `agent.intents`.
        seed: Chooses persona and wording.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        self.task = task
        self._rng = Random(f"{task.task_id}|{seed}")
        self.persona = self._rng.choice(PERSONAS)
        self._speech = Speech(self._rng, self._rng.choice(self.persona.moods))
        self._identity_told: set[str] = set()
        self._outputs_heard: set[str] = set()
        self._idle = 0

    def open(self, db: RetailDatabase) -> CustomerTurn:
        """Return the opening message; see `agent.conversation.Customer`."""
        self._db = db
        user_id = find_customer(self.task, db)
        self._user = db.users[user_id] if user_id is not None else None
        self._identity = identity(self.task, self._user)
        self.intents = read_intents(self.task, db, self._user)
        speech = self._speech
        for intent in self.intents:
            speech.learn(intent)
        talk = speech.small_talk(_TALK_SHARE if self.persona.small_talk else _TALK_SHARE_OF_OTHERS)
        who = self._say_identity(set()) if self.persona.names_self else ""
        number = len(self.intents) if self.persona.opening == "all" else 1
        requests = [self._state(intent, is_opening=True) for intent in self.intents[:number]]
        return CustomerTurn(speech.opening(talk, who, requests))

    def reply(self, messages: Sequence[Message]) -> CustomerTurn:
        """Answer the agent's last message; see `agent.conversation.Customer`."""
        text = messages[-1]["content"]
        earlier = [m["content"] for m in messages[:-1]
                   if m["role"] == "assistant" and not m.get("tool_calls")]
        before = self._progress()
        words = self._answer(text, earlier[-1] if earlier else "")
        if words is None:
            failed = any(intent.failed for intent in self.intents)
            end = "gave_up" if failed else "satisfied"
            return CustomerTurn(self._speech.text([self._speech.say("bye")]), end)
        self._idle = 0 if self._progress() != before else self._idle + 1
        if self._idle >= self.persona.patience:
            return CustomerTurn(self._speech.text([self._speech.say("gave_up")]), "gave_up")
        return CustomerTurn(self._speech.text([words]))

    # -- the answer, rule by rule --------------------------------------------------------------

    def _answer(self, text: str, earlier: str) -> str | None:
        """Return the answer to the agent's message, None to end the conversation."""
        sentences = [s for s in _SENTENCES.split(text) if not _ELSE.search(s)]
        body = " ".join(sentences)
        asked = {
            slot
            for sentence in sentences
            if _CUE.search(sentence)
            for slot, pattern in _ASKED.items()
            if pattern.search(sentence)
        }
        # "It cannot be cancelled" names an action without proposing it.
        plan = " ".join(s for s in sentences if not _CANNOT.search(s))
        is_refusal = plan != body or _SORRY.search(body) is not None
        answers = []
        if asked & set(_IDENTITY) and not (self._identity_told and self._is_proposal(plan)):
            answers.append(self._say_identity(asked))
        elif self._is_proposal(plan):
            named = ORDER_ID.findall(plan) or ORDER_ID.findall(body)
            matches = self._matches(plan, set(named))
            if is_refusal and (_OFFER.search(plan) or not ORDER_ID.search(plan)):
                # "Would you like to return it instead?" is an offer, not a step of an intent.
                is_offer = len(matches) != 1 or _OFFER.search(plan) is not None
                matches = [] if is_offer else [i for i in matches if i.kind == "write"]
            if matches or not is_refusal:
                judged = self._judge(plan, earlier, matches)
                if judged is not None:
                    return judged
        self._close(text)
        current = self._current(body)
        is_question = any(_CUE.search(sentence) for sentence in sentences)
        for intent in current if is_question else ():
            answers += self._slot_answers(intent, asked)
        if answers:
            return " ".join(dict.fromkeys(answers))
        if all(intent.closed for intent in self.intents):
            return None
        return self._go_on(text, current)

    def _go_on(self, text: str, current: list[Intent]) -> str:
        unsaid = [intent for intent in self.intents if not intent.said and not intent.closed]
        waiting = [i for i in current if i.kind != "transfer" or "promised" not in i.said]
        if _WAIT.search(text) and "?" not in text:
            return self._speech.say("waiting")
        if unsaid and not waiting:
            return self._say(unsaid[0])
        if not waiting:
            return self._speech.say("hand_over")
        if any(i.confirmed for i in waiting):
            return self._speech.chase(waiting[0])
        return self._say(waiting[0])

    def _current(self, text: str) -> list[Intent]:
        """Return the open intents that a message is about: by order id, else all that were stated."""
        order_ids = set(ORDER_ID.findall(text))
        said = [intent for intent in self.intents if intent.said and not intent.closed]
        named = [i for i in said if i.order_id and i.order_id.removeprefix("#") in order_ids]
        return named or said

    def _progress(self) -> tuple:
        return (
            len(self._identity_told), len(self._outputs_heard),
            [(len(i.said), i.confirmed, i.closed) for i in self.intents],
        )

    # -- what the customer tells ---------------------------------------------------------------

    def _say_identity(self, asked: set[str]) -> str:
        self._identity_told |= {"name", "email", "zip"} & self._identity.keys()
        return self._speech.identity(self._identity, asked)

    def _state(self, intent: Intent, is_opening: bool = False) -> str:
        """State an intent; at the opening vaguely or with another card, as the persona does."""
        is_first = not intent.said
        intent.said.add("words")
        other: dict[str, str] = {}
        if is_opening and intent.kind == "write":
            if self.persona.opening == "vague":
                return self._speech.vague(intent)
            other = self._other_words(intent) if self.persona.changes_mind else {}
        intent.said |= intent.slots.keys() - other.keys()
        return self._speech.request(intent, is_first, **other)

    def _say(self, intent: Intent) -> str:
        """State an intent, and that it was stated before or is another one."""
        only_topic = intent.said == {"words"} and intent.slots
        lead = "details" if only_topic else "again" if intent.said else "joiner"
        return f"{self._speech.say(lead)} {self._state(intent)}"

    def _other_words(self, intent: Intent) -> dict[str, str]:
        """Return another reason or payment method than the intent's, by slot; empty without one."""
        if "reason" in intent.slots:
            (other,) = {MISTAKE, NOT_NEEDED} - {intent.facts["reason"]}
            return {"reason": self._speech.reason(other)}
        if "payment" in intent.slots:
            labels = [f"my {method_words(self._user, m)}" for m in self._user["payment_methods"]]
            labels = [label for label in labels if label != intent.facts["payment"]]
            return {"payment": self._speech.method(self._rng.choice(labels))} if labels else {}
        return {}

    def _slot_answers(self, intent: Intent, asked: set[str]) -> list[str]:
        if "words" in asked:
            return [self._say(intent)]
        answers = []
        for slot in ("order", "items", "reason", "payment", "address"):
            if slot in asked and slot in intent.slots:
                intent.said.add(slot)
                lead = "" if answers else self._speech.say("well")
                answers.append(f"{lead} {self._speech.answer(intent, slot)}")
        return answers

    # -- before a change -----------------------------------------------------------------------

    def _is_proposal(self, text: str) -> bool:
        if asks_for_confirmation(text):
            return True
        return "?" in text and _DONE.search(text) is None and _PLANS.search(text) is not None

    def _judge(self, text: str, earlier: str, matches: list[Intent]) -> str | None:
        """Answer a proposal: no and why, what is missing, or yes; None if it proposes nothing."""
        if not matches and not any(words.search(text) for words in ACTION_WORDS.values()):
            text = f"{earlier}\n{text}"
            matches = self._matches(text, set(ORDER_ID.findall(text)))
        if not matches:
            if not any(words.search(text) for words in ACTION_WORDS.values()):
                return None
            open_intents = [i for i in self.intents if not i.closed]
            if any(i.kind == "transfer" for i in open_intents) and _HAND_OVER.search(text):
                return self._speech.say("hand_over_yes")
            if _HAND_OVER.search(text) or not open_intents:
                return None
            current = [i for i in open_intents if i.said] or open_intents
            return f"{self._speech.say('unasked')} {self._state(current[0])}"
        for intent in matches:
            wrong = self._contradiction(intent, text)
            if wrong is not None:
                intent.said.add(wrong)
                return f"{self._speech.say('wrong')} {self._speech.answer(intent, wrong)}"
        missing = [
            self._speech.answer(intent, slot)
            for intent in matches
            for slot in intent.slots
            if slot not in intent.said and not self._is_named(intent, slot, text)
        ]
        for intent in matches:
            intent.said |= intent.slots.keys() | {"words"}
        if missing:
            return f"{self._speech.say('first')} {' '.join(missing)}"
        for intent in matches:
            intent.confirmed = True
        return self._speech.agree(matches)

    def _matches(self, text: str, order_ids: set[str]) -> list[Intent]:
        """Return the open changes that a text proposes for these orders, or for any order."""
        found = []
        for intent in self.intents:
            if intent.closed or not self._concerns(intent, text):
                continue
            if not order_ids and not intent.said:
                continue
            if intent.order_id is None:
                street = intent.action["arguments"]["address1"]
                if order_ids and street.casefold() not in text.casefold():
                    continue
            elif order_ids and intent.order_id.removeprefix("#") not in order_ids:
                continue
            found.append(intent)
        # "Pay the difference" in a swap, or "change" in an address change, is no second intent.
        strong = [i for i in found if self._is_meant(i, text)]
        return strong or found

    def _is_meant(self, intent: Intent, text: str) -> bool:
        tool = intent.tools[0]
        low = text.casefold()
        if "address" in intent.slots:
            is_account = re.search(r"\b(?:account|profile|default)\b", low) is not None
            if intent.order_id is not None and is_account and not ORDER_ID.search(text):
                return False
            return "address" in low and (
                intent.action["arguments"]["address1"].casefold() in low or "?" not in text
            )
        if tool in SWAP_TOOLS:
            return re.search(r"\bitem", low) is not None or any(
                name.casefold() in low for name in self._item_names(intent)
            )
        if tool == "modify_pending_order_payment":
            return not re.search(r"\bcancel|\breturn|\bexchang|\bswap|\bdifference|\bitem", low)
        return True

    def _item_names(self, intent: Intent) -> list[str]:
        if not intent.action:
            return [intent.words]
        wanted = intent.action["arguments"].get("item_ids", ())
        return [
            self._db.products[item["product_id"]]["name"]
            for item in self._items(intent) if item["item_id"] in wanted
        ]

    def _items(self, intent: Intent) -> list[dict[str, Any]]:
        """Return the items of the intent's order; none for an unknown order."""
        return self._db.orders.get(intent.order_id, {"items": []})["items"]

    def _is_named(self, intent: Intent, slot: str, text: str) -> bool:
        """Tell whether the agent itself named a slot's value."""
        low = text.casefold()
        arguments = intent.action.get("arguments", {})
        if slot == "order":
            return intent.order_id.casefold().removeprefix("#") in low
        if slot == "reason":
            return any(words in low for words in _reason_words(arguments["reason"]))
        if slot == "payment":
            label = intent.facts["payment"].removeprefix("my ").casefold()
            return label in low or arguments["payment_method_id"] in low
        if slot == "address":
            return all(
                arguments[name].casefold() in low for name in ("address1", "address2", "city", "zip")
            )
        return False

    def _contradiction(self, intent: Intent, text: str) -> str | None:
        """Return the slot that a proposal gets wrong, None if there is none."""
        if intent.kind != "write":
            return None
        arguments = intent.action["arguments"]
        low = text.casefold()
        if "reason" in arguments and not self._is_named(intent, "reason", text):
            others = {"no longer needed", "ordered by mistake"} - {arguments["reason"]}
            if any(words in low for other in others for words in _reason_words(other)):
                return "reason"
        if "payment" in intent.slots and not self._is_named(intent, "payment", text):
            if self._names_other_method(intent, text):
                return "payment"
        if "address" in intent.slots and arguments["address1"].casefold() not in low:
            if re.search(r"\b\d{5}\b", text) and intent.order_id is not None:
                return "address"
        if "items" in intent.slots and self._items_differ(intent, text):
            return "items"
        return None

    def _names_other_method(self, intent: Intent, text: str) -> bool:
        low = text.casefold()
        wanted = intent.action["arguments"]["payment_method_id"]
        if "original" in low and intent.order_id in self._db.orders:
            first = self._db.orders[intent.order_id]["payment_history"][0]["payment_method_id"]
            return first != wanted
        wanted_source = self._user["payment_methods"][wanted]["source"]
        for method_id, method in self._user["payment_methods"].items():
            if method_id != wanted and (
                method_id in low
                or method_words(self._user, method_id).casefold() in low
                or method["source"] != wanted_source
                and method["source"].replace("_", " ") in low
            ):
                return True
        mine = self._user["payment_methods"][wanted].get("last_four")
        return any(digits != mine for digits in _LAST_FOUR.findall(text))

    def _items_differ(self, intent: Intent, text: str) -> bool:
        """Tell whether a text names other items than the intent, or other options for them."""
        low = text.casefold()
        arguments = intent.action["arguments"]
        items = self._items(intent)
        names = {self._db.products[i["product_id"]]["name"].casefold() for i in items}
        wanted = {name.casefold() for name in self._item_names(intent)}
        named = {name for name in names if name in low}
        if named and not wanted <= named:
            return True
        by_id = {item["item_id"]: item for item in items}
        for old_id, new_id in zip(
            arguments["item_ids"], arguments.get("new_item_ids", ()), strict=False
        ):
            if old_id not in by_id:
                continue
            variants = self._db.products[by_id[old_id]["product_id"]]["variants"]
            new, old = variants.get(new_id, {"options": {}})["options"], by_id[old_id]["options"]
            for option, value in new.items():
                if str(value).casefold() in low or value == old.get(option):
                    continue
                others = {str(v["options"].get(option)).casefold() for v in variants.values()}
                others -= {str(old.get(option)).casefold()}
                if any(len(other) > 2 and re.search(rf"\b{re.escape(other)}\b", low)
                       for other in others):
                    return True
        return False

    # -- what the agent's words settle ---------------------------------------------------------

    def _close(self, text: str) -> None:
        """Close the intents that a message other than a proposal settles."""
        heard = {output for output in self.task.outputs if is_told(output, text)}
        is_new = bool(heard - self._outputs_heard)
        self._outputs_heard |= heard
        all_heard = self._outputs_heard >= set(self.task.outputs)
        cannot = _CANNOT.search(text) is not None or _SORRY.search(text) is not None
        current = self._current(text)
        # If nothing was agreed on, a report of something done without asking is believed.
        if _DONE.search(text) and not any(intent.confirmed for intent in current):
            reported = [i for i in current if self._concerns(i, text) and self._is_meant(i, text)]
            for intent in reported[:1]:
                intent.closed = True
        for intent in current:
            if intent.kind == "question":
                if is_new or (all_heard and self.task.outputs):
                    intent.closed = True
                    is_new = False
                elif not self.task.outputs and not _WAIT.search(text) and "?" not in text:
                    intent.closed = True
                elif cannot:
                    self._refuse(intent, most=2)
            elif intent.kind == "transfer":
                if _HAND_OVER.search(text):
                    intent.said.add("promised")
            elif intent.confirmed:
                intent.closed = bool(_DONE.search(text) or cannot or "?" not in text)
                intent.failed = cannot and intent.kind == "write"
            elif cannot and intent.kind == "refused":
                intent.closed = True
            elif cannot:
                self._refuse(intent, most=3)

    @staticmethod
    def _concerns(intent: Intent, text: str) -> bool:
        return any(ACTION_WORDS[tool].search(text) for tool in intent.tools)

    @staticmethod
    def _refuse(intent: Intent, most: int) -> None:
        intent.num_refusals += 1
        intent.closed = intent.failed = intent.num_refusals >= most


def _reason_words(reason: Any) -> tuple[str, ...]:
    if reason == "ordered by mistake":
        return ("mistake", "accident")
    return ("no longer need", "don't need", "do not need", "not needed")
