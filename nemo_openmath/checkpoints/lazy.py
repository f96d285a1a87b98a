"""Tensors that lie in files, and tensors computed from them piece by piece: nothing is in memory until it is written.

A checkpoint is a mapping of names to :class:`LazyTensor`. Converting, averaging, merging and exporting build new lazy
tensors out of old ones, and a writer then pulls their elements through in pieces of :data:`PIECE` elements, so the
memory used is a few pieces, whatever the size of the model:

    Region   elements of a file                        Rows    tensors stacked along the first axis
    Window   consecutive elements of another tensor    Grid    a tensor cut into blocks (sharded checkpoints)
    Mapped   a function of tensors, element by element Held    a tensor in memory

Reading is in row-major order; results are 1-D and may be views, so a reader does not write into them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_openmath.core.errors import DamagedFile, UserError

PIECE = 1 << 21
"""Elements of a piece. malloc reuses blocks of a few MB; larger ones cost page faults each time."""
_AGAIN = "copy or export it again"
_AHEAD = 4  # pieces read and computed in advance of the writer


class LazyTensor(ABC):
    """A tensor of known dtype and shape whose elements can be read in ranges."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def row(self) -> int:
        """Elements of one index of the first axis."""
        return math.prod(self.shape[1:])

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) in row-major order, 1-D."""

    def full(self) -> Tensor:
        """The whole tensor in memory."""
        return self.read(0, self.numel).view(self.shape)

    def pieces(self) -> Iterator[Tensor]:
        """All elements in order; a tensor without elements gives one empty piece."""
        for start in range(0, max(self.numel, 1), PIECE):
            yield self.read(start, min(start + PIECE, self.numel))

    def to(self, dtype: torch.dtype) -> LazyTensor:
        return self if dtype == self.dtype else Mapped((self,), lambda parts: parts[0].to(dtype), dtype)


class Held(LazyTensor):
    """A tensor that is in memory."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.dtype, self.shape = tensor.contiguous(), tensor.dtype, tuple(tensor.shape)

    def read(self, start: int, stop: int) -> Tensor:
        return self.tensor.view(-1)[start:stop]


@dataclass(eq=False)
class Region(LazyTensor):
    """Little-endian elements of ``path`` from byte ``offset`` on."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Tensor:
        buffer = torch.empty(stop - start, dtype=self.dtype)
        view = bytes_of(buffer)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * self.dtype.itemsize)
                while len(view):
                    count = file.readinto(view)
                    if not count:
                        raise DamagedFile(self.path, "the file ends inside a tensor", _AGAIN)
                    view = view[count:]
        except OSError as error:  # gone meanwhile, or the disk is broken
            raise DamagedFile(self.path, f"cannot be read ({error.strerror})", _AGAIN) from None
        return buffer


class Window(LazyTensor):
    """``source``'s elements from ``offset`` on, as a tensor of another shape."""

    def __init__(self, source: LazyTensor, offset: int, shape: Sequence[int]):
        self.source, self.offset, self.dtype, self.shape = source, offset, source.dtype, tuple(shape)
        if offset + self.numel > source.numel:
            raise ValueError(f"a window of {self.numel} elements at {offset} leaves a tensor of {source.numel}")

    def read(self, start: int, stop: int) -> Tensor:
        return self.source.read(self.offset + start, self.offset + stop)


def rows(source: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows [start, stop) of ``source``."""
    if (start, stop) == (0, source.shape[0]):
        return source
    return Window(source, start * source.row, (stop - start, *source.shape[1:]))


class Rows(LazyTensor):
    """Tensors of one dtype stacked along the first axis."""

    def __init__(self, parts: Sequence[LazyTensor]):
        self.parts, self.dtype = tuple(parts), parts[0].dtype
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        self.starts = [0, *itertools.accumulate(part.numel for part in parts)]

    def read(self, start: int, stop: int) -> Tensor:
        found = []
        for part, first, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            if first < stop and end > start:
                found.append(part.read(max(start, first) - first, min(stop, end) - first))
        return found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0, dtype=self.dtype)


def take_rows(parts: Sequence[LazyTensor], order: Tensor) -> LazyTensor:
    """Rows ``order`` of the stack of ``parts``: one window per run of consecutive rows, no index in memory."""
    bounds = [0, *itertools.accumulate(part.shape[0] for part in parts)]
    found: list[LazyTensor] = []
    breaks = (torch.diff(order) != 1).nonzero().view(-1).add(1).tolist()
    for first, end in itertools.pairwise([0, *breaks, len(order)]):
        at, stop = int(order[first]), int(order[end - 1]) + 1
        for part, low, high in zip(parts, bounds, bounds[1:], strict=False):
            if low < stop and high > at:
                found.append(rows(part, max(at, low) - low, min(stop, high) - low))
    return found[0] if len(found) == 1 else Rows(found)


class Grid(LazyTensor):
    """A tensor cut into blocks: (offset on every axis, block). Whole rows are put together and the last ones kept."""

    def __init__(self, shape: Sequence[int], blocks: Sequence[tuple[tuple[int, ...], LazyTensor]]):
        self.blocks, self.dtype, self.shape = tuple(blocks), blocks[0][1].dtype, tuple(shape)
        self._kept: tuple[int, int, Tensor] | None = None

    def read(self, start: int, stop: int) -> Tensor:
        first, end = start // self.row, -(-stop // self.row)
        if self._kept is None or not (self._kept[0] <= first and end <= self._kept[1]):
            self._kept = (first, end, self._rows(first, end))
        at = self._kept[0] * self.row
        return self._kept[2].view(-1)[start - at : stop - at]

    def _rows(self, first: int, end: int) -> Tensor:
        out = torch.empty((end - first, *self.shape[1:]), dtype=self.dtype)
        for offset, block in self.blocks:
            low, high = max(first, offset[0]), min(end, offset[0] + block.shape[0])
            if low < high:
                part = rows(block, low - offset[0], high - offset[0]).full()
                axes = zip(offset[1:], block.shape[1:], strict=True)
                out[(slice(low - first, high - first), *(slice(o, o + n) for o, n in axes))] = part
        return out


def columns(source: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Columns [start, stop) of a matrix, gathered a few rows at a time."""
    return _Columns(source, start, stop)


class _Columns(LazyTensor):
    def __init__(self, source: LazyTensor, start: int, stop: int):
        self.source, self.first, self.dtype = source, start, source.dtype
        self.shape = (source.shape[0], stop - start)

    def read(self, start: int, stop: int) -> Tensor:
        low, high, width = start // self.row, -(-stop // self.row), self.source.row
        block = self.source.read(low * width, high * width).view(-1, width)
        flat = block[:, self.first : self.first + self.row].reshape(-1)
        return flat[start - low * self.row : stop - low * self.row]


class Mapped(LazyTensor):
    """``function`` of tensors of one shape, element by element: it is called with the same range of all of them."""

    def __init__(self, parts: Sequence[LazyTensor], function: Callable[[list[Tensor]], Tensor], dtype: torch.dtype):
        self.parts, self.function, self.dtype, self.shape = tuple(parts), function, dtype, parts[0].shape

    def read(self, start: int, stop: int) -> Tensor:
        return self.function([part.read(start, stop) for part in self.parts])


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


def bytes_of(piece: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    return piece.contiguous().view(-1).view(torch.uint8).numpy().data


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
