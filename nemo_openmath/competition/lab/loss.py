"""Where the points went: coverage, selection, time.

A run that was not right was lost to exactly one of these, so the three shares and the score add up to 1:

- ``time``: without a deadline the same policy on the same solutions would have been right.
- ``selection``: not even then, although one of the solutions that were begun is right (or the answer that was found in
  it while it was unfinished).
- ``coverage``: no solution that was begun is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nemo_openmath.competition.lab.replay import ReplayedProblem


class Cause(StrEnum):
    """What a run was lost to."""

    COVERAGE = "coverage"
    SELECTION = "selection"
    TIME = "time"


@dataclass
class LossTally:
    """Runs that were lost, by cause."""

    coverage: int = 0
    selection: int = 0
    time: int = 0
    lucky: int = 0
    """Runs that were right, and would not have been without a deadline. They are no loss."""

    @property
    def total(self) -> int:
        """All runs that were lost."""
        return self.coverage + self.selection + self.time

    def add(self, replayed: ReplayedProblem, unlimited: ReplayedProblem) -> None:
        """Count a run. ``unlimited``: what becomes of it without a deadline."""
        if replayed.right:
            self.lucky += not unlimited.right
            return
        cause = cause_of(replayed, unlimited)
        setattr(self, cause, getattr(self, cause) + 1)


def cause_of(replayed: ReplayedProblem, unlimited: ReplayedProblem) -> Cause:
    """Return what a run that was not right was lost to."""
    if unlimited.right:
        return Cause.TIME
    return Cause.SELECTION if replayed.reachable or unlimited.reachable else Cause.COVERAGE
