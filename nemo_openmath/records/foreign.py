"""Rows of other people's files, as they are: JSON Lines (plain, .gz, .zst) and Parquet.

Streamed in bounded memory. A broken row is not the end: it is handed to ``on_bad`` with its file and row.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from nemo_openmath.errors import UserError

BadRow = Callable[[Path, int, str], None]


def read_rows(path: str | Path, on_bad: BadRow | None = None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """(file, row counted from 1, fields) of a file or of every data file below a folder, in name order.

    Without ``on_bad`` a broken row raises UserError.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("no such file", file=path, remedy="check the path in the recipe")
    files = sorted(p for p in path.rglob("*") if _suffix(p)) if path.is_dir() else [path]
    if not files:
        raise UserError("no .jsonl, .jsonl.gz, .jsonl.zst or .parquet file in this folder", file=path)
    for file in files:
        yield from _read_parquet(file) if _suffix(file) == ".parquet" else _read_lines(file, on_bad)


def _suffix(path: Path) -> str | None:
    name = path.name
    for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"):
        if name.endswith(suffix):
            return suffix
    return None


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True))
    return path.open("rb")


def _read_lines(path: Path, on_bad: BadRow | None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    with _open(path) as file:
        for row, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
                problem = None if isinstance(value, dict) else "not a JSON object"
            except orjson.JSONDecodeError as error:
                problem = f"not JSON ({error})"
            if problem is None:
                yield path, row, value
            elif on_bad is not None:
                on_bad(path, row, problem)
            else:
                raise UserError(problem, file=path, row=row, remedy="mend or delete this row")


def _read_parquet(path: Path) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(path)
    except Exception as error:
        raise UserError(f"not a Parquet file ({error})", file=path) from error
    row = 0
    for batch in table.iter_batches(batch_size=1024):
        for value in batch.to_pylist():
            row += 1
            yield path, row, value
