"""Are two expressions the same number, or the same function of their symbols?

Exact where both are rational. Otherwise enclosures: disjoint ones prove "different"; "same" is proved by the zero
bound of the difference (see intervals.py), or, where pi, e, logarithms or sines take part, accepted when all digits
agree to a precision far beyond the size of the expressions.

Functions of symbols are compared at random rational points (from a generator seeded with the pair: a verdict is
reproducible). What a few points prove depends on the kind of function:

- Rational functions, sines, exponentials and what is made of them are analytic: five points, of both signs.
- Roots, logarithms, absolute values and the like have branches: points of all signs and several sizes, also beyond
  each number that is written in them, and the same real domain.
- floor, ceil and sgn may differ at isolated points: they are letters of their own, the same where their arguments are.

"Different" needs a point at which both have a real value, and the same symbols on both sides: a letter that only one
side has may be defined by the problem. A function that is not known here (a letter before a bracket) is never
different.
"""

from __future__ import annotations

import random
import re
from typing import Any

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading import intervals as ball
from nemo_openmath.grading.decimals import rounded
from nemo_openmath.grading.evaluate import Evaluator
from nemo_openmath.grading.intervals import OutOfReach
from nemo_openmath.grading.nodes import Node, mentions, mentions_kind, put, put_all, symbols
from nemo_openmath.grading.points import is_branched, numbers_in, random_value, sample_points, whole_points
from nemo_openmath.grading.scalars import (
    AGREEMENT,
    EXACT,
    FIRST_PRECISION,
    ONE_VALUE,
    OPEN_VALUE,
    folded,
    same_number,
    written_bits,
)

POINT_AGREEMENT = 160  # the same at the later ones of many random points
MIN_BRANCHED_POINTS = 6  # of them that must lie in the domain
MAX_CALLS = 20  # unknown functions of one pair
_CONSTANT = re.compile(r"(?:[Cc]|const|K)(?:_.*)?|k")  # customary names of a constant of integration
_INTEGRATION = re.compile(r"C(?:_.*)?|[cK]_.*|K")  # those that hardly name anything else
STEPS = frozenset({"floor", "ceil", "sgn"})


def same(a: Node, b: Node, log_base: int = 0) -> Grade:
    """Compare two scalar expressions."""
    if a == b:
        return EXACT
    names = sorted(symbols(a) | symbols(b))
    if not names:
        rounding = rounded(a, b, log_base)
        return rounding if rounding is not None else same_number(a, b, {}, log_base)
    if mentions_kind(a, "call") or mentions_kind(b, "call"):
        grade = _Opaque("call", log_base).compare(a, b)
        return grade if grade.is_equal else unknown("a function that is not known here")
    if _has_steps(a) or _has_steps(b):
        grade = _Opaque("fn", log_base).compare(a, b)
        if grade.is_equal:
            return grade
        grade = _same_function(a, b, names, log_base)
        return unknown("steps that agree where they were tried") if grade.is_equal else grade
    return _same_function(a, b, names, log_base)


class _Opaque:
    """Replaces unknown functions, or functions with steps, by letters: one letter for one function of one argument."""

    def __init__(self, kind: str, log_base: int):
        self.kind, self.log_base = kind, log_base
        self.known: list[tuple[Any, Node, Node]] = []  # function, argument, letter

    def compare(self, a: Node, b: Node) -> Grade:
        """Compare two expressions with the functions replaced."""
        try:
            return same(self._hide(a), self._hide(b), self.log_base)
        except OutOfReach:
            return unknown("too many unknown functions")

    def _hide(self, node: Node) -> Node:
        if node and node[0] == self.kind and (self.kind == "call" or (node[1] in STEPS and symbols(node))):
            function, argument = node[1], self._hide(node[2])
            for other, value, letter in self.known:
                if other == function and (value == argument or same(value, argument, self.log_base).is_equal):
                    return letter
            if len(self.known) >= MAX_CALLS:
                raise OutOfReach("calls")
            letter = ("sym", f"{self.kind} {len(self.known)}")
            self.known.append((function, argument, letter))
            return letter
        return tuple(self._hide(part) if isinstance(part, tuple) else part for part in node)


def _has_steps(node: Node) -> bool:
    if node and node[0] == "fn" and node[1] in STEPS and symbols(node):
        return True
    return any(_has_steps(part) for part in node if isinstance(part, tuple))


