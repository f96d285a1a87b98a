"""Rows of a table in CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.readers.broken_rows import BadRow, report_bad
from nemo_openmath.core.records.readers.data_files import suffix_of
from nemo_openmath.core.records.readers.lines import text_lines

csv.field_size_limit(1 << 30)


def read_table(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield the rows below a header, separated by comma, semicolon or tab. An empty cell is None, all else is text."""
    lines = text_lines(path)
    first = next(lines, "")
    if not first.strip():
        return
    delimiter = "\t" if suffix_of(path) == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    row = 1
    try:
        header = [name.strip() for name in next(reader)]
        if "" in header or len(set(header)) < len(header):
            raise UserError("the header has an empty name, or one twice", file=path, row=1, remedy="name each column")
        for row, cells in enumerate(reader, 2):
            if not cells or not any(cells):
                continue
            if len(cells) != len(header):
                report_bad(path, row, f"{len(cells)} cells under a header of {len(header)}", on_bad)
                continue
            yield path, row, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise UserError(f"not CSV ({error})", file=path, row=row + 1, remedy="quote texts as CSV does") from error
