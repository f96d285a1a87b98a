"""The long text of a record, written once: by the stage that made it. Later stages write their own narrow lines, and
in each of them where the body lies.

A shard's bodies stand in ``bodies-00000-of-00001.jsonl.zst``: one Zstandard frame for each record, whose text is one
line of JSON, ``{"id": ..., "transcript": {...}}``. Frames that follow each other are one file for every tool that
reads Zstandard. A record's line in ``part-*.jsonl`` ends in ``"body": [file, offset, bytes, digest]``:

- ``file`` is relative to the folder of that line, so a run may be moved as a whole.
- ``digest`` is 128 bits of BLAKE3 over the JSON of the transcript. It is compared at every reading, so no record ever
  gets the text of another one.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import zstandard
from blake3 import blake3

from nemo_openmath.core.errors import UserError, of_the_system
from nemo_openmath.core.records import exact_json

LEVEL = 3  # of Zstandard: 3.5 times smaller at 300 MB/s; higher levels are slower than a solution is read
_INFLATES = 3  # bytes of text in a byte of a frame, about
_OPEN_FILES = 64
_POINTER = re.compile(rb',"body":\["((?:[^"\\]|\\.)*)",([0-9]+),([0-9]+),"([0-9a-f]{32})"\]\}\s*$')


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """Where the transcript of a stored record lies. It is read when it is asked for, and not kept. Equal texts are
    equal bodies, wherever they lie."""

    record: str
    """Id of the record."""
    file: Path
    offset: int
    size: int
    """Bytes of its frame."""
    digest: str

    def load(self) -> dict[str, Any]:
        """Return the transcript's JSON form. Raises UserError where it is not there, or not what was written."""
        text = self.text()
        value: dict[str, Any] = orjson.loads(text)
        return value

    def text(self) -> bytes:
        """Return the JSON of the transcript. Raises UserError as :meth:`load` does."""
        text = _text_at(self.file, self.offset, self.size, self.digest)
        return self._moved() if text is None else text

    def _moved(self) -> bytes:
        """Return the text from another place of the same folder: its stage may have been made again since, with its
        records in another order."""
        folder = self.file.parent
        place = _places(folder).get(self.record)
        text = _text_at(folder / place[0], place[1], place[2], self.digest) if place is not None else None
        if text is not None:
            return text
        problem = f"does not hold the text of record {self.record}"
        if place is not None and place[3] == self.digest:
            remedy = f"it is damaged: remove the folder {folder} and run its stage again"
        elif place is not None:
            remedy = (
                "it was made again, with other texts: run the recipe again, which makes again what was made from it"
            )
        else:
            problem, remedy = f"{problem}: it is gone", "bring its folder back, or run the recipe again, which makes it"
        raise UserError(problem, file=self.file, remedy=remedy)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Body):
            return self.digest == other.digest
        return isinstance(other, dict) and self.digest == digest_of(orjson.dumps(other))

    def __hash__(self) -> int:
        return hash(self.digest)


TranscriptData = dict[str, Any] | Body
"""The JSON form of a ``chat.Transcript``, or where it lies."""


def loaded(transcript: Mapping[str, Any] | Body) -> Mapping[str, Any]:
    """Return the JSON form of a transcript, wherever it lies."""
    return transcript.load() if isinstance(transcript, Body) else transcript


@dataclass(frozen=True, slots=True)
class NewBody:
    """A body that is to be written. ``frame`` is compressed."""

    frame: bytes
    digest: str

    @classmethod
    def of(cls, record: str, transcript: Mapping[str, Any]) -> NewBody:
        """Compress the body of a record."""
        text = orjson.dumps(transcript)
        line = b'{"id":%b,"transcript":%b}\n' % (orjson.dumps(record), text)
        return cls(_codecs.compressor.compress(line), digest_of(text))


def digest_of(text: bytes) -> str:
    """Return the digest of a transcript's JSON."""
    return blake3(text).hexdigest(16)


def pointer(file: str, offset: int, size: int, digest: str) -> bytes:
    """Return the end of a record's line, behind its last field, that says where the body lies."""
    return b',"body":[%b,%d,%d,"%b"]}' % (orjson.dumps(file), offset, size, digest.encode())


def content_of(line: bytes) -> bytes:
    """Return what a line says wherever its body lies: equal records have equal contents in any order of any shards."""
    end = _POINTER.search(line)
    return line.rstrip(b"\n") if end is None else line[: end.start()] + end[4]


