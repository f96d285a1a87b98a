"""Expected answers from the discussions (paper section 2.1, step 4)."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_openmath.pipeline import Result, StageContext, register
from nemo_openmath.problems.convert import with_discussion
from nemo_openmath.problems.prompted import PromptedConfig, PromptedStage
from nemo_openmath.records import Drop, Problem


@register
class ExtractAnswers(PromptedStage[PromptedConfig, tuple[Problem, str]]):
    """Problem -> the same problem with its answer, where the discussion gives one. One without an answer stays
    (``no_answer_extracted``): the majority of its solutions may label it later."""

    kind = "problems.extract_answers"
    prompt = "extract-answer"
    Config = PromptedConfig
    ports = {"problems": "problems", "threads": "the threads they came from"}
    takes = {"problems": "Problem", "threads": "Thread"}
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, str]]]:
        return with_discussion(context)

    async def process(self, unit: tuple[Problem, str], context: StageContext) -> Result:
        problem, discussion = unit
        if problem.expected_answer is not None:
            return Result([problem])
        none = problem.with_(problem_type="no_answer_extracted")
        if not discussion.strip():
            return Result([none])
        found, answer = await self.question(
            context, problem.id, parse_answer, problem=problem.problem, forum_discussions=discussion
        )
        if found is None:
            return Result(drops=[Drop("unparsable answer", answer)])
        if not found:
            return Result([none])
        return Result([problem.with_(expected_answer=found, problem_type="has_answer_extracted")])


def parse_answer(text: str) -> str | None:
    """The answer; "" for "Not found"; None for anything else."""
    if text.rstrip(".").lower() == "not found":
        return ""
    head, colon, answer = text.partition("Answer:")
    return answer.strip() if colon and not head.strip() and answer.strip() else None
