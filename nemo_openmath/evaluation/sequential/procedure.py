"""What to sample next, and what is decided: one procedure for engines, for stored generations and for simulations.

:meth:`Procedure.next` says how many further samples each arm gets (2 models x problems), :meth:`Procedure.take` is told
how many of them were right and what they cost. Both depend on the results so far alone, so a run that was killed is
brought to where it was by what is stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from nemo_openmath.evaluation.sequential.capital import DecisionRule, Floats, Ruling
from nemo_openmath.evaluation.sequential.drawn import DrawnProblems, share_alpha
from nemo_openmath.evaluation.sequential.stratified import Counts, ThisBenchmark

GROWTH = 0.2
"""A round makes so many samples more than there are: a decision is seen at most so much too late."""
LEAST = 1.5
"""Samples of a round for each arm, at least, so that an arm of which much is known can get fewer than another."""
PASSES = (4, 16)
"""Samples of each arm after the first passes over problems like these."""
DRAWN_AT_ONCE = 8
"""Problems of a batch, at least, where problems are drawn one after another."""


class Estimand(StrEnum):
    """The difference that is meant."""

    THIS_BENCHMARK = "this-benchmark"
    """These problems are fixed: the mean over them of the models' chances to solve each."""
    PROBLEMS_LIKE_THESE = "problems-like-these"
    """These problems are a draw: the mean over all problems that might have been drawn."""
    FULL_RUN = "full-run"
    """What a run of all problems, with ``samples`` of each and each model, would print."""


@dataclass(frozen=True)
class Found:
    """What is known of the difference (B minus A)."""

    verdict: Ruling
    difference: float
    low: float
    high: float


class Procedure(ABC):
    """A comparison of models A (row 0) and B (row 1) over problems."""

    def __init__(self, problems: int):
        self.problems = problems
        self.counts: Counts = np.zeros((2, problems), np.int64)
        self.right: Counts = np.zeros((2, problems), np.int64)

    @abstractmethod
    def next(self) -> Counts | None:
        """Return how many further samples each arm gets now; None where it is decided, or no more are allowed."""

    def take(self, counts: Counts, right: Counts, tokens: Floats) -> None:
        """Take in the samples that :meth:`next` asked for: of ``counts``, so many were ``right``, and all of an arm
        took so many ``tokens``."""
        self.counts, self.right = self.counts + counts, self.right + right
        self._take(counts, right, tokens)

    @abstractmethod
    def _take(self, counts: Counts, right: Counts, tokens: Floats) -> None: ...

    @abstractmethod
    def found(self) -> Found:
        """Return what is known by now."""

    @property
    @abstractmethod
    def limit(self) -> str:
        """Why no more samples are allowed, for the sentence "undecided: ..."."""


class FixedProblems(Procedure):
    """This benchmark: rounds over all problems; see ``stratified.py``. ``samples``: of an arm, at most, on average;
    ``most``: of one arm at most, where no more are stored."""

    def __init__(self, rule: DecisionRule, problems: int, samples: int, most: Counts | None = None):
        super().__init__(problems)
        self._budget, self._most = 2 * problems * samples, most
        self._samples = samples
        self._state = ThisBenchmark(problems, rule)
        self._tokens: Floats = np.zeros((2, problems))
        self._used_up = False

    def next(self) -> Counts | None:
        if self.found().verdict is not Ruling.UNDECIDED:
            return None
        made = int(self.counts.sum())
        left = self._budget - made
        if left < 2 * self.problems:
            return None
        if not made:
            planned: Counts = np.ones((2, self.problems), np.int64)
        else:
            size = round_size(made, self.problems)
            planned = self._state.plan(min(size, left))[0]
        if self._most is not None:
            planned = np.minimum(planned, self._most - self.counts)
            if planned.min() < 1:
                self._used_up = True
                return None
        return planned

    def _take(self, counts: Counts, right: Counts, tokens: Floats) -> None:
        self._state.add(counts[None], right[None])
        self._tokens = self._tokens + tokens
        self._state.cost = expected_cost(self._tokens, self.counts)[None]

    def found(self) -> Found:
        low, high = self._state.interval() if self.counts.any() else (-1.0, 1.0)
        return Found(Ruling(int(self._state.verdicts()[0])), *_ordered(difference(self.right, self.counts), low, high))

    @property
    def limit(self) -> str:
        if self._used_up:
            return "all stored samples of a problem are used"
        return f"{self._samples} samples of a problem and model on average are made"


