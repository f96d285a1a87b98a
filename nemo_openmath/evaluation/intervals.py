"""95% intervals over problems.

The problems are the sample: a benchmark of 200 is a draw from the problems one could have asked. Closed forms, no
resampling: they are exact to reproduce, cost nothing, and hold where a percentile bootstrap fails: with few problems
and near 0 or 1, where the bootstrap of an all-wrong benchmark claims certainty.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats takes seconds to import

Z = 1.959963984540054  # two-sided 95% of the normal distribution
Interval = tuple[float | None, float | None]
Values = NDArray[np.float64]


def share_interval(values: Values) -> Interval:
    """Interval of the mean of values in [0, 1], one a problem.

    Wilson's score interval at the effective sample size ``n * p(1-p) / s^2`` (survey statistics; Korn and Graubard
    1998, Franco et al. 2019). For values of 0 and 1 this is Wilson's interval; averages over samples vary less than
    single draws and get a shorter one. All 0 or all 1: Wilson's, which stays honest: 200 of 200 gives [0.981, 1].
    """
    count, mean = len(values), float(np.mean(values))
    variance = float(np.var(values))
    binary = mean * (1.0 - mean)
    size = count * binary / variance if variance > 1e-12 and binary > 0 else float(count)
    centre = (mean + Z * Z / (2 * size)) / (1 + Z * Z / size)
    half = Z / (1 + Z * Z / size) * sqrt(max(binary, 0.0) / size + (Z / (2 * size)) ** 2)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def mean_interval(values: Values) -> Interval:
    """Interval of a mean without bounds (tokens, calls), by Student's t; none from a single problem."""
    count = len(values)
    if count < 2:
        return None, None
    mean = float(np.mean(values))
    half = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / sqrt(count)
    return mean - half, mean + half


def share_difference_interval(differences: Values) -> Interval:
    """Interval of the mean of paired differences in [-1, 1], one a problem.

    Two pseudo-problems, one won and one lost, are added before the normal interval is taken. For differences of -1, 0
    and 1 this is the adjusted Wald interval of Bonett and Price (2012), the recommended one for paired shares; it
    stays honest where no problem differs: 200 equal problems give +-0.0137.
    """
    count, total = len(differences) + 2, float(np.sum(differences))
    mean = total / count
    variance = max(0.0, (float(np.sum(differences * differences)) + 2.0) / count - mean * mean)
    half, value = Z * sqrt(variance / count), total / (count - 2)
    return max(-1.0, min(value, mean - half)), min(1.0, max(value, mean + half))
