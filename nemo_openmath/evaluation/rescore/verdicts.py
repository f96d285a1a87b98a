"""The answer and the verdict of a stored generation by today's grader, and by the judges that were asked before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from nemo_openmath.core.engine import Finish
from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.synthesis.judge.stage import JUDGED
from nemo_openmath.synthesis.solutions.grade import grade_of

CUT = "unfinished at the token limit"
OTHER_ANSWER = "; the judges were asked about another answer"
_OPEN = (Verdict.UNKNOWN, Verdict.TIMEOUT)

Compare = Callable[[str, str], Awaitable[Grade]]
Judged = Literal["undecided", "all", "none"]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What judges said of an answer."""

    predicted: str | None
    expected: str | None
    grade: Grade

    @classmethod
    def of(cls, generation: Generation) -> Opinion | None:
        """Return what the judges said of a stored generation, ours or the reference pipeline's; None where none was
        asked."""
        verdict = generation.extra.get(JUDGED)
        foreign = generation.extra.get("foreign")
        if verdict is None and isinstance(foreign, dict) and isinstance(foreign.get("judged"), bool):
            verdict = Verdict.EQUAL if foreign["judged"] else Verdict.NOT_EQUAL
        if verdict is None:
            return None
        reason = (generation.verdict_reason or "").partition(";")[0]
        reason = reason if reason.startswith(("judged", "foreign: judged")) else "judged"
        return cls(generation.predicted_answer, generation.expected_answer, Grade(Verdict(verdict), reason))

    def holds_for(self, predicted: str | None, expected: str | None) -> bool:
        """Return whether the judges were asked about these two answers."""
        return (self.predicted, self.expected) == (predicted, expected)


def opinions(generations: Iterable[Generation]) -> dict[str, Opinion]:
    """Return id -> what the judges said, of those generations that they were asked about."""
    return {g.id: opinion for g in generations if (opinion := Opinion.of(g)) is not None}


async def exact(predicted: str, expected: str) -> Grade:
    """Compare two answers as texts, white space at their ends aside: the strictest grader there is."""
    return equal("identical") if predicted.strip() == expected.strip() else not_equal("other text")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a generation gets its answer and its verdict."""

    compare: Compare
    from_text: bool = True
    """Whether answers are extracted again; otherwise those stay that the generations have."""
    fallback: bool = False
    unfinished_answers: bool = False
    judged: Judged = "undecided"
    opinions: Mapping[str, Opinion] | None = None
    """Of judges that were asked in another folder; None: the generations' own."""

    async def scored(self, generation: Generation, expected: str | None, *, cut: bool = False) -> Generation:
        """Return a solution with its answer, verdict and reason. ``cut``: a token limit ended it."""
        opinion = Opinion.of(generation) if self.opinions is None else self.opinions.get(generation.id)
        predicted = self.answer(generation, cut=cut)
        grade = await grade_of(generation, predicted, expected, self.compare)
        if opinion is not None and generation.tried and predicted is not None:
            grade = self._with_opinion(grade, opinion, predicted, expected)
        if cut and predicted is None:
            grade = not_equal(CUT)
        return generation.with_(
            expected_answer=expected, predicted_answer=predicted, verdict=grade.verdict, verdict_reason=grade.reason
        )

    def answer(self, generation: Generation, *, cut: bool = False) -> str | None:
        """Return the answer of a solution. One that a limit cut has what stands in its text up to there, if that is
        asked for."""
        searched = self.unfinished_answers and generation.tried and not generation.finished
        if generation.mode is Mode.COMPETITION or not (self.from_text or cut or searched):
            return generation.predicted_answer
        whole = generation.with_(finish=Finish.STOP) if searched else generation
        return answer_of(whole, fallback=self.fallback)

    def _with_opinion(self, grade: Grade, opinion: Opinion, predicted: str, expected: str | None) -> Grade:
        is_open = grade.verdict in _OPEN
        if self.judged == "none" or (self.judged == "undecided" and not is_open):
            return grade
        if not opinion.holds_for(predicted, expected):
            return Grade(grade.verdict, grade.reason + OTHER_ANSWER) if is_open else grade
        decided = opinion.grade.verdict not in _OPEN
        return opinion.grade if is_open or decided else grade

    async def selected(self, selection: Generation, candidate: Generation | None, expected: str | None) -> Generation:
        """Return a selection with the answer and verdict of the candidate that it chose, which was scored again.

        ``candidate``: None where it is not among the generations at hand. Its answer is compared then; where the grader
        leaves it open, what the selection said before stays.
        """
        if not selection.tried or (selection.predicted_answer is None and candidate is None):
            return selection.with_(expected_answer=expected)
        if candidate is not None:
            predicted, right = candidate.predicted_answer, candidate.correct
        else:
            predicted = selection.predicted_answer
            grade = await grade_of(selection, predicted, expected, self.compare)
            right = selection.correct if grade.verdict in _OPEN else grade.is_equal
        return selection.with_(
            expected_answer=expected,
            predicted_answer=predicted,
            verdict=Verdict.EQUAL if right else Verdict.NOT_EQUAL,
        )
