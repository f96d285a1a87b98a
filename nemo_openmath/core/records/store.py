"""Append-only store of one stage's output: kill the writer at any instant and no finished unit is lost or doubled.

A *unit* is the smallest work that is redone as a whole (one thread, one sample). It leaves records, drops, or both.
Each writer owns three files of its shard:

    part-00000-of-00001.jsonl      the records, one JSON object a line, and nothing else
    drops-00000-of-00001.jsonl     {unit, reason, detail}
    journal-00000-of-00001.jsonl   {unit, records: end offset, drops: end offset, time, host, attempt}

The journal is the commit log: a flush writes and syncs records and drops first and the journal lines after them. On
opening, a torn last journal line is cut, and the data files are cut back to the offsets of the last whole one
(recovery.py, which also says what a damaged file costs). Times, hosts and attempts live in the journal alone, so two
runs of the same work have equal data files up to line order.
Works on shared network file systems: no locks, no database; a second writer of a shard is noticed by file sizes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import orjson

from nemo_openmath.core.errors import OpenMathError, UserError, of_the_system
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.manifest import PLAN, read_manifest
from nemo_openmath.core.records.recovery import recover
from nemo_openmath.core.records.types import Record

R = TypeVar("R", bound=Record)
_HOST = socket.gethostname()


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a unit, or a part of it, went no further."""

    reason: str
    """What is counted."""
    detail: str = ""
    """An example for a reader."""


@dataclass(frozen=True, slots=True)
class _DropLine:
    unit: str
    reason: str
    detail: str


class RecordWriter:
    """Writes one shard. ``flush_units`` and ``flush_seconds`` bound the work that a kill can cost, which is then
    redone.

    On opening, ``recovered`` finished units are there, and ``lost`` ones were damaged and are to be done again.
    """

    def __init__(
        self, folder: Path, *, shard: int = 0, shards: int = 1, flush_units: int = 256, flush_seconds: float = 1.0
    ):
        self.folder = folder
        self._flush_units, self._flush_seconds = flush_units, flush_seconds
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{shard:05d}-of-{shards:05d}.jsonl"
        self._paths = {kind: folder / f"{kind}-{name}" for kind in ("part", "drops", "journal")}
        state = recover(self._paths)
        self._done, self._attempt, self._ends = state.done, state.attempt, state.ends
        self._files: dict[str, BinaryIO] = {}
        for kind, path in self._paths.items():
            self._files[kind] = path.open("ab", buffering=0)
        self._failed = False
        self._records: list[bytes] = []
        self._drops: list[bytes] = []
        self._journal: list[bytes] = []
        self._pending = {"part": 0, "drops": 0}
        self._flushed = time.monotonic()
        self.recovered, self.lost = len(self._done), state.lost

    def done(self, unit: str) -> bool:
        """Return whether this unit was committed, now or by an earlier attempt."""
        return unit_key(unit) in self._done

    def commit(self, unit: str, records: Sequence[Record | orjson.Fragment] = (), drops: Sequence[Drop] = ()) -> None:
        """Hand over all that a unit left. It is durable after the next flush, and never split by a kill.

        A ``Fragment`` is the JSON of a record that another process made.
        """
        key = unit_key(unit)
        if key in self._done:
            raise ValueError(f"unit {unit} was committed before")
        self._done.add(key)
        for record in records:
            line = exact_json.dumps(record) + b"\n"
            self._records.append(line)
            self._pending["part"] += len(line)
        for drop in drops:
            line = orjson.dumps(_DropLine(unit, drop.reason, drop.detail[:500])) + b"\n"
            self._drops.append(line)
            self._pending["drops"] += len(line)
        entry = {
            "unit": unit,
            "records": self._ends["part"] + self._pending["part"],
            "drops": self._ends["drops"] + self._pending["drops"],
            "time": round(time.time(), 3),
            "host": _HOST,
            "attempt": self._attempt,
        }
        self._journal.append(orjson.dumps(entry) + b"\n")
        if len(self._journal) >= self._flush_units or time.monotonic() - self._flushed > self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Make everything committed so far durable."""
        self._flushed = time.monotonic()
        if not self._journal or self._failed:
            return
        self._append("part", self._records)
        self._append("drops", self._drops)
        self._append("journal", self._journal)
        self._records, self._drops, self._journal = [], [], []
        self._pending = {"part": 0, "drops": 0}

    def close(self) -> None:
        """Flush and close the files. A second call does nothing."""
        if self._files:
            try:
                self.flush()
            finally:
                for file in self._files.values():
                    file.close()
                self._files = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, kind: str, lines: list[bytes]) -> None:
        if not lines:
            return
        file, path, data = self._files[kind], self._paths[kind], b"".join(lines)
        if os.fstat(file.fileno()).st_size != self._ends[kind]:
            raise OpenMathError(f"{path}: another process writes this shard; stop one of them and run again")
        try:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        except OSError as error:
            self._failed = True  # the next opening cuts what was half written
            raise of_the_system(error, path) or error from error
        self._ends[kind] += len(data)


def part_files(folder: Path) -> list[Path]:
    """Return the data files of a finished stage, in a fixed order."""
    return sorted(folder.glob("part-*.jsonl"))


def refuse_no_records(folder: Path) -> None:
    """Raise UserError where a path is not the folder of a finished stage, nor one that :func:`write_records` filled."""
    remedy = "name the folder of a finished stage"
    if not folder.is_dir():
        raise UserError("is a file" if folder.exists() else "is not there", file=folder, remedy=remedy)
    if read_manifest(folder) is not None:
        return
    if (folder / PLAN).is_file():
        raise UserError("is the folder of a stage that has not finished", file=folder, remedy="run that stage first")
    if not part_files(folder):
        raise UserError("holds no records of a stage", file=folder, remedy=remedy)


def read_lines(folder: Path) -> Iterator[bytes]:
    """Yield the lines of all data files."""
    for path in part_files(folder):
        with path.open("rb") as file:
            yield from file


def shard_file(folder: Path, shard: int, shards: int) -> Path:
    """Return the data file of one shard."""
    return folder / f"part-{shard:05d}-of-{shards:05d}.jsonl"


def shard_counts(folder: Path) -> set[int]:
    """Return into how many shards the work in a folder was divided: one number, where nobody mixed two."""
    return {int(path.stem.rsplit("-", 1)[1]) for path in folder.glob("journal-*-of-*.jsonl")}


def read_records(folder: Path, kind: type[R]) -> Iterator[R]:
    """Yield every line of a finished stage as a record; ``core.merging.read_merged`` gives each id once. Raises
    UserError naming file and row of a broken line."""
    for file, row, line in record_lines([folder]):
        yield parse_record(line, kind, file, row)


def read_file(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of one data file. Raises UserError naming file and row of a broken line."""
    for row, line in _numbered(path):
        yield parse_record(line, kind, path, row)


