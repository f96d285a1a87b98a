"""Where a regular expression matches in the texts of records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.encoding import record_type
from nemo_openmath.data.records.shown import printable, texts_of, transcript_of
from nemo_openmath.data.records.stored import StoredRecord

_AROUND = 60  # characters of an excerpt before and behind a match
_NAMES = ("id", "parents", "problem_id", "members", "model")


@dataclass(frozen=True, slots=True)
class TextMatch:
    """The first match in a text of a record."""

    id: str
    place: str
    """The field, or who wrote the text and what it is: ``problem``, ``user``, ``model: code``."""
    match: str
    excerpt: str
    """One line around it."""
    count: int
    """Matches in this text."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def compile_pattern(pattern: str, *, ignore_case: bool) -> re.Pattern[str]:
    """Return a regular expression of Python. Raises UserError where it is none."""
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        remedy = r"write a regular expression of Python; a sign that stands for itself has a \ before it: \\boxed"
        raise UserError(f"{pattern!r} is no pattern ({error})", remedy=remedy) from error


def matches(record: StoredRecord, pattern: re.Pattern[str]) -> list[TextMatch]:
    """Return the texts of a record that match, each with its first match. Names, such as ids and verdicts, are no
    texts."""
    return [match for place, text in _texts(record) if (match := _match(record.id, place, text, pattern)) is not None]


def _match(name: str, place: str, text: str, pattern: re.Pattern[str]) -> TextMatch | None:
    if (first := pattern.search(text)) is None:
        return None
    start, end = max(0, first.start() - _AROUND), min(first.end(), first.start() + 4 * _AROUND) + _AROUND
    line = printable(" ".join(text[start:end].split()))
    line = f"{'...' * (start > 0)}{line}{'...' * (end < len(text))}"
    return TextMatch(name, place, first[0], line, sum(1 for _ in pattern.finditer(text)))


def _texts(record: StoredRecord) -> Iterator[tuple[str, str]]:
    kind = record_type(record.fields)
    left_out = {*_NAMES, *(kind.enums if kind is not None else ())}
    for name, value in record.fields.items():
        if name not in left_out:
            yield from _strings(name, value)
    if (transcript := transcript_of(record)) is not None:
        yield from texts_of(transcript)


def _strings(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _strings(f"{place}.{name}", entry)
    elif isinstance(value, Sequence):
        for number, entry in enumerate(value):
            yield from _strings(f"{place}[{number}]", entry)
