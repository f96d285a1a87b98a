"""Matrices in the form that products.h multiplies: panels, one behind the other in one piece of memory.

The memory is in huge pages where the system has them: a model that is read from end to end for each token would have
one address in a thousand looked up anew, which takes a tenth of the time.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

from nemo_openmath.inference.embedded.kernels import Kernels


class Panels:
    """Room for matrices of ``shapes`` [out, in]; they are packed in this order, which is that of their use: while one
    is multiplied, the next one comes from memory."""

    def __init__(self, kernels: Kernels, shapes: Iterable[tuple[int, ...]]):
        self._kernels = kernels
        self.nbytes = 4 * sum(self._floats(*shape) for shape in shapes)
        memory = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):  # of a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory, self._used = torch.frombuffer(memory, dtype=torch.float32), 0

    def _floats(self, out: int, into: int) -> int:
        return -(-out // self._kernels.panel) * into * self._kernels.panel

    def pack(self, matrix: Tensor, pair: bool = False) -> int:
        """Pack the next matrix and return its address. ``pair``: it is gate and up, one below the other."""
        size = self._floats(*matrix.shape)
        packed = self._memory[self._used : self._used + size]
        assert len(packed) == size
        self._used += size
        matrix = matrix.detach().float().contiguous()
        self._kernels.pack(matrix.data_ptr(), *matrix.shape, int(pair), packed.data_ptr())
        return packed.data_ptr()
