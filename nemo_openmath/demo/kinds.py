"""The kinds of problems of the tiny world: statement, answer, programs and pencil-and-paper solution of each.

A kind is data: text templates with ``{name}`` places for its parameters, and three small functions (draw parameters,
compute the answer, write the steps of a solution by hand). Statements, claims and programs of a template are inverted
by the same template, so that whoever plays a reader (the stand-in teacher) reads what the writer wrote.

Levels: 1 can be done in the head, 2 and 3 need a program. ``unknown`` stands in a template of a second program for
the number that the first one printed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

Params = tuple[int, ...]


@dataclass(frozen=True)
class ProblemKind:
    """A kind of problem: how it is asked, drawn, solved by hand and by programs."""

    name: str
    names: tuple[str, ...]
    """The names of the parameters."""
    phrasings: tuple[str, ...]
    """Full statements of the same problem."""
    quantity: str
    """What is asked, as a noun phrase."""
    program: str
    """A program that prints the answer at once."""
    stages: tuple[str, ...]
    """Another way: programs one after the other, the later ones written after reading the earlier one's output."""
    wrong: tuple[str, ...]
    """Plausible programs that miscount."""
    draw: Callable[[random.Random, int], Params]
    """(generator, level) -> parameters."""
    answer: Callable[..., int]
    """Parameters -> the answer."""
    steps: Callable[..., str]
    """Parameters -> a solution by hand."""

    def fill(self, template: str, params: Params, **more: object) -> str:
        """Return the template with the parameters in their places."""
        for name, value in [*zip(self.names, params, strict=True), *more.items()]:
            template = template.replace(f"{{{name}}}", str(value))
        return template


def digit_sum(n: int) -> int:
    """Return the sum of the decimal digits of n >= 0."""
    return sum(map(int, str(n)))


