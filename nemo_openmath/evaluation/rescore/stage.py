"""Score stored generations again, as a stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.bounds import Length, NonNegativeInt, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Mode, Problem
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.stage import RUNTIME, Result, StageContext, UnitStage
from nemo_openmath.data.records.stored import Condition, check_fields
from nemo_openmath.evaluation.rescore.limit import Limited, LongestKnown, limited
from nemo_openmath.evaluation.rescore.note import noted
from nemo_openmath.evaluation.rescore.verdicts import Judged, Scoring, exact, opinions
from nemo_openmath.grading import GradingPool

ScoredMode = Literal[Mode.COT, Mode.TIR, Mode.GENSELECT, Mode.COMPETITION]


@dataclass(frozen=True)
class RescoreConfig:
    """Settings of ``evaluation.rescore``. With none of them, everything is graded again by the grader as it is now."""

    grader: Literal["openmath", "exact"] = "openmath"
    """``openmath`` compares meanings. ``exact`` compares texts: the strictest grader there is."""
    take_modulo: PositiveInt | None = None
    """Compare integers modulo this number, as some contests do."""
    answers: Literal["text", "stored"] = "text"
    """``text``: answers are extracted from the solutions again. ``stored``: those that the generations have are
    graded."""
    fallback: bool = False
    """Where a solution has no box, accept a phrase such as "the final answer is ..."."""
    judged: Judged = "undecided"
    """What the verdicts of judges count that were asked before: where the grader leaves a pair open (``undecided``),
    against the grader, too (``all``), or nothing (``none``). A verdict on another pair of answers counts nothing."""
    max_tokens: NonNegativeInt = 0
    """Token limit of a solution, as ``max_tokens`` of ``rollout.generate``: a longer one is unfinished, and has no
    answer. 0: as generated."""
    unfinished_answers: bool = False
    """Look for answers in unfinished solutions, too, up to the token limit. Where that cuts a solution, its token ids
    and ``tokenizer`` are needed."""
    tokenizer: Path | None = None
    """Folder of the tokenizer of the model that generated."""
    samples: NonNegativeInt = 0
    """Score only the first so many samples of each problem; 0: all."""
    modes: Annotated[tuple[ScoredMode, ...], Length()] | None = None
    """Score only generations of these modes. null: of all."""
    where: tuple[str, ...] = ()
    """Score only generations for which all these conditions hold, such as ``extra.subset_for_metrics=aime24``."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Solutions in flight at once. It changes the speed alone."""

    def __post_init__(self) -> None:
        for text in self.where:
            check_fields([Condition.parse(text)], Generation)
        if self.grader == "exact" and self.take_modulo is not None:
            raise ValueError("take_modulo: texts have no modulus; leave it out, or choose grader openmath")


@dataclass(frozen=True, slots=True)
class _Unit:
    generation: Generation
    expected: str | None
    candidate: Generation | None = None
    """Of a selection: the solution that it chose, where it is at hand."""


