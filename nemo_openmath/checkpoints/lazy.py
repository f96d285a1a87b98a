"""Tensors that lie in files, and tensors computed from them piece by piece: nothing is in memory until it is written.

A checkpoint is a mapping of names to :class:`LazyTensor`. Converting, averaging, merging and exporting build new lazy
tensors out of old ones. A writer then pulls their elements through in pieces of :data:`PIECE` elements
(:mod:`~nemo_openmath.checkpoints.streaming`), so the memory used is a few pieces, whatever the size of the model:

    InMemory      a tensor in memory              StackedRows   tensors stacked along the first axis
    FileTensor    elements of a file              Columns       consecutive columns of a matrix
    Window        consecutive elements of         Blocks        a tensor cut into blocks (sharded checkpoints)
                  another tensor                  Elementwise   a function of tensors, element by element

Reading is in row-major order. Results are 1-D and may be views, so a reader does not write into them.
"""

from __future__ import annotations

import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_openmath.checkpoints import buffers
from nemo_openmath.core.errors import DamagedFile, UserError

PIECE = 1 << 21
"""Elements of a piece: a few MB, whose blocks :mod:`~nemo_openmath.checkpoints.buffers` uses again."""
_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes of weights that need no scale


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
        """Return elements [start, stop) in row-major order, 1-D."""

    def full(self) -> Tensor:
        """Return the whole tensor in memory."""
        return self.read(0, self.numel).view(self.shape)

    def pieces(self) -> Iterator[Tensor]:
        """Yield all elements in order; a tensor without elements gives one empty piece."""
        for start in range(0, max(self.numel, 1), PIECE):
            yield self.read(start, min(start + PIECE, self.numel))

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """Return the tensor in another dtype."""
        return self if dtype == self.dtype else Elementwise((self,), lambda parts: parts[0].to(dtype), dtype)

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Return rows [start, stop) as a tensor."""
        if (start, stop) == (0, self.shape[0]):
            return self
        return Window(self, start * self.row, (stop - start, *self.shape[1:]))

    def columns(self, start: int, stop: int) -> LazyTensor:
        """Return columns [start, stop) of a matrix, gathered a few rows at a time."""
        return self if (start, stop) == (0, self.shape[1]) else Columns(self, start, stop)


class InMemory(LazyTensor):
    """A tensor that is in memory."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.dtype, self.shape = tensor.contiguous(), tensor.dtype, tuple(tensor.shape)

    def read(self, start: int, stop: int) -> Tensor:
        return self.tensor.view(-1)[start:stop]


@dataclass(eq=False)
class FileTensor(LazyTensor):
    """Little-endian elements of ``path`` from byte ``offset`` on.

    Reading raises DamagedFile where the file has become shorter or cannot be read.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Tensor:
        elements = buffers.empty(stop - start, self.dtype)
        buffer, remedy = bytes_of(elements), "copy or export it again"
        try:
            with self.path.open("rb", buffering=0) as file:
                position = self.offset + start * self.dtype.itemsize
                while len(buffer):
                    count = os.preadv(file.fileno(), [buffer], position)
                    if not count:
                        raise DamagedFile(self.path, "the file ends inside a tensor", remedy)
                    buffer, position = buffer[count:], position + count
        except OSError as error:  # gone meanwhile, or the disk is broken
            raise DamagedFile(self.path, f"cannot be read ({error.strerror})", remedy) from None
        return elements


class Window(LazyTensor):
    """``source``'s elements from ``offset`` on, as a tensor of another shape."""

    def __init__(self, source: LazyTensor, offset: int, shape: Sequence[int]):
        self.source, self.offset, self.dtype, self.shape = source, offset, source.dtype, tuple(shape)
        if offset + self.numel > source.numel:
            raise ValueError(f"a window of {self.numel} elements at {offset} leaves a tensor of {source.numel}")

    def read(self, start: int, stop: int) -> Tensor:
        return self.source.read(self.offset + start, self.offset + stop)


