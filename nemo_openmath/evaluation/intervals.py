"""Compute 95% intervals over problems.

The problems are the sample: a benchmark of 200 is a draw from the problems one could have asked. What is averaged is a
number of each problem: a share in [0, 1] (pass@1 over its samples, pass@k, maj@k) or a difference of two in [-1, 1].
Little else is known of its distribution, and benchmarks are small and their values pile up at the ends. There the usual
intervals claim too much: Wilson's score interval at the effective sample size, Student's and the percentile bootstrap
hold the truth in 73 to 88 of 100 benchmarks of 5 problems and in 84 to 94 of 15.

So means of bounded values get Gaffke's interval (Gaffke 2005, "Three test statistics for a nonparametric one-sided
hypothesis on the mean of a nonnegative variable"; found again by Learned-Miller and Thomas 2019, arXiv 1905.06208).
Its upper end is the 97.5% quantile of ``sum(D_i y_i)``, where y are the n values and one more at the upper bound and D
is uniform over the shares that sum to 1 (Dirichlet(1, ..., 1)); its lower end is the same with the lower bound. For
values of 0 and 1 that is Clopper and Pearson's exact interval; all right or all wrong is no exception. No distribution
is known for which it covers less than it says, and ``tests/evaluation/test_intervals.py`` finds none. At 200 problems
it is 1 to 15% wider than what assumes normality. Quantiles are computed, not drawn: the same values give the same
interval to eight digits, whatever their order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit  # scipy.stats takes seconds to import

TAIL = 0.025
NODES = 256  # of the quadrature
MANY = 10_000  # values, above which the quantile is looked for near the mean alone
Interval = tuple[float | None, float | None]
Values = NDArray[np.float64]


def share_interval(values: Values) -> tuple[float, float]:
    """Return the interval of the mean of values in [0, 1], one a problem. 200 of 200 gives [0.982, 1]."""
    return bounded_interval(values, 0.0, 1.0)


def share_difference_interval(differences: Values) -> tuple[float, float]:
    """Return the interval of the mean of paired differences in [-1, 1], one a problem. 200 zeros give +-0.0183."""
    return bounded_interval(differences, -1.0, 1.0)


def mean_interval(values: Values) -> Interval:
    """Return the interval of the mean of unbounded values (differences of tokens or of calls), by Student's t.

    A single problem has none. The interval assumes many values or normal ones: of few skewed values it covers less than
    95%.
    """
    count = len(values)
    if count < 2:
        return None, None
    mean = float(np.mean(values))
    half = float(stdtrit(count - 1, 1 - TAIL)) * float(np.std(values, ddof=1)) / sqrt(count)
    return mean - half, mean + half


def amount_interval(values: Values) -> Interval:
    """Return the interval of the mean of amounts (tokens, calls): Student's, cut at zero, for none is negative."""
    low, high = mean_interval(values)
    return (None if low is None else max(0.0, low)), high


def bounded_interval(values: Values, least: float, most: float) -> tuple[float, float]:
    """Return Gaffke's interval of the mean of at least one value in [least, most]."""
    scaled = np.clip((np.asarray(values, dtype=float) - least) / (most - least), 0.0, 1.0)
    mean = float(np.mean(scaled))
    low, high = 1.0 - _upper(1.0 - scaled), _upper(scaled)
    low, high = max(0.0, min(mean, low)), min(1.0, max(mean, high))
    return least + (most - least) * low, least + (most - least) * high


def _upper(values: Values) -> float:
    """Return the 97.5% quantile of a randomly weighted mean of values in [0, 1] and of 1."""
    points, counts = np.unique(values, return_counts=True)
    if points[0] == 1.0:
        return 1.0
    ones = int(counts[-1]) if points[-1] == 1.0 else 0
    if len(points) == (2 if ones else 1):  # one other value: the weight of 1 has a beta distribution
        weight = float(betaincinv(ones + 1, len(values) - ones, 1 - TAIL))
        return float(points[0]) + (1.0 - float(points[0])) * weight
    points, counts = np.append(points, 1.0), np.append(counts, 1).astype(np.int64)

    def excess(at: float) -> float:
        return chance_below(points, counts, at) - (1 - TAIL)

    mean = float(np.mean(values))
    if len(values) <= MANY:
        return _root(excess, mean, 1.0)
    # far above the mean of many values the integrand oscillates faster than the nodes of the quadrature follow
    reach = 2.0 * (float(np.std(values)) + 1.0 / sqrt(len(values))) / sqrt(len(values))
    while mean + reach < 1.0 and excess(mean + reach) < 0:
        reach *= 2.0
    return _root(excess, mean, min(1.0, mean + reach))


def chance_below(points: Values, counts: NDArray[np.int64], at: float) -> float:
    """Return P(sum(D_i y_i) <= at). D is uniform over shares that sum to 1; y is each point as often as its count.

    With independent exponential variables E in place of D it is P(sum(E_i (y_i - at)) <= 0), by the inversion of
    the characteristic function (Imhof 1961), with Gauss and Legendre's rule over x = u / (u + c).
    """
    nodes, weights = _rule()
    gaps = points - at
    scale = 2.0 / sqrt(float(np.sum(counts * gaps * gaps)))
    angles = (scale * nodes / (1.0 - nodes))[:, None] * gaps
    phase = np.arctan(angles) @ counts
    decay = np.exp(-0.5 * (np.log1p(angles * angles) @ counts))
    return 0.5 - float(np.sum(weights * np.sin(phase) * decay / (nodes * (1.0 - nodes)))) / pi


@lru_cache(maxsize=1)
def _rule() -> tuple[Values, Values]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (nodes + 1.0) / 2.0, weights / 2.0


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the zero of a growing function between ``low`` and ``high``, to 1e-11.

    The method is Illinois' rule of false position.
    """
    at_low, at_high = function(low), TAIL  # at the upper bound the chance is 1
    middle = high
    for _ in range(200):
        before, middle = middle, (low * at_high - high * at_low) / (at_high - at_low)
        if not low < middle < high or abs(middle - before) < 1e-11:
            break
        value = function(middle)
        if value == 0:
            break
        if value < 0:
            low, at_low, at_high = middle, value, at_high / 2 if before < middle else at_high
        else:
            high, at_high, at_low = middle, value, at_low / 2 if before > middle else at_low
    return min(max(middle, low), high)
