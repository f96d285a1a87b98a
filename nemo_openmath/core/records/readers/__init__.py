"""Rows of other people's files, as they are: JSON Lines, JSON, CSV (each plain, .gz or .zst) and Parquet.

One reader for every file of a user's. JSON Lines and Parquet are streamed in bounded memory; what a file is, is seen
in its first bytes where its name does not say so. A broken row is handed to ``on_bad`` with its file and row. The
policy of all readers is :class:`BrokenRows`: an input with broken rows is refused, naming the first and how many,
unless the user said ``skip_broken``.

data_files.py    which files of a folder hold data, and the format of each
lines.py         lines of a file that may be compressed
json_rows.py, csv_rows.py, parquet_rows.py     the rows of each format
broken_rows.py   what is done about rows that cannot be read
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.readers.broken_rows import BadRow, BrokenRows, report_bad
from nemo_openmath.core.records.readers.csv_rows import read_table
from nemo_openmath.core.records.readers.data_files import data_files, format_of
from nemo_openmath.core.records.readers.json_rows import name_of, parse_line, read_json_document, read_json_lines
from nemo_openmath.core.records.readers.lines import is_compressed, lines_between, lines_ratio, raw_lines, row_at
from nemo_openmath.core.records.readers.parquet_rows import RowGroup, batch_rows, raw_batches, read_parquet, row_groups

__all__ = [
    "BadRow",
    "BrokenRows",
    "RowGroup",
    "batch_rows",
    "data_files",
    "format_of",
    "is_compressed",
    "lines_between",
    "lines_ratio",
    "name_of",
    "parse_line",
    "raw_batches",
    "raw_lines",
    "read_file_rows",
    "read_rows",
    "row_at",
    "row_groups",
]


def read_rows(
    path: str | Path, on_bad: BadRow | None = None, *, empty: bool = False
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield (file, row counted from 1, fields) of a file or of every data file below a folder, in name order.

    The rows of a CSV file are counted as a spreadsheet shows them: its header is row 1. Without ``on_bad`` a broken
    row raises UserError, and so does an input without any row unless ``empty``.
    """
    rows = bad = 0

    def counted(file: Path, row: int, problem: str) -> None:
        nonlocal bad
        bad += 1
        report_bad(file, row, problem, on_bad)

    for file in data_files(path):
        for entry in read_file_rows(file, counted):
            rows += 1
            yield entry
    if not (rows or bad or empty):
        raise UserError("there is no row in it", file=path, remedy="give a file with one problem, or sample, a row")


def read_file_rows(file: Path, on_bad: BadRow | None = None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield the rows of one file of any of the formats; see :func:`read_rows`."""
    kind = format_of(file)
    if kind == "parquet":
        yield from read_parquet(file, on_bad)
    elif kind == "table":
        yield from read_table(file, on_bad)
    elif kind == "document":
        yield from read_json_document(file, on_bad)
    else:
        yield from read_json_lines(file, on_bad)
