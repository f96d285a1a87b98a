"""What the grader says: a verdict of three values and a time-out, with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
