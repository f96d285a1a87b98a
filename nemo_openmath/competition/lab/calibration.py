r"""Fit the model behind the rule ``bayes`` to stored solutions, and judge it on problems that it was not fitted on.

The model is that of ``competition/bayes.py``, and here it is known which answers are right. So its two parts are fitted
one by one, each by maximum likelihood over the problems of one half:

- ``accuracy``, a and b of the beta distribution of a problem's share of right answers: of n answers r are right with
  the beta-binomial probability B(a + r, b + n - r) / B(a, b).
- ``spread``, the concentration s of the process that wrong answers come from: m wrong answers in K groups have the
  probability s^K G(s) / G(s + m), times what does not depend on s.

The other half is looked at as a contest looks at it: solutions come one after the other, the leading answer is right
with a probability that the model says, and it is or it is not. Solutions of one problem are no independent cases, so
intervals are over problems.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, gammaln

from nemo_openmath.competition.bayes import posterior_right
from nemo_openmath.competition.lab.rollouts import StoredProblem
from nemo_openmath.competition.policy import BayesPrior
from nemo_openmath.core.records.ids import derive_seed

LEAST, MOST = 0.05, 50.0
"""Bounds of what is fitted: few problems may say that a number is as large as can be."""
BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 1.0)
DRAWS = 32  # orders of each problem's solutions
RESAMPLES = 2_000


def fit_prior(problems: Sequence[StoredProblem], prior: BayesPrior) -> BayesPrior:
    """Return the prior with ``accuracy`` and ``spread`` of these problems."""
    right, answered, groups, wrong = np.array([_counts(problem) for problem in problems], float).T

    def of_accuracy(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        return -float((betaln(a + right, b + answered - right) - betaln(a, b)).sum())

    def of_spread(logs: np.ndarray) -> float:
        spread = float(np.exp(logs[0]))
        return -float((groups * np.log(spread) + gammaln(spread) - gammaln(spread + wrong)).sum())

    a, b = _least(of_accuracy, prior.accuracy)
    (spread,) = _least(of_spread, (prior.spread,))
    return replace(prior, accuracy=(a, b), spread=spread)


def _least(loss: Callable[[np.ndarray], float], start: Sequence[float]) -> tuple[float, ...]:
    """Return where a loss of logarithms is least, within the bounds."""
    bounds = [(np.log(LEAST), np.log(MOST))] * len(start)
    result = minimize(loss, np.clip(np.log(start), *bounds[0]), bounds=bounds, method="L-BFGS-B")
    return tuple(round(float(value), 4) for value in np.exp(result.x))


def _counts(problem: StoredProblem) -> tuple[int, int, int, int]:
    """Return right answers, all answers, groups of wrong ones, and wrong ones."""
    answers = [s.answer for s in problem.solutions if s.whole and s.answer is not None]
    wrong = [g for a, g in zip(answers, problem.grouping.of(answers), strict=True) if not problem.is_right(a)]
    return len(answers) - len(wrong), len(answers), len(set(wrong)), len(wrong)


@dataclass(frozen=True)
class JudgedPrior:
    """What a prior stated of the leading answers of problems, and what they were."""

    stated: np.ndarray
    """The probability that the leading answer is right; shape (cases,)."""
    right: np.ndarray
    """Whether it is."""
    problem: np.ndarray
    """The place of the problem."""

    @property
    def brier(self) -> np.ndarray:
        """The mean squared difference of both, by problem."""
        errors = (self.stated - self.right) ** 2
        return np.bincount(self.problem, errors) / np.bincount(self.problem)

    def table(self) -> list[tuple[float, float, int, int, float, float]]:
        """Return (from, to, cases, problems, mean probability stated, share right) of each bin that is not empty."""
        rows = []
        for low, high in pairwise(BINS):
            inside = (self.stated >= low) & ((self.stated < high) | (high == 1.0))
            if inside.any():
                stated, right = float(self.stated[inside].mean()), float(self.right[inside].mean())
                rows.append((low, high, int(inside.sum()), len(set(self.problem[inside])), stated, right))
        return rows


def judge_prior(problems: Sequence[StoredProblem], prior: BayesPrior, *, most: int, seed: int = 0) -> JudgedPrior:
    """Return what a prior says after each of the first ``most`` answers of each problem, in ``DRAWS`` orders."""
    stated, right, places = [], [], []
    known: dict[tuple[tuple[int, ...], int], float] = {}
    for place, problem in enumerate(problems):
        answers = [s.answer for s in problem.solutions if s.whole and s.answer is not None]
        groups = problem.grouping.of(answers)
        rng = random.Random(derive_seed(seed, "calibration", problem.id))
        for _ in range(DRAWS if answers else 0):
            order = rng.sample(range(len(answers)), len(answers))[:most]
            votes: Counter[int | None] = Counter()
            for n in order:
                votes[groups[n]] += 1
                leader = max(votes, key=lambda g: votes[g])  # of equal ones the first
                weights = tuple(sorted(votes.values(), reverse=True))
                key = weights, weights.index(votes[leader])
                if key not in known:
                    a, b = prior.accuracy
                    known[key] = posterior_right([*map(float, weights)], key[1], accuracy=(a, b), spread=prior.spread)
                stated.append(known[key])
                right.append(problem.is_right(answers[groups.index(leader)]))
                places.append(place)
    return JudgedPrior(np.array(stated), np.array(right, float), np.array(places))


def brier_interval(before: JudgedPrior, after: JudgedPrior) -> tuple[float, float, float]:
    """Return the mean difference of two Brier scores of the same cases, with its 95% interval: a bootstrap over
    problems. Below 0: the second is better."""
    values = after.brier - before.brier
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
