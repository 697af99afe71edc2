"""A task before it has words: the customer, how to authenticate, and the intents with their calls."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Intent:
    """One thing that the customer wants, with the one call that answers it."""

    kind: str
    """A name of `tasks.mix`."""
    action: dict
    facts: dict[str, Any]
    """What the words are made of; holds every argument value."""
    outcome: str
    """Short phrase for gold_final."""
    outputs: tuple[str, ...] = ()
    """Strings that an agent must tell the customer."""
    forbidden: dict | None = None
    """The call that a refused intent asks for, and that the rules forbid."""


@dataclass(frozen=True)
class Distractor:
    """An id that the words mention and that no call may use."""

    kind: str
    """What it names: "order", "item" or "method"."""
    intent: int
    """Position of the intent that it goes with."""
    facts: dict[str, Any]
    """What its words are made of."""


@dataclass(frozen=True)
class Blueprint:
    """Everything that a task means."""

    user_id: str
    authentication: str
    """How the customer is found: "email" or "name_zip"."""
    first_name: str
    last_name: str
    email: str
    zip: str
    """The zip code of the customer's address on file."""
    intents: tuple[Intent, ...]
    """What the customer wants, in the order of asking."""
    distractor: Distractor | None = None
    """An id to leave alone; None in nearly all tasks."""

    @property
    def gold_actions(self) -> list[dict]:
        """The reference calls: authenticate, then one call for each intent."""
        if self.authentication == "email":
            first = {"name": "find_user_id_by_email", "arguments": {"email": self.email}}
        else:
            first = {
                "name": "find_user_id_by_name_zip",
                "arguments": {"first_name": self.first_name, "last_name": self.last_name, "zip": self.zip},
            }
        return [first] + [intent.action for intent in self.intents]

    @property
    def gold_final(self) -> str:
        """The outcome in one phrase."""
        return "; ".join(intent.outcome for intent in self.intents)

    @property
    def outputs(self) -> list[str]:
        """What an agent must tell the customer."""
        return [output for intent in self.intents for output in intent.outputs]

    @property
    def refusal(self) -> bool:
        """Whether an intent must be refused or handed to a person."""
        return any(w.kind.startswith("refuse_") or w.kind == "transfer" for w in self.intents)

    @property
    def num_items(self) -> int:
        """How many items the calls name as given away or sent back."""
        return sum(len(w.action["arguments"].get("item_ids", ())) for w in self.intents)

    @property
    def difficulty(self) -> str:
        """Return "easy", "medium" or "hard", by calls, items and distractors.

        Every further intent counts two, every further item one, a distractor or a refusal among other
        intents makes it harder still.
        """
        points = 2 * (len(self.intents) - 1) + max(0, self.num_items - 1)
        points += self.refusal and len(self.intents) > 1
        if self.distractor is not None or points >= 4:
            return "hard"
        return "medium" if points else "easy"

    @property
    def key(self) -> str:
        """Text that two blueprints share exactly when they mean the same task."""
        distractor = self.distractor and [self.distractor.kind, self.distractor.facts]
        intents = [[w.kind, w.action, w.facts] for w in self.intents]
        return json.dumps([self.user_id, self.authentication, intents, distractor], sort_keys=True)
