"""New summaries for old reasoning (paper section 4.1): several are written, the longest that keeps the answer stays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nemo_openmath.chat import OPENING, Author, Piece, Transcript, load_template
from nemo_openmath.core.bounds import NonNegativeFloat, PositiveInt
from nemo_openmath.core.engine import Finish, Request, Sampling
from nemo_openmath.core.records import Drop, Generation
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import RUNTIME, Result, StageContext, UnitStage
from nemo_openmath.core.tags import THINK_END
from nemo_openmath.grading import Verdict, extract_answer
from nemo_openmath.inference.asking import prompt_for, text_after_thinking
from nemo_openmath.synthesis.problem_texts import ProblemTexts
from nemo_openmath.synthesis.solutions.shown import shown


@dataclass(frozen=True)
class SummarizeConfig:
    """``candidates``: summaries written per solution, each of at most ``max_tokens``."""

    engine: str = "teacher"
    candidates: PositiveInt = 4
    max_tokens: PositiveInt = 2048
    temperature: NonNegativeFloat = 0.7
    prompt: Path | None = None
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)


class Summarize(UnitStage[SummarizeConfig, Generation]):
    """Generation -> the same generation with a new summary, or a drop where none kept the answer."""

    kind = "solutions.summarize"
    version = 2  # of the summaries that were finished
    Config = SummarizeConfig
    ports = {"generations": "graded solutions", "problems": "their problems"}
    takes = {"generations": "Generation", "problems": "Problem"}
    record = Generation

    def __init__(self, config: SummarizeConfig):
        super().__init__(config)
        self.concurrency = config.concurrency
        self._template = load_template("summarize", config.prompt)

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def prepare(self, context: StageContext) -> None:
        self._engine, self._tokenizer = await context.services.engine(self.config.engine)
        self._pool = await context.services.grading()
        self._problems = ProblemTexts(context)

    def units(self, context: StageContext) -> Iterable[tuple[str, Generation]]:
        return ((g.id, g) for g in context.read("generations", Generation))

    async def process(self, unit: Generation, context: StageContext) -> Result:
        if unit.predicted_answer is None:
            return Result(drops=[Drop("no answer to summarize", shown(unit))], asked=False)
        transcript = Transcript.from_json(unit.transcript)
        messages = self._template.messages(problem=self._problems.of(unit), solution=transcript.text)
        prompt = prompt_for(self._engine, self._tokenizer, messages)
        requests = [
            Request(
                prompt,
                Sampling(
                    max_tokens=self.config.max_tokens,
                    temperature=self.config.temperature,
                    seed=derive_seed(context.seed, "summary", unit.id, i),
                ),
            )
            for i in range(self.config.candidates)
        ]
        completions = await asyncio.gather(*map(self._engine.complete, requests))
        # one that was cut off at its limit would teach to end in the middle of a sentence
        texts = [text_after_thinking(c.text, self._tokenizer, messages) for c in completions if c.finish is Finish.STOP]
        if not texts:
            return Result(drops=[Drop("no summary was finished", completions[0].text[-200:])])
        valid = []
        for text in texts:
            answer = extract_answer(text).answer
            if answer is not None and (await self._pool.grade(answer, unit.predicted_answer)).verdict is Verdict.EQUAL:
                valid.append(text)
        if not valid:
            return Result(drops=[Drop("no summary kept the answer", texts[0])])
        best = max(valid, key=lambda text: (len(text), text))
        return Result([unit.with_(transcript=replace_summary(transcript, best).to_json())])


def replace_summary(transcript: Transcript, summary: str) -> Transcript:
    """The transcript with everything after ``</think>`` replaced. The new piece has no ids: nobody generated it.

    A solution that does not think becomes the thinking before the summary, whole."""
    if not transcript.thinks:
        told = (p for p in transcript.pieces if p.author is not Author.TEMPLATE)
        transcript = replace(transcript, pieces=(Piece(Author.TEMPLATE, OPENING), *told))
    thought = transcript.without_summary()
    if thought is None:
        pieces = (*transcript.pieces, Piece(Author.MODEL, f"{THINK_END}\n{summary}"))
    else:  # the new piece has no ids, as a piece that is cut
        pieces = (*thought[:-1], Piece(Author.MODEL, f"{thought[-1].text}\n{summary}"))
    return replace(transcript, pieces=pieces, ended=True)
