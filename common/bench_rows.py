"""Rows of tau-bench's and tau2-bench's own task files, put into the form of this project's rows.

Only the names and the nesting change; what the fields hold is checked by `data_reader` like any
other row. tau2's assertions in natural language, which a model must judge, are dropped.
"""

from collections.abc import Mapping
from typing import Any

_CHECK_FIELDS = ("action_id", "requestor", "info", "compare_args")
_SCENARIO_FIELDS = ("known_info", "reason_for_call", "unknown_info", "task_instructions")


def is_tau2_row(row: Mapping[str, Any]) -> bool:
    """Say whether a row has tau2-bench's form, in which a task may ask for no call at all."""
    return "evaluation_criteria" in row and "gold_actions" not in row


def own_form(row: Mapping[str, Any], findings: list[str]) -> Mapping[str, Any]:
    """Return a row in this project's form; a row of any other origin comes back as it is.

    Args:
        findings: Gets a line for everything that cannot be put into the form.
    """
    if is_tau2_row(row):
        return _tau2_row(row, findings)
    if "actions" in row and "gold_actions" not in row:
        renamed = {"query": row.get("instruction"), "gold_actions": row["actions"]}
        return {"gold_final": "", **row, **renamed}
    return row


def _tau2_row(row: Mapping[str, Any], findings: list[str]) -> dict[str, Any]:
    criteria = row["evaluation_criteria"]
    if not isinstance(criteria, dict):
        findings.append(
            'evaluation_criteria: must be an object; write {"actions": [...], "communicate_info": [...]}'
        )
        criteria = {}
    if row.get("initial_state"):
        findings.append("initial_state: must be null; a task starts on the store as it was loaded")
    actions = criteria.get("actions")
    if isinstance(actions, list):
        actions = [_call(action) for action in actions]
    instruction = _instruction(row.get("user_scenario"))
    if not instruction:
        findings.append("user_scenario: must hold the customer's instructions; add reason_for_call")
    return {
        "task_id": row.get("id"),
        "query": instruction or "-",  # one finding is enough
        "instruction": instruction,
        "gold_actions": [] if actions is None else actions,
        "gold_final": "",
        "outputs": criteria.get("communicate_info"),
    }


def _call(action: Any) -> Any:
    """Return an action's name and arguments; what else it holds is about tau2's own checks."""
    if not isinstance(action, dict):
        return action
    return {key: value for key, value in action.items() if key not in _CHECK_FIELDS}


def _instruction(scenario: Any) -> str:
    """Return the simulated customer's scenario as one text in the second person."""
    if not isinstance(scenario, dict):
        return ""
    parts = scenario.get("instructions")
    texts = [parts.get(name) for name in _SCENARIO_FIELDS] if isinstance(parts, dict) else [parts]
    texts.append(scenario.get("persona"))
    texts = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    return " ".join(text if text[-1] in ".!?" else f"{text}." for text in texts)
