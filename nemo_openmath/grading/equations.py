"""Are two equations or inequalities the same condition on their letters?

The same: equal sides, or differences of sides of which one is a constant multiple of the other. Different: a point
that certainly satisfies one and certainly not the other. Anything else is unknown.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading import intervals as ball
from nemo_openmath.grading import numeric
from nemo_openmath.grading.evaluate import Evaluator, Exact
from nemo_openmath.grading.nodes import Node, put, put_all, symbols
from nemo_openmath.grading.scalars import FIRST_PRECISION, same_number, sign_of

Pair = tuple[str, Node, Node]  # operator (=, !=, <, <=), left, right
ZERO: Node = ("num", 0, 0)
MAX_WITNESSES = 60
COORDINATES = frozenset("xyztuvw") | {"theta"}  # letters that may be negative whatever the problem says
_FLIP = {">": "<", ">=": "<="}
_SAME = equal("the same relation")


def compare_relations(a: tuple[Pair, ...], b: tuple[Pair, ...], log_base: int) -> Grade:
    """Compare two conditions, each a chain of relations that hold together."""
    if all(op in ("=", "!=", "<", "<=") for op, *_ in (*a, *b)):
        if len(a) == len(b) and any(_same_pairs(a, c, log_base) for c in (b, b[::-1])):
            return _SAME
        if len(a) == len(b) == 1 and a[0][0] == b[0][0]:
            grade = _multiples(a[0], b[0], log_base)
            if grade.is_equal:
                return grade
        return _witness(a, b, log_base)
    same = len(a) == len(b) and all(x[0] == y[0] for x, y in zip(a, b, strict=True)) and _same_pairs(a, b, log_base)
    return _SAME if same else unknown("relations")


def pairs(operators: tuple[str, ...], nodes: tuple[Node, ...]) -> tuple[Pair, ...]:
    """Return a chain of relations as pairs of sides. The larger side stands on the right."""
    oriented = []
    for op, left, right in zip(operators, nodes, nodes[1:], strict=False):
        oriented.append((_FLIP[op], right, left) if op in _FLIP else (op, left, right))
    return tuple(oriented)


def difference(pair: Pair) -> Node:
    return ("add", (pair[1], ("neg", pair[2])))


def proportional(a: Node, b: Node, log_base: int) -> int | None:
    """Return the sign of the constant c in a = c b; None where there is none for certain."""
    names = sorted(symbols(a) | symbols(b))
    if not _varies(a, log_base) or not _varies(b, log_base):
        return None
    rng = random.Random(repr(names))
    for _ in range(4):
        point: dict[str, Node] = {
            n: ("num", Fraction(rng.randrange(13, 400), rng.randrange(11, 61, 2)), 0) for n in names
        }
        x, y = (_value(put_all(node, point), log_base) for node in (a, b))
        if x is None or y is None:
            continue
        signs = sign_of(x), sign_of(y)
        if not signs[0] or not signs[1]:
            continue
        if numeric.same(("mul", (a, y)), ("mul", (b, x)), log_base).is_equal:
            return signs[0] * signs[1]
        return None
    return None


def _varies(node: Node, log_base: int) -> bool:
    """Return whether an expression certainly is no constant."""
    names = symbols(node)
    rng = random.Random(repr(sorted(names)))
    points: list[dict[str, Node]] = [
        {n: ("num", Fraction(rng.randrange(13, 400), rng.randrange(11, 61, 2)), 0) for n in sorted(names)}
        for _ in range(4)
    ]
    first = put_all(node, points[0])
    return bool(names) and any(
        same_number(first, put_all(node, point), {}, log_base).verdict is Verdict.NOT_EQUAL for point in points[1:]
    )


def _value(node: Node, log_base: int) -> Node | None:
    """Return a constant expression, as a number where it is rational; None where it has no value."""
    try:
        value = Evaluator(FIRST_PRECISION, {}, log_base).value(node)
    except ArithmeticError:
        return None
    return node if isinstance(value, ball.Ball) else ("num", value, 0)


def _same_pairs(a: tuple[Pair, ...], b: tuple[Pair, ...], log_base: int) -> bool:
    for (op, left, right), (other, x, y) in zip(a, b, strict=True):
        if op != other:
            return False
        if numeric.same(left, x, log_base).is_equal and numeric.same(right, y, log_base).is_equal:
            continue
        turned = op in ("=", "!=") and numeric.same(left, y, log_base).is_equal
        if not (turned and numeric.same(right, x, log_base).is_equal):
            return False
    return True


def _multiples(a: Pair, b: Pair, log_base: int) -> Grade:
    sign = proportional(difference(a), difference(b), log_base)
    if sign is None or (sign < 0 and a[0] in ("<", "<=")):
        return unknown("relations that are not multiples of each other")
    return equal("the same equation" if a[0] == "=" else "the same relation")


def _witness(a: tuple[Pair, ...], b: tuple[Pair, ...], log_base: int) -> Grade:
    """Return not equal where some point satisfies one condition and not the other, else unknown."""
    first, second = (set().union(*(symbols(("rel", pair[1:])) for pair in c)) for c in (a, b))
    if first != second:
        return unknown("letters that only one side has")
    if not first:
        truths = _holds(a, {}, log_base), _holds(b, {}, log_base)
        different = None not in truths and truths[0] != truths[1]
        return not_equal("one holds and one does not") if different else unknown("relations of numbers")
    chain = sorted([*a, *b], key=repr)  # the same points in either direction
    for point in itertools.islice(_candidates(chain, sorted(first), log_base), MAX_WITNESSES):
        if not all(_allowed(name, value) for name, value in point.items()):
            continue
        truths = _holds(a, point, log_base), _holds(b, point, log_base)
        if None not in truths and truths[0] != truths[1]:
            return not_equal("a point satisfies one and not the other")
    return unknown("relations that are not multiples of each other")


def _allowed(name: str, value: Node) -> bool:
    """Return whether a letter may have this value in any problem: lengths are positive, and what counts is whole."""
    if name in COORDINATES:
        return True
    return sign_of(value) == 1 and (name[0] not in "nkmjpq" or (value[0] == "num" and isinstance(value[1], int)))


def _candidates(chain: list[Pair], names: list[str], log_base: int) -> Iterator[dict[str, Node]]:
    """Yield points to try: solutions of each equation in each of its letters where it is linear or quadratic, then
    others."""
    rng = random.Random(repr(names))
    for turn in range(3):
        for pair in chain:
            for name in names:
                others: dict[str, Node] = {n: _other(rng, turn) for n in names if n != name}
                for solution in solutions(put_all(difference(pair), others), name, log_base):
                    yield {**others, name: solution}
    for turn in range(24):
        size = 60 if turn % 2 else 7
        yield {n: _exact(Fraction(rng.randrange(-size, size + 1), rng.choice((1, 3, 7)))) for n in names}


def _other(rng: random.Random, turn: int) -> Node:
    """Return a value for the letters that an equation is not solved for: positive, small, negative in turn."""
    value = rng.randrange(1, 9)
    return _exact(Fraction((value, Fraction(value, 9), -value)[turn]))


def solutions(node: Node, name: str, log_base: int) -> list[Node]:
    """Guess the zeros of a function of one letter: those of the parabolas through three points."""
    zeros: list[Node] = []
    for places in ((1, 2, 3), (-1, -2, -3)):
        values: list[Exact] = []
        for x in places:
            value = _value(put(node, name, ("num", x, 0)), log_base)
            if value is None or value[0] != "num":
                break
            values.append(value[1])
        if len(values) < 3:
            continue
        p, q, r = (Fraction(v) for v in values)
        x0 = Fraction(places[0])
        step = Fraction(places[1] - places[0])
        a = (r - 2 * q + p) / (2 * step * step)
        b = (q - p) / step - a * (2 * x0 + step)
        c = p - a * x0 * x0 - b * x0
        if a == 0:
            zeros += [_exact(-c / b)] if b else []
        elif (d := b * b - 4 * a * c) >= 0:
            root: Node = ("root", _exact(d), ("num", 2, 0))
            for sign in (root, ("neg", root)):
                zero: Node = ("div", ("add", (_exact(-b), sign)), _exact(2 * a))
                zeros.append(_value(zero, log_base) or zero)
    return list(dict.fromkeys(zeros))


def _exact(value: Fraction) -> Node:
    return ("num", value.numerator if value.denominator == 1 else value, 0)


def _holds(chain: tuple[Pair, ...], point: dict[str, Node], log_base: int) -> bool | None:
    """Return whether a condition is certainly true or certainly false at a point; None where neither is certain."""
    result: bool | None = True
    for op, left, right in chain:
        x, y = put_all(left, point), put_all(right, point)
        grade = same_number(x, y, {}, log_base, real=True)
        if grade.verdict is Verdict.UNKNOWN:
            result = None
            continue
        if op in ("=", "!="):
            truth = grade.is_equal is (op == "=")
        elif grade.is_equal:
            truth = op == "<="
        else:
            sign = sign_of(("add", (y, ("neg", x))))
            if sign is None:
                result = None
                continue
            truth = sign > 0
        if not truth:
            return False
    return result
