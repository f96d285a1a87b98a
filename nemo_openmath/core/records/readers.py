"""Rows of other people's files, as they are: JSON Lines, JSON, CSV (each plain, .gz or .zst) and Parquet.

One reader for every file of a user's. JSON Lines and Parquet are streamed in bounded memory; what a file is, is seen
in its first bytes where its name does not say so. A broken row is handed to ``on_bad`` with its file and row; the
policy of all readers is :class:`BrokenRows`: an input with broken rows is refused, naming the first and how many,
unless the user said ``skip_broken``.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from nemo_openmath.core.errors import UserError, refuse_device
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.manifest import MANIFEST

BadRow = Callable[[Path, int, str], None]

_PACKED = (".gz", ".zst")
_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_ROWS = (*_LINES, ".json", *_TABLES, ".parquet")
_UNREADABLE = (
    *(".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".npy", ".npz", ".h5"),
    *(".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".db", ".sqlite", ".sqlite3"),
)
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside data, not data
_WHOLE = 1 << 30  # bytes of a document that is read at once
_MAGIC = {
    b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "a zip archive or .xlsx",
    b"ARROW1": "Arrow", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", b"BZh": "bzip2",
    b"\xfd7zXZ": "xz", b"SQLite": "SQLite", b"\x89HDF": "HDF5",
}  # fmt: skip
csv.field_size_limit(1 << 30)


class BrokenRows:
    """What to do about broken rows: count them all, then refuse the input unless ``skip``. Give it as ``on_bad``, and
    count in ``good`` the rows that can be used."""

    def __init__(self, *, skip: bool = False, how: str = "skip_broken: true leaves broken rows out"):
        self.skip, self.count, self.good = skip, 0, 0
        self._how = how
        self._first: tuple[Path, int, str] | None = None

    def __call__(self, file: Path, row: int, problem: str) -> None:
        self.count += 1
        self._first = self._first or (file, row, problem)

    @property
    def refused(self) -> bool:
        """Whether the input will be refused: rows after this need not be used."""
        return self.count > 0 and not self.skip

    def refuse(self) -> None:
        """Raises UserError naming the first broken row and how many there are, unless they are skipped. An input of
        broken rows alone is refused in any case."""
        if self._first is None or (self.skip and self.good):
            return
        rows = self.good + self.count
        file, row, problem = self._first
        many = f" ({self.count} of {rows} rows are broken)" if self.count > 1 or rows > 1 else ""
        raise UserError(f"{problem}{many}", file=file, row=row, remedy=f"mend or delete it; {self._how}")


def read_rows(
    path: str | Path, on_bad: BadRow | None = None, *, empty: bool = False
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """(file, row counted from 1, fields) of a file or of every data file below a folder, in name order.

    The rows of a CSV file are counted as a spreadsheet shows them: its header is row 1. Without ``on_bad`` a broken
    row raises UserError, and so does an input without any row unless ``empty``.
    """
    rows = bad = 0

    def counted(file: Path, row: int, problem: str) -> None:
        nonlocal bad
        bad += 1
        _bad(file, row, problem, on_bad)

    for file in data_files(path):
        for found in read_file_rows(file, counted):
            rows += 1
            yield found
    if not (rows or bad or empty):
        raise UserError("there is no row in it", file=path, remedy="give a file with one problem, or sample, a row")


def read_file_rows(file: Path, on_bad: BadRow | None = None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """The rows of one file of any of the formats; see :func:`read_rows`."""
    kind = format_of(file)
    if kind == "parquet":
        yield from _read_parquet(file, on_bad)
    elif kind == "table":
        yield from _read_table(file, on_bad)
    elif kind == "document":
        yield from _read_document(file, on_bad)
    else:
        yield from _read_lines(file, on_bad)


def data_files(path: str | Path) -> list[Path]:
    """The file, or every data file below a folder in name order; of the folder of a stage its records alone.

    Raises UserError where there is none, where a folder holds data in a format that is not read or a file both plain
    and compressed, for the folder of a whole run, and for a stage that has not finished.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("no such file", file=path, remedy="check the path")
    if not path.is_dir():
        refuse_device(path)
        return [path]
    if stages := sorted(p.parent.name for p in path.glob("*/plan.json")):
        raise UserError(
            "the folder of a run, not of data", file=path, remedy=f"name one of its stages: {', '.join(stages)}"
        )
    stage_folders = {p.parent for p in path.rglob("journal-*-of-*.jsonl")}
    for folder in sorted(stage_folders):
        if not (folder / MANIFEST).is_file():
            raise UserError(
                "the folder of a stage that has not finished",
                file=folder,
                remedy="run the stage to its end, or name one of its part files",
            )
    files = []
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path)):
        if file.parent in stage_folders and not (file.name.startswith("part-") and file.suffix == ".jsonl"):
            continue
        if _suffix(file) in _UNREADABLE:
            raise UserError("a format that is not read", file=file, remedy=_SAVE)
        if _suffix(file) in _ROWS and file.name not in _ABOUT:
            files.append(file)
    plain: dict[str, Path] = {}
    for file in files:
        name = str(file).removesuffix(".gz").removesuffix(".zst")
        if (first := plain.setdefault(name, file)) is not file:
            raise UserError(f"the same as {first.name} by its name", file=file, remedy="keep one of the two")
    if not files:
        raise UserError("no .jsonl, .json, .csv (each also .gz, .zst) or .parquet file in this folder", file=path)
    return files


