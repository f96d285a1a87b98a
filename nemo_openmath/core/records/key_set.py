"""Remembering millions of keys in little memory."""

from __future__ import annotations

import numpy as np


class KeySet:
    """A set of 64-bit keys that takes 8 bytes a key: a sorted array, and what came since in a small set."""

    def __init__(self) -> None:
        self._old = np.empty(0, np.uint64)
        self._new: set[int] = set()

    def add(self, key: int) -> bool:
        """Add a key. Return whether it was not there yet."""
        at = int(np.searchsorted(self._old, np.uint64(key)))
        if key in self._new or (at < len(self._old) and int(self._old[at]) == key):
            return False
        self._new.add(key)
        if len(self._new) > max(1 << 16, len(self._old) // 8):
            self._old = np.sort(np.concatenate([self._old, np.fromiter(self._new, np.uint64, len(self._new))]))
            self._new.clear()
        return True
