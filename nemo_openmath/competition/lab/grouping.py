"""Classes of equal answers, for any of the answers of a problem, as the grader makes them.

The live solver asks the grader again whenever a solution ends. Here each pair of answers is graded once. Where the
grades of a problem are an equivalence (nearly always), the classes among any of its answers are those among all, cut
down: they are computed once. Where they are not (50% equals 0.5 and 50, which differ), the vote is counted anew, with
the same grades, for each set of answers that occurs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from nemo_openmath.core.grader import Grade
from nemo_openmath.grading.majority import Ballot

Compare = Callable[[str, str], Grade]


class AnswerClasses:
    """The classes of equal answers of one problem. ``answers``: all that occur."""

    def __init__(self, answers: Iterable[str], compare: Compare):
        self._compare = compare
        self._known: dict[tuple[str | None, ...], list[int | None]] = {}
        texts = sorted({text for answer in answers if (text := answer.strip())})
        places = dict(zip(texts, self._count(texts), strict=True))
        self.fixed: dict[str, int | None] | None = places if self._is_equivalence(places) else None
        """The class of each answer, where it is the same whichever others there are; else None."""

    def of(self, answers: Sequence[str | None]) -> list[int | None]:
        """Return the class of each of ``answers`` among these; None for those that are missing."""
        key = tuple(answer.strip() if answer else None for answer in answers)
        if (fixed := self.fixed) is not None:
            return [fixed[text] if text else None for text in key]
        if key not in self._known:
            self._known[key] = self._count(key)
        return self._known[key]

    def _count(self, answers: Sequence[str | None]) -> list[int | None]:
        ballot = Ballot(answers)
        vote = ballot.count(self._compare(a, b) for a, b in ballot.pairs)
        return [vote.group_of(answer) for answer in answers]

    def _is_equivalence(self, places: dict[str, int | None]) -> bool:
        """Tell whether all answers of a class are equal, each to each, and none to one of another class."""
        return all(self._compare(a, b).is_equal == (places[a] == places[b]) for a, b in pairs_of(places))


def pairs_of(answers: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of spellings that a vote among any of ``answers`` may compare."""
    texts = sorted({text for answer in answers if (text := answer.strip())})
    return [pair for j, b in enumerate(texts) for a in texts[:j] for pair in Ballot([a, b]).pairs]


def spelling(answers: Iterable[str]) -> str:
    """Return the most common spelling among answers of one class, as the grader's vote names the class."""
    texts = [answer.strip() for answer in answers]
    if texts.count(texts[0]) == len(texts):
        return texts[0]
    votes = Counter(texts)
    return min(votes, key=lambda text: (-votes[text], len(text), text))
