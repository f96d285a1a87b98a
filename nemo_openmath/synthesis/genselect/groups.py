"""Draw groups of candidate solutions to select among (paper sections 4.2 and 4.3)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from nemo_openmath.chat import Transcript
from nemo_openmath.core.bounds import Length, PositiveInt
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.records import Drop, Generation, Group, Problem
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import Result, StageContext, UnitStage


@dataclass(frozen=True)
class GroupsConfig:
    """Settings of ``genselect.groups``."""

    sizes: Annotated[tuple[PositiveInt, ...], Length(2, 2)] = (2, 16)
    """Smallest and largest number of candidates; the number is drawn for each group. Paper section 4.2."""
    groups: PositiveInt = 8
    """Groups of each problem. For training data (``mixed``) they differ from each other. Paper section 4.2."""
    mixed: bool = True
    """For training data: each group has at least one correct and one incorrect candidate. Turn it off for inference,
    where nothing about correctness may be used and every problem gets its groups, even of one candidate or none."""
    max_summary_chars: PositiveInt = 8000
    """Longer summaries are cut to so many characters from their left end, where the answer does not stand."""

    def __post_init__(self) -> None:
        if len(self.sizes) != 2 or not 2 <= self.sizes[0] <= self.sizes[1]:
            raise ValueError("sizes: give the smallest and the largest group, such as [2, 16]")


class Groups(UnitStage[GroupsConfig, tuple[Problem, list[Generation]]]):
    """Draw groups of candidates among the solutions of each problem, each group in a random order.

    A solution is a candidate where it has an answer and a summary. Where no solution of a problem could be tried,
    ``extra["untried"]`` of its groups says why.
    """

    kind = "genselect.groups"
    version = 2  # 2: a summary is what follows the last </think>
    Config = GroupsConfig
    ports = {"problems": "problems", "generations": "graded solutions with summaries"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)
    record = Group
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[Generation]]]]:
        solutions: dict[str, list[Generation]] = defaultdict(list)
        for generation in context.read("generations", Generation):
            solutions[generation.problem_id].append(generation)
        for problem in context.read("problems", Problem):
            yield problem.id, (problem, sorted(solutions[problem.id], key=lambda g: g.id))

    async def process(self, unit: tuple[Problem, list[Generation]], context: StageContext) -> Result:
        problem, solutions = unit
        usable = [(g, text) for g in solutions if g.predicted_answer is not None and (text := summary_of(g))]
        rng = random.Random(derive_seed(context.seed, "groups", problem.id))
        if not self.config.mixed:
            untried = solutions[0].finish if solutions and not any(g.tried for g in solutions) else None
            return Result([self._group(problem, usable, [], rng, turn, untried) for turn in range(self.config.groups)])
        right = [n for n, (g, _) in enumerate(usable) if g.correct]
        wrong = [n for n, (g, _) in enumerate(usable) if not g.correct]
        if not (right and wrong):
            reason = "no solution with a summary"
            if right or wrong:
                reason = f"all solutions are {'correct' if right else 'incorrect'}: nothing to choose between"
            return Result(drops=[Drop(reason, problem.problem)])
        groups_by_members: dict[str, Group] = {}
        for _ in range(self.config.groups * 4):  # a few solutions may not have so many distinct groups
            if len(groups_by_members) == self.config.groups:
                break
            group = self._group(problem, usable, [rng.choice(right), rng.choice(wrong)], rng, 0)
            groups_by_members.setdefault(str(sorted(group.members)), group)
        return Result(list(groups_by_members.values()))

    def _group(
        self,
        problem: Problem,
        usable: list[tuple[Generation, str]],
        chosen: list[int],
        rng: random.Random,
        turn: int,
        untried: Finish | None = None,
    ) -> Group:
        """Return a group of the candidates ``chosen`` (indices of ``usable``) and others, up to a drawn size."""
        size = rng.randint(*self.config.sizes)
        others = [n for n in range(len(usable)) if n not in chosen]
        chosen = chosen + rng.sample(others, min(size, len(usable)) - len(chosen))
        rng.shuffle(chosen)
        members = [usable[n] for n in chosen]
        return Group.make(
            problem.id,
            tuple(g.id for g, _ in members),
            k=size,
            turn=turn,
            untried=untried,
            problem=problem.problem,
            summaries=tuple(s[-self.config.max_summary_chars :] for _, s in members),
            answers=tuple(g.predicted_answer for g, _ in members),
            correct=tuple(g.correct for g, _ in members),
            expected_answer=problem.expected_answer,
        )


def summary_of(generation: Generation) -> str | None:
    """Return the text after the reasoning; None where there is none."""
    return Transcript.from_json(generation.transcript, ids=False).summary
