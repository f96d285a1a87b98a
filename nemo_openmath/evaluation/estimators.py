"""Estimate the accuracy of k samples of a problem, without bias, from the n samples that were drawn.

Both estimators average over all k-subsets of the n samples, so they use every sample and do not depend on order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

EXACT_SAMPLES = 1000
"""Up to this many samples a problem, votes are counted exactly: the binomials fit a double, and counting is faster
than drawing (64 samples: 2 ms a problem). Above it, k-subsets are drawn."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the chance that at least one of k samples is right.

    It is ``1 - C(n-c, k) / C(n, k)`` for n ``samples`` of which c are ``correct`` (Chen et al. 2021, equation 1).

    The ratio is taken as a product of factors in [0, 1], which neither overflows nor cancels.
    """
    _check(samples, k)
    if samples - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def majority_at_k(
    sizes: Sequence[int],
    right: Sequence[float],
    missing: int,
    ks: Sequence[int],
    *,
    seed: Sequence[int] = (0,),
    subsets: int = 4096,
) -> list[float]:
    """Return the expected accuracy of the majority answer of k samples, for each k.

    - ``sizes``: number of samples with each distinct answer.
    - ``right``: 1.0 where that answer is right, else 0.0.
    - ``missing``: samples without an answer. They take part in the draw and never win.

    Answers that tie for the most votes share the win evenly, as breaking ties by a fair draw gives on average. A draw
    without any answer is wrong.

    The value is exact up to ``EXACT_SAMPLES`` samples. Above that it is the mean over ``subsets`` random k-subsets per
    k, drawn without replacement from ``seed`` (standard error at most ``0.5 / sqrt(subsets)``).
    """
    samples = sum(sizes) + missing
    for k in ks:
        _check(samples, k)
    if not any(right):
        return [0.0] * len(ks)
    if samples <= EXACT_SAMPLES:
        return _exact(list(sizes), list(right), missing, ks)
    rng = np.random.default_rng(list(seed))
    return [_sampled(sizes, right, missing, k, rng, subsets) for k in ks]


def _exact(sizes: list[int], right: list[float], missing: int, ks: Sequence[int]) -> list[float]:
    """Count the k-subsets that each right answer wins.

    An answer wins with j votes, tied with t others, when those t have exactly j votes and all others fewer. The
    number of ways for all other samples is the coefficient of x^(k-j) in a product of polynomials, one an answer;
    ``ways[t]`` carries it for each t. Answers with fewer than j samples can never reach j: they join the missing.
    All terms are positive, so double precision loses nothing but rounding.
    """
    samples, most = sum(sizes) + missing, max(ks)
    wins = np.zeros(most + 1)
    for winner, weight in enumerate(right):
        if not weight:
            continue
        others = sizes[:winner] + sizes[winner + 1 :]
        for j in range(1, min(sizes[winner], most) + 1):
            free = missing + sum(m for m in others if m < j)
            others_drawn = most - j
            ways = np.zeros((others_drawn // j + 1, others_drawn + 1))
            ways[0] = [float(comb(free, i)) for i in range(others_drawn + 1)]
            for size in others:
                if size >= j:
                    ways = _multiply(ways, size, j)
            shared = (ways / np.arange(1, len(ways) + 1)[:, None]).sum(axis=0)
            wins[j:] += weight * float(comb(sizes[winner], j)) * shared
    return [float(min(1.0, wins[k] / float(comb(samples, k)))) for k in ks]


def _multiply(ways: NDArray[np.float64], size: int, j: int) -> NDArray[np.float64]:
    """Multiply ``ways`` by one more answer of ``size`` samples: with fewer than j votes it loses, with j it ties."""
    out = ways.copy()  # no votes
    width = ways.shape[1]
    for votes in range(1, min(j, width)):
        out[:, votes:] += float(comb(size, votes)) * ways[:, : width - votes]
    if j < width:
        out[1:, j:] += float(comb(size, j)) * ways[:-1, : width - j]
    return out


def _sampled(
    sizes: Sequence[int], right: Sequence[float], missing: int, k: int, rng: np.random.Generator, subsets: int
) -> float:
    votes = rng.multivariate_hypergeometric([*sizes, missing], k, size=subsets, method="marginals")[:, :-1]
    best = votes.max(axis=1, keepdims=True)
    winners = (votes == best) & (best > 0)
    share = winners @ np.asarray(right, dtype=float) / np.maximum(winners.sum(axis=1), 1)
    return float(share.mean())


def _check(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} of {samples} samples")
