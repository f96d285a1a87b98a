"""Best-fit packing of millions of samples, decided on counts of lengths.

Samples of the same length are interchangeable and lengths are small integers (at most the capacity C), so
best-fit-decreasing (Johnson 1974: longest sample first, each into the fullest pack that has room) need not look at
samples one by one. The state is, for each residual room r, the runs of packs with that room. One decision places as
many samples of a length l as a run can take: r // l in each pack. The number of decisions depends on the distinct
lengths, hardly on the samples: 5.5M samples take some 100 thousand decisions. What then remains is numpy over the
samples: one radix sort to find them by length, one `repeat` to hand out pack numbers. Time O(n + decisions), memory
about 40 bytes a sample.

The result is exactly a best-fit-decreasing packing (at most 11/9 of the optimum in theory; at this recipe's
lengths within 0.02% of the bound sum(lengths) / C, see benchmarks/packing.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nemo_openmath.sft.permutation import permutation


def pack(lengths: ArrayLike, capacity: int, seed: int = 0) -> tuple[NDArray[np.int32], int]:
    """Assign samples to packs of ``capacity`` tokens.

    ``lengths`` [n]: tokens of each sample, padding included, each in 1..capacity (else ValueError: what becomes of
    too long samples is the caller's policy). ``seed`` decides which of the samples of one length goes where; the
    number of packs does not depend on it. Returns (pack index of each sample [n], number of packs).
    """
    sizes = np.asarray(lengths)
    if sizes.ndim != 1 or (sizes.size and sizes.dtype.kind not in "iu"):
        raise ValueError("lengths must be one row of integers")
    if sizes.size == 0:
        return np.empty(0, np.int32), 0
    shortest, longest = int(sizes.min()), int(sizes.max())
    if shortest < 1 or longest > capacity:
        wrong = shortest if shortest < 1 else longest
        row = int(np.flatnonzero(sizes == wrong)[0])
        raise ValueError(f"sample {row} has {wrong} tokens: outside 1..{capacity}")

    starts, packs, per_pack = _decide(np.bincount(sizes, minlength=longest + 1), capacity)

    # Samples in the order the decisions consume them: longest first, samples of one length in a seeded order.
    # Keys of 16 bits are sorted by radix, in linear time.
    shuffled = permutation(sizes.size, seed)
    keys = (longest - sizes[shuffled]).astype(np.uint16 if longest - shortest < 1 << 16 else np.int64)
    order = shuffled[np.argsort(keys, kind="stable")]
    del shuffled, keys

    # Decision d fills packs starts[d], starts[d] + 1, ... with per_pack[d] samples each.
    runs = np.repeat(per_pack, packs)  # samples that each (decision, pack) pair takes
    first = np.repeat(starts - (np.cumsum(packs) - packs), packs)
    pack_of = np.repeat((first + np.arange(len(runs))).astype(np.int32), runs)
    index = np.empty(sizes.size, np.int32)
    index[order] = pack_of
    return index, int((starts + packs).max())


def _decide(counts: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Best-fit-decreasing over counts[length]. Returns the decisions in order (first pack, packs, samples a pack)."""
    starts: list[int] = []
    packs: list[int] = []
    per_pack: list[int] = []
    room: list[list[tuple[int, int]]] = [[] for _ in range(capacity + 1)]  # residual -> runs (first pack, packs)
    words = [0] * ((capacity >> 6) + 1)  # bit r % 64 of words[r // 64]: room[r] is not empty
    top = 0  # bit w: words[w] is not zero
    opened = 0

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            # The fullest packs that have room: the lowest set bit at or above `length`.
            word = length >> 6
            bits = words[word] >> (length & 63) << (length & 63)
            if not bits:
                above = top >> (word + 1)
                if above:
                    word += (above & -above).bit_length()
                    bits = words[word]
            if bits:
                residual = (word << 6) + (bits & -bits).bit_length() - 1
                run, size = room[residual].pop()
                if not room[residual]:
                    words[word] &= ~(bits & -bits)
                    if not words[word]:
                        top &= ~(1 << word)
            else:  # nothing has room: open as many packs as the rest of this length fills
                residual = capacity
                run, size = opened, -(-left // (capacity // length))
                opened += size
            each = residual // length
            full = min(size, left // each)
            last = (
                min(left - full * each, each) if full < size else 0
            )  # one more pack takes what is left, less than `each`
            for first, many, take in (
                (run, full, each),
                (run + full, min(1, last), last),
                (run + full + min(1, last), size - full - min(1, last), 0),
            ):
                if not many:
                    continue
                if take:
                    starts.append(first)
                    packs.append(many)
                    per_pack.append(take)
                rest = residual - take * length
                room[rest].append((first, many))
                words[rest >> 6] |= 1 << (rest & 63)
                top |= 1 << (rest >> 6)
            left -= full * each + last
    return np.array(starts, np.int64), np.array(packs, np.int64), np.array(per_pack, np.int64)
