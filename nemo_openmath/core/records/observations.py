"""What a stage did with a unit whose right outcome was known before: a control (core/stage/controls.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemo_openmath.core.records.types import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation(Record):
    """What a stage did with one planted unit, whose id is this record's."""

    case: str
    """Id of the case in its bank."""
    known: str
    """The class that the case is of."""
    outcome: str
    """The class that the stage took it for, or what it left instead."""
    detail: str = ""
    """What the stage left of it, for a reader."""


def read_observations(folder: Path) -> Iterator[Observation]:
    """Yield the observations in a folder of them, which may still be written: a line that is not whole is none."""
    for path in sorted(folder.glob("part-*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                try:
                    yield Observation.from_json(orjson.loads(line))
                except ValueError:
                    continue
