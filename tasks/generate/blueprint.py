"""A task before it has words: customer, way to authenticate, wishes, and what makes it hard.

Left out on purpose: checking (the pipeline runs every check on a blueprint before and after it gets
words) and the words themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tasks.generate.mix import TaskMix
from tasks.generate.questions import READ_SAMPLERS
from tasks.generate.refusals import REFUSED_SAMPLERS
from tasks.generate.store_view import StoreView, unique_items
from tasks.generate.wishes import (
    STATUSES_AFTER_PENDING,
    WRITE_SAMPLERS,
    Draw,
    Wish,
    item_fact,
    method_fact,
    other_methods,
)

# How many customers are tried for one draw of wishes before the draw is given up.
MAX_CUSTOMERS_TRIED = 12

# Wishes that no customer has twice in one message.
AT_MOST_ONCE = ("ask_product_types", "ask_account", "change_profile_address")

SAMPLERS = WRITE_SAMPLERS | READ_SAMPLERS | REFUSED_SAMPLERS


@dataclass(frozen=True)
class Distractor:
    """An id that the words mention and that no call may use."""

    kind: str
    """What it names: "order", "item" or "method"."""
    wish: int
    """Position of the wish that it goes with."""
    facts: dict[str, Any]
    """What its words are made of."""


@dataclass(frozen=True)
class Blueprint:
    """Everything that a task means."""

    user_id: str
    """The customer."""
    authentication: str
    """How the customer is found: "email" or "name_zip"."""
    first_name: str
    """The customer's first name."""
    last_name: str
    """The customer's last name."""
    email: str
    """The customer's email."""
    zip: str
    """The zip code of the customer's address on file."""
    wishes: tuple[Wish, ...]
    """What the customer wants, in the order of asking."""
    distractor: Distractor | None = None
    """An id to leave alone; None in nearly all tasks."""

    @property
    def gold_actions(self) -> list[dict]:
        """The reference calls: authenticate, then one call for each wish."""
        if self.authentication == "email":
            first = {"name": "find_user_id_by_email", "arguments": {"email": self.email}}
        else:
            first = {
                "name": "find_user_id_by_name_zip",
                "arguments": {
                    "first_name": self.first_name,
                    "last_name": self.last_name,
                    "zip": self.zip,
                },
            }
        return [first] + [wish.action for wish in self.wishes]

    @property
    def gold_final(self) -> str:
        """The outcome in one phrase."""
        return "; ".join(wish.outcome for wish in self.wishes)

    @property
    def outputs(self) -> list[str]:
        """What an agent must tell the customer."""
        return [output for wish in self.wishes for output in wish.outputs]

    @property
    def refusal(self) -> bool:
        """Whether a wish must be refused or handed to a person."""
        return any(w.kind.startswith("refuse_") or w.kind == "transfer" for w in self.wishes)

    @property
    def num_items(self) -> int:
        """How many items the calls name as given away or sent back."""
        return sum(len(w.action["arguments"].get("item_ids", ())) for w in self.wishes)

    @property
    def difficulty(self) -> str:
        """Return "easy", "medium" or "hard", by calls, items and distractors.

        Every further wish counts two, every further item one, a distractor or a refusal among other
        wishes makes it harder still.
        """
        points = 2 * (len(self.wishes) - 1) + max(0, self.num_items - 1)
        points += self.refusal and len(self.wishes) > 1
        if self.distractor is not None or points >= 4:
            return "hard"
        return "medium" if points else "easy"

    @property
    def key(self) -> str:
        """Text that two blueprints share exactly when they mean the same task."""
        distractor = self.distractor and [self.distractor.kind, self.distractor.facts]
        wishes = [[w.kind, w.action, w.facts] for w in self.wishes]
        return json.dumps([self.user_id, self.authentication, wishes, distractor], sort_keys=True)


def _has(view: StoreView, *statuses: str) -> Callable[[str], bool]:
    return lambda user_id: bool(view.order_ids(user_id, *statuses))


def _has_method(view: StoreView, mix: TaskMix, enough: bool) -> Callable[[str], bool]:
    def test(user_id: str) -> bool:
        draw = Draw(Random(0), view, mix, user_id)
        return any(other_methods(draw, o, enough) for o in view.order_ids(user_id, "pending"))

    return test