class StackedRows(LazyTensor):
    """Tensors of one dtype stacked along the first axis."""

    def __init__(self, parts: Sequence[LazyTensor]):
        self.parts, self.dtype = tuple(parts), parts[0].dtype
        self.shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        self.starts = [0, *itertools.accumulate(part.numel for part in parts)]

    def read(self, start: int, stop: int) -> Tensor:
        read = []
        for part, first, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            if first < stop and end > start:
                read.append(part.read(max(start, first) - first, min(stop, end) - first))
        return read[0] if len(read) == 1 else torch.cat(read, out=buffers.empty(stop - start, self.dtype))


def stack_rows(tensors: Sequence[LazyTensor], runs: Sequence[tuple[int, int, int]]) -> LazyTensor:
    """Stack rows of ``tensors``. Each run (number of the tensor, first row, end) gives consecutive rows of one."""
    parts = [tensors[number].rows(first, end) for number, first, end in runs]
    return parts[0] if len(parts) == 1 else StackedRows(parts)


class Columns(LazyTensor):
    """Columns [start, stop) of a matrix."""

    def __init__(self, source: LazyTensor, start: int, stop: int):
        self.source, self.first, self.dtype = source, start, source.dtype
        self.shape = (source.shape[0], stop - start)

    def read(self, start: int, stop: int) -> Tensor:
        low, high, width = start // self.row, -(-stop // self.row), self.source.row
        block = self.source.read(low * width, high * width).view(-1, width)
        flat = block[:, self.first : self.first + self.row].reshape(-1)
        return flat[start - low * self.row : stop - low * self.row]


class Blocks(LazyTensor):
    """A tensor cut into blocks: (offset on every axis, block). Whole rows are put together, the last ones cached."""

    def __init__(self, shape: Sequence[int], blocks: Sequence[tuple[tuple[int, ...], LazyTensor]]):
        self.blocks, self.dtype, self.shape = tuple(blocks), blocks[0][1].dtype, tuple(shape)
        self._cached: tuple[int, int, Tensor] | None = None  # first row, end, the rows

    def read(self, start: int, stop: int) -> Tensor:
        first, end = start // self.row, -(-stop // self.row)
        cached = self._cached  # two threads may read: one of them may replace it meanwhile
        if cached is None or not (cached[0] <= first and end <= cached[1]):
            cached = self._cached = (first, end, self._rows(first, end))
        at = cached[0] * self.row
        return cached[2].view(-1)[start - at : stop - at]

    def _rows(self, first: int, end: int) -> Tensor:
        out = torch.empty((end - first, *self.shape[1:]), dtype=self.dtype)
        for offset, block in self.blocks:
            low, high = max(first, offset[0]), min(end, offset[0] + block.shape[0])
            if low < high:
                part = block.rows(low - offset[0], high - offset[0]).full()
                axes = zip(offset[1:], block.shape[1:], strict=True)
                out[(slice(low - first, high - first), *(slice(o, o + n) for o, n in axes))] = part
        return out


class Elementwise(LazyTensor):
    """``function`` of tensors of one shape, element by element: it is called with the same range of all of them."""

    def __init__(self, parts: Sequence[LazyTensor], function: Callable[[list[Tensor]], Tensor], dtype: torch.dtype):
        self.parts, self.function, self.dtype, self.shape = tuple(parts), function, dtype, parts[0].shape

    def read(self, start: int, stop: int) -> Tensor:
        return self.function([part.read(start, stop) for part in self.parts])


def bytes_of(piece: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, not copied."""
    return piece.contiguous().view(-1).view(torch.uint8).numpy().data


def refuse_payloads(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Raise UserError naming a tensor that is no weight: integers or 8 bits mean nothing without their scales."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _PLAIN:
            problem = f"{name} is {str(tensor.dtype).removeprefix('torch.')}, and config.json does not say what for"
            raise UserError(problem, file=folder, remedy="give a model of plain weights")


def check_finite(name: str, piece: Tensor) -> None:
    """Raise UserError naming the tensor where ``piece`` holds NaN or infinity.

    Smallest and largest element are one fast pass, and a NaN becomes both.
    """
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


def equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Compare element by element, up to the first piece that differs."""
    return a.shape == b.shape and all(torch.equal(p, q) for p, q in zip(a.pieces(), b.pieces(), strict=True))
