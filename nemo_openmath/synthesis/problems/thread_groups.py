"""Threads that are there twice: those with the same first post become one, those that are nearly the same are marked.

Two posts of a forum can be equal but for a number, and then they are two problems. No measure of similarity tells such
posts from copies. So a similar post is marked and never left out; ``problems.near_duplicates`` decides, by a rule, once
the problems are extracted.

Memory: 0.1 kB for each thread, with ``near`` 0.7 kB.
"""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nemo_openmath.core.bounds import Share
from nemo_openmath.core.errors import MissingExtra
from nemo_openmath.core.records import Drop, Thread
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.problems.ngram_index import normalised

NEAR = "near_group"
"""The key in ``extra`` of the group of a thread: the id of one of those that are nearly the same."""
SHINGLE = 8
"""Bytes of a shingle."""
BANDS, ROWS = 25, 5
"""Two posts are compared if all ``ROWS`` minima of one of ``BANDS`` bands are equal. Of those that have 0.8 of their
shingles in common this misses one of ten thousand, at 0.7 one of a hundred."""
_BLOCK = 1 << 14
_PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class GroupThreadsConfig:
    """Settings of ``problems.group_threads``."""

    near: Share | None = None
    """Threads whose first posts have this share of their shingles (eight letters or digits) in common are marked as one
    group; 0.8 is usual. It is estimated by MinHash, some 0.04 beside the exact share, and needs the extra
    ``duplicates``. null: none are looked for."""


class GroupThreads(UnitStage[GroupThreadsConfig, Thread]):
    """Keep one of the threads whose first posts are equal but for white space, and mark those that are nearly equal.

    - Of equal ones the thread with the longest discussion is kept. Its ``parents`` are the others; the problems of it
      have all of them as parents. So stages that ask about discussions find each: give them the threads that went in
      here, not those that came out.
    - Nearly equal ones have the same ``near_group`` in ``extra``. All are kept: they may differ in a number.

    Nothing is drawn. All threads are compared, so each job of an array reads them all: one job is enough.
    """

    kind = "problems.group_threads"
    Config = GroupThreadsConfig
    ports = {"threads": "forum threads"}
    takes = {"threads": "Thread"}
    record = Thread
    concurrency = 1

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        if self.config.near is not None and importlib.util.find_spec("datasketch") is None:
            raise MissingExtra("datasketch", "duplicates", "looking for threads that are nearly the same")

    async def prepare(self, context: StageContext) -> None:
        self._keepers: dict[str, str] = {}
        """Id of a thread that is dropped -> id of the one that is kept."""
        self._equal: dict[str, list[str]] = {}
        """Id of a thread that is kept -> ids of those that are dropped for it."""
        self._find_equal(context)
        self._groups: dict[str, str] = {} if self.config.near is None else self._near(context, self.config.near)
        if context.shard == 0 and self.config.near is not None:
            context.metrics["near_groups"] = len(set(self._groups.values()))
            context.metrics["threads_in_near_groups"] = len(self._groups)

    def units(self, context: StageContext) -> Iterable[tuple[str, Thread]]:
        return ((thread.id, thread) for thread in context.read("threads", Thread))

    async def process(self, unit: Thread, context: StageContext) -> Result:
        if (keeper := self._keepers.get(unit.id)) is not None:
            return Result(drops=[Drop("the same post as another thread", f"{keeper}: {unit.forum_post}")])
        if unit.id in self._equal:
            unit = unit.with_(parents=tuple(dict.fromkeys([*unit.parents, *sorted(self._equal[unit.id])])))
        if unit.id in self._groups:
            unit = unit.with_(extra={**unit.extra, NEAR: self._groups[unit.id]})
        return Result([unit])

    def _find_equal(self, context: StageContext) -> None:
        keys, lengths, ids = array("Q"), array("Q"), list[str]()
        for thread in context.read("threads", Thread):
            keys.append(unit_key(" ".join(thread.forum_post.split())))
            lengths.append(len(thread.forum_discussions))
            ids.append(thread.id)
        if not ids:
            return
        order = np.argsort(np.frombuffer(keys, np.uint64), kind="stable")
        for group in _runs(order, np.frombuffer(keys, np.uint64)[order]):
            keeper, *others = sorted(group, key=lambda number: (-lengths[number], ids[number]))
            self._equal[ids[keeper]] = [ids[number] for number in others]
            self._keepers |= dict.fromkeys(self._equal[ids[keeper]], ids[keeper])

    def _near(self, context: StageContext, share: float) -> dict[str, str]:
        threads = (thread for thread in context.read("threads", Thread) if thread.id not in self._keepers)
        ids = list[str]()
        minima = _Minima()
        for thread in threads:
            ids.append(thread.id)
            minima.add(thread.forum_post)
        labels = _similar(minima.array(), share)
        order = np.argsort(labels, kind="stable")
        groups: dict[str, str] = {}
        for group in _runs(order, labels[order]):
            groups |= dict.fromkeys((ids[n] for n in group), min(ids[n] for n in group))
        return groups


