"""The base of the errors that a user can cause, whose message is all that is shown of them."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

MAX_FINDINGS = 12
MAX_LINES_NAMED = 5
MAX_CHARACTERS = 500
MAX_QUOTED = 80


class UserError(Exception):
    """Something that the user has to change; the message names it and says how."""

    def __str__(self) -> str:
        return printable(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows in the place of the traceback, as the command line does."""
        return [f"error: {self}"]


def shorten(findings: Sequence[str]) -> list[str]:
    """Return at most a dozen lines, and the count of the others, for any number of findings.

    Args:
        findings: "file:line: reason" each. A reason that more than two of them share is given once,
            with their count and the first lines.
    """
    causes: dict[str, list[str]] = {}
    keys = []
    for finding in map(cut, findings):
        found = re.match(r".*?:(\d+): (.*)", finding, re.DOTALL)
        line, reason = found.groups() if found else ("", finding)
        # What stands in quotes or brackets, and numbers, tell two lines of one cause apart.
        keys.append(re.sub(r"'[^']*'|\([^()]*\)|\d+", "", reason))
        causes.setdefault(keys[-1], []).append(line)
    lines = []
    for finding, key in zip(map(cut, findings), keys, strict=True):
        where = causes[key]
        if len(where) > 2:
            more = [line for line in dict.fromkeys(where) if line != where[0]]
            etc = ", ..." if len(more) > MAX_LINES_NAMED else ""
            named = f": lines {', '.join(more[:MAX_LINES_NAMED])}{etc}" if more else ""
            finding = f"{finding} (and {len(where) - 1} more{named})"
            causes[key] = []  # said
        if where:
            lines.append(finding)
    num_more = len(lines) - MAX_FINDINGS
    return lines[:MAX_FINDINGS] + [f"... and {num_more} other findings"] * (num_more > 0)


def printable(text: str) -> str:
    """Return a text with control characters, line ends among them, escaped as in `repr`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def brief(text: str) -> str:
    """Return a user's text, a name mostly, for a message: one line, escaped, cut at 80 characters."""
    return printable(text[:MAX_QUOTED]) + ("..." if len(text) > MAX_QUOTED else "")


def quoted(text: str) -> str:
    """Return a user's text in quotes for a message: one line, escaped, cut at 80 characters."""
    return repr(text[:MAX_QUOTED]) + ("..." if len(text) > MAX_QUOTED else "")


def cut(text: str) -> str:
    """Return a text for one line of output: escaped, without its middle when it is very long."""
    half = MAX_CHARACTERS // 2
    return printable(text if len(text) <= MAX_CHARACTERS else f"{text[:half]} ... {text[-half:]}")


def system_error(error: OSError, place: object) -> str:
    """Return one line for a file that cannot be read or written.

    Args:
        place: The file when the error names none, as a full disk does.
    """
    name = place if error.filename is None else error.filename
    return f"{cut(str(name))}: {error.strerror}; check the path, its rights and the disk's free space"


def print_error(text: str) -> None:
    """Print an error to stderr; of the processes that torchrun started, the first to fail does."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        try:  # one folder for each process of this start, in one that torchrun deletes at the end
            Path(error_file).parent.with_name("error-printed").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # better twice than never
    print(text, file=sys.stderr, flush=True)
