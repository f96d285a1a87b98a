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
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from nemo_openmath.core.grader import Grade, equal, not_equal, unknown
from nemo_openmath.grading import intervals as ball
from nemo_openmath.grading.evaluate import Evaluator, Exact, NotReal, OutOfReach, Undecided, Undefined, Value
from nemo_openmath.grading.names import Node
from nemo_openmath.grading.plain import MIN_ROUNDED_DIGITS

FIRST_PRECISION = 96  # bits: tells most different numbers apart
MAX_PRECISION = 8192
AGREEMENT = 400  # bits of agreement, beyond the heights, that count as equality without a proven bound
POINT_AGREEMENT = 160  # the same at the later ones of many random points
SURE_DIGITS = 6  # significant digits from which a correctly rounded decimal stands for a non-terminating number
BRANCHED_POINTS = 24  # at which functions with branches are compared
MIN_BRANCHED_POINTS = 6  # of them that must lie in the domain
MAX_CALLS = 20  # unknown functions of one pair

_CONSTANT = re.compile(r"(?:[Cc]|const|K)(?:_.*)?|k")  # customary names of a constant of integration
_INTEGRATION = re.compile(r"C(?:_.*)?|[cK]_.*|K")  # those that hardly name anything else

EXACT = equal("same value")
DIFFERENT = not_equal("different values")
NO_VALUE = unknown("outside the real domain")
ONE_VALUE = unknown("real on one side only")
OPEN_VALUE = unknown("perhaps real")


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
    if _mentions_any(a, "call") or _mentions_any(b, "call"):
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


def _mentions_any(node: Node, kind: str) -> bool:
    return bool(node) and (node[0] == kind or any(_mentions_any(p, kind) for p in node if isinstance(p, tuple)))


STEPS = frozenset({"floor", "ceil", "sgn"})


def _has_steps(node: Node) -> bool:
    if node and node[0] == "fn" and node[1] in STEPS and symbols(node):
        return True
    return any(_has_steps(part) for part in node if isinstance(part, tuple))


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


class _RealOrNotError(ArithmeticError):
    """An imaginary part that is too close to zero to tell."""


def _real_value(evaluator: Evaluator, node: Node) -> Value | None:
    """The value of an expression, None where it is not real. Raises Undefined at a pole."""
    try:
        value = evaluator.value(node)
    except NotReal:
        return None
    if isinstance(value, ball.Ball) and value.im is not None:
        if not ball.contains_zero(value.im):
            return None
        raise Undecided if evaluator.prec <= FIRST_PRECISION else _RealOrNotError
    return value


def _random(rng: random.Random) -> Fraction:
    """Small, for exponents become indices of roots; with an odd denominator, for which negative bases have powers."""
    return Fraction(rng.randrange(13, 400), rng.randrange(11, 61, 2))


