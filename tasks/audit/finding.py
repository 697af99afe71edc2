"""The one record that every check returns.

Left out on purpose: severities. A task with any fault is not valid.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One reason why a task is not valid."""

    kind: str
    """Short name from a closed list (each check's module names its own)."""
    detail: str
    """One line for people; names the call (1-based) and the argument where there is one."""


def call_label(index: int, action: dict) -> str:
    """Name a call for people.

    Args:
        index: Position in gold, from 0.
        action: The call, `{"name", "arguments"}`.
    """
    return f"call {index + 1} ({action['name']})"
