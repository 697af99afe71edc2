"""The record that every check returns; a task with any finding is invalid."""

from dataclasses import dataclass

from envs.retail import RetailDatabase


@dataclass(frozen=True)
class Finding:
    """One reason why a task is not valid."""

    kind: str
    """Short name from a closed list (each check's module names its own)."""
    detail: str
    """One line for people; names the call (1-based) and the argument where there is one."""


def call_label(index: int, action: dict) -> str:
    """Name a call for people."""
    return f"call {index + 1} ({action['name']})"


def order_remedy(action: dict, db: RetailDatabase) -> str:
    """Say how to correct a call whose order, or whatever else it names, the store does not have."""
    order_id = action["arguments"].get("order_id", "")
    if order_id not in db.orders and f"#{order_id}" in db.orders:
        return f"write '#{order_id}'"
    return "correct the call or drop the row"
