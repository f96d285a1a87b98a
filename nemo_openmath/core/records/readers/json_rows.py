"""Rows of JSON Lines, and of a JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.readers.broken_rows import BadRow, report_bad
from nemo_openmath.core.records.readers.lines import raw_lines, text_lines

_WHOLE = 1 << 30  # bytes of a document that is read at once


def read_json_lines(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield the rows of a file with one JSON object a line."""
    for row, line in enumerate(raw_lines(path), 1):
        value = parse_line(line)
        if isinstance(value, str):
            report_bad(path, row, value, on_bad)
        elif value is not None:
            yield path, row, value


def parse_line(line: bytes) -> dict[str, Any] | str | None:
    """Return the object of a line; a text that says what is wrong with it; or None for an empty line. Integers of any
    length are exact."""
    if not line.strip():
        return None
    try:
        value = exact_json.loads(line)
        twice = exact_json.repeated_key(line, value)
    except ValueError as error:
        return _why_not_json(line, error)
    if twice is not None:
        return f"the field {twice!r} stands twice in an object; keep one of them"
    return value if isinstance(value, dict) else f"not a JSON object but {name_of(value)}"


def _why_not_json(line: bytes, error: ValueError) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 (byte {line[wrong.start]:#04x} at {wrong.start + 1}); save the file as UTF-8"
    text = text.strip()
    if text in ("{", "[") or (text.startswith("{") and not text.endswith("}") and ":" in text and len(text) < 200):
        return "not JSON Lines: an object begins here that does not end in its line; write one object a line"
    if not text.startswith(("{", "[", '"')) and ("," in text or ";" in text or "\t" in text):
        return "not JSON; if this is CSV, name the file .csv"
    return f"not JSON ({error})"


def name_of(value: Any) -> str:
    """Return what a value is, in words for a message."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        str: "a text",
        list: "a list",
        dict: "an object",
        int: "a number",
    }
    return "a number" if isinstance(value, float) else names.get(type(value), type(value).__name__)


def read_json_document(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield the rows of a JSON array of objects, or of one object. Rows are counted in the array."""
    data = bytearray()
    for line in text_lines(path):
        data += line.encode()
        if len(data) > _WHOLE:
            raise UserError(
                "a JSON document of more than 1 GiB", file=path, remedy="write JSON Lines: one object a line"
            )
    if not data.strip():
        return
    try:
        value = exact_json.loads(bytes(data))
        twice = exact_json.repeated_key(bytes(data), value)
    except ValueError as error:
        raise UserError(
            f"not JSON ({error})",
            file=path,
            row=getattr(error, "lineno", None),
            remedy="mend it, or write one JSON object a line",
        ) from error
    if twice is not None:
        raise UserError(f"the field {twice!r} stands twice in an object", file=path, remedy="keep one of them")
    for row, entry in enumerate(value if isinstance(value, list) else [value], 1):
        if isinstance(entry, dict):
            yield path, row, entry
        else:
            report_bad(path, row, f"not a JSON object but {name_of(entry)}", on_bad)
