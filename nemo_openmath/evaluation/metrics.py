"""What a benchmark says about a model: accuracy, votes, selection, and what it cost, each with a 95% interval.

    generations -> scores of each problem -> rows (means over problems with intervals)

Every metric is first a number of one problem, then a mean over problems, so any two can be compared problem by
problem (:mod:`nemo_openmath.evaluation.paired`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.evaluation.estimators import majority_at_k, pass_at_k
from nemo_openmath.evaluation.intervals import amount_interval, share_interval
from nemo_openmath.grading import Grade, Verdict, compare, majority

CompareAnswers = Callable[[str, str], Grade]
SUBSETS = 4096
UNBOUNDED = frozenset({"tokens", "code_calls"})
"""Metrics that are no shares. All others lie in [0, 1]."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One number of the results table. ``metric``: pass@1, pass@k, maj@k, genselect@k, genselect-single@k,
    unfinished, tokens or code_calls; ``k`` is None for the last three. ``low`` and ``high`` end the 95% interval over
    ``problems`` problems; None where one problem is all there is."""

    mode: Mode
    metric: str
    k: int | None
    value: float
    low: float | None
    high: float | None
    problems: int


@dataclass(frozen=True, slots=True)
class ProblemScores:
    """One problem in one mode. ``values``: metric with its k (``maj@8``, ``tokens``) -> value; empty for a problem that
    is counted apart: the model could not be asked, for example because the prompt was longer than its context."""

    problem_id: str
    mode: Mode
    samples: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scores:
    """``undecided``: mode -> generations whose verdict is neither equal nor not_equal; they count as wrong.
    ``skipped``: mode -> ks above the number of samples. ``cut_votes``: problems with more different answers than the
    vote compares (the rest of them count as different)."""

    problems: list[ProblemScores]
    """Those counted apart, too, without values."""
    undecided: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    cut_votes: int = 0

    def apart(self) -> list[dict[str, Any]]:
        """For each mode with problems that are counted apart: ``mode``, ``problems`` (how many, ``of`` how many), and
        an ``example``'s id."""
        rows = []
        for mode in dict.fromkeys(problem.mode for problem in self.problems):
            of = [problem for problem in self.problems if problem.mode == mode]
            if ids := [problem.problem_id for problem in of if not problem.values]:
                rows.append({"mode": mode, "problems": len(ids), "of": len(of), "example": ids[0]})
        return rows


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a metric needs of a generation; transcripts are not kept."""

    order: tuple[int, str]
    answer: str | None
    right: bool
    finished: bool
    tokens: int
    calls: int
    candidates: int  # of a selection; 0 otherwise
    tried: bool


@dataclass(frozen=True, slots=True)
class AnswerGroups:
    """Answers of one problem grouped by meaning. ``right[i]``: whether group i is right, as 0.0 or 1.0."""

    sizes: list[int]
    right: list[float]
    missing: int
    complete: bool


def evaluate(
    generations: Iterable[Generation],
    *,
    ks: Sequence[int],
    seed: int,
    subsets: int = SUBSETS,
    compare: CompareAnswers = compare,
) -> list[MetricRow]:
    """Graded generations -> rows, by mode. See :func:`score` for what is counted and what is refused."""
    return summarise(score(generations, ks=ks, seed=seed, subsets=subsets, compare=compare).problems)


def score(
    generations: Iterable[Generation],
    *,
    ks: Sequence[int],
    seed: int,
    subsets: int = SUBSETS,
    compare: CompareAnswers = compare,
    expected: Iterable[str] | None = None,
) -> Scores:
    """Score every problem in every mode. Modes may be mixed; what does not depend on order is all there is.

    Generations of mode ``genselect`` are selections (records/notes.py): verdict and predicted
    answer are those of the chosen candidate, or no answer where ``chosen`` is None; ``k`` is how many candidates the
    selection asked for. ``expected``: ids of the
    benchmark's problems; each must occur in each mode. A k above the samples of all problems of a mode is skipped;
    one above those of some is refused, for a mean over the easy part would pass for the whole. A problem with a
    generation that could not be tried is counted apart in its mode (:meth:`Scores.apart`): no mean has it.

    Raises UserError naming the generation that has no verdict or occurs twice, or the problem that lacks samples.
    """
    modes: dict[Mode, dict[str, list[_Sample]]] = defaultdict(lambda: defaultdict(list))
    undecided: dict[str, int] = defaultdict(int)
    seen: set[int] = set()
    for generation in generations:
        key = unit_key(generation.id)
        if key in seen:
            raise UserError(f"generation {generation.id} is given twice", remedy="name each folder once")
        seen.add(key)
        modes[generation.mode][generation.problem_id].append(_sample(generation))
        undecided[str(generation.mode)] += generation.tried and generation.verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
    wanted = None if expected is None else set(expected)
    out = Scores([], undecided=dict(undecided))
    cut = 0
    for mode in sorted(modes, key=_mode_order):
        _check_problems(mode, modes[mode], wanted)
        problems = {i: samples for i, samples in modes[mode].items() if all(s.tried for s in samples)}
        apart = modes[mode].keys() - problems.keys()
        out.problems.extend(ProblemScores(i, mode, len(modes[mode][i]), {}) for i in sorted(apart))
        if not problems:
            continue
        selections = mode is Mode.GENSELECT
        usable = _same_candidates(problems) if selections else _usable(mode, problems, ks, out.skipped)
        for problem_id in sorted(problems):
            samples = sorted(problems[problem_id], key=lambda s: s.order)
            if selections:
                values, complete = _selection_values(samples, usable, compare)
            else:
                random = (seed, unit_key(problem_id))
                values, complete = _solution_values(samples, usable, random, subsets, compare)
            cut += not complete
            out.problems.append(ProblemScores(problem_id, mode, len(samples), values))
    return Scores(out.problems, out.undecided, out.skipped, cut)


def summarise(scores: Iterable[ProblemScores]) -> list[MetricRow]:
    """Means over problems, in order of mode, then metric, then k."""
    table: dict[tuple[Mode, str], list[float]] = defaultdict(list)
    for problem in scores:
        for name, value in problem.values.items():
            table[problem.mode, name].append(value)
    rows = []
    for mode, name in sorted(table, key=lambda at: (_mode_order(at[0]), _metric_order(at[1]))):
        values = np.asarray(table[mode, name])
        low, high = (amount_interval if name in UNBOUNDED else share_interval)(values)
        metric, k = split_name(name)
        rows.append(MetricRow(mode, metric, k, float(values.mean()), low, high, len(values)))
    return rows


def split_name(name: str) -> tuple[str, int | None]:
    """``maj@8`` -> (``maj@k``, 8); ``pass@1`` is a metric of its own, and ``pass@k`` starts at 2."""
    family, at, k = name.partition("@")
    if not at:
        return name, None
    return ("pass@1" if name == "pass@1" else f"{family}@k"), int(k)


def group_answers(samples: Sequence[tuple[str | None, bool]], compare: CompareAnswers = compare) -> AnswerGroups:
    """Group (answer, right) pairs by meaning, once for all k. A group is right where most of its members are."""
    vote = majority([answer for answer, _ in samples], compare=compare)
    hits = [0] * len(vote.groups)
    for answer, right in samples:
        if right and (group := vote.group_of(answer)) is not None:
            hits[group] += 1
    sizes = [count for _, count in vote.groups]
    right_groups = [float(2 * hit > size) for hit, size in zip(hits, sizes, strict=True)]
    return AnswerGroups(sizes, right_groups, vote.missing, vote.complete)


def _solution_values(
    samples: list[_Sample], ks: Sequence[int], seed: tuple[int, int], subsets: int, compare: CompareAnswers
) -> tuple[dict[str, float], bool]:
    count, correct = len(samples), sum(s.right for s in samples)
    votes = group_answers([(s.answer, s.right) for s in samples], compare)
    values = {"pass@1": correct / count}
    values |= {f"pass@{k}": pass_at_k(count, correct, k) for k in ks if k > 1}
    by_vote = majority_at_k(votes.sizes, votes.right, votes.missing, ks, seed=seed, subsets=subsets) if ks else []
    values |= {f"maj@{k}": value for k, value in zip(ks, by_vote, strict=True)}
    return values | _costs(samples), votes.complete


def _selection_values(
    samples: list[_Sample], ks: Sequence[int], compare: CompareAnswers
) -> tuple[dict[str, float], bool]:
    """Per number of candidates: the majority over all rounds, and the mean over single rounds."""
    values: dict[str, float] = {}
    complete = True
    for k in ks:
        rounds = [(s.answer, s.right) for s in samples if s.candidates == k]
        votes = group_answers(rounds, compare)
        complete &= votes.complete
        values[f"genselect@{k}"] = majority_at_k(votes.sizes, votes.right, votes.missing, [len(rounds)])[0]
        values[f"genselect-single@{k}"] = sum(right for _, right in rounds) / len(rounds)
    return values | _costs(samples), complete


def _costs(samples: list[_Sample]) -> dict[str, float]:
    count = len(samples)
    return {
        "unfinished": sum(not s.finished for s in samples) / count,
        "tokens": sum(s.tokens for s in samples) / count,
        "code_calls": sum(s.calls for s in samples) / count,
    }


def _sample(generation: Generation) -> _Sample:
    selection = Selection.of(generation) if generation.mode is Mode.GENSELECT else None
    lost = selection is not None and selection.chosen is None
    if generation.verdict is None and not lost:
        raise UserError(f"generation {generation.id} has no verdict", remedy="give the folder of the judging stage")
    return _Sample(
        order=(generation.sample, generation.id),
        answer=None if lost else generation.predicted_answer,
        right=generation.correct and not lost,
        finished=generation.finished,
        tokens=generation.completion_tokens,
        calls=generation.code_calls,
        candidates=selection.candidates if selection else 0,
        tried=generation.tried,
    )


def _check_problems(mode: Mode, problems: Mapping[str, object], wanted: set[str] | None) -> None:
    if wanted is None:
        return
    if missing := wanted - problems.keys():
        raise UserError(
            f"{len(missing)} of {len(wanted)} problems have no {mode} generation, for example {min(missing)}",
            remedy="run the generation stage again to its end",
        )
    if foreign := problems.keys() - wanted:
        raise UserError(f"{len(foreign)} problems of the {mode} generations are not in the benchmark ({min(foreign)})")


def _usable(
    mode: Mode, problems: Mapping[str, Sequence[object]], ks: Sequence[int], skipped: dict[str, list[int]]
) -> list[int]:
    fewest = min(problems, key=lambda problem: len(problems[problem]))
    low, high = len(problems[fewest]), max(map(len, problems.values()))
    wanted = sorted(set(ks))
    if refused := [k for k in wanted if low < k <= high]:
        raise UserError(
            f"k={refused[0]}: problem {fewest} has {low} {mode} samples, others up to {high}",
            remedy=f"finish the generation stage, or ask for k of at most {low}",
        )
    if above := [k for k in wanted if k > high]:
        skipped[str(mode)] = above
    return [k for k in wanted if k <= low]


def _same_candidates(problems: Mapping[str, Sequence[_Sample]]) -> list[int]:
    """Numbers of candidates that were selected among; the same for every problem."""
    ks = {problem: {s.candidates for s in samples} for problem, samples in problems.items()}
    union = set().union(*ks.values())
    for problem in sorted(ks):
        if lacking := union - ks[problem]:
            raise UserError(
                f"problem {problem} has no selection among k={min(lacking)} candidates, others have",
                remedy="run the selection stage to its end (k: the number asked for; chosen: null where none was)",
            )
    return sorted(union)


def _mode_order(mode: Mode) -> int:
    return list(Mode).index(mode)


_METRICS = ("pass@1", "maj@k", "pass@k", "genselect@k", "genselect-single@k", "unfinished", "tokens", "code_calls")


def _metric_order(name: str) -> tuple[int, int]:
    metric, k = split_name(name)
    return _METRICS.index(metric), k or 0
