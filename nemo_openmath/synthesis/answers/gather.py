"""The answers of all solutions, by problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.core.stage import StageContext
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.synthesis.judge.agreement import DECIDED
from nemo_openmath.synthesis.judge.stage import JUDGED


@dataclass(frozen=True, slots=True, order=True)
class GivenAnswer:
    """The answer of one solution."""

    answer: str
    model: str
    mode: Mode
    compared_with: str = ""
    """The expected answer that it was graded against; empty where it was not."""
    verdict: str = ""
    """The verdict of that comparison by the grader or, where the grader could not decide, by a judge."""
    judged: str = ""
    """The verdict of the judges, where they were asked and decided."""

    @staticmethod
    def of(generation: Generation) -> GivenAnswer | None:
        """Return the answer of a solution; None where it gives none.

        A solution that was graded says its answer. Of others the text is read, as the grading stage does.
        """
        graded = generation.verdict is not None
        answer = generation.predicted_answer if graded else answer_of(generation)
        if answer is None or not answer.strip():
            return None
        verdict = str(generation.verdict) if generation.verdict in DECIDED else ""
        judged = str(generation.extra.get(JUDGED, ""))
        judged = judged if judged in DECIDED else ""
        return GivenAnswer(answer, generation.model, generation.mode, generation.expected_answer or "", verdict, judged)


def gather_answers(
    context: StageContext, problems: Collection[str], port: str = "generations"
) -> Callable[[str], list[GivenAnswer]]:
    """Read the solutions of a port and return a function from a problem's id to its answers, in an order of their
    contents.

    ``problems``: ids of the problems that are asked for. About 200 bytes a solution are held, of the part of the work
    that is done now.
    """
    answers: dict[str, list[GivenAnswer]] = defaultdict(list)
    for generation in context.read(port, Generation):
        if generation.problem_id in problems and generation.tried and (given := GivenAnswer.of(generation)) is not None:
            answers[generation.problem_id].append(given)
    return lambda problem_id: sorted(answers.get(problem_id, ()))
