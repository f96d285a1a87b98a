"""Find which runs have problems in common, and refuse by name what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Mode
from nemo_openmath.evaluation.comparison.reading import ProblemSamples, ReadRun, WrittenMode

_RESCORE = "score both in one way: openmath evaluate rescore, with the same options for each"


@dataclass(slots=True, eq=False)
class JoinedBenchmark:
    """Problems that hang together: of each run those that some other run has, too, and the others of its parts."""

    labels: dict[str, None] = field(default_factory=dict)
    """Labels of the parts of runs that are of these problems."""
    problems: set[str] = field(default_factory=set)
    runs: list[ReadRun] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CommonMode:
    """The problems that several runs have in common in one mode."""

    benchmark: str
    """Its name; "" where the runs do not agree on one, and there is no other."""
    mode: WrittenMode
    runs: tuple[ReadRun, ...]
    """Those that have the mode."""
    problems: frozenset[str]
    left_out: dict[str, int]
    """Letter of a run -> its problems that are not common to all."""
    not_asked: dict[str, int]
    """Letter of a run -> common problems that are in no mean, for its model could not be asked."""


def common_modes(runs: Sequence[ReadRun], modes: Sequence[Mode] | None = None) -> tuple[list[CommonMode], list[str]]:
    """Return what can be compared, and sentences about what cannot.

    Raises UserError where a run has nothing in common with another one, where graders differ, and where one problem has
    different expected answers.
    """
    if len(runs) < 2:
        raise UserError(
            f"one run only ({runs[0].name if runs else 'none'})",
            remedy="name two or more: openmath evaluate compare A B",
        )
    refuse_graders(runs)
    benchmarks = _benchmarks(runs)
    named = _names(benchmarks)
    commons: list[CommonMode] = []
    notes: list[str] = []
    for name, benchmark in zip(named, benchmarks, strict=True):
        for mode in _modes(benchmark.runs):
            if modes is not None and mode.mode not in modes:
                continue
            having = [run for run in benchmark.runs if run.samples(mode, benchmark.problems)]
            if len(having) > 1:
                commons.append(_common(name, benchmark, mode, having))
            elif having:
                of = f" of {name}" if name else ""
                notes.append(f"{mode.name}{of}: only {having[0].name} has it; it is not compared")
    compared = {run.letter for common in commons for run in common.runs}
    if alone := [run for run in runs if run.letter not in compared]:
        raise _nothing_common(alone[0], runs)
    return commons, notes


def _modes(runs: Sequence[ReadRun]) -> list[WrittenMode]:
    return sorted({mode for run in runs for part in run.parts for mode in part.modes}, key=lambda mode: mode.order)


def refuse_graders(runs: Sequence[ReadRun]) -> None:
    """Raise UserError where two folders were graded in different ways, as far as their manifests say."""
    first: tuple[Path, str] | None = None
    for run in runs:
        for folder in run.folders:
            grader = run.graders.get(folder)
            if grader is None:
                continue
            if first is not None and grader != first[1]:
                problem = f"graded by {grader}, and {first[0]} by {first[1]}: verdicts of two graders are no comparison"
                raise UserError(problem, file=folder, remedy=_RESCORE)
            first = first or (folder, grader)


def _benchmarks(runs: Sequence[ReadRun]) -> list[JoinedBenchmark]:
    """Join the parts of the runs that share problems."""
    benchmarks: list[JoinedBenchmark] = []
    for run in runs:
        for part in run.parts:
            ids = part.problems
            touching = [benchmark for benchmark in benchmarks if not benchmark.problems.isdisjoint(ids)]
            joined = touching[0] if touching else JoinedBenchmark()
            for other in touching[1:]:
                joined.labels |= other.labels
                joined.problems |= other.problems
                joined.runs += [r for r in other.runs if r not in joined.runs]
                benchmarks.remove(other)
            benchmarks += [] if touching else [joined]
            joined.labels[part.label] = None
            joined.problems |= ids
            joined.runs += [] if run in joined.runs else [run]
    return benchmarks


def _names(benchmarks: Sequence[JoinedBenchmark]) -> list[str]:
    """Return a name for each: the label that all its parts have; a number where there are several without one."""
    names = [next(iter(b.labels)) if len(b.labels) == 1 else "" for b in benchmarks]
    if len(benchmarks) == 1:
        return names if names != ["model"] else [""]
    return [name if name and names.count(name) == 1 else f"benchmark {n}" for n, name in enumerate(names, 1)]


def _common(name: str, benchmark: JoinedBenchmark, mode: WrittenMode, runs: list[ReadRun]) -> CommonMode:
    samples = {run.letter: run.samples(mode, benchmark.problems) for run in runs}
    shared = set.intersection(*(set(of_run) for of_run in samples.values()))
    if not shared:
        raise UserError(
            f"no problem of mode {mode.name} that all of {', '.join(run.name for run in runs)} have",
            remedy="compare two of them at a time, or evaluate all on one benchmark",
        )
    _refuse_answers(runs, samples, shared)
    not_asked = {letter: sum(of_run[i].untried > 0 for i in shared) for letter, of_run in samples.items()}
    asked = {i for i in shared if not any(of_run[i].untried for of_run in samples.values())}
    if not asked:
        raise UserError(
            f"no common problem of mode {mode.name} for which every model could be asked",
            remedy="see `finish` of the records",
        )
    return CommonMode(
        name,
        mode,
        tuple(runs),
        frozenset(asked),
        {letter: len(of_run) - len(shared) for letter, of_run in samples.items()},
        not_asked,
    )


def _refuse_answers(runs: Sequence[ReadRun], samples: dict[str, dict[str, ProblemSamples]], shared: set[str]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for problem in sorted(shared):
            answers = [samples[r.letter][problem].expected for r in (first, run)]
            if len({None if a is None else a.strip() for a in answers}) > 1:
                raise UserError(
                    f"problem {problem} has the answer {answers[0]!r} in {first.name} and {answers[1]!r} in "
                    f"{run.name}: they are different benchmarks",
                    remedy="score both with the same answers: openmath evaluate rescore --problems FILE",
                )


def _nothing_common(run: ReadRun, runs: Sequence[ReadRun]) -> UserError:
    """Return the error of a run that nothing is compared with."""
    others = [other for other in runs if other is not run]
    ids = {problem for part in run.parts for problem in part.problems}
    shared = [other for other in others if any(not ids.isdisjoint(part.problems) for part in other.parts)]
    if not shared:
        problem = f"{run.name} has no problem in common with {', '.join(other.name for other in others)}"
        return UserError(problem, remedy="compare evaluations on the same benchmark")
    modes = {r.name: ", ".join(mode.name for mode in _modes([r])) for r in (run, *shared)}
    told = "; ".join(f"{name}: {those}" for name, those in modes.items())
    return UserError(f"{run.name} has no mode in common with the others ({told})", remedy="evaluate both in one mode")
