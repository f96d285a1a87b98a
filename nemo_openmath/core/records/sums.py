"""What a shard of a store adds up to, kept while it is written: nobody reads a finished stage again to count it.

``.sums-00000-of-00001.json`` stands beside the files of its shard and names the bytes that it speaks of. What was
appended behind them, before a kill, is added when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.records.bodies import content_of
from nemo_openmath.core.records.encoding import record_type
from nemo_openmath.core.records.ids import partition_of
from nemo_openmath.core.records.manifest import write_json
from nemo_openmath.core.records.types import Generation

_MODULUS = 1 << 256


def digest_of_lines(lines: Iterable[bytes]) -> str:
    """Return the digest of a multiset of lines: the sum of the SHA-256 of their contents modulo 2**256.

    Two stores with the same records in another order, in other shards, or with their bodies in other places, have the
    same digest. Nothing is sorted or kept in memory.
    """
    return _text(sum(_number(content_of(line)) for line in lines))


def _number(content: bytes) -> int:
    return int.from_bytes(sha256(content).digest(), "big")


def _text(total: int) -> str:
    return f"{total % _MODULUS:064x}"


@dataclass
class Sums:
    """What a shard, or a whole folder, adds up to."""

    part: int = 0
    """Bytes of records that are counted."""
    dropped: int = 0
    """Bytes of drops that are counted."""
    journal: int = 0
    """Bytes of the journal that are counted."""
    units: int = 0
    records: int = 0
    total: int = 0
    """Sum of the digests of the records."""
    drops: Counter[str] = field(default_factory=Counter)
    """Reason -> drops."""
    tally: Counter[str] = field(default_factory=Counter)
    """``Record.tally`` -> records."""
    aligned: bool = True
    """Whether every record lies in the partition of its owner."""
    single: bool = True
    """Whether every record has the name of its unit, so that no id is there twice."""

    @property
    def digest(self) -> str:
        """The digest of the records (:func:`digest_of_lines`)."""
        return _text(self.total)

    def add_record(self, content: bytes, tally: str, *, aligned: bool, single: bool) -> None:
        """Count a record."""
        self.records += 1
        self.total = (self.total + _number(content)) % _MODULUS
        if tally:
            self.tally[tally] += 1
        self.aligned &= aligned
        self.single &= single

    def add(self, other: Sums) -> None:
        """Count what another shard counts."""
        self.part, self.dropped = self.part + other.part, self.dropped + other.dropped
        self.journal, self.units = self.journal + other.journal, self.units + other.units
        self.records, self.total = self.records + other.records, (self.total + other.total) % _MODULUS
        self.drops, self.tally = self.drops + other.drops, self.tally + other.tally
        self.aligned, self.single = self.aligned and other.aligned, self.single and other.single

    def write(self, file: Path) -> None:
        """Write the file, whole or not at all."""
        row: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_json(file, row | {"total": self.digest})

    @classmethod
    def read(cls, file: Path) -> Sums:
        """Return what a file says; nothing counted where there is none that can be read."""
        try:
            row = orjson.loads(file.read_bytes())
            row["total"] = int(row["total"], 16)
            row["drops"], row["tally"] = Counter(row["drops"]), Counter(row["tally"])
            return cls(**row)
        except (OSError, ValueError, TypeError, KeyError):
            return cls()


def current_sums(paths: Mapping[str, Path], ends: Mapping[str, int], partition: int, partitions: int) -> Sums:
    """Return what a shard adds up to: what its file of sums says, and what lies behind that.

    ``paths`` and ``ends``: its files ``part``, ``drops`` and ``journal``, and how many bytes of each are whole.
    """
    sums = Sums.read(paths["sums"])
    if sums.part > ends["part"] or sums.dropped > ends["drops"] or sums.journal > ends["journal"]:
        paths["sums"].unlink(missing_ok=True)  # of files that were damaged since
        sums = Sums()
    for line in _behind(paths["part"], sums.part, ends["part"]):
        row = orjson.loads(line)
        kind = record_type(row)
        owner = row.get(kind.owner if kind is not None else "id")
        aligned = kind is not None and partition_of(owner, partitions) == partition
        tally = _tally(row) if kind is Generation else ""
        sums.add_record(content_of(line), tally, aligned=aligned, single=False)
    for line in _behind(paths["drops"], sums.dropped, ends["drops"]):
        sums.drops[orjson.loads(line)["reason"]] += 1
    sums.units += sum(1 for _ in _behind(paths["journal"], sums.journal, ends["journal"]))
    sums.part, sums.dropped, sums.journal = ends["part"], ends["drops"], ends["journal"]
    return sums


def _tally(row: dict[str, Any]) -> str:
    fields = {name: value for name, value in row.items() if name not in ("body", "transcript")}
    return Generation.from_json(fields | {"transcript": {}}).tally()


def _behind(file: Path, begin: int, end: int) -> Iterator[bytes]:
    """Yield the lines of a file between two offsets."""
    if begin >= end:
        return
    with file.open("rb") as lines:
        lines.seek(begin)
        while begin < end and (line := lines.readline()):
            begin += len(line)
            yield line
