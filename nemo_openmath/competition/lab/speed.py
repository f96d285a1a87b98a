"""How fast an engine writes: tokens a second of each solution, by how many solutions it writes at once.

A small batch runs faster than a large one, so the time of a solution depends on those beside it. The laboratory times
all running solutions anew whenever one ends, begins or is cancelled.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from nemo_openmath.core.errors import UserError

STORED = "stored"
_EXAMPLE = "write SOLUTIONS:TOKENS, such as 1:110,8:72,16:51 (tokens a second of each solution), or stored"


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured points of an engine: (solutions that are written at once, tokens a second of each of them).

    - Between two points the time of a step is interpolated: a step of a batch costs a constant and a share for each
      solution.
    - Below the first point each solution is as fast as there, and no faster: nothing faster was measured.
    - Above the last point the engine is full: all solutions together are as fast as there.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise UserError("a speed without a point", remedy=_EXAMPLE)
        for number, rate in self.points:
            if number < 1 or not isfinite(rate) or rate <= 0:
                raise UserError(f"speed {number}:{rate:g}: both must be above 0", remedy=_EXAMPLE)
        for (fewer, fast), (more, slow) in pairwise(self.points):
            if more <= fewer:
                raise UserError(f"speed: {fewer} and {more} solutions are out of order", remedy="sort the points")
            if slow > fast:
                raise UserError(
                    f"speed: each of {more} solutions at once is faster ({slow:g} tokens/s) than each of {fewer} "
                    f"({fast:g})",
                    remedy="measure again, or leave the point out; the numbers are of each solution, not of all",
                )

    @classmethod
    def parse(cls, text: str) -> Speed | None:
        """Read ``1:110,16:51`` or ``80`` (whatever runs beside it); None for ``stored``, the times that the records
        have. Raises UserError."""
        if text.strip() == STORED:
            return None
        points: list[tuple[int, float]] = []
        for part in text.split(","):
            number, colon, rate = part.strip().rpartition(":")
            try:
                points.append((int(number) if colon else 1, float(rate)))
            except ValueError:
                raise UserError(f"not a speed: {text!r}", remedy=_EXAMPLE) from None
        if len(points) == 1 and ":" not in text:
            return cls.constant(points[0][1])
        return cls(tuple(points))

    @classmethod
    def constant(cls, rate: float) -> Speed:
        """Return the speed of an engine that any number of solutions does not slow."""
        return cls(((1, rate), (1_000_000, rate)))

    def rate(self, running: int) -> float:
        """Return the tokens a second of each of ``running`` solutions."""
        numbers = [number for number, _ in self.points]
        at = bisect_left(numbers, running)
        if at == len(numbers):
            last, rate = self.points[-1]
            return rate * last / running
        number, rate = self.points[at]
        if at == 0 or number == running:
            return rate
        before, faster = self.points[at - 1]
        step = 1 / faster + (1 / rate - 1 / faster) * (running - before) / (number - before)
        return 1 / step

    def rates(self, most: int) -> list[float]:
        """Return the rate for 0 to ``most`` solutions at once; that of 0 is never used."""
        return [0.0, *(self.rate(n) for n in range(1, most + 1))]

    def scaled(self, factor: float) -> Speed:
        """Return the speed of an engine that is ``factor`` times as fast."""
        return Speed(tuple((number, rate * factor) for number, rate in self.points))

    def __str__(self) -> str:
        if len(self.points) == 2 and self.points[1] == (1_000_000, self.points[0][1]):
            return f"{self.points[0][1]:g} tokens/s"
        return ",".join(f"{number}:{rate:g}" for number, rate in self.points)


def speeds_of(texts: Sequence[str]) -> list[Speed | None]:
    """Read several speeds."""
    return [Speed.parse(text) for text in texts]
