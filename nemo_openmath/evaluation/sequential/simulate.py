"""Many comparisons at once, of models whose chances are known: how often a rule decides, rightly, and with how much.

Every number has a standard error, for it is a share or a mean of independent runs of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.evaluation.sequential.capital import DecisionRule, Floats, Ruling
from nemo_openmath.evaluation.sequential.drawn import DrawnProblems, share_alpha
from nemo_openmath.evaluation.sequential.procedure import round_size
from nemo_openmath.evaluation.sequential.stratified import Counts, ThisBenchmark

MOST_CELLS = 4_000_000  # of an array: runs x models x problems x gaps


@dataclass(frozen=True)
class SimulatedRuns:
    """How simulated comparisons came out."""

    verdicts: Counts
    samples: Counts
    """Samples of both models and all problems together."""
    problems: int

    def share(self, verdict: Ruling) -> tuple[float, float]:
        """Return the share of runs with a verdict, and its standard error."""
        share = float((self.verdicts == verdict).mean())
        return share, sqrt(share * (1 - share) / len(self.verdicts))

    @property
    def mean_samples(self) -> tuple[float, float]:
        """Mean samples of a problem and model, and its standard error."""
        each = self.samples / (2 * self.problems)
        return float(each.mean()), float(each.std() / sqrt(len(each)))


def fixed_problems(chances: Floats, rule: DecisionRule, samples: int, runs: int, seed: int) -> SimulatedRuns:
    """Simulate the comparison over fixed problems. ``chances``: 2 models x problems; ``samples``: of a problem and
    model, at most, on average."""
    problems = chances.shape[1]
    size = max(1, MOST_CELLS // (2 * problems * len(rule.gaps)))
    rng = np.random.default_rng(seed)
    parts = [_fixed(chances, rule, samples, min(size, runs - first), rng) for first in range(0, runs, size)]
    return SimulatedRuns(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), problems)


def _fixed(
    chances: Floats, rule: DecisionRule, samples: int, runs: int, rng: np.random.Generator
) -> tuple[Counts, Counts]:
    problems = chances.shape[1]
    state = ThisBenchmark(problems, rule, runs, keeps_rounds=False)
    counts: Counts = np.ones((runs, 2, problems), np.int64)
    verdicts, used = np.zeros(runs, np.int64), np.zeros(runs, np.int64)
    budget = 2 * problems * samples
    while True:
        state.add(counts, rng.binomial(counts, chances))
        open_runs = verdicts == Ruling.UNDECIDED
        used[open_runs] += counts.sum(axis=(1, 2))[open_runs]
        verdicts[open_runs] = state.verdicts()[open_runs]
        left = budget - used
        if not np.any((verdicts == Ruling.UNDECIDED) & (left >= 2 * problems)):
            return verdicts, used
        # runs of one size go on side by side; those that are decided go on unseen
        made = int(used[verdicts == Ruling.UNDECIDED].min())
        counts = state.plan(min(round_size(made, problems), max(2 * problems, budget - made)))


def passes_like_these(
    population: Callable[[], Floats], problems: int, rule: DecisionRule, passes: Sequence[int], runs: int, seed: int
) -> SimulatedRuns:
    """Simulate the comparison over problems that are drawn anew for each run.

    ``population``: returns chances of many problems (2 models x problems), from which each run draws its own;
    ``passes``: samples of each arm after each pass.
    """
    rng = np.random.default_rng(seed)
    chances = population()
    drawn = rng.integers(chances.shape[1], size=(runs, problems))
    of_run = np.moveaxis(chances[:, drawn], 0, 1)  # runs x 2 x problems
    right, verdicts, made = np.zeros_like(of_run), np.zeros(runs, np.int64), 0
    for count, alpha in zip(passes, share_alpha(rule.alpha, len(passes)), strict=True):
        right = right + rng.binomial(count - made, of_run)
        made = count
        state = DrawnProblems(replace(rule, alpha=alpha), runs=runs)
        state.add((right[:, 1] - right[:, 0]) / made)
        verdicts = np.where(verdicts == Ruling.UNDECIDED, state.verdicts(), verdicts)
    return SimulatedRuns(verdicts, np.full(runs, 2 * problems * made), problems)


def excluded(chances: Floats, rule: DecisionRule, samples: int, runs: int, seed: int) -> NDArray[np.bool_]:
    """Return for each run over fixed problems whether the true difference ever was outside the interval: an adversary
    who knows it stops there. Nobody else stops a run before its last sample."""
    truth = float((chances[1] - chances[0]).mean())
    problems, rng = chances.shape[1], np.random.default_rng(seed)
    state = ThisBenchmark(problems, rule, runs, ((truth, 1), (truth, -1)), keeps_rounds=False)
    counts: Counts = np.ones((runs, 2, problems), np.int64)
    made = 0
    while True:
        state.add(counts, rng.binomial(counts, chances))
        made += int(counts[0].sum())
        left = 2 * problems * samples - made
        if left < 2 * problems:
            return state.refuted[truth, 1] | state.refuted[truth, -1]
        counts = state.plan(min(round_size(made, problems), left))