class Rescore(UnitStage[RescoreConfig, _Unit]):
    """Give stored generations the verdicts that they have by today's grader and these settings.

    What a generation said before stands under ``before`` in its ``extra``, where it differs. Nothing is generated.
    Generations that are left out are counted (``left_out_...``).

    A selection has the answer and verdict of the candidate that it chose. It has seen whole solutions of all samples,
    so selections are refused where a token limit or fewer samples are asked for.
    """

    kind = "evaluation.rescore"
    Config = RescoreConfig
    ports = {
        "generations": "graded generations",
        "problems?": "the problems to score; expected answers that they have hold, and other problems are left out",
        "judged?": "the same generations as a judging.judge stage left them: its verdicts are used",
    }
    takes = {"generations": "Generation", "problems": "Problem", "judged": "Generation"}
    record = Generation
    divided_inputs = ("problems",)

    def __init__(self, config: RescoreConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._conditions = [Condition.parse(text) for text in config.where]

    async def prepare(self, context: StageContext) -> None:
        config, whole = self.config, replace(context, divided=())
        self._own_pool: GradingPool | None = None
        compare = exact
        if config.take_modulo is not None:
            self._own_pool = GradingPool(take_modulo=config.take_modulo)
            compare = self._own_pool.grade
        elif config.grader == "openmath":
            compare = (await context.services.grading()).grade
        self._scoring = Scoring(
            compare,
            from_text=config.answers == "text",
            fallback=config.fallback,
            unfinished_answers=config.unfinished_answers,
            judged=config.judged,
            opinions=opinions(whole.read("judged", Generation)) if context.paths("judged") else None,
        )
        self._longest = LongestKnown.of(whole.read("generations", Generation) if config.max_tokens else ())
        cuts_text = config.max_tokens and config.unfinished_answers
        self._tokenizer = ChatTokenizer.load(config.tokenizer, chat=False) if config.tokenizer and cuts_text else None
        self._left_out = 0

    async def run(self, context: StageContext) -> None:
        try:
            await super().run(context)
        finally:
            if (pool := getattr(self, "_own_pool", None)) is not None:
                pool.close()

    def units(self, context: StageContext) -> Iterable[tuple[str, _Unit]]:
        problems = {p.id: p.expected_answer for p in context.read("problems", Problem)}  # None: the generation's own
        only_these = bool(context.paths("problems"))
        selections: list[Generation] = []
        for generation in context.read("generations", Generation):
            if why := self._left_out_for(generation, problems if only_these else None):
                self._left_out += 1
                name = f"left_out_{why}"
                context.metrics[name] = context.metrics.get(name, 0) + 1
            elif generation.mode is Mode.GENSELECT:
                self._refuse_selection(generation)
                selections.append(generation)
            else:
                yield (
                    generation.id,
                    _Unit(generation, problems.get(generation.problem_id) or generation.expected_answer),
                )
        yield from self._selections(context, selections, problems)

    def _selections(
        self, context: StageContext, selections: list[Generation], problems: dict[str, str | None]
    ) -> Iterator[tuple[str, _Unit]]:
        """Yield the selections, each with the candidate that it chose: it is at hand where the solutions are given,
        too."""
        chosen = {Selection.of(selection).chosen for selection in selections}
        solutions = context.read("generations", Generation) if selections else ()
        candidates = {g.id: g for g in solutions if g.id in chosen}
        missing = sum(1 for name in chosen if name is not None and name not in candidates)
        if missing:
            context.metrics["candidates_not_given"] = context.metrics.get("candidates_not_given", 0) + missing
        for selection in selections:
            expected = problems.get(selection.problem_id) or selection.expected_answer
            yield selection.id, _Unit(selection, expected, candidates.get(Selection.of(selection).chosen or ""))

    def check_sum(self, context: StageContext, offered: int) -> None:
        super().check_sum(context, offered + self._left_out)

    async def process(self, unit: _Unit, context: StageContext) -> Result:
        new = await self._scored(unit, context)
        for name, changed in (
            ("changed", new.verdict is not unit.generation.verdict),
            ("was_not_graded", unit.generation.verdict is None),
        ):
            context.metrics[name] = context.metrics.get(name, 0) + changed
        return Result([new])

    async def _scored(self, unit: _Unit, context: StageContext) -> Generation:
        old = unit.generation
        if old.mode is Mode.GENSELECT:
            candidate = unit.candidate
            if candidate is not None:
                candidate = await self._scoring.scored(candidate, unit.expected)
            return noted(old, await self._scoring.selected(old, candidate, unit.expected))
        part = self._limited(old)
        context.metrics["cut"] = context.metrics.get("cut", 0) + part.cut
        new = await self._scoring.scored(part.generation, unit.expected, cut=part.cut)
        return noted(old, new, counts_known=part.counts_known)

    def _limited(self, generation: Generation) -> Limited:
        config = self.config
        if not config.max_tokens:
            return Limited(generation)
        return limited(generation, config.max_tokens, self._longest, self._tokenizer, text=config.unfinished_answers)

    def _left_out_for(self, generation: Generation, problems: dict[str, Any] | None) -> str:
        """Return which setting leaves a generation out; "" for one that is scored."""
        config = self.config
        if config.modes is not None and generation.mode not in config.modes:
            return "modes"
        if problems is not None and generation.problem_id not in problems:
            return "problems"
        if config.samples and generation.mode is not Mode.GENSELECT and generation.sample >= config.samples:
            return "samples"
        return "" if all(condition.holds(_fields(generation, condition)) for condition in self._conditions) else "where"

    def _refuse_selection(self, selection: Generation) -> None:
        for name, value in (("max_tokens", self.config.max_tokens), ("samples", self.config.samples)):
            if value:
                raise UserError(
                    f"selection {selection.id} saw whole solutions of all samples; with {name} {value} it would have "
                    "seen others, and nobody knows what it would have chosen",
                    remedy="leave selections out (modes: [cot, tir]), and let the model select again",
                )


def _fields(generation: Generation, condition: Condition) -> dict[str, Any]:
    name = condition.field[0]
    return {name: getattr(generation, name)}
