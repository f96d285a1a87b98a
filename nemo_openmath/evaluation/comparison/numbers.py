"""The numbers of a comparison: of each benchmark and mode, over the problems that all its runs have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.evaluation.comparison.common import CommonMode
from nemo_openmath.evaluation.comparison.reading import ProblemSamples, ReadRun
from nemo_openmath.evaluation.metrics import CompareAnswers, ProblemScores, score, split_name, summarise
from nemo_openmath.evaluation.paired import Pair, paired_difference
from nemo_openmath.evaluation.reports.svg import nice_ticks
from nemo_openmath.evaluation.rescore.changes import without_unknown
from nemo_openmath.evaluation.rescore.note import counts_known

EVERY = 16
"""Up to this k curves have every k; above it, four in each doubling: an interval of many problems takes a while."""
BINS = 24
"""Most bins of a histogram of lengths."""
TENTHS = 10
PROGRESS = 256
"""Generations between steps of the progress."""


@dataclass(frozen=True, slots=True)
class DifferingProblem:
    """A problem that one run has right and another one has not."""

    problem: str
    expected: str | None
    vote: dict[str, float]
    """Letter of a run -> the chance that its vote is right: 1, 0, or a share where answers tie."""
    right: dict[str, float]
    """Letter of a run -> share of its samples that are right."""
    samples: dict[str, int]
    first: dict[str, str]
    """Letter of a run -> id of its first sample."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class ModeComparison:
    """The numbers of one benchmark in one mode."""

    benchmark: str
    mode: Mode
    chosen_from: Mode | None
    """Of selections: the mode of the solutions that they chose from."""
    runs: list[str]
    """Letters."""
    problems: int
    """Common to all runs; every number is over these."""
    left_out: dict[str, int]
    not_asked: dict[str, int]
    samples: dict[str, tuple[int, int]]
    """Letter -> fewest and most samples of a problem."""
    results: list[dict[str, Any]]
    """Rows of run, metric, k, value, low, high, problems."""
    undecided: dict[str, int]
    """Letter -> generations whose verdict is open; they count as wrong."""
    unknown_counts: list[str]
    """Letters of runs of whose rescored solutions some have unknown tokens and calls: these numbers are left out."""
    length_edges: list[float]
    lengths: dict[str, list[int]]
    """Letter -> solutions in each bin of tokens, the lower edge in it."""
    quantiles: dict[str, dict[str, float]]
    """Letter -> mean, median, p90 and longest of the tokens of a solution."""
    pass_rates: dict[str, list[int]]
    """Letter -> problems with no right sample, with a share in each tenth between, and with right samples only."""
    differences: list[dict[str, Any]]
    """Rows of evaluation.paired.PairedRow: every run against the first; checkpoints are letters."""
    differing: list[DifferingProblem] = field(default_factory=list)

    def rows(self, letter: str, metric: str) -> list[dict[str, Any]]:
        """Return the rows of a metric of one run, by k; pass@1 is the first row of pass@k."""
        names = ("pass@1", "pass@k") if metric == "pass@k" else (metric,)
        rows = [row for row in self.results if row["run"] == letter and row["metric"] in names]
        return sorted(rows, key=lambda row: row["k"] or 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def curve_ks(samples: int) -> list[int]:
    """Return the numbers of samples of a curve: all up to ``EVERY``, then four in each doubling, and the last."""
    ks = {k for k in range(1, samples + 1) if k <= EVERY or k % (1 << (k.bit_length() - 3)) == 0}
    return sorted(ks | {samples})


def compare_mode(
    common: CommonMode, *, seed: int, compare: CompareAnswers, advance: Callable[[int], None]
) -> ModeComparison:
    """Compute the numbers of one benchmark in one mode. Raises UserError naming a generation without a verdict."""
    mode, letters = common.mode.mode, [run.letter for run in common.runs]
    samples = {run.letter: _samples(run, common) for run in common.runs}
    fewest = {letter: min(s.samples for s in of_run.values()) for letter, of_run in samples.items()}
    scores: dict[str, list[ProblemScores]] = {}
    votes: dict[str, dict[str, float]] = {}
    undecided: dict[str, int] = {}
    unknown: set[str] = set()
    results: list[dict[str, Any]] = []
    for run in common.runs:
        given = _counted(run, common, unknown, advance)
        scored = score(given, ks=curve_ks(fewest[run.letter]), seed=seed, compare=compare)
        scores[run.letter] = without_unknown(scored.problems, [mode] if run.letter in unknown else [])
        undecided[run.letter] = scored.undecided.get(mode, 0)
        own = _uneven(samples[run.letter]) if mode is not Mode.GENSELECT else {}
        votes[run.letter] = {p.problem_id: vote_of(p) for p in scored.problems if p.problem_id not in own}
        for count, problems in _by_count(own).items():
            again = score(run.generations(common.mode, problems), ks=[count], seed=seed, compare=compare)
            votes[run.letter] |= {p.problem_id: vote_of(p) for p in again.problems}
        for row in summarise(scores[run.letter]):
            results.append({"run": run.letter, **{k: v for k, v in asdict(row).items() if k != "mode"}})
    known = {letter: _tokens(of_run) for letter, of_run in samples.items() if letter not in unknown}
    edges = _length_edges(known)
    return ModeComparison(
        benchmark=common.benchmark,
        mode=mode,
        chosen_from=common.mode.chosen_from,
        runs=letters,
        problems=len(common.problems),
        left_out=common.left_out,
        not_asked=common.not_asked,
        samples={letter: (fewest[letter], max(s.samples for s in samples[letter].values())) for letter in letters},
        results=results,
        undecided=undecided,
        unknown_counts=sorted(unknown),
        length_edges=edges,
        lengths={letter: np.histogram(tokens, edges)[0].tolist() for letter, tokens in known.items()},
        quantiles={letter: _quantiles(tokens) for letter, tokens in known.items()},
        pass_rates={} if mode is Mode.GENSELECT else {letter: _pass_rates(scores[letter]) for letter in letters},
        differences=_differences(mode, scores),
        differing=_differing(scores, votes, samples),
    )


def _counted(
    run: ReadRun, common: CommonMode, unknown: set[str], advance: Callable[[int], None]
) -> Iterator[Generation]:
    """Yield the generations of a run, and note where their counts are not known."""
    for number, generation in enumerate(run.generations(common.mode, set(common.problems)), 1):
        if number % PROGRESS == 0:
            advance(PROGRESS)
        if not counts_known(generation):
            unknown.add(run.letter)
        yield generation


def _samples(run: ReadRun, common: CommonMode) -> dict[str, ProblemSamples]:
    return run.samples(common.mode, set(common.problems))


def _uneven(samples: Mapping[str, ProblemSamples]) -> dict[str, int]:
    """Return problem -> samples of those that have more samples than the problem with the fewest: the curve ends at
    the fewest, and their votes are of all of theirs."""
    fewest = min(of_problem.samples for of_problem in samples.values())
    return {name: of_problem.samples for name, of_problem in samples.items() if of_problem.samples > fewest}


def _by_count(samples: Mapping[str, int]) -> dict[int, set[str]]:
    groups: dict[int, set[str]] = {}
    for name, count in samples.items():
        groups.setdefault(count, set()).add(name)
    return groups


def _tokens(samples: Mapping[str, ProblemSamples]) -> np.ndarray:
    return np.fromiter((tokens for of_problem in samples.values() for tokens in of_problem.tokens), np.int64)


def _length_edges(tokens: Mapping[str, np.ndarray]) -> list[float]:
    longest = max((int(of_run.max()) for of_run in tokens.values()), default=0)
    ticks = nice_ticks(0, max(longest, 1), BINS - 1)
    step = ticks[1] - ticks[0]
    return [*ticks, ticks[-1] + step] if ticks[-1] <= longest else ticks


def _quantiles(tokens: np.ndarray) -> dict[str, float]:
    median, p90 = np.quantile(tokens, [0.5, 0.9], method="inverted_cdf")
    return {"mean": float(tokens.mean()), "median": float(median), "p90": float(p90), "longest": float(tokens.max())}


def _pass_rates(scores: Sequence[ProblemScores]) -> list[int]:
    """Return numbers of problems: none right, tenths between, all right. By whole numbers: 3 of 10 is the tenth that
    begins at 3."""
    counts = [0] * (TENTHS + 2)
    for problem in scores:
        right = round(problem.values["pass@1"] * problem.samples)
        between = 1 + TENTHS * right // problem.samples
        counts[0 if right == 0 else -1 if right == problem.samples else between] += 1
    return counts


def _differences(mode: Mode, scores: Mapping[str, list[ProblemScores]]) -> list[dict[str, Any]]:
    (first, before), *others = scores.items()
    rows = []
    for letter, after in others:
        for metric in _compared_metrics(before, after):
            pair = Pair(mode, metric, mode, metric)
            row = paired_difference(before, after, pair, checkpoint_before=first, checkpoint_after=letter)
            rows.append(asdict(row))
    return rows


def _compared_metrics(before: Sequence[ProblemScores], after: Sequence[ProblemScores]) -> list[str]:
    """Return the metrics that two runs share, those of a k at the largest one that both have; a k of 1 is pass@1."""
    largest: dict[str, tuple[int, str]] = {}
    for name in before[0].values:
        metric, k = split_name(name)
        if name in after[0].values and not (metric == "maj@k" and k == 1):
            largest[metric] = max(largest.get(metric, (0, "")), (k or 1, name))
    names = [name for _, name in largest.values()]
    quiet = {"code_calls"} if not any(p.values.get("code_calls") for p in [*before, *after]) else set()
    return [name for name in names if name not in quiet]


def vote_of(problem: ProblemScores) -> float:
    """Return the chance that a problem's vote is right: of all samples, or of all selections of the most candidates."""
    votes = [(k or 0, name) for name in problem.values if (k := split_name(name)[1]) and _is_vote(name)]
    return problem.values[max(votes)[1]]


def _is_vote(name: str) -> bool:
    return split_name(name)[0] in ("maj@k", "genselect@k")


def _differing(
    scores: Mapping[str, list[ProblemScores]],
    votes: Mapping[str, Mapping[str, float]],
    samples: Mapping[str, Mapping[str, ProblemSamples]],
) -> list[DifferingProblem]:
    """Return the problems whose vote is right (a chance above one half) in one run and not in another, those first
    whose shares of right samples are furthest apart. ``votes``: letter -> problem -> chance that its vote is right."""
    by_problem: dict[str, dict[str, ProblemScores]] = {}
    for letter, of_run in scores.items():
        for problem in of_run:
            by_problem.setdefault(problem.problem_id, {})[letter] = problem
    rows = []
    for name, of_problem in by_problem.items():
        chances = {letter: votes[letter][name] for letter in of_problem}
        if len({value > 0.5 for value in chances.values()}) < 2:
            continue
        first = next(iter(of_problem))
        rows.append(
            DifferingProblem(
                name,
                samples[first][name].expected,
                chances,
                {letter: _share(problem) for letter, problem in of_problem.items()},
                {letter: problem.samples for letter, problem in of_problem.items()},
                {letter: samples[letter][name].first for letter in of_problem},
            )
        )
    return sorted(rows, key=lambda row: (min(row.right.values()) - max(row.right.values()), row.problem))


def _share(problem: ProblemScores) -> float:
    """Return the share of right samples; of selections, of right rounds among the most candidates."""
    singles = [
        (k or 0, name) for name in problem.values if (k := split_name(name)[1]) and name.startswith("genselect-single")
    ]
    return problem.values[max(singles)[1]] if singles else problem.values["pass@1"]
