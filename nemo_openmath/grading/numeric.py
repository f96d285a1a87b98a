"""Are two expressions the same number, or the same function of their symbols?

Exact where both are rational. Otherwise enclosures: disjoint ones prove "different"; "same" is proved by the zero
bound of the difference (see intervals.py), or, where pi, e, logarithms or sines take part, accepted when all digits
agree to a precision far beyond the size of the expressions. Symbols are replaced by random rational numbers from a
generator seeded with the pair: a verdict is reproducible.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

from nemo_openmath.grading import intervals as ball
from nemo_openmath.grading.evaluate import Evaluator, Exact, OutOfReach, Undecided, Undefined
from nemo_openmath.grading.names import Node
from nemo_openmath.grading.plain import MIN_ROUNDED_DIGITS
from nemo_openmath.grading.verdict import Grade, equal, not_equal, unknown

FIRST_PRECISION = 96  # bits: tells most different numbers apart
MAX_PRECISION = 8192
AGREEMENT = 400  # bits of agreement, beyond the heights, that count as equality without a proven bound
SURE_DIGITS = 6  # significant digits from which a correctly rounded decimal stands for a non-terminating number

_DECORATED = re.compile(r"(?:overline|bar|vec|hat)_")

EXACT = equal("same value")
DIFFERENT = not_equal("different values")


def symbols(node: Node, found: set[str] | None = None) -> set[str]:
    """Names of the symbols of an expression."""
    found = set() if found is None else found
    if node and node[0] == "sym":
        found.add(node[1])
    else:
        for part in node[1:]:
            if isinstance(part, tuple):
                if part and isinstance(part[0], str):
                    symbols(part, found)
                else:
                    for child in part:
                        if isinstance(child, tuple):
                            symbols(child if child and isinstance(child[0], str) else ("list", child), found)
    return found


def same(a: Node, b: Node, log_base: int = 0) -> Grade:
    """Compare two scalar expressions."""
    if a == b:
        return EXACT
    names = sorted(symbols(a) | symbols(b))
    if not names:
        rounded = _rounded(a, b, log_base)
        return rounded if rounded is not None else same_number(a, b, {}, log_base)
    return _same_function(a, b, names, log_base)


def same_number(
    a: Node,
    b: Node,
    values: Mapping[str, Exact],
    log_base: int = 0,
    *,
    real: bool = False,
    agreement: float = AGREEMENT,
) -> Grade:
    """Compare the values of two expressions at given values of their symbols. ``real``: unknown where one is not;
    ``agreement``: bits that have to agree at a point."""
    precision = FIRST_PRECISION
    gap = 0.0
    heights = 0.0
    while True:
        evaluator = Evaluator(precision, values, log_base)
        needed = 4.0 * precision
        try:
            x, y = evaluator.value(a), evaluator.value(b)
            if not isinstance(x, ball.Ball) and not isinstance(y, ball.Ball):
                return EXACT if x == y else DIFFERENT
            left, right = evaluator.ball(x), evaluator.ball(y)
            if real and (left.im is not None or right.im is not None):
                return unknown("outside the real domain")
            different, gap = ball.apart(left, right, precision)
            if different:
                return DIFFERENT
            difference = ball.add(left, ball.negate(right), precision)
            heights = difference.u + difference.l
            if evaluator.transcendental:
                needed = AGREEMENT + 4 * heights
            elif values:
                needed = agreement  # at a random point a coincidence is as good as excluded
            else:
                needed = (evaluator.degree - 1) * difference.u + difference.l + 1
            if -gap > needed:
                return EXACT if not evaluator.transcendental else equal(f"all of {int(-gap * 0.301)} digits agree")
            needed += max(0.0, ball.magnitude(left.re)) + 64
        except Undecided:
            gap = 0.0
        except Undefined as error:
            return unknown(f"undefined: {error}")
        except OutOfReach as error:
            return unknown(f"out of reach: {error}")
        if precision >= MAX_PRECISION:
            break
        precision = int(min(MAX_PRECISION, max(2 * precision, min(needed, MAX_PRECISION))))
    if -gap > AGREEMENT + 4 * heights and -gap > MAX_PRECISION / 2:
        return equal(f"all of {int(-gap * 0.301)} digits agree")
    if _folded(a) == _folded(b):
        return EXACT
    return unknown("too close to tell apart")


def _folded(node: Node) -> Node:
    """The expression with its exact parts evaluated: 9^(9^9) as 9^387420489."""
    if node and node[0] in ("sym", "const", "num"):
        return ("num", node[1], 0) if node[0] == "num" else node
    try:
        value = Evaluator(FIRST_PRECISION).value(node)
        if not isinstance(value, ball.Ball):
            return ("num", value, 0)
    except (ArithmeticError, ValueError, IndexError, TypeError):
        pass
    return tuple(_folded(part) if isinstance(part, tuple) else part for part in node)


def _written_bits(folded: Node) -> float:
    """Bits of the numbers that stand in an expression."""
    if folded and folded[0] == "num":
        value = Fraction(folded[1])
        return ball.log2_int(value.numerator) + ball.log2_int(value.denominator)
    return sum(_written_bits(part) for part in folded if isinstance(part, tuple))


def _points(names: list[str], seed: str, far: int) -> Iterator[tuple[str, dict[str, Exact]]]:
    """Kinds of points and values for the symbols: positive rationals, rationals of any sign, whole numbers. With
    ``far``, also of that size and its square: beyond the places where |x - 1000| or a floor changes."""
    rng = random.Random(seed)

    def rational() -> Fraction:
        return Fraction(rng.randrange(13, 400), rng.randrange(11, 61, 2))  # small: exponents become root indices

    for _ in range(3):
        yield "positive", {name: rational() for name in names}
    for _ in range(2):
        yield (
            "signed",
            {name: -rational() if i == 0 or rng.random() < 0.5 else rational() for i, name in enumerate(names)},
        )
    for scale in (far, -far, far * far, -far * far) if far else ():
        yield "positive" if scale > 0 else "signed", {name: scale * rational() for name in names}
    if len(names) <= 50:
        for shift in (0, 1, 2) * 4:
            whole = rng.sample(range(1, 60), len(names))
            yield "whole", {name: 2 * value + shift for name, value in zip(names, whole, strict=True)}


def _same_function(a: Node, b: Node, names: list[str], log_base: int) -> Grade:
    seen: dict[str, set[bool]] = {}
    real = not (_mentions(a, ("const", "i")) or _mentions(b, ("const", "i")))
    points = 0
    far = 4 * max(_largest(a), _largest(b)) if _piecewise(a) or _piecewise(b) else 0
    agreement = AGREEMENT + 8 * (_written_bits(_folded(a)) + _written_bits(_folded(b)))
    failure = unknown("no point to compare at")
    whole = 0
    for kind, point in _points(names, repr((a, b) if repr(a) < repr(b) else (b, a)), far):
        grade = same_number(a, b, point, log_base, real=real, agreement=agreement)
        if grade.verdict == "unknown":
            failure = grade
            continue
        points += 1
        whole += kind == "whole"
        seen.setdefault(kind, set()).add(grade.is_equal)
        if whole == 3:  # more of them are drawn, for factorials of differences are not defined at all
            break
        if kind == "positive" and not grade.is_equal and not _counts(names):
            return _renamed(a, b)
    if not seen:
        return failure
    if points < 3:
        return unknown("defined at too few points")
    results = set().union(*seen.values())
    if results == {True}:
        return equal("same function of its symbols")
    if results == {False}:
        return _renamed(a, b)
    return unknown("equal for some values of the symbols only")


def sign_of(node: Node) -> int | None:
    """Sign of a constant real expression, None where it is not certain."""
    try:
        value = Evaluator(FIRST_PRECISION).value(node)
        if not isinstance(value, ball.Ball):
            return (value > 0) - (value < 0)
        return None if value.im is not None else ball.sign(value.re)
    except ArithmeticError:
        return None


def _mentions(node: Node, wanted: Node) -> bool:
    return node == wanted or any(_mentions(part, wanted) for part in node if isinstance(part, tuple))


def _piecewise(node: Node) -> bool:
    """Whether the expression may be different functions on different parts of the line."""
    if node and (node[0] == "root" or (node[0] == "fn" and node[1] in ("abs", "floor", "ceil", "max", "min", "sgn"))):
        return True
    if node and node[0] == "pow" and node[2][0] == "div":
        return True
    return any(_piecewise(part) for part in node if isinstance(part, tuple))


def _largest(node: Node) -> int:
    """The largest number that stands in an expression, rounded up, within reason."""
    if node and node[0] == "num":
        return min(int(abs(node[1])) + 1, 10**12)
    return max((_largest(part) for part in node if isinstance(part, tuple)), default=1)


def _counts(names: list[str]) -> bool:
    return any(name[0] in "nkmjpq" for name in names)


def _renamed(a: Node, b: Node) -> Grade:
    """Different functions, unless one is the other with its symbols renamed."""
    first, second = symbols(a), symbols(b)
    if any(_DECORATED.match(name) for name in first ^ second):
        return unknown("names under a bar or an arrow")
    if a[0] == b[0] == "sym":
        return unknown("upper and lower case") if a[1].lower() == b[1].lower() else not_equal("different symbols")
    old, new = sorted(first - second), sorted(second - first)
    if len(old) == len(new) and 0 < len(old) <= 3:
        for names in itertools.permutations(new):
            renamed = a
            for x, y in zip(old, names, strict=True):
                renamed = _rename(renamed, x, y)
            if _same_function(renamed, b, sorted(second), 0).is_equal:
                return unknown("the same but for the names of symbols")
    return not_equal("different functions of their symbols")


def _rename(node: Node, old: str, new: str) -> Node:
    if node == ("sym", old):
        return ("sym", new)
    return tuple(_rename(part, old, new) if isinstance(part, tuple) else part for part in node)


def _decimal(node: Node) -> tuple[Fraction, int] | None:
    """Value and written significant digits of a decimal literal."""
    if node[0] == "percent":
        inner = _decimal(node[1])
        return None if inner is None else (inner[0] / 100, inner[1])
    negative = node[0] == "neg"
    if negative:
        node = node[1]
    if node[0] != "num" or not node[2]:
        return None
    return (-1 if negative else 1) * Fraction(node[1]), node[2]


def _rounded(a: Node, b: Node, log_base: int) -> Grade | None:
    """The rules for decimals, None where no decimal literal is part of the pair or the values are the same.

    - A terminating number equals a decimal only exactly.
    - A decimal of at least 6 significant digits equals the non-terminating number that rounds to it; with 3 to 5
      digits, or when it is cut off instead of rounded, whether that is enough is for the judge to say.
    - Two decimals of at least 6 digits of which one rounds to the other: for the judge; else they are different.
    """
    x, y = _decimal(a), _decimal(b)
    if x is None and y is None:
        return None
    if x is not None and y is not None:
        if x[0] == y[0]:
            return EXACT
        short, long = (x, y) if x[1] <= y[1] else (y, x)
        if short[1] >= SURE_DIGITS and abs(short[0] - long[0]) * 2 <= _last_place(*short):
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
    place = _last_place(literal, digits)
    if gap >= place or (gap * 2 > place and not cut_off):
        return None
    if terminating:
        return unknown("a rounding of an exact number") if digits >= SURE_DIGITS and gap * 2 <= place else DIFFERENT
    if digits >= SURE_DIGITS and gap * 2 <= place:
        return equal(f"rounded to {digits} digits")
    if gap * 2 <= place or digits >= SURE_DIGITS:
        return unknown("a rounding of few digits")
    return None


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _last_place(value: Fraction, digits: int) -> Fraction:
    """Worth of the last written digit of a decimal with so many significant digits."""
    if not value:
        return Fraction(0)
    exponent = len(str(abs(value.numerator))) - len(str(value.denominator)) - 1
    while Fraction(10) ** (exponent + 1) <= abs(value):
        exponent += 1
    return Fraction(10) ** (exponent - digits + 1)
