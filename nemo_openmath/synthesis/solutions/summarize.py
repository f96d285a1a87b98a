"""Write new summaries of solutions (paper section 4.1): the longest of several that keeps the answer is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nemo_openmath.chat import OPENING, Author, Span, Transcript, load_template
from nemo_openmath.core.records import Drop, Generation
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.core.stage import Result, StageContext, UnitStage
from nemo_openmath.core.tags import THINK_END
from nemo_openmath.grading import extract_answer
from nemo_openmath.inference.asking import PreparedPrompt
from nemo_openmath.synthesis.problem_texts import ProblemTexts
from nemo_openmath.synthesis.solutions.shown import shown
from nemo_openmath.synthesis.summaries import SummariesConfig, longest_valid


@dataclass(frozen=True)
class SummarizeConfig(SummariesConfig):
    """Settings of ``solutions.summarize``."""


class Summarize(UnitStage[SummarizeConfig, Generation]):
    """Give each solution a new summary. A solution of which no summary keeps the answer is dropped.

    A summary keeps the answer where its boxes are one, and equal to the solution's answer.
    """

    kind = "solutions.summarize"
    version = 3  # 3: a summary with several different boxes, or with code, is not used
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
        answer = unit.predicted_answer
        summary = await longest_valid(prompt, self.config, seeds, lambda text: self._keeps(text, answer))
        if summary.text is None:
            reason = "no summary was finished" if summary.unfinished else "no summary kept the answer"
            return Result(drops=[Drop(reason, summary.example)])
        summarized = replace_summary(transcript, summary.text)
        return Result([unit.with_(transcript=summarized.to_json(), thinks=summarized.thinks)])

    async def _keeps(self, summary: str, answer: str) -> bool:
        """Whether the summary commits to this answer, and to no other."""
        own = extract_answer(summary)
        return own.answer is not None and len(own.boxes) == 1 and (await self._pool.grade(own.answer, answer)).is_equal


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
