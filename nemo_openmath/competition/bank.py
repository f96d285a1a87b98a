"""The time bank: what easy problems leave over, hard ones may use (paper section 6).

Each problem has a base time. What it does not use goes into the bank; a problem may draw at most ``most`` from it, so
that one hard problem cannot ruin the rest. Unlike an even share of what remains, early problems cannot overdraw.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TimeBank:
    """``base``: seconds of every problem; ``most``: at most so many more from the bank. ``saved``: what is in it."""

    base: float = 350.0
    most: float = 210.0
    saved: float = 0.0

    def __post_init__(self) -> None:
        if self.base <= 0 or self.most < 0:
            raise ValueError("the base time must be above 0 and the draw not below")

    def allowance(self) -> float:
        """Seconds that the next problem may take."""
        return self.base + min(self.saved, self.most)

    def spend(self, seconds: float) -> None:
        """Account for a problem that took so long. Time over the allowance is owed by those that follow."""
        self.saved += self.base - seconds
