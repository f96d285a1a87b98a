"""The memory of keys and values: address space for every slot at full length, of which the system gives memory page
by page as positions are first written.

So a slot costs what its request is long, and one long request may take what many short ones would. The batch keeps the
sum within a budget (cache_budget.py).
"""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np
import torch

from nemo_openmath.core.errors import UserError

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux on x86-64 and aarch64; Python names it since 3.13


def block_tokens(span: int, position_bytes: int) -> int:
    """Return the tokens in the smallest piece of memory that can be taken and given back: whole pages, whole spans.

    ``span``: positions that lie side by side. ``position_bytes``: of one position of one head, keys or values alone.
    """
    return span * (mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, span * position_bytes))


class Cache:
    """Keys and values [layers, slots * kv_heads, capacity, head_dim], as two flat tensors in that order. Positions may
    be interleaved within a span.

    ``block``: tokens by which the memory of a slot grows. ``tight``: memory is scarce, so no huge pages are taken.
    Raises UserError where the system does not grant the address space.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        *,
        block: int,
        tight: bool,
    ):
        self.block, self.capacity = block, capacity
        self.memory_tokens = np.zeros(slots, np.int64)
        """Tokens, in whole blocks, that each slot has memory for."""
        self._layers, self._slots, self._kv_heads = layers, slots, kv_heads
        self._position = head_dim * dtype.itemsize
        size = layers * slots * kv_heads * capacity * self._position
        self._maps = [_reserve(size, tight, slots, capacity) for _ in range(2)]
        self.keys, self.values = (torch.frombuffer(m, dtype=dtype) for m in self._maps)

    def wrote(self, slots: np.ndarray | int, ends: np.ndarray | int) -> None:
        """Note that positions below ``ends`` of ``slots``, each named once, are written now."""
        blocks = (ends + self.block - 1) // self.block * self.block
        self.memory_tokens[slots] = np.maximum(self.memory_tokens[slots], blocks)

    def release(self, slot: int, length: int) -> None:
        """Give back the memory of a slot behind its first ``length`` positions; they read as zeros afterwards."""
        keep = -(-length // self.block) * self.block
        if self.memory_tokens[slot] <= keep:
            return
        heads, whole = self._kv_heads, self.capacity * self._position
        begin, end = keep * self._position, int(self.memory_tokens[slot]) * self._position
        for memory in self._maps:
            for layer in range(self._layers):
                for head in range(heads):
                    at = ((layer * self._slots + slot) * heads + head) * whole
                    memory.madvise(mmap.MADV_DONTNEED, at + begin, end - begin)
        self.memory_tokens[slot] = keep


def _reserve(size: int, tight: bool, slots: int, capacity: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except OSError as error:
        raise UserError(
            f"the system grants no address space for {slots} slots x {capacity:,} tokens ({error.strerror})",
            remedy="choose fewer slots or a smaller max_context, or raise ulimit -v",
        ) from error
    if tight:  # a huge page would take memory for positions that nobody has written
        with contextlib.suppress(OSError):  # of a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
