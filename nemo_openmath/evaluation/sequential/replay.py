"""Replay a comparison over stored generations: what it would have decided, and how many tokens it would have saved.

The samples of a problem are equally good in any order. So a replay is repeated over orders that a seed chooses, and
what it says of the tokens is a mean over them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from nemo_openmath.evaluation.sequential.capital import DecisionRule, Ruling
from nemo_openmath.evaluation.sequential.procedure import Estimand, Found, difference, make_procedure
from nemo_openmath.evaluation.sequential.stored import StoredSample, StoredSamples, counts_of, same_problems
from nemo_openmath.evaluation.sequential.stratified import Counts


@dataclass(frozen=True)
class Replayed:
    """One order."""

    finding: Found
    samples: int
    tokens: int
    limit: str


@dataclass(frozen=True)
class Replay:
    """All orders, beside the whole of what is stored."""

    problems: int
    apart: int
    undecided_grades: int
    difference: float
    """Of all stored samples."""
    stored_samples: int
    stored_tokens: int
    orders: list[Replayed]

    def share(self, verdict: Ruling) -> float:
        """Return the share of orders with a verdict."""
        return sum(order.finding.verdict is verdict for order in self.orders) / len(self.orders)

    @property
    def saved(self) -> tuple[float, float]:
        """The share of the stored tokens that was not needed: its mean over orders, and the mean's standard error."""
        shares = np.array([1.0 - order.tokens / self.stored_tokens for order in self.orders])
        return float(shares.mean()), float(shares.std() / sqrt(len(shares)))


def replay(
    a: StoredSamples, b: StoredSamples, estimand: Estimand, rule: DecisionRule, *, samples: int, orders: int, seed: int
) -> Replay:
    """Replay the comparison of two models. ``samples``: of a problem and model, at most (on average, for this
    benchmark). The first order is that of the samples' numbers, the others are drawn."""
    sides = (a, b)
    problems, apart = same_problems(a, b)
    stored = counts_of(sides, problems)
    rng = np.random.default_rng(seed)
    runs = []
    for number in range(orders):
        order = None if number == 0 else rng
        runs.append(_one(sides, problems, estimand, rule, samples, order))
    every = [[side.samples[problem] for problem in problems] for side in sides]
    right = np.array([[sum(s.right for s in arm) for arm in side] for side in every])
    return Replay(
        problems=len(problems),
        apart=apart,
        undecided_grades=a.undecided + b.undecided,
        difference=difference(right, stored),
        stored_samples=int(stored.sum()),
        stored_tokens=sum(s.tokens for side in every for arm in side for s in arm),
        orders=runs,
    )


def _one(
    sides: tuple[StoredSamples, StoredSamples],
    problems: list[str],
    estimand: Estimand,
    rule: DecisionRule,
    samples: int,
    rng: np.random.Generator | None,
) -> Replayed:
    names = list(problems)
    if rng is not None:
        rng.shuffle(names)
    arms = [[_shuffled(side.samples[name], rng) for name in names] for side in sides]
    right, tokens = _Sums(arms, lambda s: s.right), _Sums(arms, lambda s: s.tokens)
    procedure = make_procedure(estimand, rule, len(names), samples, counts_of(sides, names))
    while (planned := procedure.next()) is not None:
        after = procedure.counts + planned
        gained, paid = right.between(procedure.counts, after), tokens.between(procedure.counts, after)
        procedure.take(planned, gained, paid.astype(float))
    spent = int(tokens.between(np.zeros_like(procedure.counts), procedure.counts).sum())
    return Replayed(procedure.found(), int(procedure.counts.sum()), spent, procedure.limit)


def _shuffled(arm: list[StoredSample], rng: np.random.Generator | None) -> list[StoredSample]:
    return arm if rng is None else [arm[i] for i in rng.permutation(len(arm))]


class _Sums:
    """Sums over the first samples of each arm."""

    def __init__(self, arms: list[list[list[StoredSample]]], value: Callable[[StoredSample], int]):
        self._sums = [[np.cumsum([0, *map(value, arm)]) for arm in side] for side in arms]

    def between(self, first: Counts, end: Counts) -> Counts:
        """Return the sums over samples ``first`` to ``end`` of each arm."""
        rows = zip(self._sums, first, end, strict=True)
        return np.array([[s[n] - s[m] for s, m, n in zip(*row, strict=True)] for row in rows], np.int64)