_SAVE = "save it as JSON Lines, CSV or Parquet"


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def format_of(file: Path) -> str:
    """``parquet``, ``table`` (CSV), ``document`` (one JSON value) or ``lines`` (JSON Lines).

    By name, and by the first bytes: a JSON array is a document under any name, Parquet and CSV are never taken for
    lines. Raises UserError for what is none of them.
    """
    suffix = _suffix(file)
    head = _head(file)
    for magic, what in _MAGIC.items():
        if not head.startswith(magic) or (what == "Parquet" and suffix in ("", ".parquet")):
            continue
        remedy = "save it as UTF-8" if what == "UTF-16" else _SAVE
        raise UserError(f"this is {what}, not {suffix or 'JSON Lines'}", file=file, remedy=remedy)
    if suffix == ".parquet" or head.startswith(b"PAR1"):
        if file.name.endswith(_PACKED):
            raise UserError("a compressed Parquet file", file=file, remedy="decompress it")
        return "parquet"
    if suffix in _UNREADABLE:
        raise UserError("a format that is not read", file=file, remedy=_SAVE)
    if suffix in _TABLES:
        return "table"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return "document"
    first, newline, _ = start.partition(b"\n")
    return "document" if suffix == ".json" and newline and not _is_object(first) else "lines"


def _is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object: then the file has one object a line."""
    try:
        return isinstance(exact_json.loads(line), dict)
    except ValueError:
        return False


def _suffix(path: Path) -> str:
    """``.jsonl`` of ``x.jsonl.gz``; in lower case."""
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


_HEAD = 1 << 16  # bytes that are looked at to see what a file is


def _head(path: Path) -> bytes:
    """Some of the first bytes; none where they cannot be read: reading the rows says why."""
    try:
        with _open(path) as file:
            return file.read1(_HEAD)  # type: ignore[attr-defined]
    except _read_errors():
        return b""


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path))
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """Frames of a .zst file one after another. The library's own reader ends quietly where a file was cut; this one
    raises EOFError, as gzip does."""

    _CHUNK = 1 << 16  # bytes read at once

    def __init__(self, path: Path):
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._raw = path.open("rb")
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            data = self._input or self._raw.read(self._CHUNK)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file was cut")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._output = self._frame.decompress(data)
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _read_lines(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    for row, line in enumerate(raw_lines(path), 1):
        value = parse_line(line)
        if isinstance(value, str):
            _bad(path, row, value, on_bad)
        elif value is not None:
            yield path, row, value


def parse_line(line: bytes) -> dict[str, Any] | str | None:
    """The object of a line; what is wrong with it; None for an empty one. Integers of any length are exact."""
    if not line.strip():
        return None
    try:
        value = exact_json.loads(line)
        twice = exact_json.repeated_key(line, value)
    except ValueError as error:
        return _why_not_json(line, error)
    if twice is not None:
        return f"the field {twice!r} stands twice in an object; keep one of them"
    return value if isinstance(value, dict) else f"not a JSON object but {name_of(value)}"


def _why_not_json(line: bytes, error: ValueError) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 (byte {line[wrong.start]:#04x} at {wrong.start + 1}); save the file as UTF-8"
    text = text.strip()
    if text in ("{", "[") or (text.startswith("{") and not text.endswith("}") and ":" in text and len(text) < 200):
        return "not JSON Lines: an object begins here that does not end in its line; write one object a line"
    if not text.startswith(("{", "[", '"')) and ("," in text or ";" in text or "\t" in text):
        return "not JSON; if this is CSV, name the file .csv"
    return f"not JSON ({error})"


def name_of(value: Any) -> str:
    """What a value is, in words for a message."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        str: "a text",
        list: "a list",
        dict: "an object",
        int: "a number",
    }
    return "a number" if isinstance(value, float) else names.get(type(value), type(value).__name__)


def _bad(path: Path, row: int, problem: str, on_bad: BadRow | None) -> None:
    if on_bad is None:
        raise UserError(problem, file=path, row=row, remedy="mend or delete this row")
    on_bad(path, row, problem)


