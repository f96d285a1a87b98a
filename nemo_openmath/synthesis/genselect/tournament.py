"""Select among more solutions than a comparison holds: winners of groups meet until one is left."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from nemo_openmath.chat import Transcript
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.records import Generation, Mode, Problem
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.stage import RUNTIME, Result, StageContext
from nemo_openmath.inference.rollout import Outcome
from nemo_openmath.synthesis.genselect.candidates import GroupCandidate, Solved, candidates_of, fitted
from nemo_openmath.synthesis.genselect.groups import SolutionMode, refuse_several
from nemo_openmath.synthesis.genselect.selecting import SelectingConfig, SelectingStage


@dataclass(frozen=True)
class TournamentConfig(SelectingConfig):
    """Settings of ``genselect.tournament``."""

    candidates: PositiveInt = 64
    """Solutions of each problem that take part, drawn by the seed where there are more. Evaluation calls the result
    ``genselect@64``."""
    size: PositiveInt = 16
    """Solutions of one comparison, at most. Paper section 4.3: above 32 a selection is unstable."""
    repeats: PositiveInt = 1
    """Tournaments of each problem, each with a draw of its own; evaluation takes the majority of their answers."""
    attempts: PositiveInt = 2
    """How often a comparison is asked whose judgment names no candidate. Then the first of the most common answer
    wins."""
    modes: tuple[SolutionMode, ...] | None = None
    """The mode of the solutions, such as [tir]. null: the one that there is."""
    max_summary_chars: PositiveInt = 8000
    """As of ``genselect.groups``."""
    max_group_chars: PositiveInt = 60_000
    """As of ``genselect.groups``."""
    concurrency: PositiveInt = field(default=64, metadata=RUNTIME)
    """Tournaments in flight at once. It changes the speed alone."""

    def __post_init__(self) -> None:
        SelectingConfig.__post_init__(self)
        if self.size < 2:
            raise ValueError("size: a comparison has at least 2 solutions")
        if self.modes is not None and len(set(self.modes)) != 1:
            raise ValueError("modes: a tournament is of one mode, such as [tir]")


class Tournament(SelectingStage[TournamentConfig, tuple[Problem, Solved, int]]):
    """Select one of up to 64 solutions of each problem by comparisons of 16, as a generation of mode genselect.

    In each round the solutions that are left are drawn into groups whose sizes differ by one at most, of ``size`` or
    fewer; the winner of each group is left. So every solution is compared at least once. A group of one, whose solution
    goes on without a comparison (a bye), there is only with ``size: 2``. 64 solutions in groups of 16 take five
    comparisons. ``extra["matches"]`` has them all: round, members, winner, and how the winner was found.

    Nothing about correctness is used. A problem with one solution takes no comparison, one without has no answer. The
    transcript is that of the final.
    """

    kind = "genselect.tournament"
    Config = TournamentConfig
    ports = {"problems": "problems", "generations": "graded solutions with summaries"}
    takes = {"problems": "Problem", "generations": "Generation"}
    divided_inputs = ("generations",)

    def check_sum(self, context: StageContext, offered: int) -> None:
        """Count each problem once, though it has ``repeats`` tournaments."""
        super().check_sum(context, offered // self.config.repeats)

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, Solved, int]]]:
        solutions: dict[str, list[Generation]] = defaultdict(list)
        for generation in context.read("generations", Generation):
            if generation.mode in (self.config.modes or (Mode.COT, Mode.TIR)):
                solutions[generation.problem_id].append(generation)
        refuse_several(context, {g.mode for of_problem in solutions.values() for g in of_problem})
        for problem in context.read("problems", Problem):
            for turn in range(self.config.repeats):
                yield self._id(problem, context.seed, turn), (problem, Solved.of(solutions[problem.id]), turn)

    async def process(self, unit: tuple[Problem, Solved, int], context: StageContext) -> Result:
        problem, solved, turn = unit
        mode, solutions = next(iter(solved.by_mode.items()), (None, []))
        seed = derive_seed(context.seed, "tournament", problem.id, turn)
        rng = random.Random(seed)
        usable = candidates_of(solutions, self.config.max_summary_chars)
        left = rng.sample(usable, min(len(usable), self.config.candidates))
        matches: list[dict[str, Any]] = []
        outcomes: list[Outcome] = []
        for number in range(len(left)):  # fewer rounds than solutions
            if len(left) < 2:
                break
            winners = []
            for group in divide(left, self.config.size):
                winner, how = await self._match(problem, group, derive_seed(seed, len(matches)), context, outcomes)
                ids = [c.generation.id for c in group]
                matches.append({"round": number, "members": ids, "winner": winner.generation.id, "by": how})
                winners.append(winner)
            rng.shuffle(winners)
            left = winners
        untried = solutions[0].finish if solutions and not any(g.tried for g in solutions) else None
        if not outcomes:
            outcomes.append(Outcome(Transcript((), tokenizer=self._tokenizer.fingerprint), untried or Finish.STOP))
        chosen = left[0].generation if left else None
        return Result(
            [self._generation(problem, mode, turn, context.seed, outcomes, chosen, matches)], asked=bool(matches)
        )

    def refused(self, key: str, unit: tuple[Problem, Solved, int], error: Refused, context: StageContext) -> Result:
        problem, solved, turn = unit
        outcome = Outcome.untried((), self._tokenizer, error)
        mode = next(iter(solved.by_mode), None)
        generation = self._generation(problem, mode, turn, context.seed, [outcome], None, [])
        return Result([generation.with_(extra=generation.extra | {"untried": str(error)})])

    async def _match(
        self,
        problem: Problem,
        group: Sequence[GroupCandidate],
        seed: int,
        context: StageContext,
        outcomes: list[Outcome],
    ) -> tuple[GroupCandidate, str]:
        """Return the winner of a group and how it was found: by a judgment, the most common answer, or a bye."""
        if len(group) == 1:
            return group[0], "bye"
        texts = fitted([c.text for c in group], self.config.max_group_chars)
        metrics = context.metrics
        for attempt in range(self.config.attempts):
            own = derive_seed(seed, attempt)
            outcome, judgment = await self.compare(problem.problem, texts, seed=own, key=f"{problem.id}:{own}")
            outcomes.append(outcome)
            metrics["comparisons"] = metrics.get("comparisons", 0) + 1
            if judgment.chosen is not None:
                return group[judgment.chosen], "judgment"
            name = judgment.reason.replace(" ", "_")
            metrics[name] = metrics.get(name, 0) + 1
        vote = context.services.vote([c.generation.predicted_answer or "" for c in group])
        places = [vote.group_of(c.generation.predicted_answer) for c in group]
        largest = max(range(len(vote.groups)), key=lambda n: (vote.groups[n][1], -n))
        return group[places.index(largest)], "most common answer"

    def _id(self, problem: Problem, seed: int, turn: int) -> str:
        names = ("temperature", "top_p", "max_tokens", "candidates", "size", "attempts")
        shape = {name: value for name, value in asdict(self.config).items() if name in names}
        model, prompt = self._engine.model, self.template.digest
        return Generation.make_id(f"{problem.id} tournament", Mode.GENSELECT, model, prompt, shape, seed, turn)

    def _generation(
        self,
        problem: Problem,
        mode: Mode | None,
        turn: int,
        seed: int,
        outcomes: Sequence[Outcome],
        chosen: Generation | None,
        matches: list[dict[str, Any]],
    ) -> Generation:
        cost = sum((outcome.cost for outcome in outcomes[1:]), outcomes[0].cost)
        members = {name: None for match in matches for name in match["members"]}
        if chosen is not None and not members:
            members = {chosen.id: None}
        name = None if chosen is None else chosen.id
        generation = self.generation(
            self._id(problem, seed, turn),
            problem.id,
            (problem.id, *members),
            replace(outcomes[-1], cost=cost),
            Selection(problem.id, name, self.config.candidates, turn, mode, self.template.digest),
            expected=problem.expected_answer,
            predicted=None if chosen is None else chosen.predicted_answer,
            correct=None if chosen is None else chosen.correct,
        )
        return generation.with_(extra=generation.extra | {"matches": matches}) if matches else generation


def divide(left: Sequence[GroupCandidate], size: int) -> list[Sequence[GroupCandidate]]:
    """Return as few groups of at most ``size`` as there can be, whose sizes differ by one at most."""
    count = -(-len(left) // size)
    bounds = [number * len(left) // count for number in range(count + 1)]
    return [left[begin:end] for begin, end in pairwise(bounds)]
