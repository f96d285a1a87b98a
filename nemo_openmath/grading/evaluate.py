"""The value of an expression: exact (int, Fraction) wherever it is rational, a certified enclosure elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from nemo_openmath.grading import intervals as ball
from nemo_openmath.grading.intervals import Ball, NotReal, OutOfReach, Undecided, Undefined
from nemo_openmath.grading.nodes import Node

Exact = int | Fraction
Value = Exact | Ball

MAX_EXACT_BITS = 200_000  # of an exact integer: 2004! has 19,000
MAX_FACTORIAL = 15_000


class Evaluator:
    """Evaluates nodes at one precision (bits) with values for the symbols.

    After a run ``degree`` is the product of the degrees of the radicals met, and ``transcendental`` says whether
    something without a proven zero bound (pi, e, logarithms, sines) took part.
    """

    def __init__(self, prec: int, symbols: Mapping[str, Exact] | None = None, log_base: int = 0, *, real: bool = False):
        self.prec = prec
        self.symbols = symbols or {}
        self.log_base = log_base  # what a bare \log means: 0 natural, else its base
        self.real = real  # powers with a letter in the exponent are those of positive bases
        self.radicals: dict[Node, int] = {}
        self.transcendental = False

    @property
    def degree(self) -> float:
        return math.prod(self.radicals.values()) if len(self.radicals) < 64 else math.inf

    def ball(self, value: Value) -> Ball:
        return value if isinstance(value, Ball) else ball.from_exact(value, self.prec)

    def value(self, node: Node) -> Value:
        """Return the value of a node: exact where it is rational, else an enclosure.

        Raises Undecided, Undefined, NotReal or OutOfReach.
        """
        match node:
            case ("num", value, _):
                return value
            case ("sym", name):
                if name not in self.symbols:
                    raise OutOfReach(f"symbol {name}")
                return self.symbols[name]
            case ("const", name):
                return self._constant(name)
            case ("add", nodes):
                return self._sum([self.value(n) for n in nodes])
            case ("neg", a):
                return self._negate(self.value(a))
            case ("mul", nodes):
                product = self.value(nodes[0])
                for n in nodes[1:]:
                    product = self._multiply(product, self.value(n))
                return product
            case ("div", a, b):
                return self._divide(self.value(a), self.value(b))
            case ("pow", ("const", "e"), b) if not isinstance(exponent := self.value(b), int):
                self.transcendental = True
                return ball.exp(self.ball(exponent), self.prec)
            case ("pow", a, b):
                base, exponent = self.value(a), self.value(b)
                negative = self.real and isinstance(exponent, Fraction) and not isinstance(base, Ball) and base < 0
                if negative and b[0] not in ("div", "num"):  # x^{1/3} is a root, x^n is none
                    raise NotReal("power of a negative base")
                return self._power(base, exponent, node)
            case ("root", a, n):
                index = self.value(n)
                if not isinstance(index, int) or not 2 <= index <= 1000:
                    raise OutOfReach("root index")
                return self._root(self.value(a), index, node)
            case ("fact", a, step):
                return self._factorial(self.value(a), step)
            case ("binom", n, k):
                return self._binomial(self.value(n), self.value(k))
            case ("fn", name, argument, base):
                return self._function(name, argument, base)
            case ("percent", a):
                return self._divide(self.value(a), 100)
            case ("unit", a, (("deg", 1),), _):  # inside an expression a degree is an angle
                return self._divide(self._multiply(self.value(a), self._constant("pi")), 180)
        raise OutOfReach(str(node[0]))

    def _constant(self, name: str) -> Value:
        if name == "i":
            self.radicals["const", "i"] = 2
            return ball.imaginary_unit()
        self.transcendental = True
        if name == "pi":
            return ball.pi(self.prec)
        if name == "e":
            return ball.exp(ball.from_exact(1, self.prec), self.prec)
        raise OutOfReach(name)

    def _sum(self, values: list[Value]) -> Value:
        exact: Exact = 0
        rest: Ball | None = None
        for value in values:
            if isinstance(value, Ball):
                rest = value if rest is None else ball.add(rest, value, self.prec)
            else:
                exact += value
        if rest is None:
            return _bounded(exact)
        return ball.add(rest, self.ball(exact), self.prec) if exact else rest

    def _negate(self, value: Value) -> Value:
        return ball.negate(value) if isinstance(value, Ball) else -value

    def _multiply(self, a: Value, b: Value) -> Value:
        if isinstance(a, Ball) or isinstance(b, Ball):
            if 0 in (a, b):
                return 0
            return ball.multiply(self.ball(a), self.ball(b), self.prec)
        return _bounded(a * b)

    def _divide(self, a: Value, b: Value) -> Value:
        if isinstance(b, Ball):
            return ball.divide(self.ball(a), b, self.prec)
        if b == 0:
            raise Undefined("division by zero")
        if isinstance(a, Ball):
            return ball.divide(a, self.ball(b), self.prec)
        quotient = Fraction(a) / b
        return quotient.numerator if quotient.denominator == 1 else quotient

    def _power(self, a: Value, b: Value, key: Node) -> Value:
        if isinstance(b, Fraction) and b.denominator == 1:
            b = b.numerator
        if isinstance(b, int):
            return self._integer_power(a, b)
        if a == 0:
            if isinstance(b, Fraction) and b > 0:
                return 0
            raise Undefined("power of zero")
        if isinstance(b, Fraction) and b.denominator <= 1000:
            return self._integer_power(self._root(a, b.denominator, key), b.numerator)
        self.transcendental = True
        exponent = ball.multiply(ball.log(self.ball(a), self.prec), self.ball(b), self.prec)
        return ball.exp(exponent, self.prec)

    def _integer_power(self, a: Value, n: int) -> Value:
        if n == 0:
            if a == 0:
                raise Undefined("0^0")
            return 1
        if n < 0:
            return self._divide(1, self._integer_power(a, -n))
        if isinstance(a, Ball):
            return ball.power_int(a, n, self.prec)
        if a in (0, 1):
            return a
        if a == -1:
            return 1 if n % 2 == 0 else -1
        bits = _bits(a) * n
        if bits <= MAX_EXACT_BITS:
            return a**n
        return ball.power_int(self.ball(a), n, self.prec)

    def _root(self, a: Value, k: int, key: Node) -> Value:
        if not isinstance(a, Ball):
            if a == 0:
                return 0
            top, bottom = _exact_root(abs(_numerator(a)), k), _exact_root(_denominator(a), k)
            if top is not None and bottom is not None and (a > 0 or k % 2):
                size = Fraction(top, bottom)
                value: Exact = size.numerator if size.denominator == 1 else size
                return value if a > 0 else -value
        self.radicals[key] = k
        return ball.root(self.ball(a), k, self.prec)

    def _factorial(self, a: Value, step: int) -> Value:
        n = self._natural(a)
        if n > MAX_FACTORIAL:
            raise OutOfReach("factorial")
        return math.factorial(n) if step == 1 else math.prod(range(n, 0, -2))

    def _natural(self, a: Value) -> int:
        if isinstance(a, Fraction) and a.denominator == 1:
            a = a.numerator
        if not isinstance(a, int):
            raise OutOfReach("not a whole number")
        if a < 0:
            raise Undefined("factorial of a negative number")
        return a

    def _binomial(self, n: Value, k: Value) -> Value:
        n, k = self._natural(n), self._natural(k)
        if min(k, n - k) * max(1, n.bit_length()) > MAX_EXACT_BITS:
            raise OutOfReach("binomial")
        return math.comb(n, k)

    def _function(self, name: str, argument: Node, base: Node | None) -> Value:
        if name in ("gcd", "lcm", "max", "min"):
            return self._of_many(name, argument)
        if name == "det":
            return self._determinant(argument)
        x = self.value(argument)
        if name in ("ln", "log", "lg"):
            return self._logarithm(name, x, base)
        if base is not None:
            raise OutOfReach(name)
        if name == "abs":
            if isinstance(x, Ball) and x.im is not None:
                self.radicals["abs", argument] = 2
            return ball.absolute(x, self.prec) if isinstance(x, Ball) else max(x, -x)
        if name == "floor":
            return ball.floor(x) if isinstance(x, Ball) else math.floor(x)
        if name == "ceil":
            return ball.floor(x) + 1 if isinstance(x, Ball) else math.ceil(x)
        if name == "sgn":
            if isinstance(x, Ball) and x.im is not None:
                raise NotReal("sign of a complex number")
            return ball.sign(self.ball(x).re)
        if x == 0:
            if name in ("sin", "tan", "arcsin", "arctan", "sinh", "tanh"):
                return 0
            if name in ("cos", "exp", "cosh", "sec"):
                return 1
        self.transcendental = True
        function = _FUNCTIONS.get(name)
        if function is None:
            raise OutOfReach(name)
        return function(self.ball(x), self.prec)

    def _of_many(self, name: str, argument: Node) -> Value:
        nodes = argument[3] if argument[0] == "seq" else (argument,)
        values = [self.value(n) for n in nodes]
        if any(isinstance(v, Ball) for v in values):
            raise OutOfReach(name)
        if name in ("max", "min"):
            numbers: list[Exact] = [v for v in values if not isinstance(v, Ball)]
            return max(numbers) if name == "max" else min(numbers)
        naturals = [self._natural(v) for v in values]
        return math.gcd(*naturals) if name == "gcd" else math.lcm(*naturals)

    def _determinant(self, argument: Node) -> Value:
        if argument[0] != "matrix":
            raise OutOfReach("determinant")
        rows = [[self.value(n) for n in row] for row in argument[1]]
        if len(rows) != len(rows[0]) or len(rows) > 6:
            raise OutOfReach("determinant")
        return self._laplace(rows)

    def _laplace(self, rows: list[list[Value]]) -> Value:
        if len(rows) == 1:
            return rows[0][0]
        terms: list[Value] = []
        for j, entry in enumerate(rows[0]):
            minor = self._laplace([row[:j] + row[j + 1 :] for row in rows[1:]])
            term = self._multiply(entry, minor)
            terms.append(self._negate(term) if j % 2 else term)
        return self._sum(terms)

    def _logarithm(self, name: str, x: Value, base: Node | None) -> Value:
        if base is not None:
            b: Value = self.value(base)
        elif name == "lg":
            b = 10
        else:
            b = self.log_base if name == "log" else 0
        if x == 1:
            return 0
        if isinstance(x, int) and isinstance(b, int) and x > 1 and b > 1 and x.bit_length() < 10_000:
            power, rest = 0, x
            while rest % b == 0:
                rest, power = rest // b, power + 1
            if rest == 1:
                return power
        self.transcendental = True
        top = ball.log(self.ball(x), self.prec)
        return top if b == 0 else ball.divide(top, ball.log(self.ball(b), self.prec), self.prec)


def _bounded(value: Exact) -> Exact:
    if isinstance(value, Fraction):
        if value.denominator == 1:
            value = value.numerator
        elif value.denominator.bit_length() + value.numerator.bit_length() > 4 * MAX_EXACT_BITS:
            raise OutOfReach("too large")
    if isinstance(value, int) and value.bit_length() > 4 * MAX_EXACT_BITS:
        raise OutOfReach("too large")
    return value


def _numerator(a: Exact) -> int:
    return a if isinstance(a, int) else a.numerator


def _denominator(a: Exact) -> int:
    return 1 if isinstance(a, int) else a.denominator


def _bits(a: Exact) -> int:
    return max(_numerator(a).bit_length(), _denominator(a).bit_length())


def _exact_root(n: int, k: int) -> int | None:
    """Return the integer k-th root of n >= 0; None where there is none."""
    if k == 2:
        r = math.isqrt(n)
        return r if r * r == n else None
    if n < 2:
        return n
    if n.bit_length() > 20_000:
        return None
    r = 1 << -(-n.bit_length() // k)
    while True:  # Newton from above
        s = ((k - 1) * r + n // r ** (k - 1)) // k
        if s >= r:
            return r if r**k == n else None
        r = s


def _one(prec: int) -> Ball:
    return ball.from_exact(1, prec)


def _over(f: Callable[[Ball, int], Ball]) -> Callable[[Ball, int], Ball]:
    return lambda x, prec: ball.divide(_one(prec), f(x, prec), prec)


def _cos(x: Ball, prec: int) -> Ball:
    return ball.cos_sin(x, prec)[0]


def _sin(x: Ball, prec: int) -> Ball:
    return ball.cos_sin(x, prec)[1]


def _tan(x: Ball, prec: int) -> Ball:
    c, s = ball.cos_sin(x, prec)
    return ball.divide(s, c, prec)


def _cot(x: Ball, prec: int) -> Ball:
    c, s = ball.cos_sin(x, prec)
    return ball.divide(c, s, prec)


def _arctan(x: Ball, prec: int) -> Ball:
    return ball.atan2(x, _one(prec), prec)


def _cathetus(x: Ball, prec: int) -> Ball:
    """Return sqrt(1 - x^2)."""
    square = ball.add(_one(prec), ball.negate(ball.power_int(x, 2, prec)), prec)
    return ball.root(square, 2, prec)


def _arcsin(x: Ball, prec: int) -> Ball:
    return ball.atan2(x, _cathetus(x, prec), prec)


def _arccos(x: Ball, prec: int) -> Ball:
    return ball.atan2(_cathetus(x, prec), x, prec)


def _sinh(x: Ball, prec: int) -> Ball:
    difference = ball.add(ball.exp(x, prec), ball.negate(ball.exp(ball.negate(x), prec)), prec)
    return ball.divide(difference, ball.from_exact(2, prec), prec)


def _cosh(x: Ball, prec: int) -> Ball:
    total = ball.add(ball.exp(x, prec), ball.exp(ball.negate(x), prec), prec)
    return ball.divide(total, ball.from_exact(2, prec), prec)


def _tanh(x: Ball, prec: int) -> Ball:
    return ball.divide(_sinh(x, prec), _cosh(x, prec), prec)


_FUNCTIONS: dict[str, Callable[[Ball, int], Ball]] = {
    "sin": _sin,
    "cos": _cos,
    "tan": _tan,
    "cot": _cot,
    "sec": _over(_cos),
    "csc": _over(_sin),
    "arcsin": _arcsin,
    "arccos": _arccos,
    "arctan": _arctan,
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _tanh,
    "exp": ball.exp,
}

__all__ = ["Ball", "Evaluator", "Exact", "NotReal", "OutOfReach", "Undecided", "Undefined", "Value"]