def raw_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, empty ones included, without a byte order mark. Raises UserError with the row at which a
    compressed file breaks off."""
    row = 0
    try:
        with _open(path) as file:
            for row, line in enumerate(file, 1):
                yield line.removeprefix(codecs.BOM_UTF8) if row == 1 else line
    except GeneratorExit:  # not read to its end, perhaps at the end of the process
        raise
    except _read_errors() as error:
        raise _cannot_read(path, row + 1, error) from error


def _read_errors() -> tuple[type[Exception], ...]:
    import zstandard

    return EOFError, OSError, zlib.error, zstandard.ZstdError


def _cannot_read(path: Path, row: int, error: Exception) -> UserError:
    if isinstance(error, PermissionError | IsADirectoryError):
        return UserError(f"cannot be read ({error.strerror})", file=path, remedy="check its permissions")
    return UserError(f"cannot be read on ({error})", file=path, row=row, remedy="fetch or compress this file again")


def _read_document(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """A JSON array of objects (rows are counted in it), or one object."""
    data = bytearray()
    for line in _text_lines(path):
        data += line.encode()
        if len(data) > _WHOLE:
            raise UserError(
                "a JSON document of more than 1 GiB", file=path, remedy="write JSON Lines: one object a line"
            )
    if not data.strip():
        return
    try:
        value = exact_json.loads(bytes(data))
        twice = exact_json.repeated_key(bytes(data), value)
    except ValueError as error:
        raise UserError(
            f"not JSON ({error})",
            file=path,
            row=getattr(error, "lineno", None),
            remedy="mend it, or write one JSON object a line",
        ) from error
    if twice is not None:
        raise UserError(f"the field {twice!r} stands twice in an object", file=path, remedy="keep one of them")
    for row, entry in enumerate(value if isinstance(value, list) else [value], 1):
        if isinstance(entry, dict):
            yield path, row, entry
        else:
            _bad(path, row, f"not a JSON object but {name_of(entry)}", on_bad)


def _read_table(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """CSV with a header, separated by comma, semicolon or tab; an empty cell is None, all else is text."""
    lines = _text_lines(path)
    first = next(lines, "")
    if not first.strip():
        return
    delimiter = "\t" if _suffix(path) == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    row = 1
    try:
        header = [name.strip() for name in next(reader)]
        if "" in header or len(set(header)) < len(header):
            raise UserError("the header has an empty name, or one twice", file=path, row=1, remedy="name each column")
        for row, cells in enumerate(reader, 2):
            if not cells or not any(cells):
                continue
            if len(cells) != len(header):
                _bad(path, row, f"{len(cells)} cells under a header of {len(header)}", on_bad)
                continue
            yield path, row, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise UserError(f"not CSV ({error})", file=path, row=row + 1, remedy="quote texts as CSV does") from error


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _text_lines(path: Path) -> Iterator[str]:
    for row, line in enumerate(raw_lines(path), 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"not UTF-8 (byte {line[error.start]:#04x} at {error.start + 1})",
                file=path,
                row=row,
                remedy="save the file as UTF-8",
            ) from error


def _read_parquet(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    row = 0
    for batch in raw_batches(path, 1024):
        for value in batch_rows(batch):
            row += 1
            if isinstance(value, str):
                _bad(path, row, value, on_bad)
            else:
                yield path, row, value


def batch_rows(batch: Any) -> list[dict[str, Any] | str]:
    """Rows of a pyarrow.RecordBatch as JSON has them; of one that has no such form, what is wrong with it.

    Decimals become their text (``0.50`` stays so), NaN becomes None as pandas means it, dates and times stay. Floats of
    32 or 16 bits become the shortest decimal that they stand for: 0.1, not 0.10000000149011612.
    """
    try:
        rows = batch.to_pylist()
    except ValueError as error:  # UnicodeDecodeError, or a date out of range: find the rows
        if batch.num_rows == 1:
            return [f"not valid ({error})"]
        return [row for i in range(batch.num_rows) for row in batch_rows(batch.slice(i, 1))]
    for field in batch.schema:
        if str(field.type) in ("float", "halffloat"):
            for row in rows:
                row[field.name] = _shortest(row[field.name], str(field.type))
    return [_row_of_json(row) for row in rows]


def _shortest(value: float | None, kind: str) -> float | None:
    import numpy

    return None if value is None else float(str((numpy.float32 if kind == "float" else numpy.float16)(value)))


def _row_of_json(row: dict[str, Any]) -> dict[str, Any] | str:
    made = {}
    for name, value in row.items():
        try:
            made[str(name)] = _of_json(value)
        except ValueError as error:
            return f"column {name!r}: {error}"
    return made


def _of_json(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, list):
        return [_of_json(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): _of_json(entry) for name, entry in value.items()}
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError("bytes that are no text") from None
    if isinstance(value, tuple):  # an entry of a map
        return [_of_json(entry) for entry in value]
    return value  # dates and times: written in their ISO form


def raw_batches(path: Path, rows: int) -> Iterator[Any]:
    """pyarrow.RecordBatches of at most ``rows`` rows. Raises UserError with the row at which the file breaks off, and
    where two columns have one name."""
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    row = 0
    try:
        file = ParquetFile(path)
        names = file.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two columns are called {twice[0]!r}", file=path, remedy="rename or remove one")
        for batch in file.iter_batches(batch_size=rows):
            yield batch
            row += batch.num_rows
    except (ArrowException, OSError) as error:
        what = f"cannot be read on ({error})" if row else f"not a Parquet file ({error})"
        raise UserError(what, file=path, row=row + 1 if row else None, remedy="fetch this file again") from error