def round_size(made: int, problems: int) -> int:
    """Return how many samples the next round makes."""
    return int(2 * problems * max(LEAST, GROWTH * made / (2 * problems)))


def expected_cost(tokens: Floats, counts: Counts) -> Floats:
    """Return the tokens that a sample of each arm is expected to take: its mean, drawn to that of its model."""
    of_model = tokens.sum(axis=1, keepdims=True) / np.maximum(1, counts.sum(axis=1, keepdims=True))
    cost: Floats = np.maximum(1.0, (tokens + 2 * of_model) / (counts + 2))
    return cost


def difference(right: Counts, counts: Counts) -> float:
    """Return the mean over the problems that both models were asked of the difference of their shares."""
    both = counts.min(axis=0) > 0
    if not both.any():
        return 0.0
    shares = right[:, both] / counts[:, both]
    return float((shares[1] - shares[0]).mean())


def _ordered(value: float, low: float, high: float) -> tuple[float, float, float]:
    """Return value, low and high. Ends that crossed, as they may with a chance of alpha, are both the middle."""
    if low > high:
        low = high = (low + high) / 2
    return value, low, high


class DrawnInTurn(Procedure):
    """Problems like these, or a full run: batches of problems in a drawn order; see ``drawn.py``.

    ``passes``: how many samples each arm has after each pass over the problems. A pass looks at all problems anew, and
    each has its share of alpha
    (:func:`share_alpha`). A full run has one pass.
    """

    def __init__(self, rule: DecisionRule, problems: int, passes: Sequence[int], *, whole: bool):
        super().__init__(problems)
        if whole and len(passes) != 1:
            raise ValueError("a full run has one pass")
        self._passes, self._whole = list(passes), whole
        self._rules = [replace(rule, alpha=alpha) for alpha in share_alpha(rule.alpha, len(passes))]
        self._done = 0
        self._ends = [-1.0, 1.0]
        self._state = self._begin()
        self._verdict = Ruling.UNDECIDED

    def _begin(self) -> DrawnProblems:
        return DrawnProblems(self._rules[self._done], self.problems if self._whole else None)

    def next(self) -> Counts | None:
        if self._verdict is not Ruling.UNDECIDED or self._done == len(self._passes):
            return None
        first = self._state.drawn
        batch = slice(first, first + max(DRAWN_AT_ONCE, int(GROWTH * first)))
        planned: Counts = np.zeros((2, self.problems), np.int64)
        planned[:, batch] = self._passes[self._done] - self.counts[:, batch]
        return planned

    def _take(self, counts: Counts, right: Counts, tokens: Floats) -> None:
        new = np.flatnonzero(counts[0])
        shares = self.right[:, new] / self.counts[:, new]
        self._state.add((shares[1] - shares[0])[None])
        low, high = self._state.interval()
        self._ends = [max(self._ends[0], low), min(self._ends[1], high)]
        self._verdict = Ruling(int(self._state.verdicts()[0]))
        if self._state.drawn == self.problems:
            self._done += 1
            if self._done < len(self._passes):
                self._state = self._begin()

    def found(self) -> Found:
        return Found(self._verdict, *_ordered(difference(self.right, self.counts), *self._ends))

    @property
    def limit(self) -> str:
        if self._whole:
            return "all problems are run"
        return f"all {self.problems} problems are used, and more samples of them say nothing of other problems"


def make_procedure(
    estimand: Estimand, rule: DecisionRule, problems: int, samples: int, most: Counts | None = None
) -> Procedure:
    """Return the procedure for an estimand. ``samples``: of a problem and model at most (on average, for this
    benchmark); ``most``: stored samples of each arm, where no more can be made."""
    if estimand is Estimand.THIS_BENCHMARK:
        return FixedProblems(rule, problems, samples, most)
    if most is not None:
        samples = min(samples, int(most.min()))
    if estimand is Estimand.FULL_RUN:
        return DrawnInTurn(rule, problems, [samples], whole=True)
    passes = [count for count in PASSES if count < samples] + [samples]
    return DrawnInTurn(rule, problems, passes, whole=False)
