"""Who holds what under context parallelism, and which keys each run of queries sees: indices alone, made on the host.

Each sample of L tokens (a multiple of 2 x CP) is cut into 2 x CP chunks; rank r holds chunks r and 2 x CP - 1 - r.
Causal attention costs a late chunk more than an early one; the pair costs every rank the same. With CP = 2 and samples
of 8 and 4 tokens:

    pack     a0 a1 a2 a3 a4 a5 a6 a7 | b0 b1 b2 b3
    rank 0   a0 a1             a6 a7 | b0       b3
    rank 1         a2 a3 a4 a5       |    b1 b2

Two ways to bring keys to their queries (models/context_exchange.py):

* all_gather: every rank holds the keys of the whole pack. Chunk c sees chunks 0 to c: one attention for each of a
  rank's two chunks (:class:`GatherPlan`).
* ring: the keys of one rank at a time come by. Rank r's queries see its own keys causally; of an earlier rank's keys
  both its chunks see the first half; of a later rank's keys its late chunk sees all (:class:`RingPlan`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]  # int64 indices, int32 boundaries


def zigzag(boundaries: Sequence[int], cp: int, rank: int) -> NDArray[np.int64]:
    """Return the [T / CP] indices of the pack's tokens that context rank ``rank`` holds, in its order."""
    cu = np.asarray(boundaries, dtype=np.int64)
    if cp == 1:
        return np.arange(cu[-1])
    lengths = np.diff(cu)
    if (lengths % (2 * cp)).any():
        raise ValueError(f"sample lengths {lengths.tolist()} are not multiples of 2 x CP = {2 * cp}")
    chunk = lengths // (2 * cp)
    starts = np.stack([cu[:-1] + rank * chunk, cu[:-1] + (2 * cp - 1 - rank) * chunk], axis=1).ravel()
    return _runs(starts, np.repeat(chunk, 2))


def _runs(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of the runs [start, start + size) laid end to end."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)


@dataclass(frozen=True)
class Segments:
    """Runs of queries, and the runs of keys that they see, both laid end to end: what a variable-length kernel takes.

    Causal: the last query of a run sees the last key of its run (a mask aligned bottom right).
    """

    cu_queries: tuple[int, ...]
    cu_keys: tuple[int, ...]
    on_device: tuple[Tensor, Tensor]  # the two boundaries as int32 tensors

    @property
    def longest(self) -> tuple[int, int]:
        """Return the lengths of the longest run of queries and of keys."""
        return _longest(self.cu_queries), _longest(self.cu_keys)


def _longest(cu: tuple[int, ...]) -> int:
    return max((end - start for start, end in itertools.pairwise(cu)), default=0)


@dataclass(frozen=True)
class GatherPlan:
    """The two attentions of a context rank over the gathered keys of a pack; shared by all layers."""

    passes: tuple[tuple[Tensor, Tensor, Segments], ...]
    """For the early and the late chunks: indices of queries among the rank's tokens, of keys among the gathered ones.
    """
    back: Tensor
    """[t] where each of the rank's tokens lies among the outputs of both."""

    @staticmethod
    def arrays(boundaries: Sequence[int], cp: int, rank: int) -> Arrays:
        """Return the plan's indices on the host."""
        cu = np.asarray(boundaries, dtype=np.int64)
        gathered = np.concatenate([zigzag(boundaries, cp, other) for other in range(cp)])
        place = np.empty_like(gathered)  # of each of the pack's tokens among the gathered ones
        place[gathered] = np.arange(len(gathered))
        chunk, first = np.diff(cu) // (2 * cp), cu[:-1] // cp
        arrays: Arrays = {}
        for name, number, start in (("early", rank, first), ("late", 2 * cp - 1 - rank, first + chunk)):
            arrays[f"{name} queries"] = _runs(start, chunk)
            arrays[f"{name} keys"] = place[_runs(cu[:-1], chunk * (number + 1))]
            arrays[f"{name} cu_keys"] = (cu // (2 * cp) * (number + 1)).astype(np.int32)
        arrays["cu_chunks"] = (cu // (2 * cp)).astype(np.int32)
        outputs = np.concatenate([arrays["early queries"], arrays["late queries"]])
        arrays["back"] = np.empty_like(outputs)
        arrays["back"][outputs] = np.arange(len(outputs))
        return arrays

    @classmethod
    def of(cls, arrays: Arrays, on_device: Mapping[str, Tensor]) -> GatherPlan:
        """Return the plan of :meth:`arrays` and the same on the device."""
        passes = tuple(
            (
                on_device[f"{name} queries"],
                on_device[f"{name} keys"],
                _segments("cu_chunks", f"{name} cu_keys", arrays, on_device),
            )
            for name in ("early", "late")
        )
        return cls(passes, on_device["back"])


@dataclass(frozen=True)
class RingPlan:
    """What a context rank attends to as the keys of each rank come by; shared by all layers."""

    early: Tensor  # [t / 2] indices of each sample's early chunk among a rank's tokens
    late: Tensor
    own: Segments  # all queries and this rank's keys: causal
    of_earlier: Segments  # all queries and the early chunks of the keys
    of_later: Segments  # the late queries and all keys

    @staticmethod
    def arrays(boundaries: Sequence[int], cp: int, rank: int) -> Arrays:
        """Return the plan's indices on the host; they are the same on every rank."""
        cu = np.asarray(boundaries, dtype=np.int64)
        chunk, first = np.diff(cu) // (2 * cp), cu[:-1] // cp
        return {
            "early": _runs(first, chunk),
            "late": _runs(first + chunk, chunk),
            "cu_chunks": (cu // (2 * cp)).astype(np.int32),
            "cu_own": (cu // cp).astype(np.int32),
        }

    @classmethod
    def of(cls, arrays: Arrays, on_device: Mapping[str, Tensor]) -> RingPlan:
        """Return the plan of :meth:`arrays` and the same on the device."""
        pairs = (("cu_own", "cu_own"), ("cu_own", "cu_chunks"), ("cu_chunks", "cu_own"))
        own, of_earlier, of_later = (_segments(queries, keys, arrays, on_device) for queries, keys in pairs)
        return cls(on_device["early"], on_device["late"], own, of_earlier, of_later)


def _segments(queries: str, keys: str, arrays: Arrays, on_device: Mapping[str, Tensor]) -> Segments:
    cu_queries, cu_keys = (tuple(arrays[name].tolist()) for name in (queries, keys))
    return Segments(cu_queries, cu_keys, (on_device[queries], on_device[keys]))
