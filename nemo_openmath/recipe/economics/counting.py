"""Sum up samples by model, mode and class of problems. A problem is one draw: intervals are over problems.

A rate is a ratio of two sums over problems, such as accepted samples over tokens. Its interval is that of the ratio's
logarithm by linearization (Cochran, Sampling Techniques, chapter 6), so all that is kept of a class are sums and sums
of products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from nemo_openmath.recipe.economics.samples import (
    ACCEPTED,
    CLASSES,
    ENOUGH,
    UNDECIDED,
    Outcomes,
    ProblemClasses,
    SampleColumns,
)

ALL = "all"
Floats = NDArray[np.float64]
Class = tuple[str, str]
"""What it is made by, and its value; (all, "") for all problems."""
Interval = tuple[float, float] | None


@dataclass
class ProblemRatio:
    """A ratio of two sums over problems."""

    n: int = 0
    over: float = 0.0
    under: float = 0.0
    squares: Floats = field(default_factory=lambda: np.zeros(3))
    """Sums of over * over, over * under, under * under."""

    def add(self, over: Floats, under: Floats) -> None:
        """Add problems, [n] each."""
        self.n += len(over)
        self.over += float(over.sum())
        self.under += float(under.sum())
        self.squares += (float(over @ over), float(over @ under), float(under @ under))

    @property
    def value(self) -> float:
        return self.over / self.under if self.under else 0.0

    def interval(self, tests: int = 1) -> Interval:
        """Return the 95% interval; None where it cannot be known. ``tests``: of so many intervals together
        (Bonferroni)."""
        if self.n < 2 or not self.over:
            return None
        r = self.value
        variance = self.squares[0] - 2 * r * self.squares[1] + r * r * self.squares[2]
        half = _quantile(self.n, tests) * sqrt(max(0.0, variance) * self.n / (self.n - 1)) / self.over
        return r * exp(-half), r * exp(half)


@dataclass
class PairedRatio:
    """The quotient of two ratios over the same problems: (over1 / under1) / (over2 / under2)."""

    n: int = 0
    sums: Floats = field(default_factory=lambda: np.zeros(4))
    squares: Floats = field(default_factory=lambda: np.zeros((4, 4)))

    def add(self, rows: Floats) -> None:
        """Add problems, [n, 4]: over1, under1, over2, under2."""
        self.n += len(rows)
        self.sums += rows.sum(axis=0)
        self.squares += rows.T @ rows

    @property
    def value(self) -> float:
        over1, under1, over2, under2 = self.sums
        return float(over1 / under1 / (over2 / under2)) if under1 and over2 else 0.0

    def interval(self, tests: int = 1) -> Interval:
        """See :meth:`ProblemRatio.interval`."""
        if self.n < 2 or not self.sums.all():
            return None
        weights = np.array([1, -1, -1, 1]) / self.sums
        variance = float(weights @ self.squares @ weights)
        half = _quantile(self.n, tests) * sqrt(max(0.0, variance) * self.n / (self.n - 1))
        middle = log(self.value)
        return exp(middle - half), exp(middle + half)


def _quantile(n: int, tests: int) -> float:
    return float(stdtrit(n - 1, 1 - 0.025 / tests))


def share_of(count: int, number: int, tests: int = 1) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of a share of independent draws."""
    tail = 0.025 / tests
    low = float(betaincinv(count, number - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, number - count, 1 - tail)) if count < number else 1.0
    return low, high


