"""One attempt at a task: calls in, observations out, the changed records at the end.

A transfer to a human agent does not end an episode; whoever plays it decides that.
"""

import marshal
from dataclasses import dataclass
from typing import Any

from envs.retail.store import Record, RetailDatabase, StoreOverlay, ToolRefusal
from envs.retail.tools import TOOLS, RetailTools, check_arguments


@dataclass(frozen=True, slots=True)
class Observation:
    """What a call gave back."""

    ok: bool
    """Whether the store accepted the call; False means that nothing has changed."""
    content: dict[str, Any] | list[Any] | str
    """The tool's result, or "Error: " and the reason in one line. A copy, free to be changed."""


class Episode:
    """A store of one's own: reads the shared database, keeps every write to itself.

    >>> episode = Episode(RetailDatabase.load())
    >>> episode.call("calculate", {"expression": "47.84 + 1"})
    Observation(ok=True, content='48.84')
    >>> episode.call("get_order_details", {"order_id": "#W0"})
    Observation(ok=False, content='Error: order not found')
    >>> episode.changed_records()
    {'orders': {}, 'users': {}}

    Construction takes constant time, since a record is copied only when it is written. One episode
    belongs to one thread; any number of them may share a database.
    """

    __slots__ = ("_store", "_tools")

    def __init__(self, database: RetailDatabase) -> None:
        self._store = StoreOverlay(database)
        self._tools = RetailTools(self._store)

    def call(self, name: object, arguments: object) -> Observation:
        """Play one call, whatever a model wrote as its arguments; it is answered and never raises.

        Only a `ToolRefusal` becomes an observation, and only here: any other exception is a bug and
        passes through.

        Returns:
            The observation; `ok` is False when the call does not fit the tool's schema or the
            store refuses it.
        """
        finding = check_arguments(name, arguments)
        if finding is not None:
            return Observation(False, f"Error: {finding}")
        try:
            result = TOOLS[name].function(self._tools, **arguments)
        except ToolRefusal as refusal:
            return Observation(False, f"Error: {refusal}")
        return Observation(True, result if isinstance(result, str) else _copy(result))

    def changed_records(self) -> dict[str, dict[str, Record]]:
        """Return copies of all records that differ from the database, whole.

        `{"orders": {order_id: order}, "users": {user_id: user}}`; a record that was changed and changed
        back is left out.
        """
        return _copy(self._store.changed_records())


def _copy(record: Any) -> Any:
    # A record is plain JSON data, and for that marshal is several times faster than copy.deepcopy.
    return marshal.loads(marshal.dumps(record))
