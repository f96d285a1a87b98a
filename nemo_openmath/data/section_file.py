"""A section file holds named, typed, checksummed arrays; it is complete or absent, and is read by mapping it.

Layout, all numbers little-endian (format version 1; token shards and pack plans are both such files):

    8 bytes      magic "OMATHv1\\n"
    sections     each an array in C order, starting at a multiple of 64 bytes, zeros between
    contents     JSON: {"kind", "meta", "sections": [{"name", "dtype", "offset", "bytes", "crc32"}, ...]}
    24 bytes     offset of the contents (u64), their length (u64), their crc32 (u32), magic "OMTH"

dtype is numpy's spelling ("<i4", "|u1") or, for records, its list of fields. The contents stand last so that
sections of unknown length can be streamed; a file gets its name only when it is whole (written under a temporary
name, synced, renamed), so a process killed at any instant leaves nothing that could be mistaken for a result.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.core.errors import DamagedFile, UserError, of_the_system

_MAGIC = b"OMATHv1\n"
_TAIL = struct.Struct("<QQI4s")
_TAIL_MAGIC = b"OMTH"
_ALIGN = 64


class SectionWriter:
    """A section file that is being written. ``finish`` makes it appear; leaving the block without it discards it."""

    def __init__(self, path: Path, kind: str):
        self.path = path
        self._kind = kind
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by finish or __exit__
        self._file.write(_MAGIC)
        self._sections: list[dict[str, Any]] = []

    def begin(self, name: str, dtype: np.dtype | str) -> None:
        """Start a section; what ``write`` gets from now on belongs to it."""
        self._file.write(bytes(-self._file.tell() % _ALIGN))
        spec: Any = np.dtype(dtype).descr if np.dtype(dtype).fields else np.dtype(dtype).str
        self._sections.append(
            {"name": name, "dtype": spec, "offset": self._file.tell(), "bytes": 0, "crc32": 0},
        )

    def write(self, data: NDArray | bytes | bytearray | memoryview) -> None:
        view = np.ascontiguousarray(data).data.cast("B") if isinstance(data, np.ndarray) else data
        section = self._sections[-1]
        self._file.write(view)
        section["bytes"] += len(view)
        section["crc32"] = zlib.crc32(view, section["crc32"])

    def add(self, name: str, array: NDArray) -> None:
        """Write a whole section."""
        self.begin(name, array.dtype)
        if array.size:
            self.write(array.reshape(-1))

    def finish(self, meta: dict[str, Any]) -> None:
        """Write the contents, sync, and give the file its name."""
        contents = {"kind": self._kind, "meta": meta, "sections": self._sections}
        text = json.dumps(contents, separators=(",", ":"), sort_keys=True).encode()
        offset = self._file.tell()
        self._file.write(text)
        self._file.write(_TAIL.pack(offset, len(text), zlib.crc32(text), _TAIL_MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)

    def __enter__(self) -> SectionWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


class SectionFile:
    """A mapped file. Opening checks that it is whole and its contents are intact; ``section`` checks the bytes.

    Raises UserError where there is no such file or it is of another kind, DamagedFile where it is not whole.
    """

    def __init__(self, path: Path, kind: str):
        self.path = path
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < len(_MAGIC) + _TAIL.size:
                    raise DamagedFile(path, f"only {size} bytes: cut off")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError("no such file", file=path, remedy=f"run the stage that writes {kind}") from error
        except OSError as error:
            explained = of_the_system(error, path)
            if isinstance(explained, UserError):
                raise explained from error
            raise DamagedFile(path, f"cannot be read ({error.strerror})") from error
        view = memoryview(self._map)
        offset, length, crc, magic = _TAIL.unpack(view[-_TAIL.size :])
        if magic != _TAIL_MAGIC or offset + length + _TAIL.size != size:
            raise DamagedFile(path, "its end is missing or damaged")
        if view[: len(_MAGIC)] != _MAGIC:
            raise DamagedFile(path, "not a file of format version 1")
        text = bytes(view[offset : offset + length])
        if zlib.crc32(text) != crc:
            raise DamagedFile(path, "its table of contents is damaged")
        contents = json.loads(text)
        if contents["kind"] != kind:
            raise UserError(f"holds {contents['kind']}, not {kind}", file=path)
        self.meta: dict[str, Any] = contents["meta"]
        self.digest = f"{crc:08x}"  # of the contents, and through their checksums of every section
        self._sections = {s["name"]: s for s in contents["sections"]}

    def section(self, name: str, *, verify: bool = True) -> NDArray:
        """Return the array [n] of a section, mapped. ``verify`` reads it all; raises DamagedFile where it changed."""
        section = self._sections[name]
        data = memoryview(self._map)[section["offset"] : section["offset"] + section["bytes"]]
        if verify and zlib.crc32(data) != section["crc32"]:
            raise DamagedFile(self.path, f"{name}: checksum differs")
        spec = section["dtype"]
        dtype = np.dtype(spec if isinstance(spec, str) else [tuple(field) for field in spec])
        return np.frombuffer(data, dtype)
