"""Elements on their way from lazy tensors into a file: read ahead, checked, hashed.

:func:`stream` is what every writer of a checkpoint pulls from. :class:`Hashed` takes the digest of a source on the way,
so that no byte is read twice.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from nemo_openmath.checkpoints.lazy import PIECE, LazyTensor, bytes_of
from nemo_openmath.core.errors import UserError

_AHEAD = 4  # pieces read and computed in advance of the writer
_HASHING = ThreadPoolExecutor(2, "checkpoint-hash")


class Hashed(LazyTensor):
    """Passes ``source`` through and takes the SHA-256 of its bytes on the way, in another thread."""

    def __init__(self, source: LazyTensor):
        self.source, self.dtype, self.shape = source, source.dtype, source.shape
        self._hash, self._done = hashlib.sha256(), 0
        self._pending: Future[None] | None = None

    def read(self, start: int, stop: int) -> Tensor:
        found = self.source.read(start, stop)
        if start == self._done:
            self._take(found)
        return found

    def _take(self, piece: Tensor) -> None:
        self._wait()  # one piece at a time, in order
        self._pending = _HASHING.submit(self._hash.update, bytes_of(piece))
        self._done += piece.numel()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def digest(self) -> str:
        """SHA-256 of all elements; what was not read in order is read now."""
        while self._done < self.numel:
            self._take(self.source.read(self._done, min(self._done + PIECE, self.numel)))
        self._wait()
        return self._hash.hexdigest()


def stream(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """(name, pieces) of every tensor in order. Reading and computing run in a thread ahead of the caller's writing.

    Raises UserError naming the tensor at the first NaN or infinity: no checkpoint that holds one is of use.
    """

    def produce() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            for piece in tensor.pieces():
                check_finite(name, piece)
                yield name, piece

    for name, group in itertools.groupby(_ahead(produce()), key=lambda item: item[0]):
        yield name, (piece for _, piece in group)


def check_finite(name: str, piece: Tensor) -> None:
    """Smallest and largest element are one fast pass, and a NaN becomes both."""
    if piece.is_floating_point() and piece.numel():
        if piece.dtype == torch.float8_e4m3fn:  # it has a NaN, no infinity, and no aminmax
            broken = bool((piece.view(torch.uint8) & 0x7F == 0x7F).any())
        elif piece.dtype.itemsize > 1:
            broken = not all(math.isfinite(bound) for bound in piece.aminmax())
        else:
            broken = False
        if broken:
            remedy = "use an earlier checkpoint: this one is broken"
            raise UserError(f"tensor {name} holds NaN or infinity", remedy=remedy)


def _ahead(items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """``items``, produced in a thread at most ``_AHEAD`` in advance; its exceptions are raised here.

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
