"""The latent-class model of answers: how probably each answer to a problem is right, from who gave it.

It is that of Dawid and Skene (1979) for answers that are no fixed set of labels. For problem j:

1. A class z = (h, v) is drawn with probability w[h, v]: a difficulty h, and how many wrong answers v are plausible.
2. Each vote of source s (a model in a mode, or the forum) is right with probability r[s, h], independently.
3. The wrong votes of one model are draws from a Polya urn over the v wrong answers with concentration t[model, h]: the
   next one is answer l with probability (t / v + votes that l has) / (t + wrong votes so far). With a small t a model
   that errs errs alike again, so that thirty equal votes say little more than three. All modes of a model share its
   urn. Urns of different models are independent, but over the same v answers: a small v is a problem with a trap.
4. Names: right and wrong answers are different names, all equally probable. So the truth is one of the answers that
   were given, or none of them.
5. An answer that the grader cannot tell from the forum's is equal to it with probability e. A judge says so with
   probability ``sensitivity`` where it is, and denies it with probability ``specificity`` where it is not.

Likelihood of counts c[s, k] over K answers, with answer k true (k = 0: none), L wrong answers and f over models:

    prod_s r[s,h]^c[s,k] (1 - r[s,h])^(n[s] - c[s,k])
    * v! / (v - L)! * prod_f ( prod_{l wrong} (t[f,h] / v)^(c[f,l]) / t[f,h]^(wrong votes of f) )

where x^(n) in the second line is the rising factorial x (x + 1) ... (x + n - 1).

Fitting is EM for the posterior mode. The E-step is exact. The M-step is exact, too: r, w, e and the judge's rates are
shares of expected counts and of the pseudo-counts below; t is the best of a grid. So the objective never falls. Nothing
is drawn: the start is fixed, and sums go over patterns in the order of their contents.

What tells right from wrong is that independent witnesses err differently. The forum and two models are enough. With two
witnesses their disagreement does not say which one errs, unless the errors of one scatter; with one, only the
pseudo-counts do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.synthesis.answers.patterns import Table

Floats = NDArray[np.float64]

DIFFICULTIES = 3
PLAUSIBLE = (2, 8, 40, 10**6)
"""How many wrong answers a problem can have, v. With the last one equal wrong answers of two models are no chance."""
CONCENTRATIONS = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 7.0, 12.0, 25.0, 100.0)
INDEPENDENT = 1e6
"""A concentration with which the votes of one model are independent."""
MODEL_PRIOR = (1.0, 1.0)
"""Pseudo-counts of right and wrong votes of a model, for each difficulty."""
FORUM_PRIOR = (9.0, 1.0)
CLASS_PRIOR = 1.0
"""Pseudo-count of problems of each class."""
EQUAL_PRIOR = (1.0, 1.0)
JUDGE_PRIOR = (9.0, 1.0)
"""Pseudo-counts of right and wrong verdicts of judges."""
START = (0.95, 0.6, 0.2)
"""First shares of right votes of models, by difficulty."""
MAX_ITERATIONS = 500
CONCENTRATIONS_EVERY = 5
"""Iterations from one estimate of t to the next: it takes most of the time."""
KEPT_BYTES = 128 << 20
TOLERANCE = 1e-6
"""EM ends where the objective rises by less than this a problem."""


@dataclass(frozen=True)
class Parameters:
    """What is estimated."""

    right: Floats
    """r: sources x difficulties."""
    weights: Floats
    """w: difficulties x plausible wrong answers."""
    concentration: Floats
    """t: families (models, and sources of the forum) x difficulties."""
    equal: float
    sensitivity: float
    specificity: float

    @staticmethod
    def start(table: Table, difficulties: int = DIFFICULTIES, *, independent: bool = False) -> Parameters:
        """Return the fixed start of EM."""
        levels = np.interp(np.linspace(0, 1, difficulties), np.linspace(0, 1, len(START)), START)
        right = np.tile(levels if difficulties > 1 else np.array([0.8]), (len(table.sources), 1))
        right[table.is_forum] = FORUM_PRIOR[0] / sum(FORUM_PRIOR)
        weights = np.full((difficulties, len(PLAUSIBLE)), 1 / difficulties / len(PLAUSIBLE))
        first = INDEPENDENT if independent else 1.0
        return Parameters(right, weights, np.full((len(table.families), difficulties), first), 0.5, 0.9, 0.9)


@dataclass(frozen=True)
class Fit:
    """A fitted model."""

    parameters: Parameters
    objectives: tuple[float, ...]
    """Log-posterior of the parameters (up to a constant) before each iteration, and at the end."""
    converged: bool


def fit(
    table: Table,
    weights: Floats | None = None,
    *,
    start: Parameters | None = None,
    difficulties: int = DIFFICULTIES,
    independent: bool = False,
    iterations: int = MAX_ITERATIONS,
) -> Fit:
    """Fit the model to the patterns of a table.

    ``weights``: how many problems each pattern has, where it is not as the table says. ``independent``: votes of one
    model are taken for independent, as by Dawid and Skene.
    """
    counts = table.weights if weights is None else weights
    parameters = start or Parameters.start(table, difficulties, independent=independent)
    objectives: list[float] = []
    for turn in range(iterations):
        step = _EStep(table, parameters, counts)
        objectives.append(step.objective)
        whole = not independent and turn % CONCENTRATIONS_EVERY == 0
        gain = objectives[-1] - objectives[max(0, turn - CONCENTRATIONS_EVERY)]
        if turn >= CONCENTRATIONS_EVERY and gain < CONCENTRATIONS_EVERY * TOLERANCE * max(1.0, counts.sum()):
            return Fit(parameters, tuple(objectives), True)
        parameters = step.next_parameters(concentrations=whole)
    objectives.append(_EStep(table, parameters, counts).objective)
    return Fit(parameters, tuple(objectives), False)


def posterior(table: Table, parameters: Parameters) -> Floats:
    """Return the probability that each answer of each pattern is right, in the order of ``table.answer_pattern``."""
    step = _EStep(table, parameters, table.weights)
    by_row = step.share.sum((1, 2))
    return np.bincount(table.member_answer, by_row[table.member_row], len(table.answer_pattern)).astype(float)


class _EStep:
    """The shares of all hypotheses under given parameters."""

    def __init__(self, table: Table, parameters: Parameters, counts: Floats):
        self.table, self.parameters, self.counts = table, parameters, counts
        p = parameters
        rights = table.right @ np.log(p.right) + table.wrong @ np.log1p(-p.right)
        self.urns = _urns_of(table)
        urns = np.repeat(self.urns.names[:, None, :], len(p.weights), 1)
        for family in range(len(table.families)):
            for t in np.unique(p.concentration[family]):
                here = p.concentration[family] == t
                for i, v in enumerate(PLAUSIBLE):
                    urns[:, here, i] += self.urns.of(family, float(t), v)[:, None]
        judged = table.judged @ np.log(
            [p.equal, 1 - p.equal, p.sensitivity, 1 - p.sensitivity, 1 - p.specificity, p.specificity]
        )
        joint = rights[:, :, None] + urns + judged[:, None, None] + np.log(p.weights)
        rows = joint.reshape(len(joint), -1)
        best = np.maximum.reduceat(rows.max(1), table.first_row)
        rows = np.exp(rows - best[table.row_pattern, None])
        totals = np.add.reduceat(rows.sum(1), table.first_row)
        self.log_likelihood = float(counts @ (np.log(totals) + best))
        self.share = (rows / totals[table.row_pattern, None]).reshape(joint.shape)

    @cached_property
    def objective(self) -> float:
        p, table = self.parameters, self.table
        a, b = _right_prior(table)
        prior = float((a[:, None] * np.log(p.right) + b[:, None] * np.log1p(-p.right)).sum())
        prior += CLASS_PRIOR * float(np.log(p.weights).sum())
        for value, (yes, no) in (
            (p.equal, EQUAL_PRIOR),
            (p.sensitivity, _plus(JUDGE_PRIOR, table.known_equal)),
            (p.specificity, _plus(JUDGE_PRIOR, table.known_different)),
        ):
            prior += yes * np.log(value) + no * np.log1p(-value)
        return self.log_likelihood + prior

    def next_parameters(self, *, concentrations: bool) -> Parameters:
        """The M-step; without ``concentrations`` these stay."""
        table = self.table
        share = self.share * self.counts[table.row_pattern, None, None]
        by_difficulty = share.sum(2)
        a, b = _right_prior(table)
        right = table.right.T @ by_difficulty + a[:, None]
        wrong = table.wrong.T @ by_difficulty + b[:, None]
        classes = share.sum(0) + CLASS_PRIOR
        equal, different, yes, no, yes_of_different, no_of_different = table.judged.T @ share.sum((1, 2))
        return Parameters(
            right / (right + wrong),
            classes / classes.sum(),
            self._concentrations(share) if concentrations else self.parameters.concentration,
            _share(_plus(EQUAL_PRIOR, (equal, different))),
            _share(_plus(_plus(JUDGE_PRIOR, table.known_equal), (yes, no))),
            _share(_plus(_plus(JUDGE_PRIOR, table.known_different), (no_of_different, yes_of_different))),
        )

    def _concentrations(self, share: Floats) -> Floats:
        """For each model and difficulty the concentration of the grid under which its wrong votes are most probable."""
        table, chosen = self.table, self.parameters.concentration.copy()
        for family in range(len(table.families)):
            if table.is_forum_family[family]:
                continue  # one vote a problem: any concentration is the same
            grid = sorted({*CONCENTRATIONS, *chosen[family].tolist()})
            values = np.zeros((len(grid), share.shape[1]))
            for n, t in enumerate(grid):
                for i, v in enumerate(PLAUSIBLE):
                    values[n] += self.urns.of(family, t, v) @ share[:, :, i]
            chosen[family] = np.array(grid)[np.argmax(values, axis=0)]
        return chosen


class _Urns:
    """Log-probabilities of which wrong answers the wrong votes fall on, for each hypothesis of a table.

    Those of the grid are needed again and again, so they are kept, up to ``KEPT_BYTES``.
    """

    def __init__(self, table: Table):
        self._table = table
        self._most = int(max(table.class_votes.max(initial=0), table.wrong_votes.max(initial=0)))
        self._kept: dict[tuple[int, float, int], Floats] = {}
        self.names = np.stack([_names(table, v) for v in PLAUSIBLE], 1)

    def of(self, family: int, t: float, v: int) -> Floats:
        """Return them for the wrong votes of one model, under a concentration and a number of plausible answers."""
        if (known := self._kept.get((family, t, v))) is not None:
            return known
        table = self._table
        piles = np.append(_rising(t / v, self._most)[table.class_votes[:, family]], 0.0)
        sums = np.add.reduceat(piles, table.first_class)
        own = piles[table.row_class]  # of the true answer; row_class is -1 where there is none
        logs: Floats = sums[table.row_group] - own - _rising(t, self._most)[table.wrong_votes[:, family]]
        if (len(self._kept) + 1) * logs.nbytes <= KEPT_BYTES:
            self._kept[family, t, v] = logs
        return logs


@lru_cache(2)
def _urns_of(table: Table) -> _Urns:
    return _Urns(table)


@lru_cache(1024)
def _rising(x: float, most: int) -> Floats:
    """Return log x (x + 1) ... (x + n - 1) for n = 0 ... most."""
    return np.concatenate(([0.0], np.cumsum(np.log(x + np.arange(most)))))


def _names(table: Table, v: int) -> Floats:
    """Return log v! / (v - L)! for each hypothesis, which has L wrong answers; minus infinity where L is above v."""
    most = int(table.wrong_answers.max(initial=0))
    steps = np.log(np.maximum(v - np.arange(most), 0.0), out=np.full(most, -np.inf), where=np.arange(most) < v)
    logs: Floats = np.concatenate(([0.0], np.cumsum(steps)))
    return logs[table.wrong_answers]


def _right_prior(table: Table) -> tuple[Floats, Floats]:
    prior = np.where(table.is_forum[:, None], FORUM_PRIOR, MODEL_PRIOR)
    return prior[:, 0], prior[:, 1]


def _plus(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]


def _share(counts: tuple[float, float]) -> float:
    return float(counts[0] / sum(counts))


def describe(table: Table, fitted: Fit) -> Mapping[str, object]:
    """Return the parameters as plain data for a report."""
    p = fitted.parameters
    difficulty = p.weights.sum(1)
    return {
        "difficulty": [round(float(x), 4) for x in difficulty],
        "sources": {
            " ".join(filter(None, source)): {
                "right": round(float(p.right[i] @ difficulty), 4),
                "by_difficulty": [round(float(x), 4) for x in p.right[i]],
            }
            for i, source in enumerate(table.sources)
        },
        "concentration": {
            family: [float(t) for t in p.concentration[i]]
            for i, family in enumerate(table.families)
            if not table.is_forum_family[i]
        },
        "plausible_wrong_answers": {
            str(v): round(float(x), 4) for v, x in zip(PLAUSIBLE, p.weights.sum(0), strict=True)
        },
        "judge": {"sensitivity": round(p.sensitivity, 4), "specificity": round(p.specificity, 4)},
        "iterations": len(fitted.objectives) - 1,
        "converged": fitted.converged,
    }
