r"""What kind of answer an expression is: one value, several, an ordered tuple, a region, a relation, ...

Spellings of one thing become one form: ``x = \pm 3``, ``3, -3`` and ``\{-3, 3\}`` are collections of 3 and -3;
``1 < x \le 2`` and ``(1, 2]`` are regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from nemo_openmath.grading.nodes import Node
from nemo_openmath.grading.units import Dimension

INFINITY: Node = ("const", "oo")
MINUS_INFINITY: Node = ("neg", INFINITY)
ZERO: Node = ("num", 0, 0)


@dataclass(frozen=True)
class Scalar:
    """One value."""

    node: Node
    unit: tuple[Dimension, Fraction] | str | None = None
    """(dimension, size), "percent" or None."""
    name: str | None = None
    """x in x = 5."""


@dataclass(frozen=True)
class Collection:
    """Several values in no order."""

    items: tuple[Form, ...]
    braces: bool = False
    """Whether it was written as a set, so that repetition means nothing."""
    name: str | None = None


@dataclass(frozen=True)
class Tuple:
    """Values in order; with two of them perhaps an interval."""

    items: tuple[Form, ...]
    opening: str
    closing: str
    name: str | None = None


@dataclass(frozen=True)
class Interval:
    """A part of the line between two ends, each inside or not."""

    low: Node
    low_closed: bool
    high: Node
    high_closed: bool


@dataclass(frozen=True)
class Region:
    """A union of intervals and points of the line."""

    intervals: tuple[Interval, ...]
    name: str | None = None


@dataclass(frozen=True)
class Assignment:
    """x = 1, y = 2: names with their values, as written."""

    values: tuple[tuple[str, Form], ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of numbers."""

    rows: tuple[tuple[Node, ...], ...]
    name: str | None = None


@dataclass(frozen=True)
class Relation:
    """An equation or inequality that is no assignment."""

    operators: tuple[str, ...]
    nodes: tuple[Node, ...]
    name: None = None


@dataclass(frozen=True)
class Congruence:
    """A residue class: 3 mod 7."""

    residue: Node
    modulus: Node
    name: str | None = None


@dataclass(frozen=True)
class Ratio:
    """Parts of a ratio: 1:2:3."""

    parts: tuple[Node, ...]
    name: str | None = None


@dataclass(frozen=True)
class TimeOfDay:
    """12:30 or 4:00 PM. Without a half of the day it is perhaps a duration or a ratio."""

    parts: tuple[int, ...]
    """Hours and minutes, perhaps seconds."""
    half: str
    """"a", "p" or ""."""
    name: str | None = None


@dataclass(frozen=True)
class Approximation:
    """80/9 \\approx 8.89: the value that is meant and the numbers that stand for it."""

    value: Scalar
    rounded: tuple[Scalar, ...]
    name: str | None = None


@dataclass(frozen=True)
class Without:
    """A set without another."""

    whole: Form
    removed: Form
    name: str | None = None


@dataclass(frozen=True)
class Empty:
    """The empty set."""

    name: str | None = None


Form = (
    Scalar
    | Collection
    | Tuple
    | Region
    | Assignment
    | Matrix
    | Relation
    | Congruence
    | Ratio
    | TimeOfDay
    | Approximation
    | Without
    | Empty
)


def as_region(f: Form) -> Region | None:
    """Return the region that a form can be read as; None where it cannot."""
    if isinstance(f, Region):
        return f
    if isinstance(f, Tuple) and len(f.items) == 2 and f.opening in "([" and f.closing in ")]":
        low, high = f.items
        if isinstance(low, Scalar) and isinstance(high, Scalar) and low.unit is None and high.unit is None:
            return Region((Interval(low.node, f.opening == "[", high.node, f.closing == "]"),), f.name)
    return None
