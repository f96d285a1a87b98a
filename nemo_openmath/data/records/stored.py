"""A folder with records as it lies there, and conditions on the records' fields."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Manifest, Record, exact_json, read_drops, read_manifest
from nemo_openmath.core.records.bodies import Body, body_of, joined
from nemo_openmath.core.records.encoding import again, id_of_line, record_type
from nemo_openmath.core.records.manifest import PLAN
from nemo_openmath.core.records.store import count_units, part_files, partition_files, partition_in

_TAIL = 1 << 16  # bytes of a journal in which its last whole line stands
_VERSIONS = 100  # records with one beginning of an id
_SHOWN = 3
_REMEDY = "name the folder of a stage that makes records"
_HOLDS = {
    "sft.tokenize": "openmath data verify checks it",
    "sft.pack": "openmath data stats shows it",
    "training.sft": "openmath inspect shows its checkpoints",
}


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A line of a folder. Its transcript is read when it is asked for."""

    file: Path
    row: int
    line: bytes
    fields: dict[str, Any]
    """All fields but the transcript."""
    transcript: dict[str, Any] | Body | None
    """None of a type of records that has none."""

    @property
    def id(self) -> str:
        return str(self.fields["id"])

    def joined(self) -> bytes:
        """Return the line with its transcript in it. Raises UserError where that is not there."""
        return joined(self.line, self.file.parent)

    def error(self, problem: str) -> UserError:
        """Return the error of a line that is not what was written."""
        return UserError(problem, file=self.file, row=self.row, remedy=again(self.file))


class RecordFolder:
    """A folder with records. Raises UserError where a path is none, with the remedy."""

    def __init__(self, path: Path):
        self.path = path
        _refuse_no_folder(path)
        self.manifest: Manifest | None = read_manifest(path)
        self.parts = part_files(path)
        if not self.parts:
            raise _holds_none(path, self.manifest)
        self.unfinished = self.manifest is None and (path / PLAN).is_file()

    @property
    def kind(self) -> type[Record] | None:
        """The type of its records, by the first of them; None where there is none."""
        first = next(self.records(), None)
        return None if first is None else _type_of(first)

    def note(self) -> str:
        """Return a line about a stage that has not finished; "" of any other."""
        if not self.unfinished:
            return ""
        return f"{self.path}: the stage has not finished; these are the records of {count_units(self.path):,} units"

    def records(self, where: Sequence[Condition] = ()) -> Iterator[StoredRecord]:
        """Yield the records for which all conditions hold, in the order of the files. Of a stage that has not finished,
        they are those of its finished units. Raises UserError naming file and row of a broken line, and for a condition
        on a field that they do not have."""
        checked = not where
        for file, row, line in self.lines():
            record = parse_stored(file, row, line)
            if not checked:
                check_fields(where, _type_of(record))
                checked = True
            if all(condition.holds(record.fields) for condition in where):
                yield record

    def with_names(self, names: Sequence[str]) -> Iterator[StoredRecord]:
        """Yield the records with these ids, or with ids that begin so, in the order of ``names``; of a record that is
        there in several versions, all. Raises UserError for a name that none or several have."""
        records: dict[str, list[StoredRecord]] = {name: [] for name in names}
        for file, row, line in self.lines():
            whole = id_of_line(line)
            for name, those in records.items():
                if whole == name or (whole.startswith(name) and len(those) < _VERSIONS):
                    those.append(parse_stored(file, row, line))
        for name in names:
            those = [record for record in records[name] if record.id == name] or records[name]
            if not those:
                raise self._not_there(name)
            ids = sorted({record.id for record in those})
            if len(ids) > 1:
                remedy = f"name one of them: {', '.join(ids[:_SHOWN])}{', ...' * (len(ids) > _SHOWN)}"
                raise UserError(f"several records have ids that begin {name!r}", file=self.path, remedy=remedy)
            yield from those

    def _not_there(self, name: str) -> UserError:
        for unit, drop in read_drops(self.path):
            if unit.startswith(name):
                detail = f" ({' '.join(drop.detail.split())[:200]})" if drop.detail else ""
                problem = f"{unit} went no further here: {drop.reason}{detail}"
                return UserError(problem, file=self.path, remedy="look at it in the stage before")
        remedy = "openmath records head prints ids"
        return UserError(f"holds no record whose id begins {name!r}", file=self.path, remedy=remedy)

    def lines(self, parts: Sequence[Path] | None = None) -> Iterator[tuple[Path, int, bytes]]:
        """Yield (file, row, line) as they lie there, of a stage that has not finished only those of its finished units.
        ``parts``: of these files alone."""
        for file in self.parts if parts is None else parts:
            end = None if self.manifest is not None else _committed(file)
            for row, line in _lines(file, end):
                yield file, row, line


def _refuse_no_folder(path: Path) -> None:
    if path.is_file():
        remedy = f"name its folder, {path.parent}" if path.name.startswith("part-") else _REMEDY
        raise UserError("is a file", file=path, remedy=remedy)
    if not path.is_dir():
        raise UserError("no such folder", file=path, remedy="check the path")


