"""See whether training tasks and held-out tasks meet: the same customer, the same or nearly the
same words.

Customers are told by the gold calls that find them, not by the row's own `user_id`, which is what
the split goes by. Left out: making the split (data_reader).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from data_reader import Splits, Task, split_tasks, task_group
from envs.retail import RetailDatabase
from tasks.audit.execution import fingerprint, normalized_query
from tasks.audit.near_duplicates import NearDuplicates

MAX_EXAMPLES = 20


class Place(NamedTuple):
    """Where a task stands."""

    path: str
    """Its file."""
    line: int
    """Its line."""
    split: str
    """The split that training puts it into."""


class SplitLeakage:
    """Collects, over any number of files, which customers and queries each split holds.

    Args:
        db: The store, which tells whom a gold call finds.
        seed: Seed of the split, as in training.
        fractions: Shares of the splits, as in training.
    """

    def __init__(
        self,
        db: RetailDatabase,
        seed: int = 0,
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    ) -> None:
        self._db, self._seed, self._fractions = db, seed, fractions
        self._customers: dict[str, dict[str, Place]] = {}
        self._queries: dict[int, dict[str, Place]] = {}
        self._near = NearDuplicates()
        self._places: list[Place] = []
        self._near_pairs: list[tuple[Place, Place]] = []

    def split_of(self, task: Task) -> str:
        """Return the split that training puts the task into."""
        splits = split_tasks([task], self._seed, self._fractions, (0, 0, 0), self._db)
        return next(name for name, part in zip(Splits._fields, splits, strict=True) if part)

    def add(self, task: Task, path: str, line: int) -> tuple[str, dict[str, Any] | None]:
        """Note one task.

        Args:
            task: The task.
            path: Its file.
            line: Its line.

        Returns:
            Its split, and {"line", "of_path", "of_line", "similarity"} when its wording nearly
            repeats that of an earlier task in any of the files.
        """
        place = Place(path, line, self.split_of(task))
        customer = customer_of(task, self._db)
        self._customers.setdefault(customer, {}).setdefault(place.split, place)
        query = fingerprint(normalized_query(task.query))
        self._queries.setdefault(query, {}).setdefault(place.split, place)
        likeness = self._near.check(task.query)
        self._places.append(place)
        if likeness is None:
            return place.split, None
        other = self._places[likeness[0]]
        if other.split != place.split:
            self._near_pairs.append((other, place))
        return place.split, {
            "line": line, "of_path": other.path, "of_line": other.line,
            "similarity": round(likeness[1], 2),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return counts of what stands in more than one split, and the first examples."""
        users = [(name, seen.values()) for name, seen in self._customers.items() if len(seen) > 1]
        seen_twice = [seen.values() for seen in self._queries.values() if len(seen) > 1]
        queries = [("same query", places) for places in seen_twice]
        near = [("near duplicates", pair) for pair in self._near_pairs]
        return {
            "num_users_in_two_splits": len(users),
            "num_queries_in_two_splits": len(queries),
            "num_near_duplicates_in_two_splits": len(near),
            "examples": [
                f"{name}: " + ", ".join(f"{p.path}:{p.line} ({p.split})" for p in places)
                for name, places in (users + queries + near)[:MAX_EXAMPLES]
            ],
        }


def customer_of(task: Task, db: RetailDatabase) -> str:
    """Name the customer by gold's own calls; by the row's user id where gold finds nobody."""
    by_calls = task_group(Task(task.query, task.gold_actions, "", ""), db)
    found_by_calls = by_calls.startswith("user:") or not task.user_id
    return by_calls if found_by_calls else f"user:{task.user_id}"
