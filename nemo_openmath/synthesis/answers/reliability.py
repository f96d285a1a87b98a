"""Whether probabilities are true: of answers that are right with probability 0.8, eight of ten are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Bins of the reliability table. They are narrow where answers are kept."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers with about the same probability."""

    low: float
    high: float
    answers: int
    p: float
    """Their mean probability."""
    right: float
    """The share of them that is right."""


@dataclass(frozen=True)
class Reliability:
    """How far probabilities and truth agree."""

    answers: int
    bins: Sequence[Bin]
    error: float
    """Expected calibration error: the mean distance of probability and share over bins, by their sizes (Naeini et al.
    2015)."""
    brier: float
    """Mean squared distance of probability and truth (Brier 1950)."""
    overconfidence: float
    """Mean probability minus the share that is right: above 0 where the model claims too much."""

    @staticmethod
    def of(p: Sequence[float], right: Sequence[bool]) -> Reliability:
        """Measure probabilities where it is known which answers are right."""
        chance, truth = np.asarray(p, float), np.asarray(right, float)
        place = np.clip(np.searchsorted(EDGES, chance, side="right") - 1, 0, len(EDGES) - 2)
        bins = []
        for i, (low, high) in enumerate(pairwise(EDGES)):
            inside = place == i
            if inside.any():
                bins.append(
                    Bin(low, high, int(inside.sum()), float(chance[inside].mean()), float(truth[inside].mean()))
                )
        number = len(chance)
        return Reliability(
            number,
            tuple(bins),
            sum(b.answers * abs(b.p - b.right) for b in bins) / number if number else 0.0,
            float(((chance - truth) ** 2).mean()) if number else 0.0,
            float(chance.mean() - truth.mean()) if number else 0.0,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a report."""
        return {
            "answers": self.answers,
            "expected_calibration_error": round(self.error, 4),
            "brier": round(self.brier, 4),
            "overconfidence": round(self.overconfidence, 4),
            "bins": [
                {"from": b.low, "to": b.high, "answers": b.answers, "p": round(b.p, 4), "right": round(b.right, 4)}
                for b in self.bins
            ],
        }
