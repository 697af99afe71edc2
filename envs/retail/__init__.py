"""The retail store: a database, sixteen tools and the episode that plays them.

Left out on purpose: prompts, rewards and the simulated customer, which belong to other modules,
and torch, which no module under `envs/` imports.
"""

from envs.retail.database import DatabaseError, RetailDatabase
from envs.retail.episode import Episode, Observation
from envs.retail.tools import READ_TOOLS, TOOL_SCHEMAS, WRITE_TOOLS, check_arguments

__all__ = [
    "READ_TOOLS",
    "TOOL_SCHEMAS",
    "WRITE_TOOLS",
    "DatabaseError",
    "Episode",
    "Observation",
    "RetailDatabase",
    "check_arguments",
]
