"""Rows of other people's data as they are: files and folders (JSON Lines, .gz, .zst, Parquet) or a `datasets` name.

Streamed: one row at a time is in memory (one batch of 1024 for Parquet), whatever the size of the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_openmath.errors import MissingExtra, UserError
from nemo_openmath.records.foreign import read_rows

Place = tuple[str, int]  # file or split, and row counted from 1
Row = tuple[Place, dict[str, Any] | str]


def read_source(source: str | Path, *, split: str | None = None, broken: bool = False) -> Iterator[Row]:
    """(place, fields) of every row of a local file or folder or, where there is none, of a dataset of the Hub.

    ``split``: of a `datasets` name (cot, tir, genselect). With ``broken``, a row that is not a JSON object comes as
    a string that says why; without it raises UserError.
    """
    if Path(source).exists() or not _is_hub_name(str(source)):
        bad: list[Row] = []  # rows that the reader passed over since the last good one

        def on_bad(file: Path, row: int, problem: str) -> None:
            bad.append(((name_in(source, file), row), problem))

        for file, row, fields in read_rows(source, on_bad if broken else None):
            yield from bad
            bad.clear()
            yield (name_in(source, file), row), fields
        yield from bad
        return
    if split is None:
        raise UserError(f"dataset {source}: no split given", remedy="name one, as in split: cot")
    number = 0
    try:
        for number, fields in enumerate(_hub_rows(str(source), split), 1):
            yield (f"{source}:{split}", number), fields
    except (OSError, ValueError) as error:  # what datasets raises: no such name or split, no network, a broken file
        first = (str(error) or type(error).__name__).split("\n", 1)[0]
        raise UserError(
            f"dataset {source}: {split}: cannot be read on ({first})",
            row=number + 1,
            remedy="check name, split and network, or download its files and name their folder",
        ) from error


def name_in(source: str | Path, file: Path) -> str:
    """What a file is called inside its source, the same on every machine."""
    return str(file.relative_to(source)) if file != Path(source) else file.name


def _is_hub_name(source: str) -> bool:
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name and not source.startswith((".", "/", "~"))


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtra("datasets", "datasets", "reading a dataset by name") from error
    return iter(load_dataset(name, split=split, streaming=True))
