"""The protocol of the grader: verdicts on pairs of answers, and votes that are counted by meaning.

A verdict has three values, and a time-out, with a reason: equal and not equal are claims, anything else is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Verdict(StrEnum):
    """UNKNOWN is on purpose: a grader that must always decide guesses, and its guesses become labels."""

    EQUAL = "equal"
    NOT_EQUAL = "not_equal"
    UNKNOWN = "unknown"  # a judge that reads the problem has to decide
    TIMEOUT = "timeout"  # the pair used up its time or memory


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict on a pair and, in a few words, why."""

    verdict: Verdict
    reason: str

    @property
    def is_equal(self) -> bool:
        return self.verdict is Verdict.EQUAL


def equal(reason: str) -> Grade:
    return Grade(Verdict.EQUAL, reason)


def not_equal(reason: str) -> Grade:
    return Grade(Verdict.NOT_EQUAL, reason)


def unknown(reason: str) -> Grade:
    return Grade(Verdict.UNKNOWN, reason)


@dataclass(frozen=True, slots=True)
class Majority:
    """The vote on one problem.

    ``answer``: the most common spelling of the largest group; None where nobody answered or the winner missed
    ``min_share``. ``count``: size of the largest group; ``total``: all votes, missing ones included, so that
    ``count / total`` is the share among all who were asked. ``groups``: (representative, count), best first.
    ``tie``: another group is as large. ``reason``: in a few words how the answer won. ``ambiguous``: spelling ->
    representatives of the groups that it equals, its own first, where there are several. ``comparisons``: pairs of
    spellings that were compared; ``complete``: False where the bound on them left some spellings uncompared (they
    count as different). ``lead``: votes that the winner keeps however ambiguous spellings are read, and the most that
    another answer could have if undecided pairs and ambiguous spellings went against the winner.
    """

    answer: str | None
    count: int
    total: int
    groups: tuple[tuple[str, int], ...]
    tie: bool
    missing: int
    comparisons: int
    complete: bool
    reason: str = ""
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lead: tuple[int, int] = (0, 0)
    places: dict[str, int] = field(default_factory=dict, repr=False)  # spelling -> index in groups

    def group_of(self, answer: str | None) -> int | None:
        """Index in ``groups`` of an answer that voted; None for a missing one."""
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
