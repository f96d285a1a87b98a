"""Write new summaries of solutions (paper section 4.1): the longest of several that keeps the answer is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nemo_openmath.chat import OPENING, Author, Span, Transcript, load_template
from nemo_openmath.core.bounds import NonNegativeFloat, PositiveInt
from nemo_openmath.core.engine import Finish, Sampling
from nemo_openmath.core.records import Drop, Generation
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import RUNTIME, Result, StageContext, UnitStage
from nemo_openmath.core.tags import THINK_END
from nemo_openmath.grading import extract_answer
from nemo_openmath.inference.asking import PreparedPrompt
from nemo_openmath.synthesis.problem_texts import ProblemTexts
from nemo_openmath.synthesis.solutions.shown import shown


@dataclass(frozen=True)
class SummarizeConfig:
    """Settings of ``solutions.summarize``."""

    engine: str = "teacher"
    """The model that writes: ``teacher``, the name of a stage that made a model, or a model folder."""
    candidates: PositiveInt = 4
    """Summaries written of each solution. Paper section 4.1."""
    max_tokens: PositiveInt = 2048
    """Longest summary, in tokens. A summary that is cut off there is not used. Paper section 4.1."""
    temperature: NonNegativeFloat = 0.7
    """Sampling temperature; 0 is greedy, and then all candidates of a solution are the same."""
    prompt: Path | None = None
    """A template file of the user's own. null: the shipped one."""
    concurrency: PositiveInt = field(default=256, metadata=RUNTIME)
    """Solutions in flight at once. It changes the speed alone."""


class Summarize(UnitStage[SummarizeConfig, Generation]):
    """Give each solution a new summary. A solution of which no summary keeps the answer is dropped."""

    kind = "solutions.summarize"
    version = 2  # 2: a summary that was cut off is not used
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
        prompt = await PreparedPrompt.of(self._engine, self._tokenizer, messages)
        seeds = [derive_seed(context.seed, "summary", unit.id, number) for number in range(self.config.candidates)]
        completions = await asyncio.gather(*(prompt.complete(self._sampling(seed)) for seed in seeds))
        # a summary that was cut off at its limit would teach to end in the middle of a sentence
        texts = [prompt.answer(c.text) for c in completions if c.finish is Finish.STOP]
        if not texts:
            return Result(drops=[Drop("no summary was finished", completions[0].text[-200:])])
        valid = [text for text in texts if await self._keeps(text, unit.predicted_answer)]
        if not valid:
            return Result(drops=[Drop("no summary kept the answer", texts[0])])
        best = max(valid, key=lambda text: (len(text), text))
        summarized = replace_summary(transcript, best)
        return Result([unit.with_(transcript=summarized.to_json(), thinks=summarized.thinks)])

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(max_tokens=self.config.max_tokens, temperature=self.config.temperature, seed=seed)

    async def _keeps(self, summary: str, answer: str) -> bool:
        """Whether the summary commits to this answer."""
        own = extract_answer(summary).answer
        return own is not None and (await self._pool.grade(own, answer)).is_equal


def replace_summary(transcript: Transcript, summary: str) -> Transcript:
    """Return the transcript with everything after ``</think>`` replaced by ``summary``.

    The whole text of a solution that does not think becomes the thinking before the summary. The new text has no token
    ids, for no model generated it at this place.
    """
    if not transcript.thinks:
        told = (p for p in transcript.spans if p.author is not Author.TEMPLATE)
        transcript = replace(transcript, spans=(Span(Author.TEMPLATE, OPENING), *told))
    thought = transcript.without_summary()
    if thought is None:
        spans = (*transcript.spans, Span(Author.MODEL, f"{THINK_END}\n{summary}"))
    else:  # the new piece has no ids, as a piece that is cut
        spans = (*thought[:-1], Span(Author.MODEL, f"{thought[-1].text}\n{summary}"))
    return replace(transcript, spans=spans, finished=True)
