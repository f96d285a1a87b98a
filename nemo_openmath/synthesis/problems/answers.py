"""Expected answers from the discussions (paper section 2.1, step 4)."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_openmath.core.merging import merge
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.problems.prompted import PromptedConfig, PromptedStage, with_discussion


class ExtractAnswers(PromptedStage[PromptedConfig, tuple[Problem, list[str]]]):
    """Problem -> the same problem with its answer, where the discussion gives one. Each thread that poses the problem
    is asked, and the answer of most of them holds (pipeline/merging.py). One without an answer stays
    (``no_answer_extracted``): the majority of its solutions may label it later."""

    kind = "problems.extract_answers"
    prompt = "extract-answer"
    Config = PromptedConfig
    ports = {"problems": "problems", "threads": "the threads they came from"}
    takes = {"problems": "Problem", "threads": "Thread"}
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, tuple[Problem, list[str]]]]:
        return with_discussion(context)

    async def process(self, unit: tuple[Problem, list[str]], context: StageContext) -> Result:
        problem, discussions = unit
        if problem.expected_answer is not None:
            return Result([problem], asked=False)
        versions, unparsable = [], None
        for number, discussion in enumerate(discussions):
            key = f"{problem.id}:{number}" if number else problem.id
            found, answer = await self.question(
                context, key, parse_answer, problem=problem.problem, forum_discussions=discussion
            )
            if found:
                versions.append(problem.with_(expected_answer=found, problem_type="has_answer_extracted"))
            elif found is None:
                unparsable = answer
        if versions:
            return Result([merge(versions, context.services.vote)])
        if unparsable is not None:
            return Result(drops=[Drop("unparsable answer", unparsable)])
        return Result([problem.with_(problem_type="no_answer_extracted")], asked=bool(discussions))


def parse_answer(text: str) -> str | None:
    """The answer; "" for "Not found"; None for anything else."""
    if text.rstrip(".").lower() == "not found":
        return ""
    head, colon, answer = text.partition("Answer:")
    return answer.strip() if colon and not head.strip() and answer.strip() else None