class _Minima:
    """The MinHash of texts, one row a text. datasketch computes it; the shingles are its hashed values."""

    def __init__(self) -> None:
        try:
            from datasketch import MinHash
        except ImportError as error:
            raise MissingExtra("datasketch", "duplicates", "looking for threads that are nearly the same") from error
        self._empty = MinHash(num_perm=BANDS * ROWS, seed=1, hashfunc=int)
        self._blocks: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    def add(self, text: str) -> None:
        """Add a text, of which letters and digits count alone. One that has fewer than a shingle is its own."""
        plain = normalised(text).encode().ljust(SHINGLE)
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(plain, np.uint8), SHINGLE)
        shingles = np.ascontiguousarray(windows).view("<u8").ravel() * _PRIME >> np.uint64(32)
        minhash = self._empty.copy()
        minhash.update_batch(np.unique(shingles))
        self._rows.append(minhash.hashvalues.astype(np.uint32))
        if len(self._rows) == _BLOCK:
            self._blocks.append(np.stack(self._rows))
            self._rows.clear()

    def array(self) -> np.ndarray:
        """Return the minima of all texts: [texts, BANDS * ROWS] uint32."""
        rows = [np.stack(self._rows)] if self._rows else []
        return np.concatenate([np.empty((0, BANDS * ROWS), np.uint32), *self._blocks, *rows])


def _similar(minima: np.ndarray, share: float) -> np.ndarray:
    """Return a label for each row of [texts, minima]. Rows with this share of equal minima, and rows that others
    connect, have the same one. Within a band, each row is compared with its neighbour and with the first of its
    bucket."""
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for band in range(BANDS):
        keys = np.zeros(len(minima), np.uint64)
        for column in range(band * ROWS, (band + 1) * ROWS):
            keys = (keys ^ minima[:, column]) * _PRIME
            keys ^= keys >> np.uint64(29)
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        begins = np.maximum.accumulate(np.where(np.concatenate([[False], same]), 0, np.arange(len(order))))
        at = np.flatnonzero(same) + 1
        for others in (order[at - 1], order[begins[at]]):
            for start in range(0, len(at), _BLOCK):
                a, b = order[at[start : start + _BLOCK]], others[start : start + _BLOCK]
                near = (minima[a] == minima[b]).mean(axis=1) >= share
                first.append(a[near])
                second.append(b[near])
    edges = np.concatenate(first), np.concatenate(second)
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(len(minima), len(minima)))
    return np.asarray(connected_components(graph, directed=False)[1])


def _runs(order: np.ndarray, values: np.ndarray) -> Iterator[Sequence[int]]:
    """Yield the entries of ``order`` whose values, which are sorted, are equal, where there are two or more of them."""
    ends = np.flatnonzero(np.concatenate([values[1:] != values[:-1], [True]])) + 1 if len(values) else np.empty(0, int)
    starts = np.concatenate([[0], ends[:-1]]).astype(int) if len(ends) else ends
    for start, end in zip(starts, ends, strict=True):
        if end - start > 1:
            yield order[start:end].tolist()
