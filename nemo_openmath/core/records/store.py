"""Append-only store of one stage's output: kill the writer at any instant and no finished unit is lost or doubled.

A *unit* is the smallest work that is redone as a whole (one thread, one sample). It leaves records, drops, or both.
The work is divided into partitions by id. Each has its own files, and one process at a time writes them:

    part-00000-of-00001.jsonl        the records, one JSON object a line
    bodies-00000-of-00001.jsonl.zst  their transcripts, where this stage wrote them (bodies.py)
    drops-00000-of-00001.jsonl       {unit, reason, detail}
    journal-00000-of-00001.jsonl     {unit, records: end offset, drops, bodies: likewise, time, host, attempt}
    failed-00000-of-00001.jsonl      the units that failed when they were last tried (failed.py)

The journal is the commit log: a flush writes and syncs bodies, records and drops first and the journal lines after
them. Opening a store brings it to what the journal lists (recovery.py). Times, hosts and attempts live in the journal
alone, so two runs of the same work have equal records up to their order. Works on shared network file systems: no
locks, no database; a second writer of a partition is noticed by file sizes.
"""

from __future__ import annotations

import math
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
from nemo_openmath.core.records.bodies import Body, NewBody, pointer
from nemo_openmath.core.records.encoding import EncodedRecord, again, owner_of_line, parse_record
from nemo_openmath.core.records.failed import read_failed
from nemo_openmath.core.records.ids import partition_of, unit_key
from nemo_openmath.core.records.manifest import DIVIDED, MANIFEST, PLAN, read_manifest
from nemo_openmath.core.records.recovery import recover
from nemo_openmath.core.records.sums import Sums, current_sums
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
    """Writes one partition. ``flush_units`` and ``flush_seconds`` bound the work that a kill can cost, which is then
    redone.

    On opening, ``recovered`` finished units are there, and ``lost`` ones were damaged and are to be done again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        partition: int = 0,
        partitions: int = 1,
        flush_units: int = 256,
        flush_seconds: float = 1.0,
    ):
        self.folder = folder
        self._partition, self._partitions = partition, partitions
        self._flush_units, self._flush_seconds = flush_units, flush_seconds
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = partition_files(folder, partition, partitions)
        state = recover(self._paths)
        self._done, self._attempt, self._ends = state.done, state.attempt, state.ends
        self._sums = current_sums(self._paths, self._ends, partition, partitions)
        self._files: dict[str, BinaryIO] = {}
        for kind in ("part", "drops", "journal"):
            self._files[kind] = self._paths[kind].open("ab", buffering=0)
        self._failed = False
        self._pending: dict[str, list[bytes]] = {kind: [] for kind in _WRITTEN}
        self._next = dict(self._ends)
        self._flushed = time.monotonic()
        self._origins: dict[Path, str] = {}
        self.recovered, self.lost = len(self._done), state.lost

    def done(self, unit: str) -> bool:
        """Return whether this unit was committed, now or by an earlier attempt."""
        return unit_key(unit) in self._done

    def commit(
        self,
        unit: str,
        records: Sequence[Record | EncodedRecord] = (),
        drops: Sequence[Drop] = (),
        tokens: int | None = None,
    ) -> None:
        """Hand over all that a unit left. It is durable after the next flush, and never split by a kill. ``tokens``:
        what models wrote for it; None where nobody counts."""
        key = unit_key(unit)
        if key in self._done:
            raise ValueError(f"unit {unit} was committed before")
        self._done.add(key)
        for record in records:
            encoded = record if isinstance(record, EncodedRecord) else EncodedRecord.of(record)
            aligned = partition_of(encoded.owner, self._partitions) == self._partition
            self._sums.add_record(
                encoded.content(), encoded.tally, aligned=aligned, single=len(records) == 1 and encoded.id == unit
            )
            self._append("part", self._line(encoded))
        for drop in drops:
            self._sums.drops[drop.reason] += 1
            self._append("drops", orjson.dumps(_DropLine(unit, drop.reason, drop.detail[:_DETAIL])) + b"\n")
        self._sums.units += 1
        entry = {
            "unit": unit,
            "records": self._next["part"],
            "drops": self._next["drops"],
            "bodies": self._next["bodies"],
            "time": round(time.time(), 3),
            "host": _HOST,
            "attempt": self._attempt,
        } | ({} if tokens is None else {"tokens": tokens})
        self._append("journal", orjson.dumps(entry) + b"\n")
        if len(self._pending["journal"]) >= self._flush_units or time.monotonic() - self._flushed > self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Make everything committed so far durable."""
        self._flushed = time.monotonic()
        if not self._pending["journal"] or self._failed:
            return
        for kind in _WRITTEN:  # the journal last
            self._write(kind)
        if self._ends["part"] - self._sums.part > _SUMS_EVERY:
            self._write_sums()

    def close(self) -> None:
        """Flush and close the files. A second call does nothing."""
        if self._files:
            try:
                self.flush()
                if not self._failed:
                    self._write_sums()
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

    def _append(self, kind: str, data: bytes) -> None:
        self._pending[kind].append(data)
        self._next[kind] += len(data)

    def _line(self, record: EncodedRecord) -> bytes:
        """Return the line of a record. A body that is new is put among those to be written."""
        match record.body:
            case None:
                return record.line + b"\n"
            case NewBody(frame, digest):
                offset = self._next["bodies"]
                self._append("bodies", frame)
                end = pointer(self._paths["bodies"].name, offset, len(frame), digest)
            case Body(_, file, offset, size, digest):
                if (origin := self._origins.get(file)) is None:
                    origin = self._origins[file] = _origin(file, self.folder)
                end = pointer(origin, offset, size, digest)
        return record.line[:-1] + end + b"\n"

    def _write(self, kind: str) -> None:
        if not self._pending[kind]:
            return
        if kind not in self._files:
            self._files[kind] = self._paths[kind].open("ab", buffering=0)
        file, path, data = self._files[kind], self._paths[kind], b"".join(self._pending[kind])
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
        self._pending[kind] = []

    def _write_sums(self) -> None:
        sums, ends = self._sums, self._ends
        if (sums.part, sums.dropped, sums.journal) == (ends["part"], ends["drops"], ends["journal"]):
            return
        sums.part, sums.dropped, sums.journal = ends["part"], ends["drops"], ends["journal"]
        try:
            sums.write(self._paths["sums"])
        except OSError as error:
            raise of_the_system(error, self._paths["sums"]) or error from error


