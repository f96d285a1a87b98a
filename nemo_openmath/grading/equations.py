"""Are two equations the same but for a constant factor?"""

from __future__ import annotations

from fractions import Fraction

from nemo_openmath.grading import numeric
from nemo_openmath.grading.names import Node
from nemo_openmath.grading.numeric import symbols
from nemo_openmath.grading.verdict import Grade, Verdict, equal, not_equal, unknown


def proportional(a: Node, b: Node, log_base: int) -> Grade:
    """Whether a = c b for a constant c, at random points; affine forms that are not are different."""
    names = sorted(symbols(a) | symbols(b))
    first, second = (_renamed_point(names, i) for i in (0, 1))
    left = ("mul", (_at(a, first), _at(b, second)))
    right = ("mul", (_at(a, second), _at(b, first)))
    grade = numeric.same_number(left, right, {}, log_base)
    if grade.is_equal:
        zero = numeric.same_number(_at(a, first), ("num", 0, 0), {}, log_base)
        return equal("the same equation") if zero.verdict is Verdict.NOT_EQUAL else unknown("an identity")
    if grade.verdict is Verdict.NOT_EQUAL and _affine(a, names) and _affine(b, names):
        return not_equal("different linear equations")
    return unknown("equations that are not multiples of each other")


def _renamed_point(names: list[str], which: int) -> dict[str, Fraction]:
    primes = (7919, 7907, 7901, 7883, 7879, 7877, 7873, 7867, 7853, 7841, 7829, 7823)
    return {
        n: Fraction(primes[(3 * i + 5 * which) % 12] + 131 * i, 1009 + 2 * i + 90 * which) for i, n in enumerate(names)
    }


def _at(node: Node, point: dict[str, Fraction]) -> Node:
    if node and node[0] == "sym" and node[1] in point:
        return ("num", point[node[1]], 0)
    return tuple(_at(part, point) if isinstance(part, tuple) else part for part in node)


def _affine(node: Node, names: list[str]) -> bool:
    p, q = _renamed_point(names, 0), _renamed_point(names, 1)
    middle = {n: (p[n] + q[n]) / 2 for n in names}
    twice: Node = ("mul", (("num", 2, 0), _at(node, middle)))
    return numeric.same_number(("add", (_at(node, p), _at(node, q))), twice, {}).is_equal