class BlueprintSampler:
    """Draw blueprints from one store by one mix."""

    def __init__(self, view: StoreView, mix: TaskMix):
        """Find out which customers could have which wish.

        Args:
            view: The store's indexes.
            mix: The shares to draw by; wishes that nobody in the store can have are left out.
        """
        self.view = view
        self.mix = mix
        any_order = _has(view, "pending", *STATUSES_AFTER_PENDING)
        after_pending = _has(view, *STATUSES_AFTER_PENDING)
        everybody: Callable[[str], bool] = lambda user_id: True
        tests = {
            "cancel": _has(view, "pending"),
            "return": _has(view, "delivered"),
            "exchange": _has(view, "delivered"),
            "change_items": _has(view, "pending"),
            "change_address": _has(view, "pending"),
            "change_payment": _has_method(view, mix, enough=True),
            "ask_order": any_order,
            "ask_product": lambda user_id: bool(view.product_ids),
            "calculate_sum": any_order,
            "calculate_difference": any_order,
            "refuse_cancel": after_pending,
            "refuse_order_change": after_pending,
            "refuse_return": _has(view, "pending", "processed"),
            "refuse_unavailable": _has(view, "pending", "delivered"),
            "refuse_gift_card": _has_method(view, mix, enough=False),
        }
        self.able = {
            kind: [u for u in view.users if tests.get(kind, everybody)(u)] for kind in SAMPLERS
        }
        self._able_sets = {kind: frozenset(users) for kind, users in self.able.items()}
        self._granted = self._weights(mix.wish_weights)
        self._refused = self._weights(mix.refused_weights)

    def _weights(self, table: Any) -> dict[str, float]:
        """Return a table without the wishes that nobody can have."""
        return {kind: weight for kind, weight in table.items() if self.able[kind]}

    def draw_kinds(self, rng: Random) -> list[str]:
        """Draw what a task's wishes are."""
        mix = self.mix
        shares = mix.num_wishes_shares
        num_wishes = rng.choices(range(1, len(shares) + 1), shares)[0]
        alone = num_wishes == 1
        refused_share = mix.refused_share_alone if alone else mix.refused_share_among_others
        kinds = rng.choices(list(self._granted), list(self._granted.values()), k=num_wishes)
        if rng.random() < refused_share:
            kind = rng.choices(list(self._refused), list(self._refused.values()))[0]
            kinds[rng.randrange(num_wishes)] = kind
        return kinds

    def draw_wishes(self, rng: Random, kinds: list[str], user_id: str) -> list[Wish] | None:
        """Draw the wishes for one customer, or None when the customer's records do not fit."""
        draw = Draw(rng, self.view, self.mix, user_id)
        wishes = []
        for kind in kinds:
            wish = SAMPLERS[kind](draw)
            if wish is None:
                return None
            wishes.append(wish)
        return wishes

    def sample(self, rng: Random) -> Blueprint | None:
        """Draw a blueprint, or None when no customer fits the wishes drawn."""
        kinds = self.draw_kinds(rng)
        if any(kinds.count(kind) > 1 for kind in AT_MOST_ONCE):
            return None
        rarest = min(kinds, key=lambda kind: len(self.able[kind]))
        users = [u for u in self.able[rarest] if all(u in self._able_sets[k] for k in kinds)]
        if not users:
            return None
        for user_id in rng.sample(users, min(MAX_CUSTOMERS_TRIED, len(users))):
            wishes = self.draw_wishes(rng, kinds, user_id)
            if wishes is not None:
                return self.complete(rng, user_id, wishes)
        return None

    def complete(self, rng: Random, user_id: str, wishes: list[Wish]) -> Blueprint:
        """Add the way to authenticate and, seldom, a distractor."""
        user = self.view.db.users[user_id]
        ways = self.view.authentications(user_id)
        wanted = "email" if rng.random() < self.mix.email_share else "name_zip"
        distractor = None
        if rng.random() < self.mix.distractor_share:
            distractor = self.draw_distractor(rng, user_id, wishes)
        return Blueprint(
            user_id=user_id,
            authentication=wanted if wanted in ways else ways[0],
            first_name=user["name"]["first_name"],
            last_name=user["name"]["last_name"],
            email=user["email"],
            zip=user["address"]["zip"],
            wishes=tuple(wishes),
            distractor=distractor,
        )

    def draw_distractor(self, rng: Random, user_id: str, wishes: list[Wish]) -> Distractor | None:
        """Draw an id of the customer's own that no wish uses."""
        draw = Draw(rng, self.view, self.mix, user_id)
        named = {w.facts["order_id"] for w in wishes if "order_id" in w.facts}
        found: list[Distractor] = []
        last = len(wishes) - 1
        spare_orders = [
            o for o in self.view.order_ids(user_id, "pending", "delivered") if o not in named
        ]
        if spare_orders and named:
            found.append(Distractor("order", last, {"order_id": rng.choice(spare_orders)}))
        for index, wish in enumerate(wishes):
            arguments = wish.action["arguments"]
            if "item_ids" in arguments:
                gone = set(arguments["item_ids"]) | set(arguments.get("new_item_ids", ()))
                items = unique_items(self.view.db.orders[arguments["order_id"]])
                kept = [i for i in items if i["item_id"] not in gone]
                if kept:
                    facts = {"item": item_fact(draw, rng.choice(kept))}
                    found.append(Distractor("item", index, facts))
            if "payment_method_id" in arguments:
                method_ids = [
                    m
                    for m in self.view.method_labels(user_id)
                    if m != arguments["payment_method_id"]
                ]
                if method_ids:
                    facts = {"method": method_fact(draw, rng.choice(method_ids))}
                    found.append(Distractor("method", index, facts))
        return rng.choice(found) if found else None
