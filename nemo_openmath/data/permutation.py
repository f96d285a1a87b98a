"""Shuffles stay the same for ever.

numpy promises no stable stream across its versions (NEP 19), and a run that resumes under a new numpy must see the
same data. So orders are made here: indices sorted by a hash of (seed, index).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def hash_indices(n: int, *key: int) -> NDArray[np.uint64]:
    """Return n pseudo-random 64-bit words: SplitMix64 (Steele, Lea, Flood 2014) of each index under an integer key."""
    state = 0
    for part in key:
        state = _mix_int((state + _GOLDEN + part) & _MASK)
    words = np.arange(n, dtype=np.uint64)
    words *= np.uint64(_GOLDEN)
    words += np.uint64(state)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def permutation(n: int, *key: int) -> NDArray[np.int64]:
    """Return a permutation of 0..n-1, a pure function of (n, key) on every platform and numpy version."""
    return np.argsort(hash_indices(n, *key), kind="stable")


def _mix_int(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
