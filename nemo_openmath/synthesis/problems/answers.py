"""Extract expected answers from the discussions (paper section 2.1, step 4)."""

from __future__ import annotations

from functools import partial

from nemo_openmath.core.merging import merge
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import AnswerCase
from nemo_openmath.synthesis.problems.checks import OF_ANSWER, ExtractedAnswer, bare_answer, first_failed
from nemo_openmath.synthesis.problems.prompted import Discussed, DiscussedStage, Rejected


class ExtractAnswers(DiscussedStage):
    """Give each problem the answer that its discussions settle on.

    The model is asked about each thread that poses the problem, and the answer of most threads holds (core/merging.py).
    An answer must pass the checks of an extracted answer (checks.py): it stands in the discussion, or follows from it.
    A problem without an answer stays, as ``no_answer_extracted``: the majority of its solutions may label it later.
    """

    kind = "problems.extract_answers"
    version = 2  # 2: what is extracted is checked
    case = AnswerCase
    prompt = "extract-answer"

    def asks_about(self, problem: Problem) -> bool:
        return problem.expected_answer is None

    def outcome(self, result: Result) -> str:
        record = next(iter(result.records), None)
        return record.problem_type or "kept" if isinstance(record, Problem) else super().outcome(result)

    async def process(self, unit: Discussed, context: StageContext) -> Result:
        problem, discussions = unit
        if not self.asks_about(problem):
            return Result([problem], asked=False)
        versions: list[Problem] = []
        rejected: Drop | None = None
        for number, discussion in enumerate(discussions):
            key = f"{problem.id}:{number}" if number else problem.id
            text = await self.shown([discussion])
            answer, reply = await self.question(
                context, key, partial(_checked, text), problem=problem.problem, forum_discussions=text
            )
            if isinstance(answer, Rejected):
                rejected = Drop(answer.reason, reply)
            elif answer:
                versions.append(problem.with_(expected_answer=answer, problem_type="has_answer_extracted"))
        if versions:
            return Result([merge(versions, context.services.vote)])
        if rejected is not None:
            return Result(drops=[rejected])
        return Result([problem.with_(problem_type="no_answer_extracted")], asked=bool(discussions))


def _checked(discussion: str, reply: str) -> str | Rejected:
    answer = parse_answer(reply)
    if isinstance(answer, Rejected) or not answer:
        return answer
    return first_failed(OF_ANSWER, ExtractedAnswer(answer, discussion)) or answer


def parse_answer(text: str) -> str | Rejected:
    """Return the answer of the line ``Answer: ...``, "" for "Not found"."""
    if text.strip(" \t\n.*`").lower() in ("not found", "answer: not found"):
        return ""
    head, _, answer = text.strip().partition("Answer:")
    answer = bare_answer(answer)
    return Rejected("the reply is no answer") if head or not answer or "\n" in answer else answer
