"""Count the share of right answers among rows that are seen one after another, with its interval over problems."""

from __future__ import annotations

from collections import Counter

import numpy as np

from nemo_openmath.evaluation.intervals import share_interval

MOST_PROBLEMS = 100_000
"""Beyond this many problems no interval is computed: it would be narrower than 0.7 points, and memory stays bounded."""


class ShareOfRight:
    """Count right answers by problem.

    The samples of a problem depend on each other, so the interval is over problems: a mean of each problem's share.
    """

    def __init__(self) -> None:
        self.tried = 0
        self.right = 0
        self._tried_of: Counter[int] = Counter()
        self._right_of: Counter[int] = Counter()

    def add(self, problem: str | None, right: bool) -> None:
        """Count one sample. Where ``problem`` (its id or its text) is unknown, it counts as a problem of its own."""
        key = -1 - self.tried if problem is None else hash(problem)  # of 64 bits: two problems hardly ever share one
        self.tried += 1
        self.right += right
        if len(self._tried_of) <= MOST_PROBLEMS:
            self._tried_of[key] += 1
            self._right_of[key] += right

    def text(self) -> str:
        """Return ``20.0%, 95% interval 0.5–71.6 over 5 problems``; the mean over problems as well where it differs from
        the share, and the share alone where there are too many problems. Empty where nothing was counted."""
        if not self.tried:
            return ""
        share = self.right / self.tried
        if len(self._tried_of) > MOST_PROBLEMS:
            return f"{share:.1%}"
        values = np.array([self._right_of[key] / tried for key, tried in self._tried_of.items()])
        low, high = share_interval(values)
        mean = "" if abs(values.mean() - share) < 5e-4 else f"; mean over problems {values.mean():.1%}"
        problems = f"{len(values):,} problem{'s' * (len(values) != 1)}"
        return f"{share:.1%}{mean}, 95% interval {100 * low:.1f}–{100 * high:.1f} over {problems}"
