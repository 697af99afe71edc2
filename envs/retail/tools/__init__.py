"""The registry of the store's sixteen tools, made from the typed methods of the toolbox."""

from typing import Any

from envs.retail.store import StoreOverlay
from envs.retail.tools.reads import ReadTools
from envs.retail.tools.schema import Tool, collect_tools, shown
from envs.retail.tools.writes import WriteTools


class RetailTools(ReadTools, WriteTools):
    """All tools over one episode's view of the store."""

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
    """Check a call, whatever the policy wrote, against the tool's schema, without looking at the store.

    Returns:
        What is wrong in words, an unknown tool included, or None when the call fits its schema.
    """
    tool = TOOLS.get(name) if isinstance(name, str) else None
    if tool is None:
        return f"unknown tool {shown(name)}"
    return tool.check(arguments)
