"""Measure a model on a benchmark: accuracy, votes, selection, and what they cost, each with a 95% interval.

    graded generations -> scores of each problem -> rows of a table (means over problems with intervals)

Every metric is first a number of one problem, then a mean over problems. So any two can be compared problem by problem
(:mod:`nemo_openmath.evaluation.paired`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
"""A grader of two answers."""
SUBSETS = 4096
"""Random subsets of samples per k, where votes are not counted exactly."""
UNBOUNDED = frozenset({"tokens", "code_calls"})
"""Metrics that are no shares. All others lie in [0, 1]."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One number of the results table: the mean of a metric over problems."""

    mode: Mode
    metric: str
    """pass@1, pass@k, maj@k, genselect@k, genselect-single@k, called, unfinished, tokens or code_calls."""
    k: int | None
    """Number of samples, or of candidates of a selection. None for called, unfinished, tokens and code_calls."""
    value: float
    low: float | None
    """Lower end of the 95% interval over problems. None where a single problem allows none."""
    high: float | None
    """Upper end of the interval."""
    problems: int
    """Problems that the mean is over."""


@dataclass(frozen=True, slots=True)
class ProblemScores:
    """The scores of one problem in one mode."""

    problem_id: str
    mode: Mode
    samples: int
    values: dict[str, float]
    """Metric with its k (``maj@8``, ``tokens``) -> value. Empty for a problem that is counted apart: the model could
    not be asked, for example because the prompt was longer than its context."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of all problems in all modes, and what has to be said beside them."""

    problems: list[ProblemScores]
    """Problems that are counted apart are among them, without values."""
    undecided: dict[str, int] = field(default_factory=dict)
    """Mode -> generations whose verdict is neither equal nor not_equal. They count as wrong."""
    skipped: dict[str, list[int]] = field(default_factory=dict)
    """Mode -> values of k that no problem has enough samples for."""
    cut_votes: int = 0
    """Problems with more different answers than a vote compares; the answers beyond that count as different."""

    def apart(self) -> list[dict[str, Any]]:
        """Return a row for each mode with problems that are counted apart.

        A row holds ``mode``, ``problems`` (how many are counted apart), ``of`` (how many there are) and ``example``
        (the id of one of them).
        """
        rows = []
        for mode in dict.fromkeys(problem.mode for problem in self.problems):
            of_mode = [problem for problem in self.problems if problem.mode == mode]
            if ids := [problem.problem_id for problem in of_mode if not problem.values]:
                rows.append({"mode": mode, "problems": len(ids), "of": len(of_mode), "example": ids[0]})
        return rows


@dataclass(frozen=True, slots=True)
class _Sample:
    """What the metrics need of a generation. Transcripts are not kept in memory."""

    order: tuple[int, str]
    answer: str | None
    right: bool
    finished: bool
    tokens: int
    calls: int
    candidates: int
    """Candidates that a selection chose among; 0 for a solution."""
    tried: bool


@dataclass(frozen=True, slots=True)
class AnswerGroups:
    """The answers of one problem, grouped by meaning."""

    sizes: list[int]
    """Answers in each group."""
    right: list[float]
    """1.0 for a group of right answers, else 0.0."""
    missing: int
    """Samples without an answer."""
    complete: bool
    """False where there were more different answers than a vote compares."""


