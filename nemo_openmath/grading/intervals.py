"""Enclosures of real and complex numbers, with what is needed to prove that a number is zero.

A ``Ball`` encloses a number by intervals with outward rounding (mpmath), so that two balls apart prove two numbers
different. For the other direction it carries the heights of the BFMSS constructive zero bound (Burnikel, Funke,
Mehlhorn, Schirra, Schmitt: "A separation bound for real algebraic expressions", Algorithmica 2009): a number written
as U / L with algebraic integers U and L whose conjugates are at most 2^u and 2^l is zero or at least
2^-((D - 1) u + l) in size, D the product of the degrees of the radicals that occur.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from mpmath.libmp import finf, fnan, fninf, from_int, from_man_exp, fzero, mpf_floor, mpf_sign, to_int, to_rational
from mpmath.libmp import libmpi as mpi

Interval = tuple[Any, Any]
ZERO: Interval = (fzero, fzero)
MAX_EXP_BITS = 64  # of the argument of exp, sin, ...: their results beyond need the argument's whole integer part


class Undecided(ArithmeticError):
    """Raised where a sign is needed and the enclosure contains zero. More precision may tell."""


class Undefined(ArithmeticError):
    """Raised for a division by zero and the like."""


class NotReal(Undefined):
    """Raised for a function of real numbers alone at a complex one."""


class OutOfReach(ArithmeticError):
    """Raised for what is too large, or a function that is not evaluated here."""


class Ball:
    """``re`` + i ``im`` (None: real), ``u``, ``l``: log2 of the heights."""

    __slots__ = ("im", "l", "re", "u")

    def __init__(self, re: Interval, im: Interval | None, u: float, l: float):  # noqa: E741
        self.re, self.im, self.u, self.l = re, im, u, l


def log2_int(n: int) -> float:
    """Return log2 of a whole number of any size; 0 of zero."""
    n = abs(n)
    if n < 2:
        return 0.0
    bits = n.bit_length()
    return math.log2(n) if bits < 1000 else bits - 1 + math.log2(n >> (bits - 53)) - 52


def from_exact(value: int | Fraction, prec: int) -> Ball:
    """Return the enclosure of an exact number."""
    if isinstance(value, int):
        n = from_int(value)
        re = mpi.mpi_pos((n, n), prec)
        return Ball(re, None, log2_int(value), 0.0)
    top, bottom = from_int(value.numerator), from_int(value.denominator)
    return Ball(
        mpi.mpi_div((top, top), (bottom, bottom), prec), None, log2_int(value.numerator), log2_int(value.denominator)
    )


def atom(re: Interval, im: Interval | None = None, of: Ball | None = None) -> Ball:
    """Return a number without a proven height, such as pi or a sine. Its size and the heights of the argument ``of``
    stand in for them (cos 10^-100 is near 1); equality is then by precision only."""
    m = magnitude(re) if im is None else max(magnitude(re), magnitude(im))
    u, l = (0.0, 0.0) if of is None else (of.u, of.l)  # noqa: E741
    return Ball(re, im, max(2.0, m + 2.0) + u, max(2.0, 2.0 - m) + l)


def magnitude(x: Interval) -> float:
    """Return log2 of the largest absolute value, about."""
    best = -1e9
    for _, man, exp, bc in x:
        if not man:
            if exp:
                raise OutOfReach("infinite")
            continue
        best = max(best, float(exp + bc)) if abs(exp + bc) < 1 << 62 else _far()
    return best


def _far() -> float:
    raise OutOfReach("magnitude")


def sign(x: Interval) -> int:
    """Return the sign of a real enclosure. Raises Undecided where it contains zero and more."""
    a, b = mpf_sign(x[0]), mpf_sign(x[1])
    if a > 0:
        return 1
    if b < 0:
        return -1
    if a == b == 0:
        return 0
    raise Undecided


def contains_zero(x: Interval) -> bool:
    """Return whether zero lies in a real enclosure."""
    return mpf_sign(x[0]) <= 0 <= mpf_sign(x[1])


def _imaginary(x: Ball) -> Interval:
    return ZERO if x.im is None else x.im


def _checked(ball: Ball) -> Ball:
    for x in (ball.re, ball.im):
        if x is not None and any(end in (finf, fninf, fnan) for end in x):
            raise Undecided
    if ball.im == ZERO:
        ball.im = None
    return ball


def add(x: Ball, y: Ball, prec: int) -> Ball:
    im = None if x.im is None and y.im is None else mpi.mpi_add(_imaginary(x), _imaginary(y), prec)
    return _checked(Ball(mpi.mpi_add(x.re, y.re, prec), im, max(x.u + y.l, y.u + x.l) + 1, x.l + y.l))


def negate(x: Ball) -> Ball:
    return Ball(mpi.mpi_neg(x.re), None if x.im is None else mpi.mpi_neg(x.im), x.u, x.l)


def multiply(x: Ball, y: Ball, prec: int) -> Ball:
    if x.im is None and y.im is None:
        return _checked(Ball(mpi.mpi_mul(x.re, y.re, prec), None, x.u + y.u, x.l + y.l))
    re, im = mpi.mpci_mul((x.re, _imaginary(x)), (y.re, _imaginary(y)), prec)
    return _checked(Ball(re, im, x.u + y.u, x.l + y.l))


def divide(x: Ball, y: Ball, prec: int) -> Ball:
    if contains_zero(y.re) and (y.im is None or contains_zero(y.im)):
        if sign(y.re) == 0 and (y.im is None or sign(y.im) == 0):
            raise Undefined("division by zero")
        raise Undecided
    if x.im is None and y.im is None:
        return _checked(Ball(mpi.mpi_div(x.re, y.re, prec), None, x.u + y.l, x.l + y.u))
    re, im = mpi.mpci_div((x.re, _imaginary(x)), (y.re, _imaginary(y)), prec)
    return _checked(Ball(re, im, x.u + y.l, x.l + y.u))


def power_int(x: Ball, n: int, prec: int) -> Ball:
    """Return x^n for n >= 1."""
    if n.bit_length() > MAX_EXP_BITS:
        raise OutOfReach("exponent")
    u, l = x.u * n, x.l * n  # noqa: E741
    if x.im is None:
        return _checked(Ball(mpi.mpi_pow_int(x.re, n, prec), None, u, l))
    re, im = mpi.mpci_pow_int((x.re, x.im), n, prec)
    return _checked(Ball(re, im, u, l))


def root(x: Ball, k: int, prec: int) -> Ball:
    """Return the k-th root: of a real the real one where there is one, else the principal one."""
    u, l = ((x.u + (k - 1) * x.l) / k, x.l) if x.u >= x.l else (x.u, ((k - 1) * x.u + x.l) / k)  # noqa: E741
    if x.im is not None:
        value = exp(divide(log(x, prec), from_exact(k, prec), prec), prec)
        return Ball(value.re, value.im, u, l)
    s = sign(x.re)
    if s == 0:
        return x
    size = x.re if s > 0 else mpi.mpi_neg(x.re)
    if k == 2:
        re = mpi.mpi_sqrt(size, prec)
    else:
        n = from_int(k)
        re = mpi.mpi_exp(mpi.mpi_div(mpi.mpi_log(size, prec + 10), (n, n), prec + 10), prec)
    if s > 0:
        return _checked(Ball(re, None, u, l))
    if k % 2:
        return _checked(Ball(mpi.mpi_neg(re), None, u, l))
    if k == 2:
        return _checked(Ball(ZERO, re, u, l))
    value = exp(divide(log(x, prec), from_exact(k, prec), prec), prec)
    return Ball(value.re, value.im, u, l)


def _bounded(x: Ball) -> None:
    if max(magnitude(x.re), -1e9 if x.im is None else magnitude(x.im)) > MAX_EXP_BITS:
        raise OutOfReach("argument too large")


def exp(x: Ball, prec: int) -> Ball:
    _bounded(x)
    if x.im is None:
        return _checked(atom(mpi.mpi_exp(x.re, prec), of=x))
    re, im = mpi.mpci_exp((x.re, x.im), prec)
    return _checked(atom(re, im, x))


def log(x: Ball, prec: int) -> Ball:
    if x.im is None:
        s = sign(x.re)
        if s == 0:
            raise Undefined("logarithm of zero")
        if s > 0:
            return _checked(atom(mpi.mpi_log(x.re, prec), of=x))
        return _checked(atom(mpi.mpi_log(mpi.mpi_neg(x.re), prec), mpi.mpi_pi(prec), of=x))
    if contains_zero(x.im) and mpf_sign(x.re[0]) <= 0:
        raise Undecided  # on the branch cut
    size = mpi.mpci_abs((x.re, x.im), prec + 10)
    return _checked(atom(mpi.mpi_log(size, prec), _angle(x.im, x.re, prec), x))


def cos_sin(x: Ball, prec: int) -> tuple[Ball, Ball]:
    _bounded(x)
    if x.im is None:
        c, s = mpi.mpi_cos_sin(x.re, prec)
        return _checked(atom(c, of=x)), _checked(atom(s, of=x))
    z = (x.re, x.im)
    (c, c_im), (s, s_im) = mpi.mpci_cos(z, prec), mpi.mpci_sin(z, prec)
    return _checked(atom(c, c_im, x)), _checked(atom(s, s_im, x))


def atan2(y: Ball, x: Ball, prec: int) -> Ball:
    if x.im is not None or y.im is not None:
        raise NotReal("inverse tangent of a complex number")
    return _checked(atom(_angle(y.re, x.re, prec), of=y if y.u + y.l > x.u + x.l else x))


def _angle(y: Interval, x: Interval, prec: int) -> Interval:
    """Return the inverse tangent of y / x. mpmath rounds it to nearest, not outward, so it is computed to more bits and
    widened by more than its error."""
    bits = prec + 10
    wide = (from_man_exp((1 << bits) - 1, -bits), from_man_exp((1 << bits) + 1, -bits))
    return mpi.mpi_mul(mpi.mpi_atan2(y, x, bits + 10), wide, prec)


def absolute(x: Ball, prec: int) -> Ball:
    if x.im is None:
        return negate(x) if sign(x.re) < 0 else x
    square = mpi.mpi_add(mpi.mpi_square(x.re, prec), mpi.mpi_square(x.im, prec), prec)
    return root(Ball(square, None, 2 * x.u + 2 * x.l + 1, 2 * x.l), 2, prec)


def floor(x: Ball) -> int:
    if x.im is not None:
        raise NotReal("floor of a complex number")
    if magnitude(x.re) > 10_000:
        raise OutOfReach("floor")
    low, high = (int(to_int(mpf_floor(end))) for end in x.re)
    if low != high:
        raise Undecided
    return low


def midpoint(x: Interval) -> Fraction:
    """Return the middle of a real enclosure of moderate size."""
    if magnitude(x) > 10_000 or magnitude(x) < -10_000:
        raise OutOfReach("midpoint")
    ends = [Fraction(*map(int, to_rational(end))) for end in x]
    return (ends[0] + ends[1]) / 2


def pi(prec: int) -> Ball:
    return atom(mpi.mpi_pi(prec))


def imaginary_unit() -> Ball:
    one = from_int(1)
    return Ball(ZERO, (one, one), 0.0, 0.0)


def apart(x: Ball, y: Ball, prec: int) -> tuple[bool, float]:
    """Return whether the enclosures are disjoint, which proves the numbers different; and log2 of the largest
    difference."""
    difference = add(x, negate(y), prec)
    parts = [difference.re] if difference.im is None else [difference.re, difference.im]
    return any(not contains_zero(part) for part in parts), max(magnitude(part) for part in parts)
