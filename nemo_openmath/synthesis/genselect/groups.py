"""Draw groups of candidate solutions to select among (paper sections 4.2 and 4.3)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_openmath.core.bounds import Length, PositiveInt
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Generation, Group, Mode, Problem
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.genselect.candidates import GroupCandidate, Pool, Solved, candidates_of, fitted

SolutionMode = Literal[Mode.COT, Mode.TIR]
_TRIES = 8  # draws for each group that is wanted: a few solutions may not have so many distinct groups


@dataclass(frozen=True)
class GroupsConfig:
    """Settings of ``genselect.groups``."""

    sizes: Annotated[tuple[PositiveInt, ...], Length(2, 2)] = (2, 16)
    """Smallest and largest number of candidates; the number is drawn for each group. Paper section 4.2."""
    groups: PositiveInt = 8
    """Groups of each problem and mode, at most where ``mixed``. Paper section 4.2."""
    mixed: bool = True
    """For training data: each group has at least one correct and one incorrect candidate, and differs from the others
    of its problem. Turn it off for inference, where nothing about correctness may be used and every problem gets its
    groups, even of one candidate or none; a problem that nobody has tried to solve is refused."""
    modes: Annotated[tuple[SolutionMode, ...], Length()] | None = None
    """Modes of the solutions that are grouped; a group is always of one. null: all that a problem has. For inference
    it must come to one: selections of two would be one number."""
    least: PositiveInt = 4
    """With ``mixed``: different solutions that a problem has in a mode, at least, to be grouped. Reference: 4."""
    max_summary_chars: PositiveInt = 8000
    """Longer summaries are cut to so many characters from their left end, where the answer does not stand, and begin
    with a paragraph where they can."""
    max_group_chars: PositiveInt = 60_000
    """Where the candidates of a group have more characters together, the longest are cut to one length. Reference: up
    to 60,000 characters a group needs no look at its tokens, of which it allows 20,000."""

    def __post_init__(self) -> None:
        if len(self.sizes) != 2 or not 2 <= self.sizes[0] <= self.sizes[1]:
            raise ValueError("sizes: give the smallest and the largest group, such as [2, 16]")
        if not self.mixed and self.modes is not None and len(set(self.modes)) != 1:
            raise ValueError("modes: groups for inference (mixed: false) are of one mode, such as [tir]")


class Groups(UnitStage[GroupsConfig, tuple[Problem, Solved]]):
    """Draw groups of candidates among the solutions of each problem, within one mode, each group in a random order.

    A solution is a candidate where it has an answer and a summary. What is drawn depends on the seed and on the
    solutions, not on the order in which they are read.

    With ``mixed``:

    - Equal texts are one candidate. A text that stands for a right and for a wrong solution is none.
    - Solutions without a decided verdict are none.
    - At most as many right as wrong solutions of a problem take part in a group, as in the reference, so that a group
      is not won by choosing anyhow. The first right one, the first wrong one and the others are drawn, and then
      shuffled: a right one stands at every place equally often.
    - The groups of a problem and mode are distinct as sets of texts.

    Where no solution of a problem could be tried, ``extra["untried"]`` of its groups says why.
    """

    kind = "genselect.groups"
    version = 3  # 3: groups within one mode; different texts; decided verdicts; at most half are right
    Config = GroupsConfig
    ports = {"problems": "problems", "generations": "graded solutions with summaries"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)
    record = Group
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, Solved]]]:
        solutions: dict[str, list[Generation]] = defaultdict(list)
        modes = set()
        for generation in context.read("generations", Generation):
            if generation.mode in (self.config.modes or (Mode.COT, Mode.TIR)):
                solutions[generation.problem_id].append(generation)
                modes.add(generation.mode)
        if not self.config.mixed:
            refuse_several(context, modes)
        for problem in context.read("problems", Problem):
            yield problem.id, (problem, Solved.of(solutions[problem.id]))

    async def process(self, unit: tuple[Problem, Solved], context: StageContext) -> Result:
        problem, solved = unit
        if not self.config.mixed:
            if not solved.by_mode:
                raise _nobody_solved(context, problem)
            return Result(self._for_inference(problem, solved, context.seed))
        groups: list[Group] = []
        drops: list[Drop] = []
        for mode, solutions in solved.by_mode.items():
            pool = Pool.of(candidates_of(solutions, self.config.max_summary_chars))
            for name, count in (("ambiguous_texts", pool.ambiguous), ("undecided_solutions", pool.undecided)):
                if count:
                    context.metrics[name] = context.metrics.get(name, 0) + count
            if reason := self._reject(pool):
                drops.append(Drop(reason, f"{mode}: {problem.problem}"))
                continue
            rng = random.Random(derive_seed(context.seed, "groups", problem.id, mode))
            groups += self._for_training(problem, mode, pool, rng)
        if not solved.by_mode:
            drops.append(Drop(_NO_SUMMARY, problem.problem))
        return Result(groups, drops)

    def _reject(self, pool: Pool) -> str | None:
        """Return why there are no training groups of a pool, or None."""
        right, wrong = len(pool.right), len(pool.wrong)
        if not right and not wrong:
            return _NO_SUMMARY
        if not right or not wrong:
            return f"all solutions are {'correct' if right else 'incorrect'}: nothing to choose between"
        if right + wrong < self.config.least:
            return f"fewer than {self.config.least} different solutions"
        if min(right, wrong) + wrong < self.config.sizes[0]:
            return "fewer different solutions than the smallest group has"
        return None

    def _for_training(self, problem: Problem, mode: Mode, pool: Pool, rng: random.Random) -> list[Group]:
        """Return up to ``groups`` groups that differ as sets of texts."""
        low, high = self.config.sizes
        groups: dict[frozenset[str], Group] = {}
        for _ in range(self.config.groups * _TRIES):
            if len(groups) == self.config.groups:
                break
            right = rng.sample(pool.right, min(len(pool.right), len(pool.wrong)))
            wrong = rng.sample(pool.wrong, len(pool.wrong))
            others = right[1:] + wrong[1:]
            size = rng.randint(low, min(high, len(right) + len(wrong)))
            members = [right[0], wrong[0], *rng.sample(others, size - 2)]
            rng.shuffle(members)
            if (texts := frozenset(member.key for member in members)) in groups:
                continue
            group = self._group(problem, mode, members, size)
            if len({" ".join(text.split()) for text in group.summaries}) == size:  # cut texts can be equal
                groups[texts] = group
        return list(groups.values())

    def _for_inference(self, problem: Problem, solved: Solved, seed: int) -> list[Group]:
        mode, solutions = next(iter(solved.by_mode.items()), (None, []))
        usable = candidates_of(solutions, self.config.max_summary_chars)
        untried = solutions[0].finish if solutions and not any(g.tried for g in solutions) else None
        rng = random.Random(derive_seed(seed, "groups", problem.id))
        groups = []
        for turn in range(self.config.groups):
            size = rng.randint(*self.config.sizes)
            members = rng.sample(usable, min(size, len(usable)))
            groups.append(self._group(problem, mode, members, size, turn, untried))
        return groups

    def _group(
        self,
        problem: Problem,
        mode: Mode | None,
        members: Sequence[GroupCandidate],
        size: int,
        turn: int = 0,
        untried: Finish | None = None,
    ) -> Group:
        return Group.make(
            problem.id,
            tuple(c.generation.id for c in members),
            k=size,
            turn=turn,
            mode=mode,
            untried=untried,
            problem=problem.problem,
            summaries=tuple(fitted([c.text for c in members], self.config.max_group_chars)),
            answers=tuple(c.generation.predicted_answer for c in members),
            correct=tuple(c.generation.correct for c in members),
            expected_answer=problem.expected_answer,
        )


def _nobody_solved(context: StageContext, problem: Problem) -> UserError:
    """Return the error of a problem without a single solution: its selections would count as wrong ones."""
    text = " ".join(problem.problem.split())[:80]
    return UserError(
        f"{context.name}: no solution was made of problem {problem.id} ({text})",
        remedy="run the stage that solves to its end, or give this one the problems that it solves (problems.select)",
    )


def refuse_several(context: StageContext, modes: Collection[Mode]) -> None:
    """Raise UserError where the solutions that a stage is to select among are of several modes."""
    if len(modes) > 1:
        raise UserError(
            f"{context.name}: the solutions are of several modes ({', '.join(sorted(modes))}), and selections of both "
            "would be one number",
            remedy="write modes: [tir], and have a stage of its own for each other mode",
        )


_NO_SUMMARY = "no solution with a summary"