def evaluate(
    generations: Iterable[Generation],
    *,
    ks: Sequence[int],
    seed: int,
    subsets: int = SUBSETS,
    compare: CompareAnswers = compare,
) -> list[MetricRow]:
    """Return the rows of the results table. See :func:`score` for the arguments, and for what is refused."""
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
    """Score every problem in every mode. The order of the generations changes nothing.

    - ``generations``: graded, of one or several modes. Those of mode genselect are selections (core/records/notes.py):
      their verdict and answer are those of the chosen candidate.
    - ``ks``: numbers of samples for pass@k and maj@k. A k above the samples of all problems of a mode is skipped. A k
      above the samples of some is refused, for a mean over the other problems would pass for a mean over all.
    - ``seed``, ``subsets``: for votes that are too many to be counted exactly.
    - ``expected``: ids of the benchmark's problems. Each must occur in each mode.

    A problem with a generation that could not be tried is counted apart in its mode: no mean has it.

    Raises UserError naming the generation that has no verdict or occurs twice, or the problem that lacks samples, and
    where selections choose from several modes.
    """
    modes, undecided = _samples_by_mode(generations)
    wanted = None if expected is None else set(expected)
    scores = Scores([], undecided=undecided)
    cut_votes = 0
    for mode in sorted(modes, key=_mode_order):
        _check_problems(mode, modes[mode], wanted)
        problems = {i: samples for i, samples in modes[mode].items() if all(s.tried for s in samples)}
        apart = modes[mode].keys() - problems.keys()
        scores.problems.extend(ProblemScores(i, mode, len(modes[mode][i]), {}) for i in sorted(apart))
        if not problems:
            continue
        selections = mode is Mode.GENSELECT
        usable = _same_candidates(problems) if selections else _usable(mode, problems, ks, scores.skipped)
        for problem_id in sorted(problems):
            samples = sorted(problems[problem_id], key=lambda s: s.order)
            if selections:
                values, complete = _selection_values(samples, usable, compare)
            else:
                random = (seed, unit_key(problem_id))
                values, complete = _solution_values(samples, usable, random, subsets, compare)
                if mode is Mode.TIR:
                    values["called"] = sum(s.calls > 0 for s in samples) / len(samples)
            cut_votes += not complete
            scores.problems.append(ProblemScores(problem_id, mode, len(samples), values))
    return replace(scores, cut_votes=cut_votes)


def _samples_by_mode(
    generations: Iterable[Generation],
) -> tuple[dict[Mode, dict[str, list[_Sample]]], dict[str, int]]:
    """Return mode -> problem -> samples, and mode -> number of generations without a decision."""
    modes: dict[Mode, dict[str, list[_Sample]]] = defaultdict(lambda: defaultdict(list))
    undecided: dict[str, int] = defaultdict(int)
    seen: set[int] = set()
    chosen_from: set[Mode] = set()
    for generation in generations:
        key = unit_key(generation.id)
        if key in seen:
            raise UserError(f"generation {generation.id} is given twice", remedy="name each folder once")
        seen.add(key)
        if generation.mode is Mode.GENSELECT and (mode := Selection.of(generation).mode) is not None:
            chosen_from.add(mode)
        modes[generation.mode][generation.problem_id].append(_sample(generation))
        undecided[str(generation.mode)] += generation.tried and generation.verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
    if len(chosen_from) > 1:
        raise UserError(
            f"the selections choose from solutions of several modes ({', '.join(sorted(chosen_from))})",
            remedy="give those of each mode to a stage of its own",
        )
    return modes, dict(undecided)


def summarise(scores: Iterable[ProblemScores]) -> list[MetricRow]:
    """Return the means over problems, in order of mode, then metric, then k."""
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
    """Split ``maj@8`` into ``maj@k`` and 8. ``pass@1`` is a metric of its own, and ``pass@k`` starts at 2."""
    family, at, k = name.partition("@")
    if not at:
        return name, None
    return ("pass@1" if name == "pass@1" else f"{family}@k"), int(k)


def group_answers(samples: Sequence[tuple[str | None, bool]], compare: CompareAnswers = compare) -> AnswerGroups:
    """Group (answer, right) pairs by meaning, once for all k. A group is right where most of its members are right."""
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
    """Return for each number of candidates the majority over all rounds and the mean over single rounds."""
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
            remedy="run the generation stage again to its end; where items of it may fail, write failed_items: 0 there",
        )
    if foreign := problems.keys() - wanted:
        raise UserError(f"{len(foreign)} problems of the {mode} generations are not in the benchmark ({min(foreign)})")


def _usable(
    mode: Mode, problems: Mapping[str, Sequence[object]], ks: Sequence[int], skipped: dict[str, list[int]]
) -> list[int]:
    """Return the ks that every problem has enough samples for. Those that none has go to ``skipped``."""
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
    """Return the numbers of candidates that were selected among. They must be the same for every problem."""
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


_METRICS = (
    *("pass@1", "maj@k", "pass@k", "genselect@k", "genselect-single@k"),
    *("called", "unfinished", "tokens", "code_calls"),
)


def _metric_order(name: str) -> tuple[int, int]:
    metric, k = split_name(name)
    return _METRICS.index(metric), k or 0