def _holds_none(path: Path, manifest: Manifest | None) -> UserError:
    """Return the error of a folder without records."""
    if stages := sorted({part.parent.name for part in path.glob("*/part-*.jsonl")}):
        remedy = f"name one of its stages: {', '.join(stages)}"
        return UserError("is the folder of a run, not of records", file=path, remedy=remedy)
    if manifest is not None:
        remedy = _HOLDS.get(manifest.stage, _REMEDY)
        return UserError(f"is the folder of {manifest.stage}, which makes no records", file=path, remedy=remedy)
    if (path / PLAN).is_file():
        return UserError("is the folder of a stage without any record yet", file=path, remedy="run that stage first")
    return UserError("holds no records (no file part-*.jsonl)", file=path, remedy=_REMEDY)


def _type_of(record: StoredRecord) -> type[Record]:
    if (kind := record_type(record.fields)) is None:
        raise record.error(f"is no record that is known; it has {', '.join(list(record.fields)[:8])}")
    return kind


def parse_stored(file: Path, row: int, line: bytes) -> StoredRecord:
    """Return the record of a line. Raises UserError naming file and row where it is none."""
    try:
        values = exact_json.loads(line)
        if not isinstance(values, dict) or not isinstance(values.get("id"), str):
            raise ValueError("no object with an id")
        transcript: dict[str, Any] | Body | None = values.pop("transcript", None)
        if "body" in values:
            transcript = body_of(values, values["id"], file.parent)
    except ValueError as error:
        raise UserError(f"is no record ({error})", file=file, row=row, remedy=again(file)) from error
    return StoredRecord(file, row, line, values, transcript)


def _lines(file: Path, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that begin before ``end``."""
    at = 0
    with file.open("rb") as lines:
        for row, line in enumerate(lines, 1):
            if end is not None and at >= end:
                return
            at += len(line)
            yield row, line


def _committed(part: Path) -> int | None:
    """Return where the records of finished units end, as the journal says; None where there is no journal."""
    try:
        number, count = partition_in(part)
    except ValueError:
        return None
    journal = partition_files(part.parent, number, count)["journal"]
    if not journal.is_file():
        return None
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - _TAIL))
        whole, _, _ = file.read(2 * _TAIL).rpartition(b"\n")
    try:
        return int(orjson.loads(whole.rpartition(b"\n")[2])["records"]) if whole else 0
    except (ValueError, KeyError, TypeError):
        remedy = "run the stage again, which mends it"
        raise UserError("its last whole line is broken", file=journal, remedy=remedy) from None


# -- conditions --------------------------------------------------------------------------------------------------------

_CONDITION = re.compile(r"([A-Za-z_][\w.-]*?)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on a field, such as ``verdict=equal``, ``completion_tokens>1000`` or ``extra.source!=forum``."""

    field: tuple[str, ...]
    """Its name; of what stands in ``extra``, the names on the way."""
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition. Raises UserError where it is none."""
        parts = _CONDITION.fullmatch(text)
        if parts is None:
            remedy = "write FIELD=VALUE, or != < <= > >=, such as verdict=equal"
            raise UserError(f"--where {text!r} is no condition", remedy=remedy)
        name, sign, value = parts.groups()
        if sign in _ORDERS and _number(value) is None:
            raise UserError(f"--where {text!r}: {value!r} is no number", remedy="write = or != for a text")
        return cls(tuple(name.split(".")), sign, value)

    def holds(self, values: dict[str, Any]) -> bool:
        """Return whether the condition holds for the fields of a record. What is not a number is neither smaller nor
        larger; of a list, one entry must be equal, or all must differ."""
        value: Any = values
        for name in self.field:
            value = value.get(name) if isinstance(value, dict) else None
        if (order := _ORDERS.get(self.sign)) is not None:
            left, right = _number(value), _number(self.value)
            return left is not None and right is not None and order(left, right)
        entries = value if isinstance(value, list) else [value]
        return any(self._equals(entry) for entry in entries) == (self.sign == "=")

    def _equals(self, value: Any) -> bool:
        if isinstance(value, str):
            return value == self.value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value) == self.value or value == _number(self.value)
        return orjson.dumps(value).decode() == self.value


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool | list | dict):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def check_fields(where: Sequence[Condition], kind: type[Record]) -> None:
    """Raise UserError for a condition on a field that a type of records does not have."""
    known = [field.name for field in fields(kind) if field.name != "transcript"]
    for condition in where:
        name = condition.field[0]
        if name == "transcript":
            raise UserError("--where transcript: a text has no such value", remedy="openmath records grep searches it")
        if name not in known or (len(condition.field) > 1 and name != "extra"):
            asked = ".".join(condition.field)
            raise UserError(f"--where {asked}: {kind.__name__} has no such field", remedy=nearest(asked, known))
