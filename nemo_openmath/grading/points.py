"""Values of the symbols at which two functions are compared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

from nemo_openmath.grading.evaluate import Exact
from nemo_openmath.grading.nodes import Node, symbols
from nemo_openmath.grading.scalars import sign_of

BRANCHED_POINTS = 24  # at which functions with branches are compared
_ANALYTIC = frozenset("sin cos tan cot sec csc sinh cosh tanh exp".split())  # noqa: SIM905


def random_value(rng: random.Random) -> Fraction:
    """Return a small value, for exponents become indices of roots; with an odd denominator, for which negative bases
    have powers."""
    return Fraction(rng.randrange(13, 400), rng.randrange(11, 61, 2))


def sample_points(names: list[str], seed: str, branched: bool, landmarks: list[Fraction]) -> Iterator[dict[str, Exact]]:
    """Yield rational values for the symbols: positive and of any sign. For functions with branches they come in all
    combinations of signs, small, large and on either side of each landmark."""
    rng = random.Random(seed)
    if not branched:
        for _ in range(3):
            yield {name: random_value(rng) for name in names}
        for _ in range(2):
            yield {
                name: -random_value(rng) if i == 0 or rng.random() < 0.5 else random_value(rng)
                for i, name in enumerate(names)
            }
        return
    far = 4 * max(landmarks, default=Fraction(1))
    scales = [Fraction(1), Fraction(1, 27), Fraction(27), Fraction(1, 81), far, far * far]
    near = [x for mark in landmarks for x in (mark + Fraction(3, 31), abs(mark - Fraction(3, 31)))]
    for i in range(BRANCHED_POINTS):
        point: dict[str, Exact] = {}
        for k, name in enumerate(names):
            size = scales[(i // 2) % 6] * random_value(rng)
            if near and i >= 8 and rng.random() < 0.5:
                size = rng.choice(near)
            negative = bool(i >> k & 1) if k < 3 else rng.random() < 0.5
            point[name] = -size if negative else size
        yield point


def whole_points(names: list[str], seed: str) -> Iterator[dict[str, Exact]]:
    """Yield whole values for symbols that count: small ones of every remainder, and larger ones."""
    rng = random.Random(seed)
    if len(names) > 50:
        return
    for shift in (0, 1, 2) * 9:
        whole = rng.sample(range(1, 60), len(names))
        yield {name: 2 * value + shift for name, value in zip(names, whole, strict=True)}
    for scale in (7, 100, 100):
        whole = rng.sample(range(60, 120), len(names))
        yield {name: scale * value + i for i, (name, value) in enumerate(zip(names, whole, strict=True))}


def numbers_in(node: Node) -> set[Fraction]:
    """Return the sizes of the numbers that stand in an expression, within reason."""
    if node and node[0] == "num":
        return {min(abs(Fraction(node[1])), Fraction(10**12))}
    numbers: set[Fraction] = set()
    for part in node:
        if isinstance(part, tuple):
            numbers |= numbers_in(part)
    return numbers


def is_branched(node: Node) -> bool:
    """Return whether an expression may be different analytic functions on different parts of the line."""
    match node:
        case ("num" | "sym" | "const", *_):
            return False
        case ("pow", base, exponent):
            if not symbols(base) and symbols(exponent):
                return sign_of(base) != 1 or is_branched(exponent)
            return symbols(node) != set() and (_integer_of(exponent) is None or is_branched(base))
        case ("fn", name, argument, base):
            return symbols(node) != set() and (name not in _ANALYTIC or base is not None or is_branched(argument))
        case ("root" | "fact" | "binom", *_):
            return symbols(node) != set()
    return any(is_branched(part) for part in node if isinstance(part, tuple))


def _integer_of(node: Node) -> int | None:
    match node:
        case ("num", int(value), _):
            return value
        case ("neg", ("num", int(value), _)):
            return -value
    return None
