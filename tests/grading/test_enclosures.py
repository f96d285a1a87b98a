"""Enclosures contain the number: two that are apart are the proof of "different"."""

from __future__ import annotations

import random
from fractions import Fraction

import mpmath
from mpmath import mp
from mpmath.libmp import mpf_le

from nemo_openmath.grading import intervals
from nemo_openmath.grading.evaluate import _FUNCTIONS, Evaluator
from nemo_openmath.grading.nodes import Node

ARC = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log"}


def test_enclosures_contain_the_value_at_ten_times_the_precision() -> None:
    rng = random.Random(5)
    outside = []
    with mp.workprec(2000):
        for _ in range(150):
            x = (
                Fraction(rng.randrange(1, 4000), rng.randrange(1, 61))
                * rng.choice((1, -1))
                / rng.choice((1, 100, 4000))
            )
            y = Fraction(rng.randrange(1, 400), rng.randrange(13, 61))
            for name in (*_FUNCTIONS, "ln"):
                node: Node = ("num", x, 0)
                point = mp.mpf(x.numerator) / x.denominator
                if not name.startswith("arc") and rng.random() < 0.3:
                    node = ("add", (node, ("mul", (("num", y, 0), ("const", "i")))))
                    point = mp.mpc(point, mp.mpf(y.numerator) / y.denominator)
                if name in ("arcsin", "arccos") and abs(x) > 1:
                    continue
                value = Evaluator(rng.choice((64, 96, 192))).value(("fn", name, node, None))
                if not isinstance(value, intervals.Ball):
                    continue
                exact = getattr(mpmath, ARC.get(name, name))(point)
                for (low, high), part in (
                    (value.re, mp.mpf(exact.real)._mpf_),
                    (value.im or intervals.ZERO, mp.mpf(exact.imag)._mpf_),
                ):
                    if not (mpf_le(low, part) and mpf_le(part, high)):
                        outside.append((name, x))
    assert not outside
