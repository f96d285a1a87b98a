"""The time bank: what easy problems leave over, hard ones may use (paper section 6).

Each problem has a base time. What a problem does not use goes into the bank. A problem may draw at most ``most`` from
the bank, so that one hard problem cannot ruin the rest. Unlike an even share of what remains, early problems cannot
overdraw.
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

    def __post_init__(self) -> None:
        if self.base <= 0 or self.most < 0:
            raise ValueError("the base time must be above 0 and the draw not below")

    def allowance(self) -> float:
        """Return the seconds that the next problem may take."""
        return self.base + min(self.saved, self.most)

    def spend(self, seconds: float) -> None:
        """Account for a problem that took ``seconds``. Time over the allowance is owed by those that follow."""
        self.saved += self.base - seconds