def _origin(file: Path, folder: Path) -> str:
    """Return where a file is, as seen from a folder. Raises UserError where no JSON can say it."""
    path = os.path.relpath(os.path.realpath(file), os.path.realpath(folder))
    if any("\udc80" <= letter <= "\udcff" for letter in path):
        raise UserError("its path is not UTF-8", file=file, remedy="rename its folder")
    return path


_WRITTEN = ("bodies", "part", "drops", "journal")
_SUMS_EVERY = 1 << 26  # bytes of records
_DETAIL = 500  # letters


def partition_files(folder: Path, partition: int, partitions: int) -> dict[str, Path]:
    """Return the files of a partition by what they hold."""
    name = f"{partition:05d}-of-{partitions:05d}"
    return {
        "part": folder / f"part-{name}.jsonl",
        "bodies": folder / f"bodies-{name}.jsonl.zst",
        "drops": folder / f"drops-{name}.jsonl",
        "journal": folder / f"journal-{name}.jsonl",
        "sums": folder / f".sums-{name}.json",
        "failed": folder / f"failed-{name}.jsonl",
    }


def partition_in(file: Path) -> tuple[int, int]:
    """Return the number of the partition that a file is named after, and of how many. Raises ValueError where its name
    says none."""
    number, count = map(int, file.stem.partition("-")[2].split("-of-"))
    return number, count


def folder_sums(folder: Path) -> Sums:
    """Return what all partitions of a folder add up to. Only what is in no file of sums is read."""
    total = Sums()
    for path in sorted(folder.glob("journal-*-of-*.jsonl")):
        partition, partitions = partition_in(path)
        paths = partition_files(folder, partition, partitions)
        ends = {
            kind: paths[kind].stat().st_size if paths[kind].exists() else 0 for kind in ("part", "drops", "journal")
        }
        total.add(current_sums(paths, ends, partition, partitions))
    return total


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


