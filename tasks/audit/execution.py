"""Check one row: gold fits the schemas, runs on the store and does what it says.

`RowChecks` adds the checks of the other modules and those that need the whole store. Kinds here:
empty_field, schema, refused_call, no_effect, wrong_effect, unfounded_output, unknown_user,
other_user_id, address_shape.
"""

import re

from common.user_error import quoted
from data_reader import Task
from envs.retail import WRITE_TOOLS, Episode, RetailDatabase, check_arguments
from envs.retail.store import ADDRESS_FIELDS
from tasks.audit.conventions import check_conventions, is_generated
from tasks.audit.finding import Finding, call_label, order_remedy
from tasks.audit.grounding import check_agent_grounding, check_grounding, leaves
from tasks.audit.policy import AUTHENTICATION_TOOLS, check_policy

STATE = re.compile(r"[A-Z]{2}")
ZIP = re.compile(r"\d{5}")
HOUSE_NUMBER = re.compile(r"\d")


def check_format(task: Task) -> list[Finding]:
    """Check that there is a query and that every gold call fits its tool's schema."""
    findings = []
    if not task.query.strip():
        findings.append(Finding("empty_field", "query is empty"))
    for index, action in enumerate(task.gold_actions):
        problem = check_arguments(action["name"], action["arguments"])
        if problem is not None:
            findings.append(Finding("schema", f"{call_label(index, action)}: {problem}"))
    return findings


def effect_problem(action: dict, record: dict) -> str | None:
    """Say how a record differs from what an accepted write should have made of it; None if it does not."""
    name, arguments = action["name"], action["arguments"]
    if "address1" in arguments:
        wrong = [f for f in ADDRESS_FIELDS if record["address"].get(f) != arguments[f]]
        return f"address fields not changed: {', '.join(wrong)}" if wrong else None
    if name == "modify_pending_order_payment":
        paid = {p["payment_method_id"] for p in record["payment_history"]}
        return None if arguments["payment_method_id"] in paid else "no payment by the new method"
    if name == "modify_pending_order_items":
        held = {item["item_id"] for item in record["items"]}
        missing = [i for i in arguments["new_item_ids"] if i not in held]
        return f"new items not in the order: {', '.join(missing)}" if missing else None
    expected = {
        "cancel_pending_order": "cancelled",
        "return_delivered_order_items": "return requested",
        "exchange_delivered_order_items": "exchange requested",
    }[name]
    return None if record["status"] == expected else f"status is {record['status']!r}"


def _record(episode: Episode, arguments: dict) -> dict | str:
    """Return the order or user that a write names, as the store has it now."""
    if "order_id" in arguments:
        return episode.call("get_order_details", {"order_id": arguments["order_id"]}).content
    return episode.call("get_user_details", {"user_id": arguments["user_id"]}).content


def check_execution(task: Task, db: RetailDatabase) -> list[Finding]:
    """Replay gold: every call is accepted and every write changes the store as it says."""
    episode = Episode(db)
    findings = []
    for index, action in enumerate(task.gold_actions):
        name, arguments, label = action["name"], action["arguments"], call_label(index, action)
        writes = name in WRITE_TOOLS
        before = _record(episode, arguments) if writes else None
        observation = episode.call(name, arguments)
        if not observation.ok:
            detail = f"{label}: {observation.content}; {order_remedy(action, db)}"
            findings.append(Finding("refused_call", detail))
        elif writes and (after := _record(episode, arguments)) == before:
            findings.append(Finding("no_effect", f"{label}: nothing changed"))
        elif writes and (problem := effect_problem(action, after)) is not None:
            findings.append(Finding("wrong_effect", f"{label}: {problem}"))
    return findings


def is_scenario(task: Task) -> bool:
    """Tell whether a row is in the form of tau-bench's own task files, whose query is the scenario itself."""
    return task.instruction == task.query


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
    """Check rows against one store."""

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

    def findings(self, task: Task) -> list[tuple[str, Finding]]:
        """Return (check, finding) for everything that is wrong with one readable task.

        A scenario row is judged as its source means it: the agent sees the scenario and the
        customer's records, not ids in a message; `gold_final` is not part of it; and gold need not
        authenticate unless some call of it does, `user_id` being the customer.
        """
        db, scenario = self._db, is_scenario(task)
        authenticates = any(a["name"] in AUTHENTICATION_TOOLS for a in task.gold_actions)
        policy = check_policy(task, db, require_authentication=authenticates or not scenario)
        found = {
            "row": [] if scenario else check_format(task),
            "gold": check_execution(task, db) + self.output_findings(task),
            "policy": policy + check_conventions(task, db) + self.customer_findings(task),
            "grounding": self.address_findings(task),
        }
        if not scenario:
            found["grounding"] += check_grounding(task, db)
        found["grounding"] += [
            Finding(finding.kind, f"in the scenario: {finding.detail}")
            for finding in check_agent_grounding(task, db, scenario)
        ]
        return [(check, finding) for check, findings in found.items() for finding in findings]

    def customer_findings(self, task: Task) -> list[Finding]:
        """Check that the row's user_id is in the store and is the customer whom gold finds."""
        if task.user_id is None:
            return []
        if task.user_id not in self._db.users:
            return [Finding("unknown_user", f"user_id {quoted(task.user_id)} is not in the store")]
        for action in task.gold_actions:
            if action["name"] in AUTHENTICATION_TOOLS:
                found = Episode(self._db).call(action["name"], action["arguments"])
                if found.ok and found.content != task.user_id:
                    detail = f"user_id is {quoted(task.user_id)}, gold finds {found.content}"
                    return [Finding("other_user_id", detail)]
        return []

    def address_findings(self, task: Task) -> list[Finding]:
        """Check that new addresses have their parts in the right fields, as far as shapes tell.

        That each part is in the query does not tell a city from a state.
        """
        findings = []
        for index, action in enumerate(task.gold_actions):
            arguments = action["arguments"]
            if "address1" not in arguments:
                continue
            wrong = [n for n, shape in self._shapes.items() if not shape.fullmatch(arguments[n])]
            # Other people's streets may go without a number, the generator's never do.
            if self._numbered and is_generated(task):
                if not HOUSE_NUMBER.match(arguments["address1"]):
                    wrong.append("address1")
            findings += [
                Finding("address_shape", f"{call_label(index, action)}: {name} {quoted(arguments[name])}")
                for name in wrong
            ]
        return findings

    def output_findings(self, task: Task) -> list[Finding]:
        """Check that gold's calls show every output of a generated task."""
        if not is_generated(task) or not task.outputs:
            return []
        episode = Episode(self._db)
        shown = set().union(*(shown_values(episode, action) for action in task.gold_actions))
        return [
            Finding("unfounded_output", f"no gold call shows {quoted(output)}")
            for output in task.outputs if output not in shown
        ]
