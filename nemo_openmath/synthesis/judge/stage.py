"""The judging stage: generations whose verdict the symbolic grader left open get one from a model."""

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
from nemo_openmath.core.stage import RUNTIME, Result, StageContext, UnitStage
from nemo_openmath.grading import Grade, Verdict
from nemo_openmath.synthesis.judge.agreement import JudgedPair, read_judgements
from nemo_openmath.synthesis.judge.judge import Judge, JudgeSettings, Question, judge
from nemo_openmath.synthesis.problem_texts import ProblemTexts


@dataclass(frozen=True)
class JudgeConfig:
    """``engine``: the judge's; ``more_engines``: further judges. ``everything``: judge the pairs too that the symbolic
    grader decided; their verdict stays the symbolic one, and the agreement of the two is among the stage's facts."""

    engine: str = "teacher"
    more_engines: tuple[str, ...] = ()
    everything: bool = False
    votes: PositiveInt = 1  # judgements that each judge gives; the majority holds
    attempts: PositiveInt = 3
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 2048
    prompt: Path | None = None
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)


class JudgeAnswers(UnitStage[JudgeConfig, Generation]):
    """Graded generation -> the same generation; where its verdict was unknown or timeout, with the judge's."""

    kind = "judging.judge"
    Config = JudgeConfig
    ports = {"generations": "graded solutions", "problems": "their problems"}
    takes = {"generations": "Generation", "problems": "Problem"}
    record = Generation

    def __init__(self, config: JudgeConfig):
        super().__init__(config)
        self.concurrency = config.concurrency

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine, *self.config.more_engines)

    async def prepare(self, context: StageContext) -> None:
        c = self.config
        settings = JudgeSettings(c.votes, c.attempts, c.temperature, c.max_tokens, c.concurrency, context.seed)
        self._judges = [Judge(*await context.services.engine(name), settings, c.prompt) for name in self.engines()]
        self._problems = ProblemTexts(context)
        shard = f"{context.shard:05d}-of-{context.shards:05d}"
        self._journal = _open_journal(context.output / f"judgements-{shard}.jsonl")

    async def run(self, context: StageContext) -> None:
        try:
            await super().run(context)
        finally:
            if (journal := getattr(self, "_journal", None)) is not None:
                journal.close()
        everywhere = read_judgements(sorted(context.output.glob("judgements-*.jsonl")))
        text = orjson.dumps(everywhere.to_json(), option=orjson.OPT_INDENT_2)
        (context.output / "agreement.json").write_bytes(text)
        if context.shards == 1:
            context.facts["judging"] = everywhere.to_json()

    def units(self, context: StageContext) -> Iterable[tuple[str, Generation]]:
        return ((g.id, g) for g in context.read("generations", Generation))

    async def process(self, unit: Generation, context: StageContext) -> Result:
        symbolic = Grade(unit.verdict or Verdict.UNKNOWN, unit.verdict_reason or "not graded")
        open_ = symbolic.verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
        if not unit.tried or (not open_ and not self.config.everything):
            return Result([unit], asked=False)
        question = Question(self._problems.of(unit), unit.predicted_answer, unit.expected_answer)
        judged = await judge(question, self._judges)
        entry = JudgedPair(question, symbolic, judged)
        self._journal.write(orjson.dumps({"unit": unit.id, **entry.to_json()}, option=orjson.OPT_APPEND_NEWLINE))
        self._journal.flush()
        asked = judged.asked > 0
        if not open_:
            return Result([unit], asked=asked)
        return Result([unit.with_(verdict=judged.verdict, verdict_reason=judged.reason)], asked=asked)

    def refused(self, key: str, unit: Generation, error: Refused, context: StageContext) -> Result:
        """The generation as it is, for it is none the worse: an open verdict stays open."""
        context.facts["refused"] = context.facts.get("refused", 0) + 1
        if unit.verdict in (Verdict.EQUAL, Verdict.NOT_EQUAL):
            return Result([unit])
        return Result([unit.with_(verdict=Verdict.UNKNOWN, verdict_reason=f"not judged: {error}")])


def _open_journal(file: Path) -> BinaryIO:
    """For appending whole lines: a line that a killed run left torn is ended, so that the next one stays readable."""
    journal = file.open("ab+")
    if journal.tell():
        journal.seek(-1, os.SEEK_END)
        if journal.read(1) != b"\n":
            journal.write(b"\n")
    return journal