def partition_counts(folder: Path) -> set[int]:
    """Return into how many partitions the work in a folder was divided: one number, where nobody mixed two."""
    kinds = ("part", "drops", "journal")
    return {int(path.stem.rsplit("-", 1)[1]) for kind in kinds for path in folder.glob(f"{kind}-*-of-*.jsonl")}


def read_records(folder: Path, kind: type[R]) -> Iterator[R]:
    """Yield every line of a finished stage as a record; ``core.merging.read_merged`` gives each id once. Raises
    UserError naming file and row of a broken line."""
    for file, row, line in record_lines([folder]):
        yield parse_record(line, kind, file, row)


def read_file(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of one data file. Raises UserError naming file and row of a broken line."""
    for row, line in _numbered(path):
        yield parse_record(line, kind, path, row)


@dataclass(frozen=True, slots=True)
class Partition:
    """One part of all work that is divided by the ids of problems (``Record.owner``)."""

    number: int
    """From 0 to ``count`` - 1."""
    count: int

    def owns(self, name: str) -> bool:
        """Return whether what has this name belongs to it."""
        return partition_of(name, self.count) == self.number


def record_lines(
    folders: Iterable[Path], kind: type[Record] | None = None, of: Partition | None = None
) -> Iterator[tuple[Path, int, bytes]]:
    """Yield (file, row, line) of all data files of finished stages, in a fixed order.

    ``of``: only records of type ``kind`` that belong to this partition. Files that hold none of them are not opened.
    """
    for folder in folders:
        divided = of is not None and _is_divided(folder)
        for path in part_files(folder):
            owner: Partition | None = of
            if of is not None and divided:
                number, count = partition_in(path)
                common = math.gcd(count, of.count)
                if number % common != of.number % common:
                    continue
                owner = None if common == of.count else of
            for row, line in _numbered(path):
                if owner is None or kind is None or owner.owns(owner_of_line(line, kind)):
                    yield path, row, line


def _is_divided(folder: Path) -> bool:
    """Return whether every record of a folder lies in the partition that its file is named after."""
    manifest = read_manifest(folder)
    return manifest is not None and bool(manifest.metrics.get(DIVIDED))


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from enumerate(file, 1)


def read_drops(folder: Path) -> Iterator[tuple[str, Drop]]:
    """Yield (unit, drop) of a stage, of a finished one also the units that it finished without. Raises UserError naming
    file and row of a broken line."""
    for path in sorted(folder.glob("drops-*.jsonl")):
        for row, line in _numbered(path):
            try:
                drop = orjson.loads(line)
                yield drop["unit"], Drop(drop["reason"], drop["detail"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"not a drop ({error})", file=path, row=row, remedy=again(path)) from error
    if (folder / MANIFEST).exists():  # until then they are to be tried again
        for failed in read_failed(folder):
            yield failed.unit, Drop(failed.reason, failed.message[:_DETAIL])


def unit_names(folder: Path) -> Iterator[str]:
    """Yield the names of the finished units in the journals of a folder."""
    for path in sorted(folder.glob("journal-*.jsonl")):
        with path.open("rb") as file:
            yield from (orjson.loads(line)["unit"] for line in file)


def count_tokens(folder: Path) -> int | None:
    """Return the tokens that models wrote for the finished units of a folder; None where it was not counted of all."""
    total = 0
    for path in sorted(folder.glob("journal-*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if (tokens := orjson.loads(line).get("tokens")) is None:
                    return None
                total += tokens
    return total


def count_units(folder: Path) -> int:
    """Count the finished units in the journals of a folder, which may still be written."""
    return sum(map(count_lines, folder.glob("journal-*.jsonl")))


def count_lines(file: Path) -> int:
    """Count the lines of a file; 0 where there is none."""
    if not file.exists():
        return 0
    with file.open("rb") as blocks:
        return sum(block.count(b"\n") for block in iter(lambda: blocks.read(1 << 20), b""))


def write_records(folder: Path, records: Iterable[Record]) -> None:
    """Store records that exist already (imports, tests), one unit each."""
    with RecordWriter(folder) as writer:
        for record in records:
            if not writer.done(record.id):
                writer.commit(record.id, [record])
