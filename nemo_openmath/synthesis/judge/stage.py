"""Judge the generations whose verdict the symbolic grader left open."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson

from nemo_openmath.core.bounds import NonNegativeFloat, PositiveInt
from nemo_openmath.core.errors import Refused
from nemo_openmath.core.records import Generation
from nemo_openmath.core.stage import ADDED, RUNTIME, Result, StageContext
from nemo_openmath.grading import Grade, Verdict
from nemo_openmath.synthesis.controls.cases import JudgeCase
from nemo_openmath.synthesis.controls.plant import ControlledConfig, ControlledStage
from nemo_openmath.synthesis.judge.agreement import DECIDED, JudgedPair, read_judgements
from nemo_openmath.synthesis.judge.judge import Judge, JudgeSettings, Question, judge
from nemo_openmath.synthesis.problem_texts import ProblemTexts

JUDGED = "judged"
"""Key in ``extra`` of a generation: the judges' verdict on its answer, where they were asked."""


@dataclass(frozen=True)
class JudgeConfig(ControlledConfig):
    """Settings of ``judging.judge``. The paper judges with Qwen2.5-32B-Instruct (section 2.3)."""

    engine: str = "teacher"
    """The model that judges: ``teacher``, the name of a stage that made a model, or a model folder."""
    more_engines: tuple[str, ...] = ()
    """Further judges, named like ``engine``. The majority of all votes holds."""
    everything: bool = False
    """Also judge the pairs that the symbolic grader decided, to measure agreement. Their verdict stays the symbolic
    one, unless ``overrule``."""
    overrule: bool = field(default=False, metadata=ADDED)
    """With ``everything``: where judges decide, their verdict holds, against the symbolic one, too. Paper section 2.3
    judges all by a model; that the grader's certain verdicts stay is ours."""
    votes: PositiveInt = 1
    """Votes of each judge on a pair."""
    attempts: PositiveInt = 3
    """How often a vote is asked for until the reply can be read."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of a judge's first vote. Further votes and attempts use at least 0.7."""
    max_tokens: PositiveInt = 2048
    """Longest reply, in tokens."""
    prompt: Path | None = None
    """A template file of the user's own. null: the shipped one."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Pairs in flight at once. It changes the speed alone."""

    def __post_init__(self) -> None:
        if self.overrule and not self.everything:
            raise ValueError("overrule: set everything, too, so that the pairs that the grader decided are judged")


class JudgeAnswers(ControlledStage[JudgeConfig, tuple[Generation, str | None]]):
    """Replace the verdicts unknown and timeout of graded generations by the judges' verdict.

    Other generations pass unchanged. What the judges said stands in ``extra["judged"]`` of a generation, whether its
    verdict is theirs or not. How far judges and grader agree stands in ``agreement.json``, and among the metrics where
    the stage runs as one job.
    """

    kind = "judging.judge"
    case = JudgeCase
    version = 2  # a generation says what the judges said
    Config = JudgeConfig
    ports = {"generations": "graded solutions", "problems": "their problems"}
    takes = {"generations": "Generation", "problems": "Problem"}
    record = Generation
    divided_inputs = ("problems",)

    def __init__(self, config: JudgeConfig):
        super().__init__(config)
        self.concurrency = config.concurrency

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine, *self.config.more_engines)

    async def prepare(self, context: StageContext) -> None:
        config = self.config
        settings = JudgeSettings(
            votes=config.votes,
            attempts=config.attempts,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            concurrency=config.concurrency,
            seed=context.seed,
        )
        self._judges: list[Judge] = []
        for name in self.engines():
            engine, tokenizer = await context.services.engine(name)
            self._judges.append(Judge(engine, tokenizer, settings, config.prompt))
        shard = f"{context.shard:05d}-of-{context.shards:05d}"
        self._journal = _open_journal(context.output / f"judgements-{shard}.jsonl")

    async def run(self, context: StageContext) -> None:
        try:
            await super().run(context)
        finally:
            if (journal := getattr(self, "_journal", None)) is not None:
                journal.close()
        agreement = read_judgements(sorted(context.output.glob("judgements-*.jsonl"))).to_json()
        (context.output / "agreement.json").write_bytes(orjson.dumps(agreement, option=orjson.OPT_INDENT_2))
        if context.shards == 1:
            context.metrics["judging"] = agreement

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Generation, str | None]]]:
        problems = ProblemTexts(context)
        for generation in context.read("generations", Generation):
            yield generation.id, (generation, problems.of(generation) if self._asks_about(generation) else None)

    def _asks_about(self, generation: Generation) -> bool:
        return generation.tried and (self.config.everything or generation.verdict not in DECIDED)

    async def process(self, unit: tuple[Generation, str | None], context: StageContext) -> Result:
        generation, problem = unit
        if problem is None:
            return Result([generation], asked=False)
        symbolic = Grade(generation.verdict or Verdict.UNKNOWN, generation.verdict_reason or "not graded")
        question = Question(problem, generation.predicted_answer, generation.expected_answer)
        judged = await judge(question, self._judges)
        if not context.planted:
            row = {"unit": generation.id, **JudgedPair(question, symbolic, judged).to_json()}
            self._journal.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            self._journal.flush()
        if asked := judged.asked > 0:
            generation = generation.with_(extra=generation.extra | {JUDGED: str(judged.verdict)})
        overruled = self.config.overrule and judged.verdict in DECIDED and judged.verdict is not symbolic.verdict
        if symbolic.verdict in DECIDED and not overruled:
            return Result([generation], asked=asked)
        reason = judged.reason + (f"; the grader: {symbolic.verdict}, {symbolic.reason}" if overruled else "")
        return Result([generation.with_(verdict=judged.verdict, verdict_reason=reason)], asked=asked)

    def is_asked(self, unit: tuple[Generation, str | None]) -> bool:
        return unit[1] is not None

    def refused(self, key: str, unit: tuple[Generation, str | None], error: Refused, context: StageContext) -> Result:
        """Keep the generation: that a judge refuses it says nothing against it. An open verdict stays unknown."""
        context.metrics["refused"] = context.metrics.get("refused", 0) + 1
        generation, _ = unit
        if generation.verdict in (Verdict.EQUAL, Verdict.NOT_EQUAL):
            return Result([generation])
        return Result([generation.with_(verdict=Verdict.UNKNOWN, verdict_reason=f"not judged: {error}")])


def _open_journal(file: Path) -> BinaryIO:
    """Open a file for appending lines. A line that a killed run left torn is ended, so that the next stays readable."""
    journal = file.open("ab+")
    if journal.tell():
        journal.seek(-1, os.SEEK_END)
        if journal.read(1) != b"\n":
            journal.write(b"\n")
    return journal
