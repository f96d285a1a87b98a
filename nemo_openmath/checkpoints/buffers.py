"""Memory for elements read from files, used again when nobody holds them.

A block that malloc has just got from the system costs a page fault for every 4 KiB at its first use, and malloc gives
large blocks back as soon as they are free. The last block given back here is the next one taken, while the processor's
cache still has it.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

_MEBIBYTE = 1 << 20
_LARGEST = 8  # mebibytes: a piece in fp32
_free: defaultdict[int, list[bytearray]] = defaultdict(list)  # mebibytes of a block -> blocks that nobody holds


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialized 1-D tensor of ``count`` elements.

    From 1 to 8 MiB it lies in a block that is used again after the tensor and all views of it are gone; other sizes are
    torch's own.
    """
    size = count * dtype.itemsize
    mebibytes = -(-size // _MEBIBYTE)
    if not _MEBIBYTE <= size <= _LARGEST * _MEBIBYTE:
        return torch.empty(count, dtype=dtype)
    blocks = _free[mebibytes]
    try:
        block = blocks.pop()
    except IndexError:  # all are in use; another thread may have taken the last one
        block = bytearray(mebibytes * _MEBIBYTE)
    array = np.frombuffer(block, np.uint8, size)
    weakref.finalize(array, blocks.append, block).atexit = False
    return torch.from_numpy(array).view(dtype)
