"""Find a record, its versions and all that it was made from, in the folders of a run's stages.

Folders are read from the last stage to the first. A record names its parents, so that most of its ancestors are known
before the folders are read that hold them; the others are looked for again. Lines are streamed, and only those with a
wanted id are parsed. Where a stage's records are divided by problem, only the files of the wanted problems are opened.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.encoding import id_of_line
from nemo_openmath.core.records.failed import read_failed
from nemo_openmath.core.records.ids import partition_of
from nemo_openmath.core.records.manifest import DIVIDED
from nemo_openmath.core.records.store import part_files, partition_in
from nemo_openmath.core.records.types import Generation, Group, Problem, Record, SftRow, Thread
from nemo_openmath.data.records.stored import RecordFolder, StoredRecord, parse_stored
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages

RECORDS = 2000
"""Most records that are followed from one. A problem that many threads pose has a parent for each."""
_SHOWN = 3
_WHOLE = re.compile(r"(thread|problem|generation|group|row)-[0-9a-f]{32}")
_TYPES: dict[str, type[Record]] = {
    "thread": Thread,
    "problem": Problem,
    "generation": Generation,
    "group": Group,
    "row": SftRow,
}
"""What an id made from content begins with -> the type of its record."""
_STORE = ("part", "drops", "journal", "failed", "metrics")  # files of a stage that hold no notes about records
_BLOCK = 1 << 22  # bytes


@dataclass
class ReadCounts:
    """What a search has read."""

    folders: set[Path] = field(default_factory=set)
    files: int = 0
    lines: int = 0
    size: int = 0
    """Bytes."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredDrop:
    """A unit that went no further in a stage, or left less than it might have."""

    unit: str
    stage: RunStage
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class StoredNote:
    """A line that a stage keeps about a unit beside its records, such as the votes of judges."""

    unit: str
    stage: RunStage
    file: Path
    values: dict[str, Any]


