"""Rows of a Parquet file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.readers.broken_rows import BadRow, report_bad

_BUFFER = 1 << 20  # bytes of each column read at once


def read_parquet(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield the rows of a Parquet file."""
    row = 0
    for batch in raw_batches(path, 1024):
        for value in batch_rows(batch):
            row += 1
            if isinstance(value, str):
                report_bad(path, row, value, on_bad)
            else:
                yield path, row, value


def batch_rows(batch: Any) -> list[dict[str, Any] | str]:
    """Return the rows of a pyarrow.RecordBatch as JSON has them. Of a row that has no such form, return a text that
    says what is wrong with it.

    - Decimals become their text: ``0.50`` stays so.
    - NaN becomes None, as pandas means it.
    - Dates and times stay.
    - Floats of 32 or 16 bits become the shortest decimal that they stand for: 0.1, not 0.10000000149011612.
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
    converted = {}
    for name, value in row.items():
        try:
            converted[str(name)] = _of_json(value)
        except ValueError as error:
            return f"column {name!r}: {error}"
    return converted


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


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A part of a Parquet file that is read by itself."""

    number: int
    first: int
    """Number of its first row, counted from 1."""
    size: int
    """Bytes that it takes in the file."""


def raw_batches(path: Path, rows: int, groups: Sequence[RowGroup] | None = None) -> Iterator[Any]:
    """Yield pyarrow.RecordBatches of at most ``rows`` rows, of the whole file or of some of its row groups. No batch is
    of two groups.

    What is held of the file are some pages of each column. Raises UserError with the row at which the file breaks off,
    and where two columns have one name.
    """
    from pyarrow.lib import ArrowException

    row = 0
    try:
        file = _open(path)
        names = file.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two columns are called {twice[0]!r}", file=path, remedy="rename or remove one")
        for group in _groups(file) if groups is None else groups:
            row = group.first - 1
            for batch in file.iter_batches(batch_size=rows, row_groups=[group.number]):
                yield batch
                row += batch.num_rows
    except (ArrowException, OSError) as error:
        raise _cannot_read(path, row, error) from error


def row_groups(path: Path) -> list[RowGroup]:
    """Return the row groups of a Parquet file. Raises UserError where it is none."""
    from pyarrow.lib import ArrowException

    try:
        return _groups(_open(path))
    except (ArrowException, OSError) as error:
        raise _cannot_read(path, 0, error) from error


def _groups(file: Any) -> list[RowGroup]:
    groups, first = [], 1
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        groups.append(RowGroup(number, first, size))
        first += group.num_rows
    return groups


def _open(path: Path) -> Any:
    """Open a file such that reading holds little of it: without these settings pyarrow keeps all that it has read."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)


def _cannot_read(path: Path, row: int, error: Exception) -> UserError:
    what = f"cannot be read on ({error})" if row else f"not a Parquet file ({error})"
    return UserError(what, file=path, row=row + 1 if row else None, remedy="fetch this file again")
