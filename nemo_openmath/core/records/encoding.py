"""A record as the line that stands for it in a file, and back. What is long stands elsewhere (bodies.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.bodies import Body, NewBody, body_of
from nemo_openmath.core.records.types import Generation, Group, Problem, Record, SftRow, Thread

R = TypeVar("R", bound=Record)

_BODY = "transcript"
"""The field that is stored as a body, of the types of records that have it."""


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A record as it is written. Any process may make it."""

    id: str
    owner: str
    """Name of the problem, or of whatever else it is divided by (``Record.owner``)."""
    tally: str
    line: bytes
    """JSON of its fields without the body."""
    body: Body | NewBody | None = None

    @classmethod
    def of(cls, record: Record) -> EncodedRecord:
        """Encode a record. A body that is stored already is not stored again."""
        owner, tally = getattr(record, record.owner), record.tally()
        names = _narrow_fields(type(record))
        if names is None:
            return cls(record.id, owner, tally, exact_json.dumps(record))
        row = {name: getattr(record, name) for name in names}
        transcript: Body | Mapping[str, Any] = getattr(record, _BODY)
        body = transcript if isinstance(transcript, Body) else NewBody.of(record.id, transcript)
        return cls(record.id, owner, tally, exact_json.dumps(row), body)

    def content(self) -> bytes:
        """Return what :func:`bodies.content_of` returns for its line."""
        return self.line if self.body is None else self.line[:-1] + self.body.digest.encode()


_NARROW: dict[type[Record], tuple[str, ...] | None] = {}


def _narrow_fields(kind: type[Record]) -> tuple[str, ...] | None:
    """Return the fields of a type of records without its body; None where it has none."""
    if kind not in _NARROW:
        names = tuple(field.name for field in fields(kind))
        _NARROW[kind] = tuple(name for name in names if name != _BODY) if _BODY in names else None
    return _NARROW[kind]


def parse_record(line: bytes, kind: type[R], file: Path, row: int) -> R:
    """Return the record of a line. Raises UserError naming file and row where it is none."""
    try:
        values = exact_json.loads(line)
        if "body" in values and _BODY in values:
            raise ValueError(f"has both `body` and `{_BODY}`")
        if "body" in values and _narrow_fields(kind) is not None:
            values[_BODY] = body_of(values, str(values.get("id")), file.parent)
        return kind.from_json(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(str(error), file=file, row=row, remedy=again(file)) from error


def again(file: Path) -> str:
    """Return the remedy for a line of a finished stage that is not what the stage wrote."""
    return f"remove the folder {file.parent} and run the stage that wrote it again"


_MARKS: dict[str, type[Record]] = {
    "finish": Generation,
    "members": Group,
    "mode": SftRow,
    "forum_post": Thread,
    "problem": Problem,
}
"""Field of a line -> the type of record that alone has it, but for those above."""


def record_type(row: Mapping[str, Any]) -> type[Record] | None:
    """Return the type of the record of a line; None where it is none that is known."""
    return next((kind for mark, kind in _MARKS.items() if mark in row), None)


_ID = b'{"id":"'


def id_of_line(line: bytes) -> str:
    """Return the id of a record, without parsing the rest of its line."""
    if line.startswith(_ID):
        return line[len(_ID) : line.index(b'"', len(_ID))].decode()
    return str(exact_json.loads(line)["id"])


def owner_of_line(line: bytes, kind: type[Record]) -> str:
    """Return the name by which the record of a line is divided."""
    if kind.owner == "id":
        return id_of_line(line)
    return str(orjson.loads(line)[kind.owner])
