"""Stored generations of one model: which samples of each problem were right, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.core.records.bodies import closing_files
from nemo_openmath.core.records.store import read_records, refuse_no_records
from nemo_openmath.evaluation.sequential.stratified import Counts
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.rollout.answer import answer_of

_BATCH = 1000


@dataclass(frozen=True)
class StoredSample:
    """One stored generation."""

    number: int
    id: str
    right: bool
    tokens: int


@dataclass(frozen=True)
class StoredSamples:
    """The samples of each problem, in the order of their numbers. ``apart``: problems that the model could not be
    asked, which no comparison has; ``undecided``: samples without a decision of the grader, which count as wrong."""

    folder: Path
    samples: Mapping[str, list[StoredSample]]
    apart: frozenset[str]
    undecided: int

    @classmethod
    def read(cls, folder: Path, mode: Mode | None, pool: GradingPool) -> StoredSamples:
        """Read the generations of a stage. Those without a verdict are graded here.

        Raises UserError where there are none, where they are of several modes and ``mode`` names none, where they are
        of several models, and where a generation stands twice or cannot be graded.
        """
        refuse_no_records(folder)
        samples: dict[str, list[StoredSample]] = {}
        apart, modes, models, undecided = set[str](), set[Mode](), set[str](), 0
        waiting: list[Generation] = []

        def keep(generation: Generation, verdict: Verdict) -> None:
            nonlocal undecided
            undecided += verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
            samples.setdefault(generation.problem_id, []).append(
                StoredSample(generation.sample, generation.id, verdict is Verdict.EQUAL, generation.completion_tokens)
            )

        def grade() -> None:
            pairs = [(answer_of(g), g.expected_answer) for g in waiting]
            for generation, result in zip(waiting, pool.grade_batch(pairs), strict=True):
                keep(generation, result.verdict)
            waiting.clear()

        with closing_files():
            for generation in read_records(folder, Generation):
                if generation.mode in (Mode.GENSELECT, Mode.COMPETITION) or (mode and generation.mode is not mode):
                    continue
                modes.add(generation.mode)
                models.add(generation.model)
                if not generation.tried:
                    apart.add(generation.problem_id)
                elif generation.verdict is not None:
                    keep(generation, generation.verdict)
                elif generation.expected_answer is None:
                    raise UserError(
                        f"generation {generation.id} has neither a verdict nor an expected answer",
                        file=folder,
                        remedy="give the folder of the judging stage",
                    )
                else:
                    waiting.append(generation)
                    if len(waiting) >= _BATCH:
                        grade()
            grade()
        cls._check(folder, samples, modes, models)
        ordered = {i: sorted(samples[i], key=lambda s: s.number) for i in samples if i not in apart}
        return cls(folder, ordered, frozenset(apart), undecided)

    @staticmethod
    def _check(folder: Path, samples: Mapping[str, list[StoredSample]], modes: set[Mode], models: set[str]) -> None:
        if not samples:
            raise UserError("there are no solutions", file=folder, remedy="name the folder of a generation stage")
        for what, names, remedy in (
            ("modes", sorted(map(str, modes)), "say which: --mode, or mode: in the file"),
            ("models", sorted(models), "give the folder of one model"),
        ):
            if len(names) > 1:
                raise UserError(f"solutions of several {what}: {', '.join(names)}", file=folder, remedy=remedy)
        for problem, kept in samples.items():
            ids = {sample.id for sample in kept}
            if len(ids) != len(kept):
                raise UserError(
                    f"problem {problem} has a generation twice", file=folder, remedy="name a stage's folder"
                )

    @property
    def fewest(self) -> int:
        """Samples of the problem that has the fewest."""
        return min(map(len, self.samples.values()))


def same_problems(a: StoredSamples, b: StoredSamples) -> tuple[list[str], int]:
    """Return the problems of both, and how many are left out because a model could not be asked.

    Raises UserError where one has a problem that the other lacks, and where both have the same generation: their
    samples must not depend on each other.
    """
    for has, lacks in ((a, b), (b, a)):
        if only := has.samples.keys() - lacks.samples.keys() - lacks.apart:
            raise UserError(
                f"{len(only)} problems are not in {lacks.folder}, for example {min(only)}",
                file=has.folder,
                remedy="evaluate both on the same benchmark",
            )
    problems = sorted(a.samples.keys() & b.samples.keys())
    ids = [{sample.id for arm in side.samples.values() for sample in arm} for side in (a, b)]
    if shared := ids[0] & ids[1]:
        raise UserError(
            f"{len(shared)} generations are in {b.folder} as well, for example {min(shared)}",
            file=a.folder,
            remedy="give solutions of two models, or of two seeds",
        )
    if not problems:
        raise UserError("no problem could be asked of both models", file=a.folder, remedy="see `finish` of the records")
    return problems, len(a.apart | b.apart)


def counts_of(sides: tuple[StoredSamples, StoredSamples], problems: list[str]) -> Counts:
    """Return how many samples each arm has (2 x problems)."""
    return np.array([[len(side.samples[problem]) for problem in problems] for side in sides], np.int64)


def rates_of(folders: Sequence[Path], mode: Mode | None, pool: GradingPool) -> tuple[Counts, Counts]:
    """Return right samples and samples of each problem (models x problems) of one or two folders of solutions."""
    sides = [StoredSamples.read(folder, mode, pool) for folder in folders]
    problems = sorted(sides[0].samples) if len(sides) == 1 else same_problems(sides[0], sides[1])[0]
    arms = [[side.samples[problem] for problem in problems] for side in sides]
    right = np.array([[sum(sample.right for sample in arm) for arm in side] for side in arms], np.int64)
    return right, np.array([[len(arm) for arm in side] for side in arms], np.int64)
