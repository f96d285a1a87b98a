"""Stored solutions as the laboratory sees them: an answer, whether it is right, and what it took.

Nothing here knows a policy. ``reading.py`` makes these from records and from tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import inf

from nemo_openmath.competition.lab.grouping import AnswerClasses, Compare


@dataclass(frozen=True, slots=True)
class Glimpse:
    """From so many tokens on, an unfinished solution has this answer to be found in it."""

    tokens: int
    answer: str | None
    entropy: float | None = None
    """Mean negative log-probability (nats) of the tokens of that answer; None where nobody kept it."""


NOTHING = Glimpse(0, None)


@dataclass(frozen=True, slots=True)
class StoredSolution:
    """One solution that was made before."""

    id: str
    answer: str | None
    """None where it has none."""
    right: bool
    tokens: int
    """Tokens that the model wrote."""
    points: tuple[tuple[float, int], ...] = ()
    """(seconds, tokens written by then), as it was made, the last at its end; empty where nobody kept it. Where time
    passes without a token, code runs."""
    entropy: float | None = None
    """Mean negative log-probability (nats) of the tokens of its answer; None where nobody kept it."""
    whole: bool = True
    """False: it ran into a limit of its length, and its answer was searched for."""
    endless: bool = False
    """Whether it was cut off while it ran: when it would have ended is not known."""
    glimpses: tuple[Glimpse, ...] = ()
    """What could be found in it while it was unfinished, in order of tokens."""

    @property
    def seconds(self) -> float | None:
        """Seconds from its beginning to its end, as it was made; None where nobody kept them."""
        return self.points[-1][0] if self.points else None

    @property
    def length(self) -> float:
        """The tokens of the solution; infinite where it was cut off while it ran."""
        return inf if self.endless else self.tokens

    def code(self) -> list[tuple[int, float]]:
        """Return (tokens written before, seconds) of each run of code, in order."""
        pauses = [(b[1], b[0] - a[0]) for a, b in pairwise(((0.0, 0), *self.points))]
        written = [b[1] - a[1] for a, b in pairwise(((0.0, 0), *self.points))]
        return [pause for pause, tokens in zip(pauses, written, strict=True) if not tokens and pause[1] > 0]

    def written(self, seconds: float) -> float:
        """Return the tokens that were written in its first ``seconds``, as it was made."""
        before = (0.0, 0)
        for point in self.points:
            if point[0] > seconds:
                share = (seconds - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return self.tokens

    def glimpsed(self, tokens: float) -> Glimpse:
        """Return what can be found in its first ``tokens`` tokens."""
        seen = NOTHING
        for glimpse in self.glimpses:
            if glimpse.tokens > tokens + 1e-6:
                break
            seen = glimpse
        return seen


@dataclass(frozen=True, slots=True)
class StoredSelection:
    """One judgment of GenSelect among stored solutions."""

    candidates: frozenset[int]
    """The places of the solutions that it chose among."""
    chosen: int | None
    """The place of the one that it chose; None where it named none."""
    tokens: int
    seconds: float | None = None


@dataclass(frozen=True)
class StoredProblem:
    """The solutions of one problem, and which of their answers are equal."""

    id: str
    solutions: tuple[StoredSolution, ...]
    grouping: AnswerClasses
    right_answers: Mapping[str, bool]
    """Each answer that occurs, whole or glimpsed, and whether it is right."""
    selections: tuple[StoredSelection, ...] = ()

    @classmethod
    def make(
        cls,
        name: str,
        solutions: Sequence[StoredSolution],
        compare: Compare,
        *,
        glimpsed: Mapping[str, bool] | None = None,
        selections: Sequence[StoredSelection] = (),
    ) -> StoredProblem:
        """Return a problem. ``glimpsed``: whether answers that were found in unfinished solutions are right.

        An answer is right where most whole solutions that give it are: a judge may have judged one text twice.
        """
        right: dict[str, bool] = {}
        for whole in (False, True):
            hits: Counter[str] = Counter()
            for solution in solutions:
                if solution.answer is not None and solution.whole is whole:
                    hits[solution.answer.strip()] += 1 if solution.right else -1
            right |= {answer: hit > 0 for answer, hit in hits.items()}
            if not whole:
                right |= {answer.strip(): value for answer, value in (glimpsed or {}).items()}
        judged = [s if s.whole or s.answer is None else replace(s, right=right[s.answer.strip()]) for s in solutions]
        return cls(name, tuple(judged), AnswerClasses(right, compare), right, tuple(selections))

    @cached_property
    def classes(self) -> dict[str | None, int | None] | None:
        """The class of each answer that occurs as it is written, where it is the same whichever others there are."""
        if (fixed := self.grouping.fixed) is None:
            return None
        glimpsed = (glimpse.answer for s in self.solutions for glimpse in s.glimpses)
        written = {answer for answer in (*(s.answer for s in self.solutions), *glimpsed) if answer is not None}
        return {None: None} | {answer: fixed[answer.strip()] for answer in written if answer.strip()}

    def is_right(self, answer: str | None) -> bool:
        """Tell whether an answer that occurs is right."""
        return answer is not None and self.right_answers[answer.strip()]
