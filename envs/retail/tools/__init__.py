"""The registry of the store's sixteen tools, made from the typed methods of the toolbox."""

from typing import Any

from common.json_rows import shown_keys
from envs.retail.store import StoreOverlay
from envs.retail.tools.reads import ReadTools
from envs.retail.tools.schema import Tool, collect_tools, shown
from envs.retail.tools.writes import WriteTools


class RetailTools(ReadTools, WriteTools):
    """All tools over one episode's view of the store.

    Args:
        store: The store as one episode sees it.
    """

    __slots__ = ("_store",)

    def __init__(self, store: StoreOverlay) -> None:
        self._store = store


TOOLS: dict[str, Tool] = collect_tools(RetailTools)
"""Every tool by name, in alphabetical order."""

TOOL_SCHEMAS: dict[str, dict[str, Any]] = {name: tool.schema for name, tool in TOOLS.items()}
"""OpenAI-style function schema of every tool, by name."""

READ_TOOLS: frozenset[str] = frozenset(n for n, tool in TOOLS.items() if tool.access == "read")
"""Tools that never change the store."""

WRITE_TOOLS: frozenset[str] = frozenset(n for n, tool in TOOLS.items() if tool.access == "write")
"""Tools that change the store when they are accepted."""


def check_arguments(name: object, arguments: object) -> str | None:
    """Check a call against the tool's schema, without looking at the store.

    Args:
        name: Tool name, as the policy wrote it.
        arguments: Arguments, as the policy wrote them.

    Returns:
        What is wrong in words, an unknown tool included, or None when the call fits its schema.
    """
    tool = TOOLS.get(name) if isinstance(name, str) else None
    if tool is None:
        return f"unknown tool {shown(name)}"
    return tool.check(arguments)


def call_finding(action: Any) -> str:
    """Return what is wrong with a recorded call and the remedy, "" when it fits the tool's schema."""
    if not isinstance(action, dict) or action.keys() != {"name", "arguments"}:
        reason = "must be an object with exactly name and arguments"
        remedy = 'write {"name": "...", "arguments": {...}}'
        if not isinstance(action, dict):
            return f"{reason}; {remedy}"
        extra = [key for key in action if key not in ("name", "arguments")]
        if len(action) == len(extra) + 2:
            remedy = f"drop {shown_keys(extra)}"
        elif isinstance(action.get("function"), dict):
            remedy = "keep the object under function, its arguments as an object"
        elif "arguments" not in action and len(extra) == 1:
            remedy = f"rename {shown_keys(extra)} to arguments"
        return f"{reason}, not {shown_keys(action) or 'empty'}; {remedy}"
    name, arguments = action["name"], action["arguments"]
    if isinstance(arguments, str):
        return "arguments must be an object, not a string; write {...}, not its text"
    nulls = [k for k, v in arguments.items() if v is None] if isinstance(arguments, dict) else []
    if nulls:
        return f"arguments holds null ({shown_keys(nulls)}); leave these keys out"
    finding = check_arguments(name, arguments)
    if finding is None:
        return ""
    if finding.startswith("unknown tool"):
        bare = str(name).rpartition(".")[2]
        return f"{finding}; write " + (repr(bare) if bare in TOOLS else "the name of a retail tool")
    return f"{finding}; write the call as the tool's schema asks"
