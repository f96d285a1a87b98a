"""Two ways to decide a packing on counts of lengths, without looking at a single sample.

Samples of the same length are interchangeable and lengths are integers up to the capacity, so both work on
``counts[length]`` and decide for many packs at once; their cost depends on the distinct lengths, hardly on the
samples. A decision (first pack, packs, each, length) puts ``each`` samples of a length into each of the packs
first, first + 1, ..., first + packs - 1.

`pair_fit` is the one that usually wins: a pack is opened with the longest samples left and closed with one or two
samples that fill it to the last token. Where there are several samples of most lengths, packs are first closed by
pairs for hundreds of neighbouring lengths at once (`_pairs_in_bulk`); for the rest, which pairs of lengths add up to
the room left is one AND of two bit sets, the lengths in stock and their mirror image, so an exact pair is found in
about a microsecond. Of the pairs the most even one is taken, which keeps short samples in stock to close the last packs
with. `best_fit` is best-fit-decreasing (Johnson 1974), at most 11/9 of the optimum on any input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NEAR = 4  # pairs looked at one by one before all are compared at once
_CHUNKS = 64  # bulk opens lengths by this part of the capacity together
_FITS = 6  # bulk opens lengths of which up to this many fill a pack: shorter ones are few and better kept for the end
_SHIFTS = 32  # pairs tried for a chunk

Decisions = NDArray[np.int64]  # [n, 4]: first pack, packs, each, length


class _Stock:
    """What is left to pack: samples of each length, and the lengths that occur as the bits of two integers."""

    def __init__(self, counts: NDArray[np.int64], capacity: int):
        self.count: list[int] = counts.tolist()
        self._capacity = capacity
        self._have = _bits(counts > 0)  # bit l: length l occurs
        self._mirror = _bits(counts[::-1] > 0)  # bit capacity - l: length l occurs

    def take(self, length: int, many: int) -> None:
        self.count[length] -= many
        if not self.count[length]:
            self._have ^= 1 << length
            self._mirror ^= 1 << (self._capacity - length)

    def longest(self, limit: int) -> int:
        """The longest length up to ``limit``, or -1."""
        have = self._have if limit == self._capacity else self._have & ((2 << limit) - 1)
        return have.bit_length() - 1

    def pair(self, total: int) -> tuple[int, int] | None:
        """Two lengths in stock that add up to ``total``, as even as possible."""
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
    """Decisions that pack all of ``counts`` [longest + 1] (counts[0] = 0), and the number of packs."""
    left = np.zeros(capacity + 1, np.int64)
    left[: len(counts)] = counts
    bulk, opened = np.empty((0, 4), np.int64), 0
    if left.sum() >= 4 * np.count_nonzero(left):
        bulk, opened = _pairs_in_bulk(left, capacity)
    stock = _Stock(left, capacity)
    count = stock.count
    flat: list[int] = []  # decisions end to end
    while (length := stock.longest(capacity)) > 0:
        # All packs that this length opens, each left with room for one or two samples more.
        each = min(count[length], max(1, capacity // length - 1))
        packs = count[length] // each
        flat += (opened, packs, each, length)
        stock.take(length, packs * each)
        todo = [(opened, packs, capacity - each * length)]
        opened += packs
        while todo:
            first, packs, room = todo.pop()
            while packs and room:
                one, other = room, 0
                if not count[room]:
                    if found := stock.pair(room):
                        one, other = found
                    elif (one := stock.longest(room)) <= 0:
                        break
                have = count[one] >> 1 if one == other else count[one]
                if other and count[other] < have and one != other:
                    have = count[other]
                many = packs if packs < have else have
                flat += (first, many, 1, one)
                stock.take(one, many)
                if other:
                    flat += (first, many, 1, other)
                    stock.take(other, many)
                rest = room - one - other
                if rest:  # these packs go on with less room, the others later
                    if packs > many:
                        todo.append((first + many, packs - many, room))
                    packs, room = many, rest
                else:
                    first, packs = first + many, packs - many
    return np.concatenate([bulk, np.array(flat, np.int64).reshape(-1, 4)]), opened


def _pairs_in_bulk(left: NDArray[np.int64], capacity: int) -> tuple[Decisions, int]:
    """Close full packs by pairs while samples abound: (decisions, packs opened); ``left`` [capacity + 1] is what is
    left of the stock.

    A length of which ``fit`` fill a pack opens it with ``each`` = max(1, fit - 1). For lengths L, L - s, L - 2s, ...
    the rooms left grow by s * each, and pairs (half + k, room - half - k) for one k are two slices of the counts: how
    many packs all these lengths close is the minimum of three arrays. s is 1 or 2, so that s * each is even; k is
    such that the two slices do not meet, and both lie below the lengths that open.
    """
    parts: list[NDArray[np.int64]] = []
    opened = 0
    chunk = -(-capacity // _CHUNKS)
    for fit in range(1, _FITS + 1):
        each = max(1, fit - 1)
        skip = 1 + each % 2
        step = skip * each // 2  # of the halves
        bottom = capacity // (fit + 1) + 1
        for top in range(capacity // fit, bottom - 1, -chunk):
            for start in range(top, top - skip, -1):
                lengths = np.arange(start, max(bottom - 1, top - chunk), -skip)
                packs = left[lengths] // each
                wanted = todo = int(packs.sum())
                if not todo:
                    continue
                room = capacity - each * start
                half, span = (room + 1) // 2, step * (len(lengths) - 1)
                low = room - half
                first_k = max(0, (span + 2 - half + low) // 2)
                for k in range(first_k, min(first_k + _SHIFTS, low, bottom - half - span)):
                    longer = left[half + k : half + k + span + 1 : step]
                    shorter = left[low - k : low - k + span + 1 : step]
                    many = np.minimum(np.minimum(longer, shorter), packs)
                    closed = int(many.sum())
                    if 20 * closed < todo and closed < len(lengths):
                        continue  # too few to be worth writing down
                    longer -= many
                    shorter -= many
                    packs -= many
                    left[lengths] -= many * each
                    at = np.flatnonzero(many)
                    parts.append(
                        _decide(opened, many[at], each, lengths[at], half + k + step * at, low - k + step * at)
                    )
                    opened += closed
                    todo -= closed
                    if 20 * todo < wanted:
                        break
    return (np.concatenate(parts) if parts else np.empty((0, 4), np.int64)), opened


def _decide(
    opened: int,
    many: NDArray[np.int64],
    each: int,
    length: NDArray[np.int64],
    one: NDArray[np.int64],
    other: NDArray[np.int64],
) -> Decisions:
    """``each`` of a length, one of ``one`` and one of ``other`` in ``many`` packs, for each entry of the arrays."""
    out = np.ones((3, len(many), 4), np.int64)
    out[:, :, 0] = opened + np.cumsum(many) - many
    out[:, :, 1] = many
    out[0, :, 2] = each
    out[:, :, 3] = length, one, other
    return out.reshape(-1, 4)


def best_fit(counts: NDArray[np.int64], capacity: int) -> tuple[Decisions, int]:
    """The same by best-fit-decreasing: the longest sample first, each into the fullest pack that has room."""
    flat: list[int] = []  # decisions end to end
    runs: list[list[tuple[int, int]]] = [[] for _ in range(capacity + 1)]  # room -> (first pack, packs) with that room
    rooms = 0  # bit r: runs[r] is not empty
    opened = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            if enough := rooms >> length:
                room = length + (enough & -enough).bit_length() - 1
                first, packs = runs[room].pop()
                if not runs[room]:
                    rooms ^= 1 << room
            else:  # open as many packs as the rest of this length fills
                room = capacity
                first, packs = opened, -(-left // (capacity // length))
                opened += packs
            # `full` packs take all they have room for, one may take what is then left, the others take nothing
            most = room // length
            full, rest = min(packs, left // most), 0
            if full < packs:
                rest = left - full * most
            for many, each in ((full, most), (1 if rest else 0, rest), (packs - full - bool(rest), 0)):
                if many:
                    if each:
                        flat += (first, many, each, length)
                    after = room - each * length
                    runs[after].append((first, many))
                    rooms |= 1 << after
                    first += many
            left -= full * most + rest
    return np.array(flat, np.int64).reshape(-1, 4), opened


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each of a few items, in their order, into the first bin that has room for it.

    Returns the item numbers of each bin. An item larger than ``capacity`` gets a bin of its own. The cost is items x
    bins: this is for the share of one rank or the ends of one batch, :func:`pair_fit` for data sets.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for item, size in enumerate(sizes):
        target = next((i for i, room in enumerate(free) if size <= room), None)
        if target is None:
            target = len(bins)
            bins.append([])
            free.append(capacity)
        bins[target].append(item)
        free[target] -= size
    return bins


def _bits(flags: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
