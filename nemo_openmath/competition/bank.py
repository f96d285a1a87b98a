"""The time bank: what easy problems leave over, hard ones may use (paper section 6.3.4).

Each problem has a base time. What a problem does not use goes into the bank. A problem may draw at most ``most`` from
the bank, so that one hard problem cannot ruin the rest. Unlike an even share of what remains, early problems cannot
overdraw.

Where the whole contest has an end, no problem may take what the others need: each that is still to come keeps
``reserve`` seconds, at most its base time, or its even share where not even that is left.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TimeBank:
    """The seconds that problems have, and those that they left over."""

    base: float = 350.0
    """Seconds of every problem."""
    most: float = 210.0
    """Seconds that a problem may have from the bank, at most."""
    saved: float = 0.0
    """Seconds in the bank; below 0 where problems took more than they were allowed."""
    total: float | None = None
    """Seconds of the whole contest; None: it has no end of its own."""
    reserve: float = 0.0
    """Seconds that are kept for each problem that is still to come, and that a problem has whatever others took; at
    most the base time."""
    spent: float = 0.0
    """Seconds that are used up."""

    def __post_init__(self) -> None:
        if self.base <= 0 or self.most < 0 or self.reserve < 0 or (self.total is not None and self.total <= 0):
            raise ValueError("the base time and the total must be above 0, the draw and the reserve not below")

    @property
    def kept(self) -> float:
        """Seconds that are kept for each problem that is still to come."""
        return min(self.base, self.reserve)

    def least_total(self, problems: int) -> float:
        """Return the seconds that a contest of so many problems needs to keep for each what is said; of one, 0."""
        return self.kept * problems if problems > 1 else 0.0

    def allowance(self, others: int = 0) -> float:
        """Return the seconds that the next problem may take. ``others``: problems that come after it."""
        seconds = max(self.base + min(self.saved, self.most), self.kept)
        if self.total is not None:
            left = max(0.0, self.total - self.spent)
            seconds = min(seconds, max(left - self.kept * others, left / (others + 1)))
        return seconds

    def spend(self, seconds: float) -> None:
        """Account for a problem that took ``seconds``. Time over the allowance is owed by those that follow."""
        self.saved += self.base - seconds
        self.spent += seconds
