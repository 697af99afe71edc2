"""Draw blueprints from a store by a mix."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random

from tasks.blueprint import Blueprint, Distractor, Intent
from tasks.generate.intents import (
    STATUSES_AFTER_PENDING,
    WRITE_SAMPLERS,
    Draw,
    NoFit,
    item_fact,
    method_fact,
    other_methods,
)
from tasks.generate.read_intents import READ_SAMPLERS, REFUSED_SAMPLERS
from tasks.generate.store_view import StoreView, unique_items
from tasks.mix import TaskMix

# How many customers are tried for one draw of intents before the draw is given up.
MAX_CUSTOMERS_TRIED = 12

# Intents that no customer has twice in one message.
AT_MOST_ONCE = ("ask_product_types", "ask_account", "change_profile_address")

SAMPLERS = WRITE_SAMPLERS | READ_SAMPLERS | REFUSED_SAMPLERS


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
        """Find which customers can have which intent; those that nobody can have are never drawn."""
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
        self.able = {kind: [u for u in view.users if tests.get(kind, everybody)(u)] for kind in SAMPLERS}
        self._able_sets = {kind: frozenset(users) for kind, users in self.able.items()}
        self._granted = self._weights(mix.intent_weights)
        self._refused = self._weights(mix.refused_weights)

    def _weights(self, table: Mapping[str, float]) -> dict[str, float]:
        """Return a table without the intents that nobody can have."""
        return {kind: weight for kind, weight in table.items() if self.able[kind]}

    def draw_kinds(self, rng: Random) -> list[str]:
        """Draw what a task's intents are."""
        mix = self.mix
        shares = mix.num_intents_shares
        num_intents = rng.choices(range(1, len(shares) + 1), shares)[0]
        alone = num_intents == 1
        refused_share = mix.refused_share_alone if alone else mix.refused_share_among_others
        kinds = rng.choices(list(self._granted), list(self._granted.values()), k=num_intents)
        if rng.random() < refused_share:
            kind = rng.choices(list(self._refused), list(self._refused.values()))[0]
            kinds[rng.randrange(num_intents)] = kind
        return kinds

    def sample(self, rng: Random) -> Blueprint | None:
        """Draw a blueprint, or None when no customer fits the intents drawn."""
        kinds = self.draw_kinds(rng)
        if any(kinds.count(kind) > 1 for kind in AT_MOST_ONCE):
            return None
        rarest = min(kinds, key=lambda kind: len(self.able[kind]))
        users = [u for u in self.able[rarest] if all(u in self._able_sets[k] for k in kinds)]
        if not users:
            return None
        for user_id in rng.sample(users, min(MAX_CUSTOMERS_TRIED, len(users))):
            draw = Draw(rng, self.view, self.mix, user_id)
            with suppress(NoFit):
                return self.complete(rng, user_id, [SAMPLERS[kind](draw) for kind in kinds])
        return None

    def complete(self, rng: Random, user_id: str, intents: list[Intent]) -> Blueprint:
        """Add the way to authenticate and, seldom, a distractor."""
        user = self.view.db.users[user_id]
        ways = self.view.authentications(user_id)
        wanted = "email" if rng.random() < self.mix.email_share else "name_zip"
        distractor = None
        if rng.random() < self.mix.distractor_share:
            distractor = self.draw_distractor(rng, user_id, intents)
        return Blueprint(
            user_id=user_id,
            authentication=wanted if wanted in ways else ways[0],
            first_name=user["name"]["first_name"], last_name=user["name"]["last_name"],
            email=user["email"], zip=user["address"]["zip"], intents=tuple(intents),
            distractor=distractor,
        )

    def draw_distractor(self, rng: Random, user_id: str, intents: list[Intent]) -> Distractor | None:
        """Draw an id of the customer's own that no intent uses."""
        draw = Draw(rng, self.view, self.mix, user_id)
        named = {w.facts["order_id"] for w in intents if "order_id" in w.facts}
        found: list[Distractor] = []
        last = len(intents) - 1
        spare_orders = [o for o in self.view.order_ids(user_id, "pending", "delivered") if o not in named]
        if spare_orders and named:
            found.append(Distractor("order", last, {"order_id": rng.choice(spare_orders)}))
        for index, intent in enumerate(intents):
            arguments = intent.action["arguments"]
            if "item_ids" in arguments:
                gone = set(arguments["item_ids"]) | set(arguments.get("new_item_ids", ()))
                items = unique_items(self.view.db.orders[arguments["order_id"]])
                kept = [i for i in items if i["item_id"] not in gone]
                if kept:
                    facts = {"item": item_fact(draw, rng.choice(kept))}
                    found.append(Distractor("item", index, facts))
            if "payment_method_id" in arguments:
                method_ids = [
                    m for m in self.view.method_labels(user_id) if m != arguments["payment_method_id"]
                ]
                if method_ids:
                    facts = {"method": method_fact(draw, rng.choice(method_ids))}
                    found.append(Distractor("method", index, facts))
        return rng.choice(found) if found else None
