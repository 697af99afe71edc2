"""What customers of the pre-training corpus want: the words for it and the calls that grant it.

Left out: the customer's name, small talk, typing errors and calling conventions (`corpus.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from corpus_records import WORDS, Record, RecordMaker, digits, pseudo_word, spin

WISH_WEIGHTS = {
    "cancel": 12,
    "return": 14,
    "exchange": 13,
    "modify": 13,
    "payment": 10,
    "ship": 12,
    "move": 9,
    "order_info": 6,
    "product_info": 5,
    "types": 2,
    "user_info": 5,
    "sum": 6,
    "human": 4,
    "late_cancel": 5,
    "no_stock": 2,
    "low_card": 2,
}


@dataclass
class Wish:
    """Text with slots, the values of the slots and the calls that grant it."""

    text: str
    slots: dict[str, str]
    calls: list[dict[str, Any]]
    orders: list[str] = field(default_factory=list)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """Return one tool call in the plan format."""
    return {"name": name, "arguments": arguments}


class WishMaker(RecordMaker):
    """Makes wishes for the values of a record."""

    def _wish(self, kind: str, record: Record) -> Wish:
        rng = self.rng
        order, payment, user = record.orders[-1], record.payments[-1], record.user_id
        if len(record.orders) > 1 and rng.random() < 0.8:
            record.orders.pop()
        num_items = rng.choice((1, 1, 1, 2, 2, 3))
        record.items += [(self._item_name(), digits(rng, 10)) for _ in range(6)]
        old = [record.items.pop() for _ in range(num_items)]
        new = [record.items.pop() for _ in old]
        if rng.random() < 0.5:
            new = [(rng.choice(WORDS["options"]), item_id) for _, item_id in new]
        old_ids, new_ids = [i for _, i in old], [i for _, i in new]
        rng.shuffle(record.payments)
        address = record.addresses.pop() if len(record.addresses) > 1 else self._address()
        slots = {"O": self._say_order(order)}
        calls: list[dict[str, Any]] = []
        text = spin(rng, rng.choice(WORDS["wishes"][kind]))
        if kind == "cancel":
            by_mistake = rng.random() < 0.4
            why = spin(rng, rng.choice(WORDS["mistaken"] if by_mistake else WORDS["no_longer"]))
            if (
                "<why>" not in text
                and "<because>" not in text
                and (by_mistake or rng.random() < 0.4)
            ):
                text += rng.choice([", ", ". ", "; ", " - "]) + why
            link = rng.choice(
                [" because ", " since ", ", ", " - ", "; ", " as ", ". Reason: ", " (", ". "]
            )
            text = text.replace("<why>", why).replace("<because>", link + why)
            calls = [
                call(
                    "cancel_pending_order",
                    order_id=order,
                    reason="ordered by mistake" if by_mistake else "no longer needed",
                )
            ]
        elif kind == "return":
            slots |= {
                "I": self._join([self._say_item(i) for i in old]),
                "P": self._say_payment(payment),
            }
            calls = [
                call(
                    "return_delivered_order_items",
                    order_id=order,
                    item_ids=old_ids,
                    payment_method_id=payment,
                )
            ]
        elif kind in ("exchange", "modify"):
            name = (
                "exchange_delivered_order_items"
                if kind == "exchange"
                else "modify_pending_order_items"
            )
            slots |= {"X": self._say_pairs(old, new), "P": self._say_payment(payment)}
            calls = [
                call(
                    name,
                    order_id=order,
                    item_ids=old_ids,
                    new_item_ids=new_ids,
                    payment_method_id=payment,
                )
            ]
        elif kind == "payment":
            slots["P"] = self._say_payment(payment)
            calls = [
                call("modify_pending_order_payment", order_id=order, payment_method_id=payment)
            ]
        elif kind == "ship":
            slots["A"] = self._say_address(address)
            calls = [call("modify_pending_order_address", order_id=order, **address)]
        elif kind == "move":
            slots = {"U": user, "A": self._say_address(address)}
            calls = [call("modify_user_address", user_id=user, **address)]
        elif kind == "order_info":
            calls = [call("get_order_details", order_id=order)]
        elif kind == "product_info":
            slots = {
                "R": rng.choice(["", "product ", "", f"{self._item_name()} "]) + record.products[-1]
            }
            calls = [call("get_product_details", product_id=record.products[-1])]
        elif kind == "user_info":
            slots = {"U": user}
            calls = [call("get_user_details", user_id=user)]
        elif kind == "types":
            slots, calls = {}, [call("list_all_product_types")]
        elif kind == "sum":
            question, expression = self._sum()
            slots, calls = {"Q": question}, [call("calculate", expression=expression)]
        elif kind == "human":
            subject = (
                rng.choice(WORDS["subjects"])
                if rng.random() < 0.8
                else f"{pseudo_word(rng)} {rng.choice(WORDS['goods'])}"
            )
            slots, calls = {"S": subject}, [call("transfer_to_human_agents", summary=subject)]
        elif kind == "late_cancel":
            slots |= {
                "I": self._join([self._say_item(i) for i in old]),
                "X": self._say_pairs(old, new),
            }
            calls = [call("get_order_details", order_id=order)]
        elif kind == "no_stock":
            slots |= {"X": self._say_pairs(old, new), "R": record.products[-1]}
            calls = [call("get_product_details", product_id=record.products[-1])]
        elif kind == "low_card":
            slots |= {"P": self._say_payment(payment), "U": user}
            calls = [call("get_user_details", user_id=user)]
        optional = ("late_cancel", "no_stock", "low_card")
        if kind in WORDS["intent_labels"] and rng.random() < 0.12:
            lines = [
                f"{rng.choice(WORDS['form_labels'][k])}{rng.choice([': ', ' - ', ' = '])}<{k}>"
                for k in slots
            ]
            if kind == "cancel" and (by_mistake or rng.random() < 0.4):
                lines.append(f"{rng.choice(['Reason', 'Why', 'Note'])}: {why}")
            rng.shuffle(lines)
            label = rng.choice(["Request", "Wish", "Type", "What"])
            intent = f"{label}: {rng.choice(WORDS['intent_labels'][kind])}"
            text = "\n".join([intent, *lines])
        elif kind not in optional:
            for key in rng.sample(sorted(slots), len(slots)):
                if f"<{key}>" not in text:
                    clause = spin(rng, rng.choice(WORDS["clauses"][key]))
                    join = rng.choice([", ", ". ", ". ", "; ", " and ", " - ", "\n", " "])
                    text = (
                        clause + rng.choice([": ", ". ", ", "]) + text
                        if rng.random() < 0.25
                        else text + join + clause
                    )
        orders = [order] if "order_id" in calls[0]["arguments"] else []
        return Wish(text, slots, calls, orders)

    def _sum(self) -> tuple[str, str]:
        rng = self.rng
        numbers = [
            f"{rng.randrange(100, 99999) / 100:.2f}" for _ in range(rng.choice((2, 2, 2, 3, 4)))
        ]
        if rng.random() < 0.15:
            numbers = [number.split(".")[0] for number in numbers]
        minus = rng.random() < 0.4
        form = rng.choice(WORDS["sum_minus"] if minus else WORDS["sum_plus"])
        sign = "$" if rng.random() < 0.4 else ""
        link = rng.choice(
            [" minus ", " less ", " and then ", " - ", " and "]
            if minus
            else [" plus ", " and ", " + ", ", "]
        )
        return spin(rng, form).replace("@", link.join(sign + n for n in numbers)), (
            " - " if minus else " + "
        ).join(numbers)