class RecordSearch:
    """The records of a run by id. ``start``: stages that are looked at for the first id; all where it is None."""

    def __init__(self, stages: RunStages, start: Sequence[RunStage] | None = None):
        self._stages = stages
        self._start = start
        self._folders: dict[Path, RecordFolder | None] = {}
        self._kinds: dict[Path, type[Record] | None] = {}
        self._searched: dict[Path, set[str]] = {}
        self._owners: dict[str, str] = {}
        self.read = ReadCounts()
        self.records: dict[str, list[tuple[RunStage, StoredRecord]]] = {}
        """Id -> its lines, in the order of the stages. Empty for a parent that is in no folder."""
        self.made_of: Counter[str] = Counter()
        """Stage -> lines of other records that name the first record."""
        self.left_out = 0
        """Ancestors that were not followed."""

    def resolve(self, beginning: str) -> str:
        """Return the whole id that begins so. Raises UserError where none or several do."""
        if _WHOLE.fullmatch(beginning) and self._start is None:
            return beginning
        names: dict[str, None] = {}
        for stage in reversed(self._start if self._start is not None else self._stages.stages):
            for _, _, line in self._lines(stage, None):
                if (name := id_of_line(line)).startswith(beginning):
                    names[name] = None
                    if len(names) > _SHOWN and beginning not in names:
                        break
            if beginning in names:
                return beginning
            if len(names) > _SHOWN:
                break
        if len(names) == 1:
            return next(iter(names))
        where = self._start[0].folder if self._start is not None and len(self._start) == 1 else self._stages.output
        if names:
            listed = sorted(names)
            remedy = f"name one of them: {', '.join(listed[:_SHOWN])}{', ...' * (len(listed) > _SHOWN)}"
            raise UserError(f"several records have ids that begin {beginning!r}", file=where, remedy=remedy)
        raise self.not_there(beginning, where)

    def not_there(self, name: str, where: Path) -> UserError:
        """Return the error of an id that no record has."""
        return UserError(
            f"no stage holds a record whose id begins {name!r}",
            file=where,
            remedy="openmath records head DIR prints ids of a stage's records",
        )

    def follow(self, name: str) -> None:
        """Fill ``records`` with all versions of a record and of everything that it was made from."""
        begun = time.monotonic()
        self.records[name] = []
        for stage in reversed(self._stages.stages):
            self._search(stage, self._todo(stage), name)
        while todo := [(stage, ids) for stage in reversed(self._stages.stages) if (ids := self._todo(stage))]:
            for stage, ids in todo:
                self._search(stage, ids)
        order = {stage.folder: number for number, stage in enumerate(self._stages)}
        for lines in self.records.values():
            lines.sort(key=lambda entry: (order[entry[0].folder], entry[1].file, entry[1].row))
        self.read.seconds += time.monotonic() - begun

    def drops(self) -> Iterator[StoredDrop]:
        """Yield the drops of the records that were found, in the order of the stages."""
        wanted = {name.encode() for name in self.records}
        for stage in self._stages:
            for path in sorted(stage.folder.glob("drops-*.jsonl")):
                for row in self._rows(path, wanted):
                    yield StoredDrop(row["unit"], stage, str(row.get("reason")), str(row.get("detail", "")))
            if stage.begun:
                for failed in read_failed(stage.folder):
                    if failed.unit in self.records:
                        yield StoredDrop(failed.unit, stage, failed.reason, failed.message)

    def notes(self) -> Iterator[StoredNote]:
        """Yield what stages keep beside their records about those that were found: votes of judges and the like."""
        wanted = {name.encode() for name in self.records}
        for stage in self._stages:
            for path in sorted(stage.folder.glob("*.jsonl")):
                if path.name.partition("-")[0].partition(".")[0] not in _STORE:
                    for row in self._rows(path, wanted):
                        yield StoredNote(row["unit"], stage, path, {k: v for k, v in row.items() if k != "unit"})

    # -- one folder ------------------------------------------------------------------------------------------------

    def _todo(self, stage: RunStage) -> set[str]:
        """Return the ids that a folder was not searched for yet, and that may lie there."""
        todo = self.records.keys() - self._searched.get(stage.folder, set())
        if todo and (kind := self._kind(stage)) is not None:
            todo = {name for name in todo if _TYPES.get(name.partition("-")[0], kind) is kind}
        return todo if self._folder(stage) is not None else set()

    def _search(self, stage: RunStage, todo: set[str], named: str = "") -> None:
        """Take the wanted records of a folder, and count the others that name ``named``."""
        self._searched.setdefault(stage.folder, set()).update(todo)
        mention = named.encode()
        for file, row, line in self._lines(stage, todo | {named} if named else todo):
            if id_of_line(line) in todo:
                self._take(stage, parse_stored(file, row, line))
            elif mention and mention in line:
                self.made_of[stage.name] += 1

    def _take(self, stage: RunStage, record: StoredRecord) -> None:
        self.records[record.id].append((stage, record))
        values = record.fields
        owner = values.get("problem_id")
        if isinstance(owner, str):
            self._owners[record.id] = owner
        for parent in [*values.get("parents", ()), *([owner] if isinstance(owner, str) else [])]:
            if parent not in self.records:
                if len(self.records) < RECORDS:
                    self.records[parent] = []
                else:
                    self.left_out += 1

    def _folder(self, stage: RunStage) -> RecordFolder | None:
        if stage.folder not in self._folders:
            holds = stage.folder.is_dir() and bool(part_files(stage.folder))
            self._folders[stage.folder] = RecordFolder(stage.folder) if holds else None
        return self._folders[stage.folder]

    def _kind(self, stage: RunStage) -> type[Record] | None:
        """Return the type of a folder's records by the first of them; None where that cannot be known."""
        if stage.folder not in self._kinds:
            folder = self._folder(stage)
            self._kinds[stage.folder] = None if folder is None else folder.kind
        return self._kinds[stage.folder]

    def _lines(self, stage: RunStage, todo: set[str] | None) -> Iterator[tuple[Path, int, bytes]]:
        """Yield the lines of a folder that may hold the wanted ids; None: all lines."""
        if (folder := self._folder(stage)) is None:
            return
        parts = folder.parts
        if todo is not None and stage.manifest is not None and stage.manifest.metrics.get(DIVIDED):
            parts = [part for part in parts if self._may_hold(part, todo, self._kind(stage))]
        self.read.folders.add(stage.folder)
        self.read.files += len(parts)
        self.read.size += sum(part.stat().st_size for part in parts)
        for line in folder.lines(parts):
            self.read.lines += 1
            yield line

    def _may_hold(self, part: Path, todo: Iterable[str], kind: type[Record] | None) -> bool:
        """Return whether a file of a divided folder may hold one of some ids."""
        number, count = partition_in(part)
        for name in todo:
            divided_by_own = _TYPES.get(name.partition("-")[0]) is (
                Problem if kind is None or kind.owner != "id" else kind
            )
            owner = name if divided_by_own else self._owners.get(name)
            if owner is None or partition_of(owner, count) == number:
                return True
        return False

    def _rows(self, path: Path, wanted: set[bytes]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file whose ``unit`` is one of the wanted ids. A line that is cut is passed over."""
        self.read.files += 1
        self.read.size += path.stat().st_size
        with path.open("rb") as lines:
            for line in lines:
                if (at := line.find(_UNIT)) < 0:
                    continue
                begin = at + len(_UNIT)
                if line[begin : line.find(b'"', begin)] in wanted:
                    try:
                        row = orjson.loads(line)
                    except orjson.JSONDecodeError:
                        continue
                    if isinstance(row, dict) and row.get("unit") in self.records:
                        yield row


_UNIT = b'"unit":"'
