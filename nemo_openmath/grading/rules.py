"""What all rules of comparing share: numbers are compared here, forms by the whole of the rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading import numeric
from nemo_openmath.grading.forms import INFINITY, MINUS_INFINITY, Form
from nemo_openmath.grading.nodes import Node

KINDS = not_equal("different kinds of answer")


class Rules(ABC):
    r"""A set of rules. ``log_base``: what a bare \log means, 0 for the natural one."""

    def __init__(self, log_base: int = 0):
        self.log_base = log_base

    @abstractmethod
    def values(self, a: Form, b: Form) -> Grade:
        """Compare two forms by all rules."""

    def nodes(self, a: Node, b: Node) -> Grade:
        """Compare two expressions as numbers or as functions of their letters."""
        infinite = [n in (INFINITY, MINUS_INFINITY) for n in (a, b)]
        if any(infinite):
            if all(infinite):
                return equal("infinite") if a == b else not_equal("infinities of different sign")
            other = b if infinite[0] else a
            return (
                unknown("an expression with infinity")
                if _mentions_infinity(other)
                else not_equal("infinite and finite")
            )
        return numeric.same(a, b, self.log_base)


def all_of(grades: Sequence[Grade]) -> Grade:
    """Return equal where all grades are equal, not equal where one is not, else unknown."""
    for wanted in (Verdict.NOT_EQUAL, Verdict.UNKNOWN):
        for grade in grades:
            if grade.verdict is wanted:
                return grade
    return grades[0] if len(grades) == 1 else equal("all parts are equal")


def _mentions_infinity(node: Node) -> bool:
    return node == INFINITY or any(_mentions_infinity(part) for part in node if isinstance(part, tuple))
