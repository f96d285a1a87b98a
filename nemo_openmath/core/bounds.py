"""Ranges of settings: written at the field's type, checked by :class:`Builder`, printed by ``openmath recipe stages``.

Every number of a settings dataclass has one of these types, so a value out of range is refused, with its file and
line, when the configuration is read. ``tests/core/test_bounds.py`` finds the number that has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True, slots=True)
class Bounds:
    """A range of numbers. Infinities and NaN are never inside."""

    low: float = -math.inf
    """The smallest number, itself inside unless ``above``."""
    high: float = math.inf
    """The largest number, itself inside unless ``below``."""
    above: bool = False
    below: bool = False

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a value and what to choose instead; None where it is inside."""
        inside = math.isfinite(value) and (self.low < value if self.above else self.low <= value)
        inside = inside and (value < self.high if self.below else value <= self.high)
        return None if inside else f"{value} is out of range; choose {self}"

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return "a finite number"
        if math.isinf(self.low):
            return f"less than {self.high:g}" if self.below else f"at most {self.high:g}"
        if math.isinf(self.high):
            return f"more than {self.low:g}" if self.above else f"{self.low:g} or more"
        high = f"less than {self.high:g}" if self.below else f"at most {self.high:g}"
        return f"more than {self.low:g}, {high}" if self.above else f"{self.low:g} or more, {high}"


@dataclass(frozen=True, slots=True)
class Length:
    """A number of entries in a list: at least ``least``, and at most ``most``."""

    least: int = 1
    most: int | None = None

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a list; None where its length is right."""
        if self.least <= len(value) <= (len(value) if self.most is None else self.most):
            return None
        return f"{list(value)} has {len(value)} entries; give {self}"

    def __str__(self) -> str:
        if self.most is None:
            return f"at least {self.least}"
        return f"exactly {self.least}" if self.least == self.most else f"{self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Words(Length):
    """Words that are looked for in a text. An empty one would be in every text."""

    least: int = 0

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a list of words; None where nothing is."""
        if not all(word.strip() for word in value):
            return f"{list(value)} has an empty word, which is in every text; remove it"
        return Length.problem(self, value)

    def __str__(self) -> str:
        return Length.__str__(self) if self.least or self.most is not None else "no empty word"


AnyInt = Annotated[int, Bounds()]
PositiveInt = Annotated[int, Bounds(1)]
NonNegativeInt = Annotated[int, Bounds(0)]
PositiveFloat = Annotated[float, Bounds(0, above=True)]
NonNegativeFloat = Annotated[float, Bounds(0)]
FiniteFloat = Annotated[float, Bounds()]
Share = Annotated[float, Bounds(0, 1)]
ShareBelowOne = Annotated[float, Bounds(0, 1, below=True)]
PositiveShare = Annotated[float, Bounds(0, 1, above=True)]