def _points(names: list[str], seed: str, branched: bool, landmarks: list[Fraction]) -> Iterator[dict[str, Exact]]:
    """Rational values for the symbols: positive and of any sign; for functions with branches in all combinations of
    signs, small, large and on either side of each landmark."""
    rng = random.Random(seed)
    if not branched:
        for _ in range(3):
            yield {name: _random(rng) for name in names}
        for _ in range(2):
            yield {
                name: -_random(rng) if i == 0 or rng.random() < 0.5 else _random(rng) for i, name in enumerate(names)
            }
        return
    far = 4 * max(landmarks, default=Fraction(1))
    scales = [Fraction(1), Fraction(1, 27), Fraction(27), Fraction(1, 81), far, far * far]
    near = [x for mark in landmarks for x in (mark + Fraction(3, 31), abs(mark - Fraction(3, 31)))]
    for i in range(BRANCHED_POINTS):
        point: dict[str, Exact] = {}
        for k, name in enumerate(names):
            size = scales[(i // 2) % 6] * _random(rng)
            if near and i >= 8 and rng.random() < 0.5:
                size = rng.choice(near)
            negative = bool(i >> k & 1) if k < 3 else rng.random() < 0.5
            point[name] = -size if negative else size
        yield point


def _whole_points(names: list[str], seed: str) -> Iterator[dict[str, Exact]]:
    """Whole values for symbols that count: small ones of every remainder, and larger ones."""
    rng = random.Random(seed)
    if len(names) > 50:
        return
    for shift in (0, 1, 2) * 9:
        whole = rng.sample(range(1, 60), len(names))
        yield {name: 2 * value + shift for name, value in zip(names, whole, strict=True)}
    for scale in (7, 100, 100):
        whole = rng.sample(range(60, 120), len(names))
        yield {name: scale * value + i for i, (name, value) in enumerate(zip(names, whole, strict=True))}


def _same_function(a: Node, b: Node, names: list[str], log_base: int) -> Grade:
    real = not (_mentions(a, ("const", "i")) or _mentions(b, ("const", "i")))
    branched = _branched(a) or _branched(b)
    counts = _counts(names)
    seed = repr((a, b) if repr(a) < repr(b) else (b, a))
    written = 8 * (_written_bits(_folded(a)) + _written_bits(_folded(b)))
    landmarks = sorted(_numbers(a) | _numbers(b))[:12] if branched else []
    equal_at = different_at = one_sided = 0
    failure = unknown("no point to compare at")
    for i, point in enumerate(_points(names, seed, branched, landmarks)):
        agreement = (AGREEMENT if i < 5 else POINT_AGREEMENT) + written
        grade = same_number(a, b, point, log_base, real=real, agreement=agreement)
        if grade.verdict == "unknown":
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
        for point in _whole_points(names, seed):
            grade = same_number(a, b, point, log_base, real=real, agreement=AGREEMENT + written)
            whole_equal += grade.is_equal
            whole_different += grade.verdict == "not_equal"
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


_ANALYTIC = frozenset("sin cos tan cot sec csc sinh cosh tanh exp".split())  # noqa: SIM905


def _branched(node: Node) -> bool:
    """Whether an expression may be different analytic functions on different parts of the line."""
    match node:
        case ("num" | "sym" | "const", *_):
            return False
        case ("pow", base, exponent):
            if not symbols(base) and symbols(exponent):
                return sign_of(base) != 1 or _branched(exponent)
            return symbols(node) != set() and (_integer_of(exponent) is None or _branched(base))
        case ("fn", name, argument, base):
            return symbols(node) != set() and (name not in _ANALYTIC or base is not None or _branched(argument))
        case ("root" | "fact" | "binom", *_):
            return symbols(node) != set()
    return any(_branched(part) for part in node if isinstance(part, tuple))


def _integer_of(node: Node) -> int | None:
    match node:
        case ("num", int(value), _):
            return value
        case ("neg", ("num", int(value), _)):
            return -value
    return None


def _numbers(node: Node) -> set[Fraction]:
    """Sizes of the numbers that stand in an expression, within reason."""
    if node and node[0] == "num":
        return {min(abs(Fraction(node[1])), Fraction(10**12))}
    found: set[Fraction] = set()
    for part in node:
        if isinstance(part, tuple):
            found |= _numbers(part)
    return found


def _counts(names: list[str]) -> bool:
    return any(map(_counting, names))


def _counting(name: str) -> bool:
    return name[0] in "nkmjpq"


def _differ(a: Node, b: Node) -> Grade:
    """Two functions differ: the grade of the answers."""
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
    """Whether two angles such as pi/4 + k pi and 5 pi/4 - k pi run through the same values for all whole k."""
    if not _counting(name) or not all(_mentions(n, ("const", "pi")) or _mentions_any(n, "unit") for n in (a, b)):
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
    """x^2 + C and x^2 + 1 + C are one family; sin x + C and cos x + C are two, for their difference is no constant."""
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
                values.append({n: _random(rng) for n in names})
            for point in values[1:]:
                here, there = (
                    put_all(difference, {n: ("num", v, 0) for n, v in p.items()}) for p in (values[0], point)
                )
                if same_number(here, there, {}, real=True).verdict == "not_equal":
                    return not_equal("different families of functions")
            return open_
    if any(map(_INTEGRATION.fullmatch, constants)):
        return open_
    return not_equal("different functions of their symbols")


def put(node: Node, name: str, value: Node) -> Node:
    """The expression with a value in the place of a symbol."""
    return put_all(node, {name: value})


def put_all(node: Node, values: Mapping[str, Node]) -> Node:
    """The expression with values in the place of symbols."""
    if node and node[0] == "sym":
        return values.get(node[1], node)
    return tuple(put_all(part, values) if isinstance(part, tuple) else part for part in node)


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


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def last_place(value: Fraction, digits: int) -> Fraction:
    """Worth of the last written digit of a decimal with so many significant digits."""
    if not value:
        return Fraction(0)
    exponent = len(str(abs(value.numerator))) - len(str(value.denominator)) - 1
    while Fraction(10) ** (exponent + 1) <= abs(value):
        exponent += 1
    return Fraction(10) ** (exponent - digits + 1)