@dataclass
class Tally:
    """Sums over the decided samples of some problems."""

    problems: int = 0
    solved: int = 0
    """Problems with an accepted sample."""
    samples: int = 0
    tokens: int = 0
    accepted: int = 0
    rate: ProblemRatio = field(default_factory=ProblemRatio)
    """Accepted samples over tokens."""
    beyond: ProblemRatio = field(default_factory=ProblemRatio)
    """Tokens behind the last sample that was wanted, over tokens."""
    last_tries: int = 0
    """Problems without a good sample before their last one."""
    last_solved: int = 0
    """Those of them whose last sample is good."""

    def add(self, of: _Problems, rows: NDArray[np.intp]) -> None:
        """Add problems."""
        self.problems += len(rows)
        self.solved += int(np.count_nonzero(of.accepted[rows]))
        self.samples += int(of.samples[rows].sum())
        self.tokens += int(of.tokens[rows].sum())
        self.accepted += int(of.accepted[rows].sum())
        self.rate.add(of.accepted[rows], of.tokens[rows])
        self.beyond.add(of.beyond[rows], of.tokens[rows])
        self.last_tries += int(np.count_nonzero(of.tried[rows]))
        self.last_solved += int(np.count_nonzero(of.tried[rows] & of.solved_last[rows]))


@dataclass
class _Problems:
    """Sums of the decided samples of each problem in a group, [p] each."""

    group: NDArray[np.uint16]
    key: NDArray[np.uint64]
    samples: Floats
    tokens: Floats
    accepted: Floats
    beyond: Floats
    tried: NDArray[np.bool_]
    solved_last: NDArray[np.bool_]
    by_outcome: dict[int, tuple[Floats, Floats]]
    """Outcome -> (samples, tokens)."""

    def regrouped(self, place: NDArray[np.uint16]) -> _Problems:
        """Return the sums with groups put together: group g becomes ``place[g]``."""
        group = place[self.group]
        order = np.lexsort((self.key, group))
        group, key = group[order], self.key[order]
        begins = np.ones(len(key), bool)
        begins[1:] = (key[1:] != key[:-1]) | (group[1:] != group[:-1])
        starts = np.flatnonzero(begins)

        def total(values: Any) -> Any:
            return np.add.reduceat(values[order], starts)

        return _Problems(
            group[starts],
            key[starts],
            total(self.samples),
            total(self.tokens),
            total(self.accepted),
            total(self.beyond),
            np.zeros(len(starts), bool),  # which sample is the last is known of a stage alone
            np.zeros(len(starts), bool),
            {code: (total(samples), total(tokens)) for code, (samples, tokens) in self.by_outcome.items()},
        )


@dataclass
class Loss:
    """What was lost for one reason."""

    samples: int = 0
    tokens: ProblemRatio = field(default_factory=ProblemRatio)
    """Its tokens over all tokens of the model and mode."""


