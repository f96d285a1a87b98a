"""This benchmark: its problems are fixed, and the samples of both models are what chance decides.

The unknown is the mean over the N problems of p_B(i) - p_A(i), where p_M(i) is the chance that a sample of model M
solves problem i. An *arm* is a pair of model and problem; there are 2N. Work comes in rounds. Before a round it is
fixed, from earlier rounds alone:

- ``counts``: n(m, i) >= 1, how many samples each arm gets,
- ``centres``: c(m, i) in [0, 1], what is expected of each arm, with mean c(B, i) - c(A, i) equal to ``null``,
- ``bet``: lambda in [0, 0.9 min n].

Each sample multiplies the capital by ``1 + s lambda / n(m, i) (y - c(m, i))``, where y is 1 for a right answer and s
is +1 for B and -1 for A. The expected product is at most 1 where the difference is at most ``null``: the samples of a
round are independent, so it is a product of T = sum n factors whose mean is ``1 + lambda N (difference - null) / T``,
and no product of T positive numbers exceeds the T-th power of their mean. The order of the samples does not matter,
and the counts may depend on all that was seen in earlier rounds. docs/background/deciding.md has the proof.

Arrays have a leading axis of runs, so that simulations do many at once; a real comparison is one run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.evaluation.sequential.capital import KEPT, Claim, DecisionRule, Floats, lower_end, total, verdicts

Counts = NDArray[np.int64]
SIGNS = np.array([-1.0, 1.0])[:, None]
"""Of the models: A is subtracted, B is added."""
_OWN, _OTHER = 1.0, 2.0  # what the mean of both models at a problem weighs in an arm's estimate, and 1/2 in that mean


@dataclass(frozen=True)
class Round:
    """What was fixed before a round, and how it came out. Arrays: runs x 2 models x problems."""

    counts: Counts
    right: Counts
    expected: Floats
    """What was expected of each arm before the round."""
    bets: Floats
    """Runs x gaps."""

    def log_capital(self, null: float, side: int) -> Floats:
        """Return the logarithm of what the bets of each size made of 1 (runs x gaps). ``side``: 1 bets that the
        difference is above ``null``, -1 that it is below."""
        centres = _centres(self.expected, null)[..., None, :, :]
        stake = side * SIGNS * self.bets[..., None, None] / self.counts[..., None, :, :]
        wins = self.right[..., None, :, :]
        losses = (self.counts - self.right)[..., None, :, :]
        logs = wins * np.log1p(stake * (1.0 - centres)) + losses * np.log1p(-stake * centres)
        summed: Floats = logs.sum(axis=(-2, -1))
        return summed


def _centres(expected: Floats, null: float) -> Floats:
    """Return centres whose mean difference is ``null``, moved from what is expected towards the ends 0 and 1.

    Each centre of B grows with ``null`` and each of A falls, so the capital falls where ``null`` rises.
    """
    gap = (expected[..., 1, :] - expected[..., 0, :]).mean(axis=-1)[..., None, None]
    up = np.where(null >= gap, (null - gap) / np.maximum(1.0 - gap, 1e-300), 0.0)
    down = np.where(null < gap, (gap - null) / np.maximum(1.0 + gap, 1e-300), 0.0)
    ends = np.where(SIGNS > 0, 1.0, 0.0)
    moved: Floats = expected + up * (ends - expected) + down * (1.0 - ends - expected)
    return moved


@dataclass
class ThisBenchmark:
    """The comparison of two models over fixed problems, round by round."""

    problems: int
    rule: DecisionRule
    runs: int = 1
    claims: tuple[Claim, ...] | None = None
    """The claims whose capital is watched; None: those that decide."""
    keeps_rounds: bool = True
    """Whether rounds are kept, which only :meth:`interval` needs."""
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.runs, 2, self.problems)
        self.counts: Counts = np.zeros(shape, np.int64)
        self.right: Counts = np.zeros(shape, np.int64)
        self.cost: Floats = np.ones(shape)
        """What a sample of each arm is expected to cost, up to a factor."""
        self._watched: dict[Claim, Floats] = {}
        self.refuted: dict[Claim, NDArray[np.bool_]] = {}
        self._ends, self._seen = {1: -1.0, -1: -1.0}, 0
        for claim in self.claims or self.rule.claims:
            self._watched[claim] = np.zeros((self.runs, len(self.rule.gaps)))
            self.refuted[claim] = np.zeros(self.runs, bool)

    # -- before a round --------------------------------------------------------------------------------------------

    def expected(self) -> Floats:
        """Return what is expected of each arm: its share of right answers, drawn to that of both models together."""
        both = (self.right.sum(axis=-2, keepdims=True) + _OTHER / 2) / (
            self.counts.sum(axis=-2, keepdims=True) + _OTHER
        )
        shares: Floats = (self.right + _OWN * both) / (self.counts + _OWN)
        return shares

    def variances(self) -> Floats:
        """Return the expected variance of a sample of each arm, by a beta distribution of what is expected."""
        expected, weight = self.expected(), self.counts + _OWN
        spread: Floats = expected * (1.0 - expected) * weight / (weight + 1.0)
        return spread

    def plan(self, samples: int) -> Counts:
        """Return how many samples each arm gets in the next round, ``samples`` in all, each arm at least one.

        The variance of the difference is smallest for what is spent where an arm gets samples in proportion to the
        standard deviation of a sample over the root of its cost (Neyman 1934).
        """
        wish = np.sqrt(self.variances() / self.cost).reshape(self.runs, -1)
        single = np.zeros(wish.shape, bool)  # arms whose share is below one get one, the others divide what is left
        while True:
            share = np.where(single, 0.0, wish)
            share *= (samples - single.sum(axis=1, keepdims=True)) / np.maximum(
                share.sum(axis=1, keepdims=True), 1e-300
            )
            below = ~single & (share < 1.0)
            if not below.any():
                break
            single |= below
        counts = np.where(single, 1, np.floor(share)).astype(np.int64)
        rest = samples - counts.sum(axis=1)
        order = np.argsort(np.floor(share) - share, axis=1, kind="stable")  # the largest remainder first
        given = np.arange(wish.shape[1])[None] < rest[:, None]
        np.add.at(counts, (np.arange(self.runs)[:, None], order), given)
        return counts.reshape(self.runs, 2, self.problems)

    # -- after a round ---------------------------------------------------------------------------------------------

    def add(self, counts: Counts, right: Counts) -> None:
        """Take in a round: ``counts`` samples of each arm, of which so many were ``right``."""
        if np.any(counts < 1) or np.any(right < 0) or np.any(right > counts):
            raise ValueError("each arm has at least one sample in a round, and no more right ones than samples")
        variance = np.maximum((self.variances() / counts).sum(axis=(-2, -1)), 1e-12)[:, None]
        cap = (1.0 - KEPT) * counts.min(axis=(-2, -1))[:, None]
        bets = np.minimum(self.rule.gaps * self.problems / variance, cap)
        done = Round(counts, right, self.expected(), bets)
        if self.keeps_rounds:
            self.rounds.append(done)
        self.counts = self.counts + counts
        self.right = self.right + right
        for (null, side), logs in self._watched.items():
            logs += done.log_capital(null, side)
            self.refuted[null, side] |= total(logs) >= self.rule.threshold

    def verdicts(self) -> NDArray[np.int64]:
        """Return what is decided of each run (:class:`Ruling`)."""
        return verdicts(self.rule, self.refuted)

    def interval(self) -> tuple[float, float]:
        """Return the interval of the first run's difference. It holds at all rounds at once."""
        for number in range(self._seen + 1, len(self.rounds) + 1):
            for side in (1, -1):
                self._ends[side] = lower_end(
                    partial(self._capital, number, side), self.rule.threshold, self._ends[side], 1.0
                )
        self._seen = len(self.rounds)
        return self._ends[1], -self._ends[-1]

    def _capital(self, rounds: int, side: int, end: float) -> float:
        """Return the logarithm of the capital after so many rounds; ``end`` is seen from the side."""
        logs = sum(r.log_capital(side * end, side)[0] for r in self.rounds[:rounds])
        return float(total(np.asarray(logs)))
