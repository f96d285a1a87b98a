"""Elements on their way from lazy tensors into a file: read ahead, checked, hashed, written, flushed.

Reading and computing run in one thread (:func:`stream`), the digests of sources in two (:class:`Hashed`), the digest of
a file and its flushing in one (:class:`OutputFile`), writing in the caller's. Reading, hashing, torch's operations and
writing all let go of the interpreter's lock, so two cores are busy all the time. Each thread works at most a few pieces
ahead of the next, which bounds the memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from nemo_openmath.checkpoints.lazy import PIECE, LazyTensor, bytes_of, check_finite
from nemo_openmath.core.records.lineage import BLAKE3

_AHEAD = 4  # pieces read and computed in advance of the writer
_UNHASHED = 2  # writes whose bytes may wait for the digest of the file
_SMALL = 1 << 16  # bytes below which data is written together with what follows it
_FLUSH = 1 << 25  # bytes after which the system is asked to begin to write them to the disk
_HASHING = ThreadPoolExecutor(2, "checkpoint-hash")


class Hashed(LazyTensor):
    """Passes ``source`` through and takes the BLAKE3 digest of its bytes on the way, in another thread.

    BLAKE3 takes a fifth of the time of SHA-256: checkpoints of many gigabytes are bound by the processor, not the disk.

    What is read in order is hashed as it comes. At the first element read out of order, the rest is read once more for
    the digest alone, in the background.
    """

    def __init__(self, source: LazyTensor):
        self.source, self.dtype, self.shape = source, source.dtype, source.shape
        self._hash, self._done = blake3(), 0
        self._pending: Future[Any] | None = None

    def read(self, start: int, stop: int) -> Tensor:
        piece = self.source.read(start, stop)
        if start == self._done:
            self._wait()  # one piece at a time, in order
            self._pending = _HASHING.submit(self._hash.update, bytes_of(piece))
            self._done += piece.numel()
        elif start > self._done:
            self._hash_rest()
        return piece

    def digest(self) -> str:
        """Return the BLAKE3 digest of all elements, read or not."""
        self._hash_rest()
        self._wait()
        return self._hash.hexdigest()

    def _hash_rest(self) -> None:
        before, first, self._done = self._pending, self._done, self.numel

        def work() -> None:
            if before is not None:
                before.result()
            for start in range(first, self.numel, PIECE):
                self._hash.update(bytes_of(self.source.read(start, min(start + PIECE, self.numel))))

        if first < self.numel:
            self._pending = _HASHING.submit(work)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()


class OutputFile:
    """A new file, written in order.

    Its bytes go to the disk while the next ones are computed, so that little is left to flush at the end. ``hashed``:
    take the BLAKE3 digest of all bytes. Raises OSError where the disk is full.
    """

    def __init__(self, path: Path, *, hashed: bool = False):
        self.path, self.size = path, 0
        self._hash = blake3() if hashed else None
        self._file = path.open("wb", buffering=0)
        self._background = ThreadPoolExecutor(1, "checkpoint-file")
        self._unhashed: deque[Future[Any]] = deque()
        self._small = bytearray()
        self._written = self._flushing = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``, which the caller does not change afterwards. A few bytes wait for the next call."""
        self.size += len(data)
        if len(data) < _SMALL:
            self._small += data
            if len(self._small) < _SMALL:
                return
            data = b""
        for part in (bytes(self._small), data):
            self._write(part)
        self._small.clear()

    def _write(self, data: bytes | memoryview) -> None:
        if self._hash is not None:
            self._unhashed.append(self._background.submit(self._hash.update, data))
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) or 0 :]
        self._written += len(data)
        if self._written - self._flushing >= _FLUSH:
            self._background.submit(_begin_flush, self._file.fileno(), self._flushing, self._written - self._flushing)
            self._flushing = self._written
        while len(self._unhashed) > _UNHASHED:
            self._unhashed.popleft().result()

    @property
    def digest(self) -> str:
        """ "blake3:" and the digest of a closed file that was opened ``hashed``."""
        assert self._hash is not None
        return f"{BLAKE3}{self._hash.hexdigest()}"

    def close(self) -> None:
        """Write what is left. The digest is known then."""
        try:
            self._write(bytes(self._small))
        finally:
            self._background.shutdown()
            self._file.close()

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def _begin_flush(descriptor: int, start: int, length: int) -> None:
    """Have the system begin to write bytes just written to the disk.

    The advice that they are not needed has this effect; being unwritten yet, they stay in memory for readers.
    """
    with contextlib.suppress(OSError):  # a file system that does not take it
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def stream(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Yield (name, pieces) of every tensor in order, read and computed in a thread ahead of the caller's writing.

    Raises UserError naming the tensor at the first NaN or infinity: no checkpoint that holds one is of use.
    """

    def produce() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            for piece in tensor.pieces():
                check_finite(name, piece)
                yield name, piece

    for name, group in itertools.groupby(_ahead(produce()), key=lambda item: item[0]):
        yield name, (piece for _, piece in group)


def _ahead(items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield ``items``, produced in a thread at most ``_AHEAD`` in advance; its exceptions are raised here.

    That thread computes alone: the blocks are too small for torch's threads, which wait for each other after every
    operation, and spin where other processes have the cores (measured: nine times the CPU time)."""
    ready: queue.Queue[tuple[str, Tensor] | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: tuple[str, Tensor] | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # handed to the caller, who raises it
            put(error)
        finally:
            torch.set_num_threads(threads)

    thread = threading.Thread(target=work, name="checkpoint-reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        if thread is not threading.current_thread():  # which may be the one to collect a generator given up
            thread.join()
