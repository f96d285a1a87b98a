"""Are two answers, as forms, the same answer? By its kinds, a pair is given to the rules that know it.

Every rule that is a convention and not mathematics is stated where it is applied. Where custom leaves both verdicts
open (is a list ordered? is ``[1, 2]`` an interval?) the grade is unknown.

    rules.py              what all rules share: comparing numbers
    quantity_rules.py     numbers with units, ratios, times of day, approximations
    collection_rules.py   lists, sets, tuples, assignments, matrices
    region_rules.py       intervals and unions of them
    condition_rules.py    equations, inequalities, residue classes
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

from nemo_openmath.core.grader import Grade, equal, unknown
from nemo_openmath.grading.collection_rules import CollectionRules
from nemo_openmath.grading.condition_rules import ConditionRules
from nemo_openmath.grading.forms import (
    Approximation,
    Assignment,
    Collection,
    Congruence,
    Empty,
    Form,
    Matrix,
    Ratio,
    Region,
    Relation,
    Scalar,
    TimeOfDay,
    Tuple,
    Without,
    as_region,
)
from nemo_openmath.grading.nodes import DOTS, put, symbols
from nemo_openmath.grading.quantity_rules import QuantityRules
from nemo_openmath.grading.rules import KINDS, all_of

_FUNCTION = re.compile(r"([A-Za-z]+)\(([A-Za-z]+)\)")


class Comparer(QuantityRules, CollectionRules, ConditionRules):
    """Compares forms by all rules."""

    def forms(self, a: Form, b: Form) -> Grade:
        """Compare two answers, each perhaps with the name of what it is the value of."""
        a, b = self._holes(a), self._holes(_same_argument(a, b))
        first, second = getattr(a, "name", None), getattr(b, "name", None)
        if first and second and first != second:
            if isinstance(a, Scalar) and isinstance(b, Scalar) and (symbols(a.node) or symbols(b.node)):
                return self._relations(a, b)
            grade = self.values(a, b)
            both = f"{first} and of {second}"
            return unknown(f"the same value of {both}") if grade.is_equal else unknown(f"values of {both}")
        return self.values(a, b)

    def values(self, a: Form, b: Form) -> Grade:
        """Compare two answers whatever they are called."""
        grade = self._kinds(a, b)
        if grade is KINDS and (_has_letters(a) or _has_letters(b)):
            return unknown("another kind of answer, with letters")
        return grade

    def _kinds(self, a: Form, b: Form) -> Grade:
        if isinstance(a, Scalar) and isinstance(b, Scalar):
            return self._scalars(a, b)
        if _elided(a) or _elided(b):
            return self._elided_lists(a, b)
        if isinstance(a, Approximation) or isinstance(b, Approximation):
            return self._approximations(a, b)
        if isinstance(a, TimeOfDay) or isinstance(b, TimeOfDay):
            return self._times(a, b)
        if isinstance(a, Relation) or isinstance(b, Relation):
            return self._relations(a, b)
        regions = as_region(a), as_region(b)
        if (isinstance(a, Region) or isinstance(b, Region)) and regions[0] is not None and regions[1] is not None:
            return self._regions(regions[0], regions[1])
        for x, y in ((a, b), (b, a)):
            match x, y:
                case Collection(), Collection():
                    return self._collections(x, y)
                case Collection(items=(only,)), Scalar() | Tuple():
                    return self.values(only, y)
                case Tuple(), Tuple():
                    return self._tuples(x, y)
                case Collection(), Tuple():
                    return self._collection_with_tuple(x, y)
                case Assignment(), _:
                    return self._assignment(x, y)
                case Matrix(), _:
                    if (matrix_grade := self._matrix(x, y)) is not None:
                        return matrix_grade
                case Congruence(), Congruence():
                    return self._congruences(x, y)
                case Congruence(), _:
                    return unknown("a residue class against a value")
                case Ratio(), Ratio():
                    return self._ratios(x.parts, y.parts)
                case Ratio(parts=(p, q)), Scalar(unit=None):
                    grade = self.nodes(("div", p, q), y.node)
                    return grade if grade.is_equal else unknown("a ratio against a number")
                case Ratio(), _:
                    return unknown("a ratio against another kind of answer")
                case Without(), Without():
                    return all_of([self.values(x.whole, y.whole), self.values(x.removed, y.removed)])
                case Without(), _:
                    return unknown("a set difference against another kind of answer")
                case Empty(), Empty():
                    return equal("both empty")
        return KINDS


def _has_letters(f: Any) -> bool:
    """Return whether a form holds a letter, or a function that is not known here."""
    if isinstance(f, TimeOfDay):
        return False
    if isinstance(f, tuple):
        if f and isinstance(f[0], str):
            return bool(symbols(f)) or f[0] == "call"
        return any(map(_has_letters, f))
    if is_dataclass(f):
        return any(_has_letters(getattr(f, field.name)) for field in fields(f) if field.name not in ("name", "unit"))
    return False


def _elided(f: Form) -> bool:
    return isinstance(f, Collection | Tuple) and any(isinstance(i, Scalar) and i.node == DOTS for i in f.items)


def _same_argument(a: Form, b: Form) -> Form:
    """Return ``b`` with the argument of its function called as in ``a``: f(t) = t + 1 is f(x) = x + 1."""
    first, second = (_FUNCTION.fullmatch(getattr(f, "name", None) or "") for f in (a, b))
    if first is None or second is None or first[1] != second[1] or first[2] == second[2] or not isinstance(b, Scalar):
        return b
    if first[2] in symbols(b.node) or second[2] not in symbols(b.node):  # P(A) = 1/3 is not P(B) = 1/3
        return b
    return replace(b, node=put(b.node, second[2], ("sym", first[2])), name=first[0])
