"""Lines of a file that may be compressed."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.bodies import joined, text_ratio

PACKED = (".gz", ".zst")
_BUFFER = 1 << 16  # bytes read at once


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, empty ones included, without a byte order mark; those of our own records with what is
    stored beside them. Raises UserError with the row at which a compressed file breaks off."""
    row, ours = 0, _is_ours(path)
    try:
        with open_file(path) as file:
            for row, line in enumerate(file, 1):
                if ours:
                    line = joined(line, path.parent)
                yield line.removeprefix(codecs.BOM_UTF8) if row == 1 else line
    except GeneratorExit:  # not read to its end, perhaps at the end of the process
        raise
    except read_errors() as error:
        raise _cannot_read(path, row + 1, error) from error


def lines_between(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) of the lines of an uncompressed file that begin in its bytes [start, end), as
    :func:`raw_lines` yields them.

    Ranges that cover a file give each of its lines once, and little more is read of it than those lines. Raises
    UserError with the row at which reading breaks off.
    """
    at, ours = start, _is_ours(path)
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            if start:  # the line that holds the byte before belongs to the range before
                file.seek(start - 1)
                rest = file.readline(end - start + 1)
                at = start - 1 + len(rest) if rest.endswith(b"\n") else end
            while at < end and (line := file.readline()):
                yield at, joined(line, path.parent) if ours else line if at else line.removeprefix(codecs.BOM_UTF8)
                at += len(line)
    except OSError as error:
        raise _cannot_read(path, row_at(path, at), error) from error


def lines_ratio(path: Path) -> float:
    """Return about how many bytes of lines there are to a byte of an uncompressed file: more than one where texts of
    our own records are stored beside it."""
    if not _is_ours(path):
        return 1.0
    with path.open("rb") as file:
        return text_ratio(file.read(_BUFFER))


def _is_ours(path: Path) -> bool:
    return path.name.startswith("part-") and path.suffix == ".jsonl"


def row_at(path: Path, offset: int) -> int:
    """Return the row number, from 1, of the line that begins at an offset of an uncompressed file. All before it is
    read. Returns 1 where it cannot be read."""
    rows = 1
    with contextlib.suppress(OSError), path.open("rb") as file:
        while offset > 0 and (block := file.read(min(offset, 1 << 20))):
            rows += block.count(b"\n")
            offset -= len(block)
    return rows


def is_compressed(path: Path) -> bool:
    """Return whether the name of a file says that it is compressed."""
    return path.name.endswith(PACKED)


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file as text. Raises UserError with the row that is not UTF-8."""
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


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed where its name ends in .gz or .zst."""
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path))
    return path.open("rb")


def read_errors() -> tuple[type[Exception], ...]:
    """Return the errors that reading a file may raise, compressed or not."""
    import zstandard

    return EOFError, OSError, zlib.error, zstandard.ZstdError


def _cannot_read(path: Path, row: int, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError("no such file", file=path, remedy="put it there, or change the path")
    if isinstance(error, PermissionError | IsADirectoryError):
        return UserError(f"cannot be read ({error.strerror})", file=path, remedy="check its permissions")
    return UserError(f"cannot be read on ({error})", file=path, row=row, remedy="fetch or compress this file again")


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
