"""What became of every draft: the yield of each step, for people and for the file beside the tasks.

Left out on purpose: the steps themselves (pipeline).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from data_reader import Task

# The steps in the order in which a draft meets them.
STEPS = (
    "sampling",
    "format",
    "execution",
    "policy",
    "grounding",
    "uniqueness",
    "wording",
    "words_grounding",
)


@dataclass(frozen=True)
class Draft:
    """What became of one attempt, uniqueness aside."""

    step: str
    """The step that rejected it; "" when it passed all of them."""
    kind: str
    """The first fault's kind; "" when it passed."""
    key: int = 0
    """64 bits of what the task means; 0 when it did not get as far as the uniqueness check."""
    task: Task | None = None
    """The task when it passed."""


@dataclass
class YieldTable:
    """How many drafts each step saw and let through, and why it rejected the others."""

    num_written: int = 0
    """Tasks given out."""
    num_drafts: int = 0
    """Drafts begun."""
    rejected: dict[str, Counter[str]] = field(default_factory=lambda: {s: Counter() for s in STEPS})
    """Reasons with counts, by step."""

    def as_dict(self) -> dict:
        """Return the table with what every step saw, passed and rejected."""
        steps, seen = [], self.num_drafts
        for step in STEPS:
            reasons = dict(sorted(self.rejected[step].items()))
            passed = seen - sum(reasons.values())
            steps.append({"step": step, "seen": seen, "passed": passed, "rejected": reasons})
            seen = passed
        return {"num_written": self.num_written, "num_drafts": self.num_drafts, "steps": steps}

    def as_text(self) -> str:
        """Return the table as lines for people."""
        lines = [f"{'step':16}{'seen':>9}{'passed':>9}  rejected"]
        for row in self.as_dict()["steps"]:
            reasons = ", ".join(f"{kind} {count}" for kind, count in row["rejected"].items())
            lines.append(f"{row['step']:16}{row['seen']:>9}{row['passed']:>9}  {reasons or '-'}")
        lines.append(f"written {self.num_written} of {self.num_drafts} drafts")
        return "\n".join(lines)
