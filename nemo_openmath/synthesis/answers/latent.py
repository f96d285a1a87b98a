"""The latent-class model of answers: how probably each answer to a problem is right, from who gave it.

It is that of Dawid and Skene (1979) for answers that are no fixed set of labels. For problem j:

1. A class z = (h, v) is drawn with probability w[h, v]: a difficulty h, and how many wrong answers v are plausible.
2. Each vote of source s (a model in a mode, or the forum) is right with probability r[s, h], independently. But a
   model f goes astray on a problem with probability a[f], whatever others do; then its votes are right with r'[s].
3. The wrong votes of one model are draws from a Polya urn over the v wrong answers with concentration t[f, h], or
   t'[f] astray: the next one is answer l with probability (t / v + votes that l has) / (t + wrong votes so far). With a
   small t a model that errs errs alike again, so that thirty equal votes say little more than three. All modes of a
   model share its urn, and go astray together. Urns of different models are independent, but over the same v answers:
   a small v is a problem with a trap.
4. Names: right and wrong answers are different names, all equally probable. So the truth is one of the answers that
   were given, or none of them.
5. An answer that the grader cannot tell from the forum's is equal to it with probability e. A judge says so with
   probability ``sensitivity`` where it is, and denies it with probability ``specificity`` where it is not.

Likelihood of counts c[s, k] over K answers, with answer k true (k = 0: none), L wrong answers and f over models:

    v! / (v - L)! * prod_f ( (1 - a[f]) B(r[., h]) U(t[f, h]) + a[f] B(r'[.]) U(t'[f]) )
    B(r) = prod_{s of f} r[s]^c[s,k] (1 - r[s])^(n[s] - c[s,k])
    U(t) = prod_{l wrong} (t / v)^(c[f,l]) / t^(wrong votes of f)

where x^(n) in the last line is the rising factorial x (x + 1) ... (x + n - 1). The forum does not go astray.

Fitting is EM for the posterior mode. The E-step is exact. The M-step is exact, too: r, r', a, w, e and the judge's
rates are shares of expected counts and of the pseudo-counts below; t and t' are the best of a grid. So the objective
never falls. Nothing is drawn: the start is fixed, and sums go over patterns in the order of their contents.

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
ASTRAY_PRIOR = (1.0, 9.0)
"""Pseudo-counts of problems on which a model goes astray and does not; also of right and wrong votes astray."""
CLASS_PRIOR = 1.0
"""Pseudo-count of problems of each class."""
EQUAL_PRIOR = (1.0, 1.0)
JUDGE_PRIOR = (9.0, 1.0)
"""Pseudo-counts of right and wrong verdicts of judges."""
START = (0.95, 0.75, 0.45)
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
    astray: Floats
    """a: families; 0 of the forum."""
    right_astray: Floats
    """r': sources."""
    concentration_astray: Floats
    """t': families."""
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
        families = len(table.families)
        return Parameters(
            right,
            weights,
            np.full((families, difficulties), first),
            np.where(table.is_forum_family, 0.0, 1e-9 if independent else ASTRAY_PRIOR[0] / sum(ASTRAY_PRIOR)),
            np.full(len(table.sources), ASTRAY_PRIOR[0] / sum(ASTRAY_PRIOR)),
            np.full(families, INDEPENDENT if independent else 0.4),
            0.5,
            0.9,
            0.9,
        )


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
        parameters = step.next_parameters(independent=independent, concentrations=whole)
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
        p, self.urns = parameters, _urns_of(table)
        votes = np.repeat(self.urns.names[:, None, :], len(p.weights), 1)
        self.astray: dict[int, Floats] = {}
        """Family -> probability that it is astray, for each hypothesis, difficulty and v."""
        for family, of_forum in enumerate(table.is_forum_family):
            usual = self._usual(family)
            if of_forum:
                votes += usual
                continue
            lost = self._lost(family) + np.log(p.astray[family])
            both = np.logaddexp(usual + np.log1p(-p.astray[family]), lost)
            votes += both
            self.astray[family] = np.exp(lost - both)
        judged = table.judged @ np.log(
            [p.equal, 1 - p.equal, p.sensitivity, 1 - p.sensitivity, 1 - p.specificity, p.specificity]
        )
        joint = votes + judged[:, None, None] + np.log(p.weights)
        rows = joint.reshape(len(joint), -1)
        best = np.maximum.reduceat(rows.max(1), table.first_row)
        rows = np.exp(rows - best[table.row_pattern, None])
        totals = np.add.reduceat(rows.sum(1), table.first_row)
        self.log_likelihood = float(counts @ (np.log(totals) + best))
        self.share = (rows / totals[table.row_pattern, None]).reshape(joint.shape)

    def _usual(self, family: int) -> Floats:
        """Log-probability of the votes of a family that is not astray: hypotheses x difficulties x v."""
        table, p = self.table, self.parameters
        own = table.family == family
        rights = table.right[:, own] @ np.log(p.right[own]) + table.wrong[:, own] @ np.log1p(-p.right[own])
        logs: Floats = np.repeat(rights[:, :, None], len(PLAUSIBLE), 2)
        for t in np.unique(p.concentration[family]):
            here = p.concentration[family] == t
            for i, v in enumerate(PLAUSIBLE):
                logs[:, here, i] += self.urns.of(family, float(t), v)[:, None]
        return logs

    def _lost(self, family: int) -> Floats:
        """Log-probability of the votes of a family that is astray: hypotheses x 1 x v."""
        table, p = self.table, self.parameters
        own = table.family == family
        right = p.right_astray[own]
        rights = table.right[:, own] @ np.log(right) + table.wrong[:, own] @ np.log1p(-right)
        t = float(p.concentration_astray[family])
        logs: Floats = np.stack([self.urns.of(family, t, v) + rights for v in PLAUSIBLE], 1)[:, None, :]
        return logs

    @cached_property
    def objective(self) -> float:
        p, table = self.parameters, self.table
        a, b = _right_prior(table)
        prior = float((a[:, None] * np.log(p.right) + b[:, None] * np.log1p(-p.right)).sum())
        prior += CLASS_PRIOR * float(np.log(p.weights).sum())
        for values in (p.astray[~table.is_forum_family], p.right_astray[~table.is_forum]):
            prior += float((ASTRAY_PRIOR[0] * np.log(values) + ASTRAY_PRIOR[1] * np.log1p(-values)).sum())
        for value, (yes, no) in (
            (p.equal, EQUAL_PRIOR),
            (p.sensitivity, _plus(JUDGE_PRIOR, table.known_equal)),
            (p.specificity, _plus(JUDGE_PRIOR, table.known_different)),
        ):
            prior += yes * np.log(value) + no * np.log1p(-value)
        return self.log_likelihood + prior

    def next_parameters(self, *, independent: bool, concentrations: bool) -> Parameters:
        """The M-step; without ``concentrations`` these stay, and with ``independent`` nobody goes astray."""
        table = self.table
        share = self.share * self.counts[table.row_pattern, None, None]
        a, b = _right_prior(table)
        right = np.repeat(a[:, None], len(self.parameters.weights), 1)
        wrong = np.repeat(b[:, None], len(self.parameters.weights), 1)
        astray, right_astray = self.parameters.astray.copy(), self.parameters.right_astray.copy()
        usual, lost = self.parameters.concentration.copy(), self.parameters.concentration_astray.copy()
        for family in range(len(table.families)):
            own = table.family == family
            kept, gone = share, None
            if family in self.astray and not independent:
                gone = share * self.astray[family]
                kept = share - gone
                astray[family] = _share(_plus(ASTRAY_PRIOR, (float(gone.sum()), float(kept.sum()))))
                votes = gone.sum((1, 2))
                good = table.right[:, own].T @ votes + ASTRAY_PRIOR[0]
                right_astray[own] = good / (good + table.wrong[:, own].T @ votes + ASTRAY_PRIOR[1])
            by_difficulty = kept.sum(2)
            right[own] += table.right[:, own].T @ by_difficulty
            wrong[own] += table.wrong[:, own].T @ by_difficulty
            if concentrations and gone is not None:
                usual[family] = self._concentrations(family, kept, usual[family])
                lost[family] = self._concentrations(family, gone.sum(1, keepdims=True), lost[family : family + 1])[0]
        classes = share.sum(0) + CLASS_PRIOR
        equal, different, yes, no, yes_of_different, no_of_different = table.judged.T @ share.sum((1, 2))
        return Parameters(
            right / (right + wrong),
            classes / classes.sum(),
            usual,
            astray,
            right_astray,
            lost,
            _share(_plus(EQUAL_PRIOR, (equal, different))),
            _share(_plus(_plus(JUDGE_PRIOR, table.known_equal), (yes, no))),
            _share(_plus(_plus(JUDGE_PRIOR, table.known_different), (no_of_different, yes_of_different))),
        )

    def _concentrations(self, family: int, share: Floats, now: Floats) -> Floats:
        """For each difficulty the concentration of the grid under which a model's wrong votes are most probable."""
        grid = sorted({*CONCENTRATIONS, *now.tolist()})
        values = np.zeros((len(grid), share.shape[1]))
        for n, t in enumerate(grid):
            for i, v in enumerate(PLAUSIBLE):
                values[n] += self.urns.of(family, t, v) @ share[:, :, i]
        best: Floats = np.array(grid)[np.argmax(values, axis=0)]
        return best


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
        "astray": {
            family: round(float(p.astray[i]), 4)
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
