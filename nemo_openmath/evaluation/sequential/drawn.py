"""Problems like these, and a full run: what is drawn are problems, one after another.

A problem's value is the share of B's samples that are right minus that of A's, of the same number of samples each. It
lies in [-1, 1]. Two unknowns are offered:

- *problems like these*: the benchmark's problems are a draw from a population, and the unknown is the mean there. Each
  value has that mean, whatever came before.
- *full run*: the unknown is the mean over all N problems of what a run of all of them, with so many samples each, would
  print. Problems are drawn without replacement, in an order that a seed chose, so the next value's mean is what is left
  of the unknown: ``(N null - sum so far) / (N - t + 1)`` (Waudby-Smith & Ramdas 2020, arXiv 2006.04347). After the last
  problem nothing is unknown.

A value multiplies the capital by ``1 + side lambda (value - mean)``, with a bet that earlier values chose.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.evaluation.sequential.capital import KEPT, Claim, DecisionRule, Floats, lower_end, total, verdicts

_PRIOR = 0.25  # the variance of a value before any was seen, worth one value


def share_alpha(alpha: float, passes: int) -> list[float]:
    """Return the error of each pass over the problems: half for the last, which has the most samples, and the rest in
    equal parts. Their sum is alpha, so all passes together are wrong with a chance of at most alpha."""
    return [alpha] if passes == 1 else [alpha / (2 * (passes - 1))] * (passes - 1) + [alpha / 2]


class DrawnProblems:
    """The comparison over problems in the order in which they are drawn; ``runs`` side by side in simulations.

    ``whole``: how many problems a full run has; None for a population. ``claims``: those whose capital is watched;
    None: those that decide.
    """

    def __init__(
        self, rule: DecisionRule, whole: int | None = None, runs: int = 1, claims: tuple[Claim, ...] | None = None
    ):
        self.rule, self.whole, self.runs = rule, whole, runs
        self.drawn = 0
        self.sum: Floats = np.zeros(runs)
        self._squares: Floats = np.full(runs, _PRIOR)
        self._past: list[tuple[Floats, Floats, Floats]] = []  # of each problem: values, bets, the sum before it
        self._watched: dict[Claim, Floats] = {c: np.zeros((runs, len(rule.gaps))) for c in claims or rule.claims}
        self.refuted: dict[Claim, NDArray[np.bool_]] = {claim: np.zeros(runs, bool) for claim in self._watched}
        self._ends = {1: -1.0, -1: -1.0}

    def add(self, values: Floats) -> None:
        """Take in the values of the next problems (runs x problems)."""
        for value in values.T:
            self._add_one(value)
        if self.runs == 1 and values.size:
            for side in (1, -1):
                self._ends[side] = lower_end(partial(self._capital, side), self.rule.threshold, self._ends[side], 1.0)

    def _add_one(self, value: Floats) -> None:
        if np.any(np.abs(value) > 1):
            raise ValueError("the value of a problem lies in [-1, 1]")
        variance = self._squares / (self.drawn + 1)
        bets = self.rule.gaps / np.maximum(variance, 1e-12)[:, None]
        for (null, side), logs in self._watched.items():
            logs += self._logs(value, bets, self.sum, self.drawn, null, side)
            self.refuted[null, side] |= total(logs) >= self.rule.threshold
        if self.runs == 1:
            self._past.append((value, bets, self.sum.copy()))
        mean = self.sum / max(1, self.drawn)
        self.sum = self.sum + value
        self.drawn += 1
        self._squares = self._squares + (value - mean) * (value - self.sum / self.drawn)
        if self.whole is not None:  # what is not drawn yet lies in [-1, 1]
            for null, side in self._watched:
                least = side * self.sum - (self.whole - self.drawn)
                self.refuted[null, side] |= least > self.whole * side * null + 1e-9

    def _logs(self, value: Floats, bets: Floats, before: Floats, drawn: int, null: float, side: int) -> Floats:
        """Return the logarithms of the factors of a problem (runs x gaps); infinite where ``null`` is impossible."""
        mean = np.full_like(value, null)
        if self.whole is not None:
            mean = (self.whole * null - before) / (self.whole - drawn)
        seen = side * mean
        least = np.clip(seen, -1.0, 1.0)[:, None]
        stake = np.minimum(bets, (1.0 - KEPT) / np.maximum(1.0 + least, 1e-12))
        logs: Floats = np.log1p(stake * (side * value[:, None] - least))
        return np.where((seen < -1.0 - 1e-9)[:, None], np.inf, logs)

    def verdicts(self) -> NDArray[np.int64]:
        """Return what is decided of each run (:class:`Ruling`)."""
        return verdicts(self.rule, self.refuted)

    def interval(self) -> tuple[float, float]:
        """Return the interval of the difference. It holds at all times at once."""
        low, high = self._ends[1], -self._ends[-1]
        if self.whole is not None:  # what is not drawn yet lies in [-1, 1]
            left = self.whole - self.drawn
            low, high = (
                max(low, float(self.sum[0] - left) / self.whole),
                min(high, float(self.sum[0] + left) / self.whole),
            )
        return low, high

    def _capital(self, side: int, end: float) -> float:
        logs = sum(
            self._logs(value, bets, before, drawn, side * end, side)[0]
            for drawn, (value, bets, before) in enumerate(self._past)
        )
        return float(total(np.asarray(logs)))
