"""Bin packing: two algorithms for data sets, which decide on counts of lengths, and first fit for a few items.

Samples of the same length are interchangeable and lengths are integers up to the capacity. So :func:`pair_fit` and
:func:`best_fit` work on ``counts[length]`` and decide for many packs at once; their cost depends on the distinct
lengths, hardly on the samples. A decision (first, packs, per_pack, length) puts ``per_pack`` samples of a length into
each of the packs first, first + 1, ..., first + packs - 1. "Free" are the tokens of a pack that no sample has yet.

``pair_fit`` usually wins. A pack is opened with the longest samples in stock and closed with one or two samples that
fill it to the last token. Where there are several samples of most lengths, packs are first closed by pairs for hundreds
of neighbouring lengths at once (``_pairs_in_bulk``). For the rest, one AND of two bit sets, the lengths in stock and
their mirror image, shows which pairs of lengths add up to the free tokens, so an exact pair costs about a microsecond.
Of the pairs the most even one is taken: that keeps short samples in stock to close the last packs with.

``best_fit`` is best-fit-decreasing (Johnson 1974), at most 11/9 of the optimum on any input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NEAR = 4  # pairs looked at one by one before all are compared at once
_CHUNKS = 64  # bulk opens lengths by this part of the capacity together
_FITS = 6  # bulk opens lengths of which up to this many fill a pack: shorter ones are few and better kept for the end
_SHIFTS = 32  # pairs tried for a chunk

Decisions = NDArray[np.int64]  # [n, 4]: first pack, packs, samples per pack, length


class _Stock:
    """What is left to pack: samples of each length, and the lengths that occur as the bits of two integers."""

    def __init__(self, counts: NDArray[np.int64], capacity: int):
        self.count: list[int] = counts.tolist()
        self._capacity = capacity
        self._have = _bits(counts > 0)  # bit l: length l occurs
        self._mirror = _bits(counts[::-1] > 0)  # bit capacity - l: length l occurs

    def take(self, length: int, samples: int) -> None:
        self.count[length] -= samples
        if not self.count[length]:
            self._have ^= 1 << length
            self._mirror ^= 1 << (self._capacity - length)

    def longest(self, limit: int) -> int:
        """Return the longest length up to ``limit``, or -1."""
        have = self._have if limit == self._capacity else self._have & ((2 << limit) - 1)
        return have.bit_length() - 1

    def pair(self, total: int) -> tuple[int, int] | None:
        """Return two lengths in stock that add up to ``total``, as even as possible, the longer first; or None."""
        half = (total + 1) >> 1
        count, low = self.count, total - half
        for i in range(min(_NEAR, low)):  # while the stock is rich there is one close by
            if count[half + i] and count[low - i] and (i or half != low or count[half] > 1):
                return half + i, low - i
        longer = (self._have & (self._mirror >> (self._capacity - total))) >> half  # bit i: half + i and its partner
        if longer & 1 and 2 * half == total and self.count[half] < 2:
            longer ^= 1
        if not longer:
            return None
        length = half + (longer & -longer).bit_length() - 1
        return length, total - length


def pair_fit(counts: NDArray[np.int64], capacity: int) -> tuple[Decisions, int]:
    """Pack all of ``counts`` by exact pairs: (decisions, number of packs).

    ``counts`` [longest + 1]: samples of each length, counts[0] = 0.
    """
    remaining = np.zeros(capacity + 1, np.int64)
    remaining[: len(counts)] = counts
    bulk, opened = np.empty((0, 4), np.int64), 0
    if remaining.sum() >= 4 * np.count_nonzero(remaining):
        bulk, opened = _pairs_in_bulk(remaining, capacity)
    stock = _Stock(remaining, capacity)
    count = stock.count
    flat: list[int] = []  # decisions end to end
    while (length := stock.longest(capacity)) > 0:
        # All packs that this length opens; one or two samples more still fit into each.
        per_pack = min(count[length], max(1, capacity // length - 1))
        packs = count[length] // per_pack
        flat += (opened, packs, per_pack, length)
        stock.take(length, packs * per_pack)
        todo = [(opened, packs, capacity - per_pack * length)]
        opened += packs
        while todo:
            first, packs, free = todo.pop()
            while packs and free:
                longer, shorter = free, 0
                if not count[free]:
                    if lengths := stock.pair(free):
                        longer, shorter = lengths
                    elif (longer := stock.longest(free)) <= 0:
                        break
                available = count[longer] >> 1 if longer == shorter else count[longer]
                if shorter and count[shorter] < available and longer != shorter:
                    available = count[shorter]
                filled = packs if packs < available else available
                flat += (first, filled, 1, longer)
                stock.take(longer, filled)
                if shorter:
                    flat += (first, filled, 1, shorter)
                    stock.take(shorter, filled)
                free_after = free - longer - shorter
                if free_after:  # these packs go on with fewer free tokens, the others later
                    if packs > filled:
                        todo.append((first + filled, packs - filled, free))
                    packs, free = filled, free_after
                else:
                    first, packs = first + filled, packs - filled
    return np.concatenate([bulk, np.array(flat, np.int64).reshape(-1, 4)]), opened


def _pairs_in_bulk(remaining: NDArray[np.int64], capacity: int) -> tuple[Decisions, int]:
    """Close full packs by pairs while samples abound: (decisions, packs opened).

    ``remaining`` [capacity + 1]: samples of each length; what is packed is taken off it.

    A length of which ``fit`` fill a pack opens it with ``per_pack`` = max(1, fit - 1). For lengths L, L - s, L - 2s,
    ... the free tokens grow by s * per_pack, and pairs (half + k, free - half - k) for one k are two slices of the
    counts: how many packs all these lengths close is the minimum of three arrays. s is 1 or 2, so that s * per_pack is
    even; k is such that the two slices do not meet, and both lie below the lengths that open.
    """
    parts: list[NDArray[np.int64]] = []
    opened = 0
    chunk = -(-capacity // _CHUNKS)
    for fit in range(1, _FITS + 1):
        per_pack = max(1, fit - 1)
        skip = 1 + per_pack % 2
        step = skip * per_pack // 2  # of the halves
        bottom = capacity // (fit + 1) + 1
        for top in range(capacity // fit, bottom - 1, -chunk):
            for start in range(top, top - skip, -1):
                lengths = np.arange(start, max(bottom - 1, top - chunk), -skip)
                packs = remaining[lengths] // per_pack
                wanted = todo = int(packs.sum())
                if not todo:
                    continue
                free = capacity - per_pack * start
                half, span = (free + 1) // 2, step * (len(lengths) - 1)
                low = free - half
                first_k = max(0, (span + 2 - half + low) // 2)
                for k in range(first_k, min(first_k + _SHIFTS, low, bottom - half - span)):
                    longer = remaining[half + k : half + k + span + 1 : step]
                    shorter = remaining[low - k : low - k + span + 1 : step]
                    closing = np.minimum(np.minimum(longer, shorter), packs)
                    closed = int(closing.sum())
                    if 20 * closed < todo and closed < len(lengths):
                        continue  # too few to be worth writing down
                    longer -= closing
                    shorter -= closing
                    packs -= closing
                    remaining[lengths] -= closing * per_pack
                    at = np.flatnonzero(closing)
                    parts.append(
                        _decide(opened, closing[at], per_pack, lengths[at], half + k + step * at, low - k + step * at)
                    )
                    opened += closed
                    todo -= closed
                    if 20 * todo < wanted:
                        break
    return (np.concatenate(parts) if parts else np.empty((0, 4), np.int64)), opened


def _decide(
    opened: int,
    packs: NDArray[np.int64],
    per_pack: int,
    length: NDArray[np.int64],
    longer: NDArray[np.int64],
    shorter: NDArray[np.int64],
) -> Decisions:
    """Decide, entry by entry, ``packs`` packs: ``per_pack`` of ``length``, one of ``longer``, one of ``shorter``."""
    out = np.ones((3, len(packs), 4), np.int64)
    out[:, :, 0] = opened + np.cumsum(packs) - packs
    out[:, :, 1] = packs
    out[0, :, 2] = per_pack
    out[:, :, 3] = length, longer, shorter
    return out.reshape(-1, 4)


def best_fit(counts: NDArray[np.int64], capacity: int) -> tuple[Decisions, int]:
    """Pack all of ``counts`` by best-fit-decreasing: the longest sample first, into the fullest pack it fits in.

    Arguments and result are those of :func:`pair_fit`.
    """
    flat: list[int] = []  # decisions end to end
    runs: list[list[tuple[int, int]]] = [[] for _ in range(capacity + 1)]  # free tokens -> (first pack, packs)
    free_bits = 0  # bit r: runs[r] is not empty
    opened = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        remaining = int(counts[length])
        while remaining:
            if wide_enough := free_bits >> length:
                free = length + (wide_enough & -wide_enough).bit_length() - 1
                first, packs = runs[free].pop()
                if not runs[free]:
                    free_bits ^= 1 << free
            else:  # open as many packs as the rest of this length fills
                free = capacity
                first, packs = opened, -(-remaining // (capacity // length))
                opened += packs
            # `full` packs take as many as fit, one may take the remainder, the others take nothing
            fitting = free // length
            full, remainder = min(packs, remaining // fitting), 0
            if full < packs:
                remainder = remaining - full * fitting
            for taking, per_pack in (
                (full, fitting),
                (1 if remainder else 0, remainder),
                (packs - full - bool(remainder), 0),
            ):
                if taking:
                    if per_pack:
                        flat += (first, taking, per_pack, length)
                    free_after = free - per_pack * length
                    runs[free_after].append((first, taking))
                    free_bits |= 1 << free_after
                    first += taking
            remaining -= full * fitting + remainder
    return np.array(flat, np.int64).reshape(-1, 4), opened


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each of a few items, in their order, into the first bin that it fits in.

    Returns the item numbers of each bin. An item larger than ``capacity`` gets a bin of its own. The cost is items x
    bins: this is for the share of one rank or the ends of one batch, :func:`pair_fit` for data sets.
    """
    bins: list[list[int]] = []
    space: list[int] = []
    for item, size in enumerate(sizes):
        target = next((i for i, free in enumerate(space) if size <= free), None)
        if target is None:
            target = len(bins)
            bins.append([])
            space.append(capacity)
        bins[target].append(item)
        space[target] -= size
    return bins


def _bits(flags: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
