"""Packs are assigned to data-parallel ranks so that none is waited for.

Packs have the same number of tokens but not the same cost: attention costs the sum of squared sample lengths, so a
pack of one 32K sample takes eight times the attention of a pack of eight. All ranks wait for the slowest.

Training has no switch for it: the batch, and by it the loss and the gradients, are the same however its packs are
assigned, so a worse assignment has nothing to offer. `openmath data stats` shows both. Where a framework assigns packs
itself, as NeMo does, the order of the packs is balanced instead, and ``PackedDataModule(balance=False)`` leaves it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


def assign(costs: Sequence[int] | np.ndarray, ranks: int) -> list[list[int]]:
    """Return the pack numbers of each of ``ranks``, with sums of ``costs`` [packs] as even as can be found.

    The rule is longest-processing-time-first (Graham 1969); a rank gets at most ceil(packs / ranks) packs, which keeps
    the linear cost (tokens) even too. Every rank's packs are in order of falling cost, so that micro-batches that run
    at the same time in different pipelines cost about the same. The function is pure: each rank computes it by itself.
    """
    share: list[list[int]] = [[] for _ in range(ranks)]
    limit = -(-len(costs) // ranks)
    heap = [(0, rank) for rank in range(ranks)]
    for item in np.argsort(-np.asarray(costs, np.int64), kind="stable").tolist():
        load, rank = heapq.heappop(heap)
        share[rank].append(item)
        if len(share[rank]) < limit:
            heapq.heappush(heap, (load + int(costs[item]), rank))
    return share


def assign_in_order(packs: int, ranks: int) -> list[list[int]]:
    """Return the pack numbers of each rank when packs go round one by one, whatever they cost."""
    return [list(range(rank, packs, ranks)) for rank in range(ranks)]


def imbalance(costs: Sequence[int] | np.ndarray, shares: Sequence[Sequence[int]]) -> float:
    """Return the slowest rank's cost over the mean: 1 is perfect, and the step takes this much longer than it could."""
    loads = np.array([sum(int(costs[i]) for i in share) for share in shares], np.float64)
    return float(loads.max() / loads.mean()) if loads.sum() else 1.0
