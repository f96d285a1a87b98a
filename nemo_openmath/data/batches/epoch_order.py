"""The order in which a run goes through the packs of a plan."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.data.permutation import permutation


class EpochOrder(NamedTuple):
    """One epoch of one phase, n packs."""

    packs: NDArray[np.int64]  # [n] numbers in the plan
    sample_ends: NDArray[np.int64]  # [n] samples of the epoch up to the end of each pack


class EpochOrders:
    """The epochs of a plan's phases: whole packs are permuted, so that shuffling does not undo the packing.

    ``phases``: (first pack, end) of each phase that has packs. An order is a pure function of the seed, the phase and
    the epoch. The last two are remembered: a batch lies in at most two but for tiny data.
    """

    def __init__(self, plan: PackPlan, seed: int):
        bounds = [0, *(int(end) for end in plan.phase_end)]
        self.phases = [(first, end) for first, end in pairwise(bounds) if end > first]
        self._pack_end = np.asarray(plan.pack_end, np.int64)
        self._seed = seed
        self._orders: dict[tuple[int, int], EpochOrder] = {}

    def num_samples(self, phase: int) -> int:
        """Return the samples of one epoch of ``phases[phase]``, copies counted."""
        first, end = self.phases[phase]
        return int(self._pack_end[end - 1]) - (int(self._pack_end[first - 1]) if first else 0)

    def order(self, phase: int, epoch: int) -> EpochOrder:
        """Return the order of an epoch (from 0) of ``phases[phase]``."""
        key = (phase, epoch)
        if key not in self._orders:
            while len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            first, end = self.phases[phase]
            packs = first + permutation(end - first, self._seed, phase, epoch)
            samples = self._pack_end[packs] - np.where(packs > 0, self._pack_end[packs - 1], 0)
            self._orders[key] = EpochOrder(packs, np.cumsum(samples))
        return self._orders[key]
