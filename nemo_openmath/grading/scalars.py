"""Two numbers, compared by enclosures of their values with more and more bits."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from nemo_openmath.core.grader import Grade, equal, not_equal, unknown
from nemo_openmath.grading import intervals as ball
from nemo_openmath.grading.evaluate import Evaluator, Exact, Value
from nemo_openmath.grading.intervals import NotReal, OutOfReach, Undecided, Undefined
from nemo_openmath.grading.nodes import Node

FIRST_PRECISION = 96  # bits: tells most different numbers apart
MAX_PRECISION = 8192
AGREEMENT = 400  # bits of agreement, beyond the heights, that count as equality without a proven bound
EXACT = equal("same value")
DIFFERENT = not_equal("different values")
NO_VALUE = unknown("outside the real domain")
ONE_VALUE = unknown("real on one side only")
OPEN_VALUE = unknown("perhaps real")


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
        evaluator = Evaluator(precision, values, log_base, real=real)
        needed = 4.0 * precision
        try:
            if real:
                first, second = _real_value(evaluator, a), _real_value(evaluator, b)
                if first is None or second is None:
                    return NO_VALUE if first is None and second is None else ONE_VALUE
                x, y = first, second
            else:
                x, y = evaluator.value(a), evaluator.value(b)
            if not isinstance(x, ball.Ball) and not isinstance(y, ball.Ball):
                return EXACT if x == y else DIFFERENT
            left, right = evaluator.ball(x), evaluator.ball(y)
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
        except _RealOrNotError:
            return OPEN_VALUE
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
    if folded(a) == folded(b):
        return EXACT
    return unknown("too close to tell apart")


def folded(node: Node) -> Node:
    """Return the expression with its exact parts evaluated: 9^(9^9) as 9^387420489."""
    if node and node[0] in ("sym", "const", "num"):
        return ("num", node[1], 0) if node[0] == "num" else node
    try:
        value = Evaluator(FIRST_PRECISION).value(node)
        if not isinstance(value, ball.Ball):
            return ("num", value, 0)
    except (ArithmeticError, ValueError, IndexError, TypeError):
        pass
    return tuple(folded(part) if isinstance(part, tuple) else part for part in node)


def written_bits(folded: Node) -> float:
    """Return the bits of the numbers that stand in an expression."""
    if folded and folded[0] == "num":
        value = Fraction(folded[1])
        return ball.log2_int(value.numerator) + ball.log2_int(value.denominator)
    return sum(written_bits(part) for part in folded if isinstance(part, tuple))


class _RealOrNotError(ArithmeticError):
    """Raised where an imaginary part is too close to zero to tell."""


def _real_value(evaluator: Evaluator, node: Node) -> Value | None:
    """Return the value of an expression; None where it is not real. Raises Undefined at a pole."""
    try:
        value = evaluator.value(node)
    except NotReal:
        return None
    if isinstance(value, ball.Ball) and value.im is not None:
        if not ball.contains_zero(value.im):
            return None
        raise Undecided if evaluator.prec <= FIRST_PRECISION else _RealOrNotError
    return value


def sign_of(node: Node) -> int | None:
    """Return the sign of a constant real expression; None where it is not certain."""
    try:
        value = Evaluator(FIRST_PRECISION).value(node)
        if not isinstance(value, ball.Ball):
            return (value > 0) - (value < 0)
        return None if value.im is not None else ball.sign(value.re)
    except ArithmeticError:
        return None
