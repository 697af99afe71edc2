"""The retail store: a database, sixteen tools and the episode that plays them."""

from envs.retail.episode import Episode, Observation
from envs.retail.store import ADDRESS_FIELDS, DatabaseError, RetailDatabase
from envs.retail.tools import READ_TOOLS, TOOL_SCHEMAS, WRITE_TOOLS, check_arguments

__all__ = [
    "ADDRESS_FIELDS", "READ_TOOLS", "TOOL_SCHEMAS", "WRITE_TOOLS", "DatabaseError", "Episode",
    "Observation", "RetailDatabase", "check_arguments",
]
