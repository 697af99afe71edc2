"""Plant known faults into clean task rows, to see whether an audit names every one of them.

`plant_all` spoils one row after the other and returns the lines of the file with what was planted
where. Left out: looking at the audit (test_audit does that).
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass

from envs.retail import RetailDatabase
from tests import spoiled_rows as spoil
from tests.spoiled_rows import Row


@dataclass(frozen=True)
class FaultClass:
    """One way to spoil a row."""

    name: str
    """What it is called in the tests."""
    check: str
    """The question of the audit that must fail: row, gold, grounding, policy or duplicate."""
    kind: str
    """The kind of fault that must be named."""
    spoil: Callable[[Row, RetailDatabase], Row | str | None]
    """Returns the spoiled row (or line), or None when this row cannot carry the fault."""


@dataclass(frozen=True)
class Planted:
    """A fault that was planted."""

    line: int
    """Line of the file, from 1."""
    fault: FaultClass
    """What was planted."""


FAULT_CLASSES = tuple(
    FaultClass(function.__name__, check, kind, function)
    for check, kind, function in (
        ("grounding", "ungrounded", spoil.wrong_item_id),
        ("policy", "item_not_in_order", spoil.item_of_no_order),
        ("grounding", "ungrounded", spoil.missing_zip),
        ("grounding", "ungrounded", spoil.dropped_zip),
        ("grounding", "ungrounded", spoil.wrong_city),
        ("grounding", "ungrounded", spoil.lost_second_line),
        ("grounding", "address_shape", spoil.city_and_state_swapped),
        ("grounding", "address_shape", spoil.street_lines_swapped),
        ("grounding", "ungrounded", spoil.unnamed_order),
        ("policy", "unknown_payment_method", spoil.unknown_payment),
        ("grounding", "ungrounded", spoil.unnamed_payment),
        ("policy", "wrong_status", spoil.wrong_status),
        ("policy", "other_customers_order", spoil.other_customers_order),
        ("grounding", "ungrounded", spoil.dropped_email),
        ("gold", "refused_call", spoil.mistyped_email),
        ("policy", "unauthenticated", spoil.authenticates_last),
        ("policy", "authenticated_twice", spoil.authenticates_twice),
        ("policy", "wish_order", spoil.wishes_swapped),
        ("policy", "change_after_item_change", spoil.address_after_items),
        ("grounding", "reason_contradicts", spoil.contradicted_reason),
        ("policy", "second_item_change", spoil.second_item_change),
        ("policy", "other_product", spoil.other_product),
        ("policy", "unavailable_item", spoil.unavailable_item),
        ("policy", "same_item", spoil.same_item),
        ("grounding", "swapped_pair", spoil.swapped_pair),
        ("policy", "uneven_items", spoil.uneven_items),
        ("policy", "gift_card_short", spoil.short_gift_card),
        ("grounding", "ungrounded", spoil.wrong_sum),
        ("policy", "transfer_subject", spoil.other_subject),
        ("policy", "call_count", spoil.forgotten_wish),
        ("policy", "wish_order", spoil.payments_swapped),
        ("gold", "unfounded_output", spoil.wrong_output),
        ("policy", "other_user_id", spoil.other_user_id),
        ("gold", "schema", spoil.unknown_tool),
        ("gold", "schema", spoil.extra_argument),
        ("gold", "schema", spoil.missing_argument),
        ("gold", "schema", spoil.foreign_reason),
        ("gold", "schema", spoil.ill_typed_argument),
        ("row", "unreadable", spoil.broken_json),
        ("row", "unreadable", spoil.missing_field),
        ("row", "unreadable", spoil.empty_query),
        ("row", "unreadable", spoil.no_calls),
    )
)
DUPLICATED_ROW = FaultClass("duplicated_row", "duplicate", "duplicate_query", lambda row, db: row)
DUPLICATED_ID = FaultClass("duplicated_id", "duplicate", "duplicate_task_id", lambda row, db: row)


def plant_all(
    rows: list[Row], db: RetailDatabase, num_each: int = 3
) -> tuple[list[str], list[Planted]]:
    """Plant every class of fault `num_each` times, one fault a row.

    Args:
        rows: Clean rows with all of the generator's fields; they are not changed.
        db: The store.
        num_each: How often each class is planted.

    Returns:
        The lines of the spoiled file (without line ends) and what was planted.

    Raises:
        ValueError: The rows do not suffice for a class; the message names it.
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    planted: list[Planted] = []
    free = list(range(len(rows)))
    for fault in FAULT_CLASSES:
        num_left = num_each
        for index in list(free):
            if not num_left:
                break
            spoiled = fault.spoil(copy.deepcopy(rows[index]), db)
            if spoiled is None:
                continue
            lines[index] = spoiled if isinstance(spoiled, str) else json.dumps(spoiled)
            planted.append(Planted(index + 1, fault))
            free.remove(index)
            num_left -= 1
        if num_left:
            num_fit = num_each - num_left
            raise ValueError(f"only {num_fit} of {num_each} rows can carry {fault.name}")
    for number, index in enumerate(free[:num_each]):
        twin = {**rows[index], "task_id": f"twin-{number}", "query": rows[index]["query"].upper()}
        lines.append(json.dumps(twin))
        planted.append(Planted(len(lines), DUPLICATED_ROW))
    for index in free[num_each : 2 * num_each]:
        spare = free[-1 - free.index(index)]
        lines[spare] = json.dumps({**rows[spare], "task_id": rows[index]["task_id"]})
        planted.append(Planted(spare + 1, DUPLICATED_ID))
    return lines, planted