def joined(line: bytes, folder: Path) -> bytes:
    """Return a line of ``folder`` with its transcript in it, for readers that know nothing of bodies."""
    end = _POINTER.search(line)
    if end is None:
        return _joined_otherwise(line, folder) if b'"body"' in line else line
    place = folder / orjson.loads(b'"%b"' % end[1])
    text = Body(str(orjson.loads(line)["id"]), place, int(end[2]), int(end[3]), end[4].decode()).text()
    return b'%b,"transcript":%b}\n' % (line[: end.start()], text)


def _joined_otherwise(line: bytes, folder: Path) -> bytes:
    """Join a line that another program has written anew, such as with spaces. A line of others, whose ``body`` is
    something else, stays as it is."""
    try:
        row = exact_json.loads(line)
        body = body_of(row, str(row["id"]), folder)
    except (ValueError, TypeError, KeyError, AttributeError):
        return line
    return exact_json.dumps(row | {"transcript": body.load()}) + b"\n"


def text_ratio(head: bytes) -> float:
    """Return about how many bytes of text stand behind a byte of lines, by the first lines of a file."""
    ends = [end for line in head.splitlines(keepends=True) if (end := _POINTER.search(line)) is not None]
    return 1 + _INFLATES * sum(int(end[3]) for end in ends) / max(1, len(head)) if ends else 1.0


def body_of(row: dict[str, Any], record: str, folder: Path) -> Body:
    """Take the pointer out of a parsed line of ``folder``. Raises ValueError where it is none."""
    try:
        file, offset, size, digest = row.pop("body")
        if not (type(offset) is int and type(size) is int and type(digest) is str):
            raise TypeError
        return Body(record, folder / file, offset, size, digest)
    except (TypeError, ValueError):
        raise ValueError("`body` is not [file, offset, bytes, digest]") from None


# -- reading -----------------------------------------------------------------------------------------------------------


class _Codecs(threading.local):
    """One compressor and one decompressor for each thread: they hold state of their own."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


class _OpenFiles:
    """The files that were read last, open."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, file: Path, offset: int, size: int) -> bytes:
        with self._lock:
            if (descriptor := self._files.get(file)) is None:
                descriptor = self._files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) > _OPEN_FILES:
                    os.close(self._files.popitem(last=False)[1])
            self._files.move_to_end(file)
            return os.pread(descriptor, size, offset)

    def close(self) -> None:
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def forget(self, file: Path) -> None:
        with self._lock:
            if (descriptor := self._files.pop(file, None)) is not None:
                os.close(descriptor)


_codecs, _files = _Codecs(), _OpenFiles()


@contextlib.contextmanager
def closing_files() -> Iterator[None]:
    """Close the files of bodies that were opened in the block: an open file keeps its disk from being unmounted, and a
    removed one in the way on a network file system."""
    try:
        yield
    finally:
        _files.close()
        _places.cache_clear()


def _text_at(file: Path, offset: int, size: int, digest: str) -> bytes | None:
    """Return the JSON of a transcript; None where it does not lie there. The second try opens the file anew: its stage
    may have been made again since it was opened."""
    for attempt in range(2):
        if attempt:
            _files.forget(file)
        try:
            line = _codecs.decompressor.decompress(_files.read(file, offset, size))
        except FileNotFoundError:
            return None
        except zstandard.ZstdError:
            continue
        except OSError as error:
            raise of_the_system(error, file) or error from error
        start = line.find(_FIELD) + len(_FIELD)
        text = line[start:].removesuffix(b"}\n")
        if digest_of(text) == digest:
            return text
    return None


_FIELD = b'"transcript":'


@lru_cache(maxsize=4)
def _places(folder: Path) -> dict[str, tuple[str, int, int, str]]:
    """Return where the bodies of a folder's own records lie: id -> (file, offset, bytes, digest)."""
    places: dict[str, tuple[str, int, int, str]] = {}
    for part in sorted(folder.glob("part-*.jsonl")):
        with part.open("rb") as lines:
            for line in lines:
                end = _POINTER.search(line)
                if end is not None and b"/" not in end[1]:
                    name = str(orjson.loads(line)["id"])
                    places[name] = (end[1].decode(), int(end[2]), int(end[3]), end[4].decode())
    return places
