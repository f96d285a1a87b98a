"""Keep of every problem the best few of the solutions that several stages left, by a stated order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from nemo_openmath.chat import Kind, Transcript
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.records import Drop, Generation
from nemo_openmath.core.records.ids import unit_key
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.synthesis.solutions.shown import shown

Criterion = Literal["right", "no_code_errors", "new", "old", "short", "long"]
ORDER: tuple[Criterion, ...] = ("right", "no_code_errors", "new")


@dataclass(frozen=True)
class BestOfConfig:
    """Settings of ``solutions.best_of``."""

    per_problem: PositiveInt = 4
    """How many solutions of a problem are kept, at most."""
    order: list[Criterion] = field(default_factory=lambda: list(ORDER))
    """What comes first; the next word decides between equals, in the end a hash of the ids. ``right``: the verdict is
    equal. ``no_code_errors``: no block of code ended in an error. ``new``: of a stage that is named later in ``from``;
    ``old``: earlier. ``short`` and ``long``: by the tokens that the model wrote."""

    def __post_init__(self) -> None:
        if len(set(self.order)) != len(self.order) or {"new", "old"} <= set(self.order):
            raise ValueError(f"order {', '.join(self.order)} says a thing twice")


class BestOf(UnitStage[BestOfConfig, tuple[Generation, bool]]):
    """Keep of every problem the best few solutions of all stages that it reads."""

    kind = "solutions.best_of"
    Config = BestOfConfig
    ports = {"generations": "graded solutions, the stages from the oldest to the newest"}
    takes = {"generations": "Generation"}
    record = Generation
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Generation, bool]]]:
        best = self._best(context)
        return ((g.id, (g, g.id in best)) for g in context.read("generations", Generation))

    async def process(self, unit: tuple[Generation, bool], context: StageContext) -> Result:
        generation, is_best = unit
        if is_best:
            return Result([generation])
        return Result(drops=[Drop("not among the best of its problem", shown(generation, question=False))])

    def _best(self, context: StageContext) -> frozenset[str]:
        """The ids of the solutions of a part of the work that are kept, whatever the order of the records."""
        ranked: dict[str, dict[str, tuple[float, ...]]] = {}  # problem -> solution -> what it is ordered by
        for age, folder in enumerate(context.paths("generations")):
            for g in read_merged([folder], Generation, context.services.vote, context.of):
                ranked.setdefault(g.problem_id, {})[g.id] = self._rank(g, age)
        best: set[str] = set()
        for solutions in ranked.values():
            best.update(sorted(solutions, key=lambda i: (solutions[i], unit_key(i), i))[: self.config.per_problem])
        return frozenset(best)

    def _rank(self, generation: Generation, age: int) -> tuple[float, ...]:
        """What a solution is ordered by, the smallest first. ``age``: the place of its stage in ``from``."""
        tokens = generation.completion_tokens
        values = {"right": not generation.correct, "new": -age, "old": age, "short": tokens, "long": -tokens}
        if "no_code_errors" in self.config.order:
            values["no_code_errors"] = generation.code_calls > 0 and _has_error(generation)
        return tuple(float(values[name]) for name in self.config.order)


def _has_error(generation: Generation) -> bool:
    """Return whether a block of a solution's code ended in an error."""
    segments = Transcript.from_json(generation.transcript, ids=False).segments()
    return any(s.kind is Kind.OUTPUT and ("Traceback" in s.text or "Error:" in s.text) for s in segments)