class Counts:
    """The sums of a run. ``quotas``: for each stage of samples, how many good samples of a problem are wanted."""

    def __init__(self, outcomes: Outcomes, classes: ProblemClasses, quotas: list[int]):
        self._outcomes, self._classes, self._quotas = outcomes, classes, quotas
        self.models: dict[tuple[str, str], dict[Class, Tally]] = {}
        """(model, mode) -> class -> sums."""
        self.stages: dict[tuple[int, str, str], dict[Class, Tally]] = {}
        """(stage, model, mode) -> class -> sums."""
        self.losses: dict[tuple[str, str, str], Loss] = {}
        """(model, mode, reason) -> what was lost."""
        self.pairs: dict[tuple[tuple[str, str], tuple[str, str], Class], PairedRatio] = {}
        """Two models with their modes, and a class -> how their rates compare on the same problems."""
        self.undecided = [0, 0]
        """Samples that no filter has decided, and their tokens."""

    def add(self, samples: SampleColumns) -> None:
        """Add a part of the problems."""
        waiting = samples.outcome == 0
        self.undecided[0] += int(np.count_nonzero(waiting))
        self.undecided[1] += int(samples.tokens[waiting].sum())
        if waiting.all():
            return
        problems = self._by_problem(samples, ~waiting)
        for number, group in enumerate(samples.groups):
            of_stage = self.stages.setdefault((group.stage, group.model, group.mode), {})
            self._add_classes(of_stage, problems, np.flatnonzero(problems.group == number))
        names = sorted({(group.model, group.mode) for group in samples.groups})
        place = np.array([names.index((g.model, g.mode)) for g in samples.groups], np.uint16)
        whole = problems.regrouped(place)  # over all stages of a model
        for number, name in enumerate(names):
            rows = np.flatnonzero(whole.group == number)
            self._add_classes(self.models.setdefault(name, {}), whole, rows)
            self._add_losses(name, whole, rows)
        self._add_pairs(whole, names)

    def _add_classes(self, tallies: dict[Class, Tally], problems: _Problems, rows: NDArray[np.intp]) -> None:
        for of_class, own in self._split(self._classes.of(problems.key), rows):
            tallies.setdefault(of_class, Tally()).add(problems, own)

    def _by_problem(self, samples: SampleColumns, decided: NDArray[np.bool_]) -> _Problems:
        group, key, tokens = (
            samples.group[decided],
            samples.problem[decided],
            samples.tokens[decided].astype(np.float64),
        )
        outcome = samples.outcome[decided]
        begins = np.ones(len(key), bool)
        begins[1:] = (key[1:] != key[:-1]) | (group[1:] != group[:-1])
        starts = np.flatnonzero(begins)
        ends = np.append(starts[1:], len(key))
        accepted = (outcome == self._outcomes.number(ACCEPTED)).astype(np.float64)
        good = accepted + (outcome == self._outcomes.number(ENOUGH))
        before = np.cumsum(good) - good
        before -= np.repeat(before[starts], ends - starts)
        quota = np.array([self._quotas[g.stage] for g in samples.groups], np.float64)[group]

        def total(values: Floats) -> Floats:
            return np.add.reduceat(values, starts)

        last = ends - 1
        by_outcome = {
            int(code): (total((outcome == code).astype(np.float64)), total(tokens * (outcome == code)))
            for code in np.unique(outcome)
        }
        return _Problems(
            group[starts],
            key[starts],
            (ends - starts).astype(np.float64),
            total(tokens),
            total(accepted),
            total(tokens * (before >= quota)),
            (before[last] == 0) & (ends - starts > 1),
            good[last] > 0,
            by_outcome,
        )

    def _split(self, codes: NDArray[np.uint8], rows: NDArray[np.intp]) -> Iterator[tuple[Class, NDArray[np.intp]]]:
        """Yield the classes of some problems with the problems of each."""
        if not len(rows):
            return
        yield (ALL, ""), rows
        for column, kind in enumerate(CLASSES):
            own = codes[rows, column]
            for code in np.unique(own):
                yield (kind, self._classes.values[column][code]), rows[own == code]

    def _add_losses(self, name: tuple[str, str], problems: _Problems, rows: NDArray[np.intp]) -> None:
        for code, reason in enumerate(self._outcomes.names):
            if reason in (UNDECIDED, ACCEPTED) or not len(rows):
                continue
            loss = self.losses.setdefault((*name, reason), Loss())
            none = np.zeros(len(problems.key))  # so many problems that lost nothing for this reason
            samples, tokens = problems.by_outcome.get(code, (none, none))
            loss.samples += int(samples[rows].sum())
            loss.tokens.add(tokens[rows], problems.tokens[rows])

    def _add_pairs(self, problems: _Problems, names: list[tuple[str, str]]) -> None:
        """Compare every two models on the problems that both have tried."""
        unique, at = np.unique(problems.key, return_inverse=True)
        table = np.zeros((len(unique), len(names), 2))  # accepted samples and tokens
        table[at, problems.group, 0] = problems.accepted
        table[at, problems.group, 1] = problems.tokens
        codes = self._classes.of(unique)
        for first, second in combinations(range(len(names)), 2):
            shared = np.flatnonzero((table[:, first, 1] > 0) & (table[:, second, 1] > 0))
            for of_class, rows in self._split(codes, shared):
                pair = self.pairs.setdefault((names[first], names[second], of_class), PairedRatio())
                pair.add(table[rows][:, [first, second]].reshape(len(rows), 4))
