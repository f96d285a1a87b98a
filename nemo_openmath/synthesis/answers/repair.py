"""Whether any solution reaches the answer that a problem came with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from nemo_openmath.core.grader import Grader, Verdict
from nemo_openmath.synthesis.answers.gather import GivenAnswer
from nemo_openmath.synthesis.judge.agreement import DECIDED


class Reach(StrEnum):
    """What the solutions say about an answer."""

    REACHED = "reached"  # an answer is equal to it
    UNDECIDED = "undecided"  # nobody can say whether an answer is equal to it
    UNREACHED = "unreached"  # all answers are certainly different


@dataclass(frozen=True, slots=True)
class Support:
    """How many answers of solutions are equal to an answer."""

    reach: Reach
    equal: int
    undecided: int
    total: int


async def support_of(answer: str, given: Sequence[GivenAnswer], grader: Grader) -> Support:
    """Compare the answers of solutions with ``answer``. The grader decides; where it cannot, the judges' verdict on
    the same pair does, where there is one."""
    verdicts: Counter[Verdict] = Counter()
    for text, count in sorted(Counter(g.answer for g in given).items()):
        verdicts[await relation(text, answer, given, grader)] += count
    equal = verdicts[Verdict.EQUAL]
    undecided = verdicts.total() - equal - verdicts[Verdict.NOT_EQUAL]
    reach = Reach.REACHED if equal else Reach.UNDECIDED if undecided else Reach.UNREACHED
    return Support(reach, equal, undecided, verdicts.total())


async def relation(text: str, answer: str, given: Sequence[GivenAnswer], grader: Grader) -> Verdict:
    """Return the grader's verdict on a pair or, where it is open, that of the judges; unknown where they contradict
    each other or none was asked."""
    verdict = (await grader.grade(text, answer)).verdict
    if verdict in DECIDED:
        return verdict
    judged = {g.verdict for g in given if g.answer == text and g.compared_with == answer and g.verdict}
    return Verdict(judged.pop()) if len(judged) == 1 else Verdict.UNKNOWN
