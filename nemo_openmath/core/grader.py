"""The protocol of the grader: verdicts on pairs of answers, and votes that are counted by meaning.

A verdict has three values, and a time-out, with a reason: equal and not equal are claims, anything else is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Verdict(StrEnum):
    """The outcome of a comparison. UNKNOWN is there on purpose: a grader that must always decide guesses, and its
    guesses become labels."""

    EQUAL = "equal"
    NOT_EQUAL = "not_equal"
    UNKNOWN = "unknown"  # a judge that reads the problem has to decide
    TIMEOUT = "timeout"  # the pair used up its time or memory


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict on a pair of answers and, in a few words, why."""

    verdict: Verdict
    reason: str

    @property
    def is_equal(self) -> bool:
        """Whether the answers are certainly equal."""
        return self.verdict is Verdict.EQUAL


def equal(reason: str) -> Grade:
    """Return the grade of two answers that are equal."""
    return Grade(Verdict.EQUAL, reason)


def not_equal(reason: str) -> Grade:
    """Return the grade of two answers that are different."""
    return Grade(Verdict.NOT_EQUAL, reason)


def unknown(reason: str) -> Grade:
    """Return the grade of two answers of which it is not known."""
    return Grade(Verdict.UNKNOWN, reason)


@dataclass(frozen=True, slots=True)
class Majority:
    """The vote on one problem: its answers, grouped by meaning."""

    answer: str | None
    """The most common spelling of the largest group; None where nobody answered or the winner missed the share that was
    wanted."""
    count: int
    """Size of the largest group."""
    total: int
    """All votes, missing ones included: ``count / total`` is the share among all who were asked."""
    groups: tuple[tuple[str, int], ...]
    """(representative, count) of each group, the largest first."""
    tie: bool
    """Whether another group is as large."""
    missing: int
    """Votes without an answer."""
    comparisons: int
    """Pairs of spellings that were compared."""
    complete: bool
    """False where the bound on comparisons left some spellings uncompared. They count as different."""
    reason: str = ""
    """How the answer won, in a few words."""
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Spelling -> representatives of the groups that it equals, its own first, where there are several."""
    lead: tuple[int, int] = (0, 0)
    """Votes that the winner keeps however ambiguous spellings are read, and the most that another answer could have if
    undecided pairs and ambiguous spellings went against the winner."""
    places: dict[str, int] = field(default_factory=dict, repr=False)
    """Spelling -> index in ``groups``."""

    def group_of(self, answer: str | None) -> int | None:
        """Return the index in ``groups`` of an answer that voted; None for a missing one."""
        return self.places.get(answer.strip()) if answer else None


Vote = Callable[[Sequence[str]], Majority]
"""Counts answers by meaning."""


class Grader(Protocol):
    """Compares answers within hard limits of time and memory. Safe to use from many threads and from many tasks of an
    event loop at once."""

    async def grade(self, predicted: str | None, expected: str | None) -> Grade:
        """Return the grade of one pair."""
        ...

    def compare(self, predicted: str | None, expected: str | None) -> Grade:
        """Return the grade of one pair, for callers without an event loop."""
        ...

    async def majority(self, answers: Iterable[str | None]) -> Majority:
        """Count the answers to one problem by meaning."""
        ...
