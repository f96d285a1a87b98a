"""How many of the answers that are kept are wrong: an estimate with an interval, and what to keep for a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.synthesis.answers.latent import Fit, Floats, fit, posterior
from nemo_openmath.synthesis.answers.patterns import Table

DRAWS = 20
"""Draws of the wrong answers themselves for each resample of the problems."""
REFITS = 50
"""Most iterations of a fit to a resample. It starts where the fit to all problems ended."""


@dataclass(frozen=True)
class BestAnswers:
    """The most probable answer of each pattern."""

    answer: NDArray[np.int64]
    """[P] index of an answer of the table."""
    p: Floats
    """[P] probability that it is right."""

    @staticmethod
    def of(table: Table, probability: Floats) -> BestAnswers:
        """Return the choices. Of equally probable answers the first is taken, which has as many votes as any.

        The forum's answer is taken where it is more probable than not: another one is as probable only where the grader
        cannot tell the two apart.
        """
        ends = np.append(table.first_answer[1:], len(probability))
        best = np.array(
            [a + int(np.argmax(np.round(probability[a:b], 9))) for a, b in zip(table.first_answer, ends, strict=True)],
            np.int64,
        )
        if not len(best):
            return BestAnswers(best, np.zeros(0))
        forum = table.forum_answer
        best = np.where((forum >= 0) & (probability[forum] > 0.5), forum, best)
        return BestAnswers(best, probability[best])


def kept_patterns(choice: BestAnswers, weights: Floats, threshold: float, budget: float | None) -> NDArray[np.bool_]:
    """Return which patterns are kept: those whose answer is right with probability ``threshold`` or more and, with a
    ``budget``, of these the most probable ones among which at most so many wrong answers are expected.

    Problems with the same probability are kept or dropped together.
    """
    kept = choice.p >= threshold
    if budget is not None:
        values, place = np.unique(-np.round(choice.p, 9), return_inverse=True)
        wrong = np.bincount(place, np.where(kept, weights * (1 - choice.p), 0.0), len(values))
        kept &= (np.cumsum(wrong) <= budget + 1e-9)[place]
    return kept


@dataclass(frozen=True)
class LabelNoise:
    """The wrong answers among those that are kept."""

    problems: int
    wrong: float
    """How many are expected to be wrong."""
    low: float
    high: float
    """Ends of the 95% interval of how many are wrong."""

    @property
    def share(self) -> float:
        return self.wrong / self.problems if self.problems else 0.0


def label_noise(
    table: Table, fitted: Fit, choice: BestAnswers, kept: NDArray[np.bool_], *, seed: int, resamples: int
) -> LabelNoise:
    """Estimate the wrong answers among those of the kept patterns.

    The interval has both sources of chance: what the model learns from these problems (it is fitted again to
    ``resamples`` resamples of them, the bootstrap of Efron 1979), and which of the answers are wrong, given their
    probabilities. It does not have the error of the model itself.
    """
    rng = np.random.default_rng(seed)
    weights, total = table.weights, int(table.weights.sum())
    numbers = weights[kept].astype(np.int64)
    expected = float(weights[kept] @ (1 - choice.p[kept]))
    if not len(numbers):
        return LabelNoise(0, 0.0, 0.0, 0.0)
    draws = []
    for _ in range(resamples):
        resample = rng.multinomial(total, weights / total).astype(float)
        again = fit(table, resample, start=fitted.parameters, iterations=REFITS)
        p = np.clip(posterior(table, again.parameters)[choice.answer[kept]], 0.0, 1.0)
        draws += [int(rng.binomial(numbers, 1 - p).sum()) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975]) if draws else (expected, expected)
    return LabelNoise(int(numbers.sum()), expected, float(low), float(high))
