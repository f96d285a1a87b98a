"""Decimals as they are written: what they are a rounding of."""

from __future__ import annotations

from fractions import Fraction

from nemo_openmath.core.grader import Grade, equal, unknown
from nemo_openmath.grading import intervals as ball
from nemo_openmath.grading.evaluate import Evaluator
from nemo_openmath.grading.intervals import OutOfReach, Undecided, Undefined
from nemo_openmath.grading.nodes import Node
from nemo_openmath.grading.plain import MIN_ROUNDED_DIGITS
from nemo_openmath.grading.scalars import DIFFERENT, EXACT

SURE_DIGITS = 6  # significant digits from which a correctly rounded decimal stands for a non-terminating number


def rounded(a: Node, b: Node, log_base: int) -> Grade | None:
    """Compare a pair that holds a decimal literal. None where it holds none, or where the values are the same.

    - A terminating number equals a decimal only exactly.
    - A decimal of at least 6 significant digits equals the non-terminating number that rounds to it. With 3 to 5
      digits, or when it is cut off instead of rounded, whether that is enough is for the judge to say.
    - Two decimals of at least 6 digits of which one rounds to the other are for the judge; else they are different.
    """
    x, y = _decimal(a), _decimal(b)
    if x is None and y is None:
        return None
    if x is not None and y is not None:
        if x[0] == y[0]:
            return EXACT
        short, long = (x, y) if x[1] <= y[1] else (y, x)
        if short[1] >= SURE_DIGITS and abs(short[0] - long[0]) * 2 <= last_place(*short):
            return unknown("one decimal rounds to the other")
        return DIFFERENT
    (literal, digits), other = (x, b) if x is not None else (y, a)  # type: ignore[misc]
    try:
        value = Evaluator(128, {}, log_base).value(other)
        if not isinstance(value, ball.Ball):
            gap, cut_off = abs(literal - value), abs(literal) < abs(value)
            terminating = _terminates(Fraction(value))
        else:
            difference = ball.add(value, ball.from_exact(-literal, 128), 128)
            if difference.im is not None:
                return None
            # Midpoint is enough here: an enclosure of 128 bits is far narrower than any written last place.
            middle = ball.midpoint(difference.re)
            gap, terminating, cut_off = abs(middle), False, literal * middle > 0
    except (Undecided, Undefined, OutOfReach):
        return None
    if digits < MIN_ROUNDED_DIGITS or gap == 0:
        return None
    place = last_place(literal, digits)
    if gap >= place or (gap * 2 > place and not cut_off):
        return None
    if terminating:
        return unknown("a rounding of an exact number") if digits >= SURE_DIGITS and gap * 2 <= place else DIFFERENT
    if digits >= SURE_DIGITS and gap * 2 <= place:
        return equal(f"rounded to {digits} digits")
    if gap * 2 <= place or digits >= SURE_DIGITS:
        return unknown("a rounding of few digits")
    return None


def _decimal(node: Node) -> tuple[Fraction, int] | None:
    """Return the value and the written significant digits of a decimal literal; None for another node."""
    if node[0] == "percent":
        inner = _decimal(node[1])
        return None if inner is None else (inner[0] / 100, inner[1])
    negative = node[0] == "neg"
    if negative:
        node = node[1]
    if node[0] != "num" or not node[2]:
        return None
    return (-1 if negative else 1) * Fraction(node[1]), node[2]


def _terminates(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def last_place(value: Fraction, digits: int) -> Fraction:
    """Return the worth of the last written digit of a decimal with so many significant digits."""
    if not value:
        return Fraction(0)
    exponent = len(str(abs(value.numerator))) - len(str(value.denominator)) - 1
    while Fraction(10) ** (exponent + 1) <= abs(value):
        exponent += 1
    return Fraction(10) ** (exponent - digits + 1)