def divisors(n: int) -> list[int]:
    """Return the positive divisors of n >= 1 in order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def _power_chain(a: int, b: int, m: int) -> str:
    if b > 5:
        return f"The powers of {a} modulo {m} repeat, and {a}^{b} leaves {pow(a, b, m)}."
    return " ".join(f"{a}^{k} leaves {pow(a, k, m)}." for k in range(1, b + 1))


def _draw_power_mod(rng: random.Random, level: int) -> Params:
    if level == 1:
        return rng.randint(2, 9), rng.randint(2, 4), rng.randint(3, 12)
    top = 99 if level == 2 else 999
    return rng.randint(2, 99), rng.randint(12, top), rng.randint(11, 97 if level == 2 else 999)


POWER_MOD = ProblemKind(
    name="power-mod",
    names=("a", "b", "m"),
    phrasings=(
        "Find the remainder when {a}^{b} is divided by {m}.",
        "What is {a}^{b} modulo {m}?",
        "The number {a}^{b} is divided by {m}. Which remainder is left?",
    ),
    quantity="the remainder when {a}^{b} is divided by {m}",
    program="print(pow({a}, {b}, {m}))",
    stages=("print({a} ** {b} % {m})",),
    wrong=("print({a} * {b} % {m})", "print(pow({a}, {m}, {b}))"),
    draw=_draw_power_mod,
    answer=lambda a, b, m: pow(a, b, m),
    steps=_power_chain,
)


def _draw_multiples(rng: random.Random, level: int) -> Params:
    a, b = rng.sample(range(2, 8 if level == 1 else 30), 2)
    while a % b == 0:  # every multiple of a would be one of b, and the count 0
        a, b = rng.sample(range(2, 8 if level == 1 else 30), 2)
    return {1: rng.randint(10, 40), 2: rng.randint(50, 500), 3: rng.randint(500, 3000)}[level], a, b


MULTIPLES = ProblemKind(
    name="multiples",
    names=("n", "a", "b"),
    phrasings=(
        "How many positive integers up to {n} are divisible by {a} but not by {b}?",
        "Count the integers from 1 to {n} that are multiples of {a} and not multiples of {b}.",
    ),
    quantity="the number of positive integers up to {n} that are divisible by {a} but not by {b}",
    program="print(sum(k % {a} == 0 and k % {b} != 0 for k in range(1, {n} + 1)))",
    stages=("print(len([k for k in range(1, {n} + 1) if k % {a} == 0 and k % {b}]))",),
    wrong=(
        "print(sum(k % {a} == 0 or k % {b} != 0 for k in range(1, {n} + 1)))",
        "print(sum(k % {b} == 0 and k % {a} != 0 for k in range(1, {n} + 1)))",
    ),
    draw=_draw_multiples,
    answer=lambda n, a, b: n // a - n // math.lcm(a, b),
    steps=lambda n, a, b: (
        f"There are {n // a} multiples of {a}. Of them {n // math.lcm(a, b)} are multiples of {math.lcm(a, b)}. "
        f"{n // a} - {n // math.lcm(a, b)} = {n // a - n // math.lcm(a, b)}."
    ),
)


def _draw_two_remainders(rng: random.Random, level: int) -> Params:
    low, high = {1: (2, 6), 2: (7, 30), 3: (20, 60)}[level]
    a, b = rng.sample(range(low, high), 2)
    while math.gcd(a, b) > 1:
        a, b = rng.sample(range(low, high), 2)
    return a, rng.randint(1, a - 1), b, rng.randint(1, b - 1)


def _two_remainders(a: int, r: int, b: int, s: int) -> int:
    return next(k for k in range(r, a * b + 1, a) if k % b == s)


def _two_remainders_steps(a: int, r: int, b: int, s: int) -> str:
    answer = _two_remainders(a, r, b, s)
    tried = list(range(r, answer + 1, a))
    shown = tried if len(tried) <= 5 else [*tried[:3], answer]
    gap = "" if len(tried) <= 5 else " and so on"
    return f"Try {', '.join(map(str, shown))}{gap}. The first that leaves {s} is {answer}."


TWO_REMAINDERS = ProblemKind(
    name="two-remainders",
    names=("a", "r", "b", "s"),
    phrasings=(
        "Find the smallest positive integer that leaves remainder {r} when divided by {a} and {s} when divided by {b}.",
        "A positive integer leaves remainder {r} modulo {a} and remainder {s} modulo {b}. What is its least value?",
    ),
    quantity="the smallest positive integer that leaves remainder {r} when divided by {a} and {s} when divided by {b}",
    program="print(next(k for k in range(1, 9999) if k % {a} == {r} and k % {b} == {s}))",
    stages=("k = 1\nwhile k % {a} != {r} or k % {b} != {s}:\n    k += 1\nprint(k)",),
    wrong=(
        "print(next(k for k in range(1, 9999) if k % {a} == {r} or k % {b} == {s}))",
        "k = 1\nwhile k % {a} != {r} and k % {b} != {s}:\n    k += 1\nprint(k)",
    ),
    draw=_draw_two_remainders,
    answer=_two_remainders,
    steps=_two_remainders_steps,
)


def _draw_digit_count(rng: random.Random, level: int) -> Params:
    if level == 1:
        low = rng.randint(10, 60)
        return low, low + rng.randint(15, 35), rng.randint(3, 9)
    low, high = (rng.randint(100, 400), rng.randint(500, 999)) if level == 2 else (rng.randint(500, 999), 0)
    return low, high or rng.randint(1200, 4000), rng.randint(4, 18)


def _digit_count(a: int, b: int, s: int) -> int:
    return sum(digit_sum(k) == s for k in range(a, b + 1))


def _digit_count_steps(a: int, b: int, s: int) -> str:
    numbers = [k for k in range(a, b + 1) if digit_sum(k) == s]
    if len(numbers) <= 6:
        return f"They are {', '.join(map(str, numbers)) or 'none'}. That makes {len(numbers)}."
    return f"They are {numbers[0]}, {numbers[1]}, {numbers[2]} and so on. That makes {len(numbers)}."


DIGIT_COUNT = ProblemKind(
    name="digit-count",
    names=("a", "b", "s"),
    phrasings=(
        "How many integers from {a} to {b} have digit sum {s}?",
        "Count the integers k with {a} <= k <= {b} whose digits add up to {s}.",
    ),
    quantity="the number of integers from {a} to {b} with digit sum {s}",
    program="print(sum(sum(map(int, str(k))) == {s} for k in range({a}, {b} + 1)))",
    stages=("print(len([k for k in range({a}, {b} + 1) if sum(map(int, str(k))) == {s}]))",),
    wrong=("print(sum(k % 9 == {s} % 9 for k in range({a}, {b} + 1)))",),
    draw=_draw_digit_count,
    answer=_digit_count,
    steps=_digit_count_steps,
)


def _draw_pairs(rng: random.Random, level: int) -> Params:
    high, c = {1: (5, rng.randint(8, 24)), 2: (12, rng.randint(60, 200)), 3: (25, rng.randint(200, 400))}[level]
    a, b = rng.sample(range(2, high), 2)
    while math.gcd(a, b) > 1:
        a, b = rng.sample(range(2, high), 2)
    return a, b, c


def _pairs(a: int, b: int, c: int) -> list[tuple[int, int]]:
    return [(x, (c - a * x) // b) for x in range(1, c // a + 1) if (c - a * x) % b == 0 and c > a * x]


def _pairs_steps(a: int, b: int, c: int) -> str:
    pairs = _pairs(a, b, c)
    shown = ", ".join(f"({x}, {y})" for x, y in pairs[:5])
    more = "" if len(pairs) <= 5 else " and so on"
    return f"The pairs are {shown or 'none'}{more}. That makes {len(pairs)}."


LINEAR_PAIRS = ProblemKind(
    name="linear-pairs",
    names=("a", "b", "c"),
    phrasings=(
        "How many pairs of positive integers (x, y) satisfy {a}x + {b}y = {c}?",
        "Find the number of solutions of {a}x + {b}y = {c} in positive integers x and y.",
    ),
    quantity="the number of pairs of positive integers (x, y) with {a}x + {b}y = {c}",
    program="print(sum({a} * x + {b} * y == {c} for x in range(1, {c}) for y in range(1, {c})))",
    stages=(
        "count = 0\nfor x in range(1, {c}):\n    for y in range(1, {c}):\n"
        "        count += {a} * x + {b} * y == {c}\nprint(count)",
    ),
    wrong=("print({c} // ({a} + {b}))", "print({c} // ({a} * {b}))"),
    draw=_draw_pairs,
    answer=lambda a, b, c: len(_pairs(a, b, c)),
    steps=_pairs_steps,
)


def _draw_power_digits(rng: random.Random, level: int) -> Params:
    if level == 1:
        return rng.randint(2, 15), rng.randint(2, 3)
    return (rng.randint(2, 30), rng.randint(8, 40)) if level == 2 else (rng.randint(2, 99), rng.randint(30, 200))


POWER_DIGITS = ProblemKind(
    name="power-digits",
    names=("a", "b"),
    phrasings=(
        "Find the sum of the digits of {a}^{b}.",
        "What do the decimal digits of {a}^{b} add up to?",
    ),
    quantity="the sum of the digits of {a}^{b}",
    program="print(sum(map(int, str({a} ** {b}))))",
    stages=("print(sum(int(d) for d in str({a} ** {b})))",),
    wrong=("print(sum(map(int, str({a} * {b}))))", "print(len(str({a} ** {b})))"),
    draw=_draw_power_digits,
    answer=lambda a, b: digit_sum(a**b),
    steps=lambda a, b: (
        f"{a}^{b} = {a**b}. The digits add up to {digit_sum(a**b)}."
        if b <= 3
        else f"Written out, the digits of {a}^{b} add up to {digit_sum(a**b)}."
    ),
)


def _draw_divisor_sum(rng: random.Random, level: int) -> Params:
    return ({1: rng.randint(6, 60), 2: rng.randint(100, 999), 3: rng.randint(1000, 4000)}[level],)


def _divisor_sum_steps(n: int) -> str:
    parts = divisors(n)
    if len(parts) <= 8:
        return f"The divisors are {', '.join(map(str, parts))}. Their sum is {sum(parts)}."
    return f"The divisors are {', '.join(map(str, parts[:4]))} and so on. Their sum is {sum(parts)}."


DIVISOR_SUM = ProblemKind(
    name="divisor-sum",
    names=("n",),
    phrasings=(
        "Find the sum of the positive divisors of {n}.",
        "What is the sum of all positive integers that divide {n}?",
    ),
    quantity="the sum of the positive divisors of {n}",
    program="print(sum(d for d in range(1, {n} + 1) if {n} % d == 0))",
    stages=("s = 0\nfor d in range(1, {n} + 1):\n    if {n} % d == 0:\n        s += d\nprint(s)",),
    wrong=(
        "print(sum(d for d in range(1, {n}) if {n} % d == 0))",
        "print(sum({n} % d == 0 for d in range(1, {n} + 1)))",
    ),
    draw=_draw_divisor_sum,
    answer=lambda n: sum(divisors(n)),
    steps=_divisor_sum_steps,
)


def _draw_lcm(rng: random.Random, level: int) -> Params:
    low, high = {1: (2, 9), 2: (10, 40), 3: (30, 99)}[level]
    a, b, c = sorted(rng.sample(range(low, high + 1), 3))
    return a, b, c


LCM = ProblemKind(
    name="lcm",
    names=("a", "b", "c"),
    phrasings=(
        "Find the least common multiple of {a}, {b} and {c}.",
        "What is the smallest positive integer divisible by each of {a}, {b} and {c}?",
    ),
    quantity="the least common multiple of {a}, {b} and {c}",
    program="import math\nprint(math.lcm({a}, {b}, {c}))",
    stages=("from math import lcm\nprint(lcm({a}, {b}, {c}))",),
    wrong=("print({a} * {b} * {c})", "import math\nprint(math.gcd({a}, {b}, {c}))"),
    draw=_draw_lcm,
    answer=lambda a, b, c: math.lcm(a, b, c),
    steps=lambda a, b, c: f"Of {a} and {b} it is {math.lcm(a, b)}. With {c} it becomes {math.lcm(a, b, c)}.",
)


def _draw_divisor_chain(rng: random.Random, level: int) -> Params:
    if level == 1:
        return rng.randint(6, 30), rng.randint(5, 9)
    return {2: rng.randint(40, 400), 3: rng.randint(400, 2000)}[level], rng.randint(11, 99)


DIVISOR_CHAIN = ProblemKind(
    name="divisor-chain",
    names=("n", "m"),
    phrasings=(
        "Let s be the sum of the positive divisors of {n}. Find the remainder when s^s is divided by {m}.",
        "The positive divisors of {n} add up to s. What is s^s modulo {m}?",
    ),
    quantity="the remainder when s^s is divided by {m}, where s is the sum of the positive divisors of {n},",
    program="s = sum(d for d in range(1, {n} + 1) if {n} % d == 0)\nprint(pow(s, s, {m}))",
    stages=("print(sum(d for d in range(1, {n} + 1) if {n} % d == 0))", "print(pow({unknown}, {unknown}, {m}))"),
    wrong=(
        "s = sum(d for d in range(1, {n}) if {n} % d == 0)\nprint(pow(s, s, {m}))",
        "print(sum(d for d in range(1, {n} + 1) if {n} % d == 0) % {m})",
    ),
    draw=_draw_divisor_chain,
    answer=lambda n, m: pow(sum(divisors(n)), sum(divisors(n)), m),
    steps=lambda n, m: (
        f"The sum of the divisors is {sum(divisors(n))}. "
        f"{sum(divisors(n))}^{sum(divisors(n))} leaves {pow(sum(divisors(n)), sum(divisors(n)), m)}."
    ),
)


def _draw_congruence(rng: random.Random, level: int) -> Params:
    while True:
        m = {1: rng.randint(5, 12), 2: rng.randint(30, 120), 3: rng.randint(120, 999)}[level]
        a = rng.randint(2, min(m - 1, 99))
        if math.gcd(a, m) == 1:
            return a, m, rng.randint(1, m - 1)


CONGRUENCE = ProblemKind(
    name="congruence",
    names=("a", "m", "r"),
    phrasings=(
        "Find the smallest positive integer n for which {a}n leaves remainder {r} when divided by {m}.",
        "What is the least n > 0 such that {a}n is congruent to {r} modulo {m}?",
    ),
    quantity="the smallest positive integer n for which {a}n leaves remainder {r} when divided by {m}",
    program="print(next((n for n in range(1, 1000) if {a} * n % {m} == {r}), None))",
    # The natural first try looks at too few numbers and prints None, or the answer when it is small.
    stages=(
        "print(next((n for n in range(1, 50) if {a} * n % {m} == {r}), None))",
        "print(next((n for n in range(50, 1000) if {a} * n % {m} == {r}), None))",
    ),
    wrong=(
        "print(next((n for n in range(1, 1000) if {a} * n % {m} == 1), None))",
        "print(next((n for n in range(1, 1000) if n % {m} == {r}), None))",
    ),
    draw=_draw_congruence,
    answer=lambda a, m, r: r * pow(a, -1, m) % m,
    steps=lambda a, m, r: (
        f"The inverse of {a} modulo {m} is {pow(a, -1, m)}. "
        f"{r} * {pow(a, -1, m)} = {r * pow(a, -1, m)} leaves {r * pow(a, -1, m) % m}."
    ),
)

KINDS: dict[str, ProblemKind] = {
    kind.name: kind
    for kind in (
        POWER_MOD,
        MULTIPLES,
        TWO_REMAINDERS,
        DIGIT_COUNT,
        LINEAR_PAIRS,
        POWER_DIGITS,
        DIVISOR_SUM,
        LCM,
        DIVISOR_CHAIN,
        CONGRUENCE,
    )
}