def _same_function(a: Node, b: Node, names: list[str], log_base: int) -> Grade:
    real = not (mentions(a, ("const", "i")) or mentions(b, ("const", "i")))
    branched = is_branched(a) or is_branched(b)
    counts = _counts(names)
    seed = repr((a, b) if repr(a) < repr(b) else (b, a))
    written = 8 * (written_bits(folded(a)) + written_bits(folded(b)))
    landmarks = sorted(numbers_in(a) | numbers_in(b))[:12] if branched else []
    equal_at = different_at = one_sided = 0
    failure = unknown("no point to compare at")
    for i, point in enumerate(sample_points(names, seed, branched, landmarks)):
        agreement = (AGREEMENT if i < 5 else POINT_AGREEMENT) + written
        grade = same_number(a, b, point, log_base, real=real, agreement=agreement)
        if grade.verdict is Verdict.UNKNOWN:
            failure = grade
            one_sided += grade is ONE_VALUE or grade is OPEN_VALUE
        elif grade.is_equal:
            equal_at += 1
        else:
            different_at += 1
        if different_at and not counts and (not branched or equal_at or i >= 5):
            return _differ(a, b) if not equal_at else unknown("equal for some values of the symbols only")
    whole_equal = whole_different = 0
    if counts:
        enough = 15 if branched or not equal_at else 3
        for point in whole_points(names, seed):
            grade = same_number(a, b, point, log_base, real=real, agreement=AGREEMENT + written)
            whole_equal += grade.is_equal
            whole_different += grade.verdict is Verdict.NOT_EQUAL
            if whole_equal + whole_different == enough:  # more are drawn, for factorials of differences have no value
                break
    if different_at or whole_different:
        if equal_at or whole_equal:
            return unknown("equal for some values of the symbols only")
        return _differ(a, b)
    if one_sided and not (counts and all(map(_counting, names)) and whole_equal >= MIN_BRANCHED_POINTS):
        return unknown("real for different values of the symbols")
    if equal_at >= (MIN_BRANCHED_POINTS if branched else 3) or (counts and whole_equal >= MIN_BRANCHED_POINTS):
        return equal("same function of its symbols")
    return unknown("defined at too few points") if equal_at or whole_equal else failure


def _counts(names: list[str]) -> bool:
    return any(map(_counting, names))


def _counting(name: str) -> bool:
    return name[0] in "nkmjpq"


def _differ(a: Node, b: Node) -> Grade:
    """Return the grade of two functions that differ."""
    first, second = symbols(a), symbols(b)
    if first != second:
        return unknown("letters that only one side has")
    if len(first) == 1 and _same_steps(a, b, next(iter(first))):
        return unknown("the same values for other whole numbers")
    constants = [name for name in first if _CONSTANT.fullmatch(name)]
    if constants and len(first) > len(constants):
        return _families(a, b, constants)
    return not_equal("different functions of their symbols")


def _same_steps(a: Node, b: Node, name: str) -> bool:
    """Return whether two angles such as pi/4 + k pi and 5 pi/4 - k pi run through the same values for all whole k."""
    if not _counting(name) or not all(mentions(n, ("const", "pi")) or mentions_kind(n, "unit") for n in (a, b)):
        return False
    try:
        rows = []
        for node in (a, b):
            values = [Evaluator(FIRST_PRECISION, {name: k}).value(node) for k in (0, 1, 2)]
            rows.append([float(ball.midpoint(v.re) if isinstance(v, ball.Ball) else v) for v in values])
    except (ArithmeticError, ValueError):
        return False
    (p, q, r), (u, v, w) = rows
    step = q - p
    is_linear = abs(r - q - step) < 1e-9 and abs(w - v - (v - u)) < 1e-9 and abs(step) > 1e-9
    shift = (u - p) / step if is_linear else 0.5
    return is_linear and abs(abs(v - u) - abs(step)) < 1e-9 and abs(shift - round(shift)) < 1e-9


def _families(a: Node, b: Node, constants: list[str]) -> Grade:
    """Compare functions with constants of integration: x^2 + C and x^2 + 1 + C are one family; sin x + C and cos x + C
    are two, for their difference is no constant."""
    open_ = unknown("the same but for a constant of integration")
    if len(constants) == 1:
        (name,) = constants
        zero, one = (tuple(put(n, name, ("num", v, 0)) for n in (a, b)) for v in (0, 1))
        added = [
            same(("add", (one[i], ("neg", zero[i]))), ("num", 1, 0)).is_equal if symbols(zero[i]) else False
            for i in (0, 1)
        ]
        if all(added):
            difference: Node = ("add", (zero[0], ("neg", zero[1])))
            names = sorted(symbols(difference))
            values = []
            for seed in range(12):
                rng = random.Random(seed)
                values.append({n: random_value(rng) for n in names})
            for point in values[1:]:
                here, there = (
                    put_all(difference, {n: ("num", v, 0) for n, v in p.items()}) for p in (values[0], point)
                )
                if same_number(here, there, {}, real=True).verdict is Verdict.NOT_EQUAL:
                    return not_equal("different families of functions")
            return open_
    if any(map(_INTEGRATION.fullmatch, constants)):
        return open_
    return not_equal("different functions of their symbols")
