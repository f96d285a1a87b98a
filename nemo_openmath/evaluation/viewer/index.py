"""The index of solutions: where each lies, and what filters need of it. Columns of numbers, one row a solution.

A row takes 57 bytes with its orders: 57 MB a million. Texts are read from the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Mode
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.data.records.stored import StoredRecord, parse_stored
from nemo_openmath.evaluation.viewer.problems import SearchedProblems

MODES: tuple[str, ...] = tuple(Mode)
FINISHES: tuple[str, ...] = tuple(Finish)
UNGRADED = "ungraded"
VERDICTS: tuple[str, ...] = (*Verdict, UNGRADED)
"""What the columns' numbers stand for."""

COLUMNS = {
    "key": np.uint64,  # of the id
    "offset": np.int64,  # of the line in its file
    "size": np.int32,  # bytes of the line
    "file": np.int32,
    "row": np.int32,  # of the line in its file, for messages
    "problem": np.int32,
    "stage": np.uint16,
    "mode": np.uint8,
    "finish": np.uint8,
    "verdict": np.uint8,
    "tokens": np.int32,
}


@dataclass(frozen=True, slots=True)
class Places:
    """Where lines lie that are found by a key: sorted by it."""

    keys: np.ndarray
    files: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def find(self, name: str) -> list[tuple[int, int, int]]:
        """Return (file, offset, size) of the lines under a name."""
        key = np.uint64(unit_key(name))
        first, last = (int(np.searchsorted(self.keys, key, side=side)) for side in ("left", "right"))
        return [(int(self.files[i]), int(self.offsets[i]), int(self.sizes[i])) for i in range(first, last)]


@dataclass
class SolutionIndex:
    """All solutions of some folders."""

    stages: list[str]
    files: list[Path]
    columns: dict[str, np.ndarray]
    problems: SearchedProblems
    chosen: np.ndarray
    """(key of the chosen solution, row of the selection), sorted by the key: shape [selections, 2], uint64."""
    groups: Places
    judgements: Places
    notes: list[str] = field(default_factory=list)
    from_prompts: int = 0
    """Problems whose text is that of a prompt, for no record has it."""

    def __post_init__(self) -> None:
        self._by_key = np.argsort(self.columns["key"], kind="stable").astype(np.int32)
        self._sorted_keys = self.columns["key"][self._by_key]
        self.by_tokens = np.argsort(self.columns["tokens"], kind="stable").astype(np.int32)

    def __len__(self) -> int:
        return len(self.columns["key"])

    def rows_of(self, name: str) -> list[int]:
        """Return the rows of all versions of a solution, in the order of the stages."""
        key = np.uint64(unit_key(name))
        first, last = (int(np.searchsorted(self._sorted_keys, key, side=s)) for s in ("left", "right"))
        return sorted(int(row) for row in self._by_key[first:last])

    def selections_of(self, name: str) -> list[int]:
        """Return the rows of the selections that chose a solution."""
        keys, key = self.chosen[:, 0], np.uint64(unit_key(name))
        first, last = (int(np.searchsorted(keys, key, side=side)) for side in ("left", "right"))
        return [int(row) for row in self.chosen[first:last, 1]]

    def record(self, row: int) -> StoredRecord:
        """Read the record of a row. Raises UserError where its file was changed since the index was made."""
        columns = self.columns
        place = (int(columns["file"][row]), int(columns["offset"][row]), int(columns["size"][row]))
        record = parse_stored(self.files[place[0]], int(columns["row"][row]), self.line(place))
        if unit_key(record.id) != int(columns["key"][row]):
            raise self._changed(place[0])
        return record

    def line(self, place: tuple[int, int, int]) -> bytes:
        """Read a line at (file, offset, size). Raises UserError where it does not lie there any more."""
        file, offset, size = place
        try:
            with self.files[file].open("rb") as lines:
                lines.seek(offset)
                line = lines.read(size)
        except FileNotFoundError as error:
            raise self._changed(file) from error
        if len(line) != size:
            raise self._changed(file)
        return line

    def _changed(self, file: int) -> UserError:
        return UserError(
            "was made again since this browser was started",
            file=self.files[file],
            remedy="stop openmath view and start it again",
        )

    def nbytes(self) -> int:
        """Return the bytes of the columns and orders, without the problems."""
        arrays = [*self.columns.values(), self._by_key, self._sorted_keys, self.by_tokens, self.chosen]
        for places in (self.groups, self.judgements):
            arrays += [places.keys, places.files, places.offsets, places.sizes]
        return sum(array.nbytes for array in arrays)
