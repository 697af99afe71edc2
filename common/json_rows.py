"""Rows of a user's file, JSON Lines or one JSON array, each with the line that an editor shows.

`encoding_finding` decides, for every reader, which bytes are text; what is not UTF-8 is named once,
with the remedy.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from common import strict_json
from common.user_error import UserError, printable, shorten

NUM_HEAD_BYTES = 4096
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FORMATS = (
    (b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"), (b"PAR1", "Parquet"), (b"ARROW1", "Arrow"),
)


class DatasetError(UserError, ValueError):
    """A file of rows or a set of tasks that cannot be used; one cause a line, then any remedy."""

    def __init__(self, problems: Sequence[str], remedy: str = "") -> None:
        super().__init__("\n".join(shorten(problems) + [remedy] * bool(remedy)))
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(map(printable, self.args[0].split("\n")))


class JsonRow(NamedTuple):
    """One row of a file: its value, or what is wrong with it."""

    line: int
    """Line of the file on which the row begins, from 1."""
    number: int
    """Item number in an array, from 1; the line in any other file."""
    place: str
    """"file:line", followed by ": item 5" in an array."""
    value: Any
    finding: str
    """"row: reason; remedy", or "" when there is a value."""


def encoding_finding(head: bytes) -> str:
    """Say why a file is not UTF-8 text, "" when nothing speaks against it.

    Args:
        head: The first bytes of the file, `NUM_HEAD_BYTES` at most.
    """
    for magic, name in _FORMATS:
        if head.startswith(magic):
            return f"is {name} data, not text; unpack or convert it to JSON in UTF-8"
    num_zeros = head.count(0)
    if num_zeros * 5 > len(head) * 3 or head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        name = "UTF-32 text"
    elif num_zeros * 5 > len(head) or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        name = "UTF-16 text"
    else:
        return "holds zero bytes, so it is no text; write it as JSON in UTF-8" if num_zeros else ""
    return f"is {name}, not UTF-8; save it as UTF-8 (Encoding in the editor's Save As, or iconv)"


def read_rows(path: Path) -> Iterator[JsonRow]:
    """Yield the rows of a JSONL file, or of a file that is one JSON array (read at once).

    Blank lines, CRLF and byte order marks at the beginning of a line are fine.

    Raises:
        DatasetError: The file is missing, unreadable, a folder, or not UTF-8 text.
    """
    if path.is_dir():
        raise DatasetError([f"{path}: is a folder; name the file inside of it"])
    try:
        with path.open("rb") as stream:
            finding = encoding_finding(stream.peek(NUM_HEAD_BYTES)[:NUM_HEAD_BYTES])
            if finding:
                raise DatasetError([f"{path}: {finding}"])
            yield from _rows(path, stream)
    except OSError as error:
        remedy = "check the path" if isinstance(error, FileNotFoundError) else "check the file"
        raise DatasetError([f"{path}: cannot be read ({error.strerror}); {remedy}"]) from None


def _rows(path: Path, stream: BinaryIO) -> Iterator[JsonRow]:
    """Yield the rows of an array, of one object over several lines, or of any other file."""
    for line, raw in enumerate(stream, start=1):
        raw = raw.removeprefix(_BYTE_ORDER_MARK)
        if not raw.strip():
            continue
        if raw.lstrip().startswith(b"["):
            yield from _array_rows(path, raw + stream.read(), line)
            return
        lines: Iterable[bytes] = chain([raw], stream)
        if parse_row(raw)[2]:
            raw += stream.read()
            value, finding, _ = parse_row(raw)
            if not finding:
                yield JsonRow(line, line, f"{path}:{line}", value, "")
                return
            lines = BytesIO(raw)
        yield from _line_rows(path, lines, line)
        return


def _line_rows(path: Path, lines: Iterable[bytes], first_line: int) -> Iterator[JsonRow]:
    unfinished: JsonRow | None = None
    for line, raw in enumerate(lines, start=first_line):
        raw = raw.removeprefix(_BYTE_ORDER_MARK)
        if not raw.strip():
            continue
        if unfinished is not None and raw[:1] in b' \t"}]':
            reason = "row: a JSON object over several lines; write each object on one line (jq -c)"
            unfinished = unfinished._replace(finding=reason)
            continue
        if unfinished is not None:
            yield unfinished
        value, finding, is_cut = parse_row(raw)
        row = JsonRow(line, line, f"{path}:{line}", value, finding)
        unfinished = row if is_cut else None
        if not is_cut:
            yield row
    if unfinished is not None:
        yield unfinished


def _array_rows(path: Path, raw: bytes, first_line: int) -> Iterator[JsonRow]:
    number, line, counted = 0, first_line, 0
    try:
        text = raw.decode()
        for position, value in strict_json.iter_array(text):
            line += text.count("\n", counted, position)
            number, counted = number + 1, position
            yield JsonRow(line, number, f"{path}:{line}: item {number}", value, "")
        return
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        finding = "row: not UTF-8; save the file as UTF-8"
    except strict_json.StrictJsonError as error:
        line = first_line + text.count("\n", 0, max(error.position, counted))
        reason = error.reason.removesuffix(" starting at")
        finding = f"row: not valid JSON: {reason}; write one whole JSON array, or an object a line"
    yield JsonRow(line, number + 1, f"{path}:{line}", None, finding)


def parse_row(raw: bytes) -> tuple[Any, str, bool]:
    """Parse one line.

    Returns:
        The value; what is wrong with it, "row: reason; remedy" or ""; and whether the line ends
        before its value does.
    """
    raw = raw.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n")
    if b"\0" in raw:
        return None, "row: holds zero bytes, as UTF-16 text does; save the file as UTF-8", False
    try:
        text = raw.decode()
        return strict_json.loads(text), "", False
    except UnicodeDecodeError as error:
        reason = f"row: not UTF-8 at byte {error.start + 1}; save the file as UTF-8"
        return None, reason, False
    except strict_json.StrictJsonError as error:
        rest = text[error.position :].strip() if error.position >= 0 else text
        is_cut = not rest or error.reason.startswith("Unterminated string")
        remedy = "write one JSON object a line"
        if rest == ",":
            remedy = "drop the comma after the object"
        elif text.startswith("{'"):
            remedy = "write it with json.dumps: JSON has double quotes, true, false and null"
        elif "\r" in text:
            remedy = "end each line with a line feed, not with a carriage return alone"
        return None, f"row: not valid JSON: {error}; {remedy}", is_cut


def typed_field(
    row: Mapping[str, Any], name: str, kind: type, word: str, findings: list[str]
) -> Any:
    """Return an optional field; None when it is absent, null or (added to findings) ill-typed."""
    value = row.get(name)
    if value is not None and not isinstance(value, kind):
        text = value if isinstance(value, int | float) else "..."
        form = {str: f'"{text}"', list: '["...", "..."]', dict: "{...}"}[kind]
        findings.append(f"{name}: must be {word}, not {type(value).__name__}; write {form}")
        return None
    return value


def shown_keys(keys: Iterable[str]) -> str:
    """Name the keys of an object, the first eight of them, for a message."""
    keys = [printable(key[:40]) for key in keys]
    return ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
