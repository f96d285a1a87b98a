"""What happens while a problem is solved, for whoever looks on. Seconds are those since the problem began."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class SolutionBegun:
    """A solution was begun."""

    sample: int
    at: float


@dataclass(frozen=True, slots=True)
class SolutionEnded:
    """A solution ended, was cut off or was lost."""

    sample: int
    at: float
    answer: str | None
    """As the contest takes it; None: it has none."""
    tokens: int
    whole: bool
    """False: it was cut off."""
    lost: bool


@dataclass(frozen=True, slots=True)
class SamplingEnded:
    """The policy said stop."""

    reason: str
    at: float


SolverEvent: TypeAlias = SolutionBegun | SolutionEnded | SamplingEnded
OnEvent: TypeAlias = Callable[[SolverEvent], object]
