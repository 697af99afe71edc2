"""Everything that an audit asks of one readable row: the shared checks, and what only files need.

Left out: comparing rows with each other (audit). Kinds added here: unknown_user, other_user_id
(policy); address_shape (grounding); unfounded_output (gold).
"""

from __future__ import annotations

import re

from data_reader import Task
from envs.retail import Episode, RetailDatabase
from tasks.audit import execution
from tasks.audit.finding import Fault, call_label
from tasks.audit.grounding import leaves
from tasks.audit.policy import AUTHENTICATION_TOOLS

STATE = re.compile(r"[A-Z]{2}")
ZIP = re.compile(r"\d{5}")
HOUSE_NUMBER = re.compile(r"\d")


def is_scenario(task: Task) -> bool:
    """Tell a row in the form of tau-bench's own task files, whose query is the scenario itself."""
    return task.instruction == task.query


def is_generated(task: Task) -> bool:
    """Tell a row of this project's generator, which claims the plan-mode conventions."""
    wishes = task.tags.get("wishes")
    return isinstance(wishes, list) and all(isinstance(wish, str) for wish in wishes)


def shown_values(episode: Episode, action: dict) -> set[str]:
    """Make a call; return what its observation shows: its values, and the number of what it lists.

    Counted are a product's available variants and the kinds of products.
    """
    observation = episode.call(action["name"], action["arguments"])
    shown = set(leaves(observation.content))
    if observation.ok and action["name"] == "get_product_details":
        variants = observation.content["variants"].values()
        shown.add(str(sum(variant["available"] for variant in variants)))
    elif observation.ok and action["name"] == "list_all_product_types":
        shown.add(str(len(observation.content)))
    return shown


class RowChecks:
    """Judges rows against one store.

    Args:
        db: The store.
    """

    def __init__(self, db: RetailDatabase) -> None:
        self._db = db
        addresses = [user["address"] for user in db.users.values()]
        # A shape is asked of new addresses only where every address of the store has it.
        self._shapes = {
            name: pattern
            for name, pattern in (("state", STATE), ("zip", ZIP))
            if all(pattern.fullmatch(address[name]) for address in addresses)
        }
        self._numbered = all(HOUSE_NUMBER.match(address["address1"]) for address in addresses)

    def faults(self, task: Task) -> list[tuple[str, Fault]]:
        """Return (check, fault) for everything that is wrong with one readable task.

        A scenario row is judged as its source means it: the agent sees the scenario and the
        customer's records, not ids in a message; `gold_final` is not part of it; and gold need not
        authenticate unless some call of it does, `user_id` being the customer.

        Args:
            task: A task whose calls fit the tool schemas.
        """
        db, scenario = self._db, is_scenario(task)
        authenticates = any(a["name"] in AUTHENTICATION_TOOLS for a in task.gold_actions)
        policy = execution.check_policy(
            task, db, require_authentication=authenticates or not scenario
        )
        if is_generated(task):
            policy += execution.check_conventions(task, db)
        found = {
            "row": [] if scenario else execution.check_format(task),
            "gold": execution.check_execution(task, db) + self.output_faults(task),
            "policy": policy + self.customer_faults(task),
            "grounding": self.address_faults(task),
        }
        if not scenario:
            found["grounding"] += execution.check_grounding(task, db)
        found["grounding"] += [
            Fault(fault.kind, f"in the scenario: {fault.detail}")
            for fault in execution.check_agent_grounding(task, db, scenario)
        ]
        return [(check, fault) for check, faults in found.items() for fault in faults]

    def customer_faults(self, task: Task) -> list[Fault]:
        """Check that the row's user_id is in the store and is the customer whom gold finds."""
        if task.user_id is None:
            return []
        if task.user_id not in self._db.users:
            return [Fault("unknown_user", f"user_id {task.user_id!r} is not in the store")]
        for action in task.gold_actions:
            if action["name"] in AUTHENTICATION_TOOLS:
                found = Episode(self._db).call(action["name"], action["arguments"])
                if found.ok and found.content != task.user_id:
                    detail = f"user_id is {task.user_id}, gold finds {found.content}"
                    return [Fault("other_user_id", detail)]
        return []

    def address_faults(self, task: Task) -> list[Fault]:
        """Check that new addresses have their parts in the right fields, as far as shapes tell.

        That each part stands in the query does not tell a city from a state.
        """
        faults = []
        for index, action in enumerate(task.gold_actions):
            arguments = action["arguments"]
            if "address1" not in arguments:
                continue
            wrong = [n for n, shape in self._shapes.items() if not shape.fullmatch(arguments[n])]
            # Other people's streets may go without a number, the generator's never do.
            if self._numbered and is_generated(task):
                if not HOUSE_NUMBER.match(arguments["address1"]):
                    wrong.append("address1")
            faults += [
                Fault("address_shape", f"{call_label(index, action)}: {name} {arguments[name]!r}")
                for name in wrong
            ]
        return faults

    def output_faults(self, task: Task) -> list[Fault]:
        """Check that what a generated task's agent must tell stands in what gold's calls show."""
        if not is_generated(task) or not task.outputs:
            return []
        episode = Episode(self._db)
        shown = set().union(*(shown_values(episode, action) for action in task.gold_actions))
        return [
            Fault("unfounded_output", f"no gold call shows {output!r}")
            for output in task.outputs if output not in shown
        ]
