"""The shares by which tasks are drawn, as one declared table; shares are of tasks unless noted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

WRITE_INTENTS = (
    "cancel", "return", "exchange", "change_items", "change_address", "change_payment",
    "change_profile_address",
)
QUESTION_INTENTS = (
    "ask_order", "ask_product", "ask_product_types", "ask_account", "calculate_sum",
    "calculate_difference",
)
REFUSED_INTENTS = (
    "refuse_cancel", "refuse_order_change", "refuse_return", "refuse_other_customer",
    "refuse_unavailable", "refuse_gift_card", "transfer",
)
CHANNELS = ("chat", "email", "form", "call_note")
PERSONAS = ("polite", "brisk", "chatty", "annoyed", "anxious", "formal")


def _table(**weights: float) -> Mapping[str, float]:
    return MappingProxyType(weights)


@dataclass(frozen=True)
class TaskMix:
    """The shares by which tasks are drawn; the defaults make the committed files."""

    num_intents_shares: tuple[float, ...] = (0.66, 0.22, 0.08, 0.04)
    """Shares of tasks with one, two, three and four intents; most are short, so that a small model
    learns single calls first."""
    email_share: float = 0.6
    """Share of customers who give an email; the others give name and zip."""
    intent_weights: Mapping[str, float] = field(
        default_factory=lambda: _table(
            cancel=12, exchange=13, change_items=12, change_address=11, change_payment=12,
            change_profile_address=10, ask_order=5, ask_product=5, ask_product_types=2.5,
            ask_account=4, calculate_sum=3, calculate_difference=2, **{"return": 13},
        )
    )
    """Weights of the intents that can be granted; every write tool gets 8 to 25 % of the writes."""
    refused_weights: Mapping[str, float] = field(
        default_factory=lambda: _table(
            refuse_cancel=4, refuse_order_change=3, refuse_return=3, refuse_other_customer=3,
            refuse_unavailable=3, refuse_gift_card=3, transfer=5,
        )
    )
    """Weights of the intents that must be refused or handed to a person."""
    refused_share_alone: float = 0.18
    """Share of one-intent tasks whose intent must be refused or handed over."""
    refused_share_among_others: float = 0.14
    """Share of longer tasks of which one intent must be refused or handed over."""
    num_items_shares: tuple[float, ...] = (0.58, 0.28, 0.14)
    """Shares of one, two and three items in returns, exchanges and item changes."""
    distractor_share: float = 0.07
    """Share of tasks that name an id which must not be used; those are tagged hard."""
    empty_address2_share: float = 0.2
    """Share of new addresses without a second line."""
    typo_share: float = 0.12
    """Share of queries with a typing slip in words that no argument depends on."""
    channel_weights: Mapping[str, float] = field(
        default_factory=lambda: _table(chat=42, email=30, form=14, call_note=14)
    )
    """Where the query comes from."""

    def __post_init__(self) -> None:
        """Check that shares are shares and that the tables name known things, else a ValueError."""
        for name in ("num_intents_shares", "num_items_shares"):
            if abs(sum(getattr(self, name)) - 1.0) > 1e-9:
                raise ValueError(f"TaskMix.{name}: shares must sum to 1")
        for name in (
            "email_share", "refused_share_alone", "refused_share_among_others", "distractor_share",
            "empty_address2_share", "typo_share",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"TaskMix.{name}: must be between 0 and 1")
        known = {
            "intent_weights": WRITE_INTENTS + QUESTION_INTENTS,
            "refused_weights": REFUSED_INTENTS,
            "channel_weights": CHANNELS,
        }
        for name, allowed in known.items():
            unknown = set(getattr(self, name)) - set(allowed)
            if unknown:
                raise ValueError(f"TaskMix.{name}: unknown names {sorted(unknown)}")


DEFAULT_MIX = TaskMix()
