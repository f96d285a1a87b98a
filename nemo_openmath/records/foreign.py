"""Rows of other people's files, as they are: JSON Lines (plain, .gz, .zst) and Parquet.

Streamed in bounded memory. A broken row is not the end: it is handed to ``on_bad`` with its file and row.
"""

from __future__ import annotations

import gzip
import io
import zlib
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
    for file in data_files(path):
        yield from _read_parquet(file, on_bad) if is_parquet(file) else _read_lines(file, on_bad)


def data_files(path: str | Path) -> list[Path]:
    """The file, or every data file below a folder in name order. Raises UserError where there is none."""
    path = Path(path)
    if not path.exists():
        raise UserError("no such file", file=path, remedy="check the path in the recipe")
    files = sorted(p for p in path.rglob("*") if _suffix(p)) if path.is_dir() else [path]
    if not files:
        raise UserError("no .jsonl, .jsonl.gz, .jsonl.zst or .parquet file in this folder", file=path)
    return files


def is_parquet(path: Path) -> bool:
    return _suffix(path) == ".parquet"


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
    """The object of a line; what is wrong with it; None for an empty one."""
    if not line.strip():
        return None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else "not a JSON object"


def _bad(path: Path, row: int, problem: str, on_bad: BadRow | None) -> None:
    if on_bad is None:
        raise UserError(problem, file=path, row=row, remedy="mend or delete this row")
    on_bad(path, row, problem)


def raw_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, empty ones included. Raises UserError with the row at which a compressed file breaks off."""
    row = 0
    try:
        with _open(path) as file:
            for row, line in enumerate(file, 1):  # noqa: B007
                yield line
    except GeneratorExit:  # not read to its end, perhaps at the end of the process
        raise
    except (EOFError, OSError, zlib.error, _zstd_error()) as error:
        raise UserError(
            f"cannot be read on ({error})", file=path, row=row + 1, remedy="fetch or compress this file again"
        ) from error


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


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
    """Rows of a pyarrow.RecordBatch; of one whose text is not valid, what is wrong with it."""
    try:
        return batch.to_pylist()
    except ValueError as error:  # UnicodeDecodeError, or a date out of range: find the rows
        if batch.num_rows == 1:
            return [f"not valid ({error})"]
        return [row for i in range(batch.num_rows) for row in batch_rows(batch.slice(i, 1))]


def raw_batches(path: Path, rows: int) -> Iterator[Any]:
    """pyarrow.RecordBatches of at most ``rows`` rows. Raises UserError with the row at which the file breaks off."""
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    row = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=rows):
            yield batch
            row += batch.num_rows
    except (ArrowException, OSError) as error:
        what = f"cannot be read on ({error})" if row else f"not a Parquet file ({error})"
        raise UserError(what, file=path, row=row + 1 if row else None, remedy="fetch this file again") from error
