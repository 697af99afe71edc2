"""Read a conversation's messages: what was said, which calls were made, what the store answered.

The messages alone are enough: the calls run again on a fresh episode, so a live conversation and
a recorded one are scored alike, and no observation in a file is taken on trust.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common import strict_json
from envs.retail import Episode, RetailDatabase

MAX_ARGUMENT_CHARACTERS = 20_000
"""Longest arguments text of a call that is read at all."""


class Said(NamedTuple):
    """Words from one side to the other."""

    index: int
    """Position of the message."""
    speaker: str
    """`customer` or `agent`."""
    text: str


class Made(NamedTuple):
    """A call and what became of it."""

    index: int
    """Position of the message."""
    name: str
    arguments: dict[str, Any]
    """Empty when the arguments text was no JSON object."""
    ok: bool
    content: Any
    """The tool's result, or "Error: " and the reason."""


class Transcript(NamedTuple):
    """A conversation, replayed."""

    events: list[Said | Made]
    num_turns: int
    """Assistant messages."""
    changed_records: dict[str, dict[str, Any]]

    @property
    def calls(self) -> list[Made]:
        """The calls, in order."""
        return [event for event in self.events if isinstance(event, Made)]


def parse_arguments(text: object) -> dict[str, Any] | str:
    """Return the arguments text of a call as an object, or in words why it cannot be used; never raises."""
    if not isinstance(text, str):
        return "arguments must be the text of a JSON object"
    if len(text) > MAX_ARGUMENT_CHARACTERS:
        return f"arguments are longer than {MAX_ARGUMENT_CHARACTERS} characters"
    try:
        arguments = strict_json.loads(text)
    except strict_json.StrictJsonError as error:
        return f"arguments are not valid JSON: {ascii(str(error))[1:-1]}"
    if not isinstance(arguments, dict):
        return "arguments must be a JSON object"
    if has_lone_surrogate(text if "\\u" not in text else repr_text(arguments)):
        return "arguments hold half of a surrogate pair"
    return arguments


def repr_text(value: Any) -> str:
    """Return every text in a JSON value, joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(key + repr_text(item) for key, item in value.items())
    return "".join(map(repr_text, value)) if isinstance(value, list) else ""


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text cannot be written as UTF-8."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def run_call(episode: Episode, name: object, arguments: object) -> tuple[bool, Any]:
    """Run a call as the policy wrote it, its arguments as text; never raises.

    Returns:
        Whether the store accepted it, and the result or "Error: " and the reason.
    """
    parsed = parse_arguments(arguments)
    if isinstance(parsed, str):
        return False, f"Error: {parsed}"
    observation = episode.call(name, parsed)
    return observation.ok, observation.content


def replay(messages: Sequence[Mapping[str, Any]], db: RetailDatabase) -> Transcript:
    """Run a conversation's calls again.

    Args:
        messages: as `agent.Conversation.messages` has them. Words beside calls stay with the
            agent: they reach no customer.
    """
    episode = Episode(db)
    events: list[Said | Made] = []
    num_turns = 0
    for index, message in enumerate(messages):
        if message["role"] == "user":
            events.append(Said(index, "customer", message["content"]))
        elif message["role"] == "assistant":
            num_turns += 1
            calls = message.get("tool_calls")
            for call in calls or ():
                name, text = call["function"]["name"], call["function"]["arguments"]
                ok, content = run_call(episode, name, text)
                parsed = parse_arguments(text)
                arguments = {} if isinstance(parsed, str) else parsed
                events.append(Made(index, name, arguments, ok, content))
            if not calls:
                events.append(Said(index, "agent", message["content"]))
    return Transcript(events, num_turns, episode.changed_records())
