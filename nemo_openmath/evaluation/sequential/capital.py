"""Bets of several sizes on one side of a difference, and what they are worth together.

A gambler who bets that a difference is above ``null`` starts with capital 1. If the difference is at most ``null``, the
expected capital never grows, whatever was bet and whenever it is looked at. So it reaches ``1 / alpha`` with a chance
of at most alpha (Ville 1939), and capital that large is a proof at error alpha (Waudby-Smith & Ramdas 2023,
arXiv 2010.09686, sections 3 and 4). Bets that are too small or too large win little. So the start is divided among
several gaps ("the difference is 3 points above ``null``"), and the capital is the sum. A gap that is expected to be
there is bet on with the size that makes capital grow fastest: gap / variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import log

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Claim = tuple[float, int]
"""(null, side): with side 1, that the difference is at most ``null``; with -1, that it is at least ``null``."""

GAPS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
WEIGHTS = (0.1, 0.25, 0.25, 0.2, 0.1, 0.1)
KEPT = 0.1
"""The share of its capital that a bet keeps whatever comes: a bet that risks all can never win again."""
STEP = 1e-5
"""How exactly the ends of an interval are found. They are rounded outwards."""


@dataclass(frozen=True)
class DecisionRule:
    """When a comparison is decided."""

    alpha: float = 0.05
    """The chance, at most, that what is decided is wrong."""
    delta: float = 0.02
    """The smallest difference of accuracy that matters: 0.02 is two points."""

    @property
    def threshold(self) -> float:
        """The logarithm of the capital that proves one side of a two-sided statement."""
        return log(2.0 / self.alpha)

    @property
    def gaps(self) -> Floats:
        """The gaps that are bet on, around the difference that matters."""
        return np.minimum(self.delta * np.array(GAPS), 1.0)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims whose refutation decides something."""
        return ((0.0, 1), (0.0, -1), (-self.delta, 1), (self.delta, -1))


class Ruling(IntEnum):
    """What is decided of two models A and B."""

    UNDECIDED = 0
    B_BETTER = 1
    A_BETTER = 2
    EQUAL = 3
    """The difference is smaller than what matters."""


def verdicts(rule: DecisionRule, refuted: Mapping[Claim, NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Return what is decided of each run by the claims that were ever refuted."""
    b_better, a_better, above, below = (refuted[claim] for claim in rule.claims)
    return np.select(
        [above & below, b_better & ~a_better, a_better & ~b_better],
        [Ruling.EQUAL, Ruling.B_BETTER, Ruling.A_BETTER],
        Ruling.UNDECIDED,
    )


def total(logs: Floats) -> Floats:
    """Return the logarithm of the weighted sum of capitals whose logarithms are in the last axis."""
    shifted = logs + np.log(WEIGHTS)
    top = np.max(shifted, axis=-1, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        summed: Floats = np.log(np.sum(np.exp(shifted - safe), axis=-1)) + safe[..., 0]
    return summed


def lower_end(capital: Callable[[float], float], threshold: float, low: float, high: float) -> float:
    """Return the end below which every ``null`` is refuted: ``capital`` (a logarithm) falls where ``null`` rises.

    The end is rounded down to at most :data:`STEP`; it is ``low`` where nothing is refuted.
    """
    if high <= low or capital(low) < threshold:
        return low
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if capital(middle) >= threshold else (low, middle)
    return low
