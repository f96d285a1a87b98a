"""A block of raw rows -> SFT rows, in one worker process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.chat import RENDERED, Transcript, load_template
from nemo_openmath.core.records import Drop, EncodedRecord, Mode, SftRow
from nemo_openmath.data.rows.formatting import NOT_TEXT, Formatter, Reject
from nemo_openmath.data.rows.selection import FormatRules
from nemo_openmath.data.rows.sources import Block, Place

THINKING_COUNTS = ("rows_without_thinking", "rows_that_think")
_UNKNOWN_COLUMNS = "unknown columns"
_BROKEN = ("not a JSON object", _UNKNOWN_COLUMNS, "not an SFT row")


@dataclass(frozen=True, slots=True)
class ConvertedBlock:
    """What became of one block. ``source``: the number of the source that it is of.

    ``rows``: each row as it is stored, or why there is none. ``broken``: (place, why) of those that are of
    no known form. ``counts``: of rows that are not dropped, those that think and the like.
    """

    unit: str
    source: int
    rows: list[EncodedRecord | Drop]
    broken: list[tuple[Place, str]]
    counts: Counter[str]


def unit_of(source: int, block: Block) -> str:
    """Return the name of the unit of work that a block is."""
    return f"{source}:{block.begin}"


class BlockConverter:
    """Parses, formats and judges the rows of blocks. The arguments are those of a Formatter, and the rules."""

    def __init__(self, mode: str | None, prompts: Mapping[str, Path], rules: FormatRules):
        self._formatter = Formatter(mode, {name: load_template(name, path) for name, path in prompts.items()})
        self._rules = rules

    def __call__(self, task: tuple[int, Block]) -> ConvertedBlock:
        """Convert one block, given with the number of its source."""
        source, block = task
        counts: Counter[str] = Counter()
        rows: list[EncodedRecord | Drop] = []
        broken: list[tuple[Place, str]] = []
        for place, fields in block.rows():
            try:
                row, transcript, encoded = self._format(fields)
                counts["rendered_prompts"] += transcript.messages[0].role == RENDERED if transcript.messages else 0
                if row.mode is not Mode.GENSELECT:
                    counts[THINKING_COUNTS[transcript.thinks]] += 1
                rows.append(encoded)
            except Reject as error:
                rows.append(Drop(error.reason, f"{place} {error.detail}"))
                if error.reason in _BROKEN or error.reason.endswith(NOT_TEXT):
                    problem = error.detail if isinstance(fields, str) else f"{error.reason} ({error.detail})"
                    known = "; problem and generated_solution are read, or input and output"
                    broken.append((place, problem + (known if error.reason == _UNKNOWN_COLUMNS else "")))
        return ConvertedBlock(unit_of(source, block), source, rows, broken, +counts)

    def _format(self, fields: dict[str, Any] | str) -> tuple[SftRow, Transcript, EncodedRecord]:
        """Return the row, its transcript, and the row as it is stored. Raises Reject."""
        if isinstance(fields, str):
            raise Reject("not a JSON object", fields)
        row, transcript = self._formatter.format_with_transcript(fields)
        if reason := self._rules.reject(row, transcript):
            raise Reject(reason, row.id)
        try:
            return row, transcript, EncodedRecord.of(row)
        except TypeError as error:  # a row of ours that came through Parquet: half a character, bytes, a huge number
            raise Reject("cannot be written as JSON", str(error)) from error