def record_lines(folders: Iterable[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Yield (file, row, line) of all data files of finished stages, in a fixed order."""
    for folder in folders:
        for path in part_files(folder):
            for row, line in _numbered(path):
                yield path, row, line


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from enumerate(file, 1)


def parse_record(line: bytes, kind: type[R], file: Path, row: int) -> R:
    """Return the record of a line. Raises UserError naming file and row where it is none."""
    try:
        return kind.from_json(exact_json.loads(line))
    except (ValueError, AttributeError) as error:
        raise UserError(str(error), file=file, row=row, remedy=again(file)) from error


def again(file: Path) -> str:
    """Return the remedy for a line of a finished stage that is not what the stage wrote."""
    return f"remove the folder {file.parent} and run the stage that wrote it again"


_ID = b'{"id":"'


def id_of_line(line: bytes) -> str:
    """Return the id of a record, without parsing the rest of its line."""
    if line.startswith(_ID):
        return line[len(_ID) : line.index(b'"', len(_ID))].decode()
    return str(exact_json.loads(line)["id"])


def read_drops(folder: Path) -> Iterator[tuple[str, Drop]]:
    """Yield (unit, drop) of a stage. Raises UserError naming file and row of a broken line."""
    for path in sorted(folder.glob("drops-*.jsonl")):
        for row, line in _numbered(path):
            try:
                drop = orjson.loads(line)
                yield drop["unit"], Drop(drop["reason"], drop["detail"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"not a drop ({error})", file=path, row=row, remedy=again(path)) from error


def unit_names(folder: Path) -> Iterator[str]:
    """Yield the names of the finished units in the journals of a folder."""
    for path in sorted(folder.glob("journal-*.jsonl")):
        with path.open("rb") as file:
            yield from (orjson.loads(line)["unit"] for line in file)


def count_units(folder: Path) -> int:
    """Count the finished units in the journals of a folder."""
    return sum(1 for path in folder.glob("journal-*.jsonl") for _ in path.open("rb"))


def write_records(folder: Path, records: Iterable[Record]) -> None:
    """Store records that exist already (imports, tests), one unit each."""
    with RecordWriter(folder) as writer:
        for record in records:
            if not writer.done(record.id):
                writer.commit(record.id, [record])
