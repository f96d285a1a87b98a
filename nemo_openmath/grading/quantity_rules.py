"""Numbers with units, ratios, times of day and approximations."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading.evaluate import Evaluator
from nemo_openmath.grading.forms import Approximation, Collection, Form, Ratio, Scalar, TimeOfDay
from nemo_openmath.grading.intervals import Ball, add, from_exact, sign
from nemo_openmath.grading.nodes import Node, symbols
from nemo_openmath.grading.rules import KINDS, Rules, all_of
from nemo_openmath.grading.scalars import sign_of
from nemo_openmath.grading.units import COUNTED, measured


class QuantityRules(Rules):
    """Rules for numbers with units, ratios, times of day and approximations."""

    def _scalars(self, a: Scalar, b: Scalar) -> Grade:
        """Compare two numbers with their units. One unit left out is no difference: the problem asks for it. Two units
        must agree after conversion."""
        x, y, u, v = a.node, b.node, a.unit, b.unit
        if u == v:
            return self.nodes(x, y)
        if u is None or v is None:
            plain, bare, unit = (x, y, v) if u is None else (y, x, u)
            grade = self.nodes(x, y)
            if unit == "percent":
                hundredths = self.nodes(plain, ("percent", bare))
                if grade.is_equal and not hundredths.is_equal and not self._above_one(bare):
                    return unknown("a percentage of at most one against the same number")
                grade = grade if grade.is_equal else hundredths
            if grade.is_equal:
                return equal("same number, one without unit")
            if unit == "percent":
                return grade
            if isinstance(unit, tuple) and unit[0] == (("deg", 1),):
                grade = self.nodes(plain, ("unit", bare, unit[0], unit[1]))
            return grade
        if u == "percent" or v == "percent":
            return not_equal("percentage against a quantity")
        assert isinstance(u, tuple)
        assert isinstance(v, tuple)
        if u[0] == v[0]:
            return self.nodes(_scaled(x, u[1]), _scaled(y, v[1]))
        kinds = {base for dimension in (u[0], v[0]) for base, _ in dimension}
        if kinds == {"degC", "degF"} and u[0][0][1] == v[0][0][1] == 1:
            celsius, other = (x, y) if u[0] == (("degC", 1),) else (y, x)
            fahrenheit: Node = ("add", (("mul", (celsius, ("num", Fraction(9, 5), 0))), ("num", 32, 0)))
            same = self.nodes(fahrenheit, other)
            return unknown("the same temperature in two scales") if same.is_equal else not_equal("temperatures")
        if kinds & {"degC", "degF"} and "deg" in kinds and self.nodes(x, y).is_equal:
            return unknown("degrees of an angle and of a temperature")
        if kinds == {"deg", "rad"}:
            return self.nodes(*(("unit", n, w[0], w[1]) if w[0] == (("deg", 1),) else n for n, w in ((x, u), (y, v))))
        if kinds & COUNTED and self.nodes(x, y).is_equal:
            return unknown("the same number of different things")
        if measured(u[0]) == measured(v[0]):
            return unknown("units without a fixed rate")
        return not_equal("different units")

    def _ratios(self, p: Sequence[Node], q: Sequence[Node]) -> Grade:
        """Compare two ratios: 2:4 is 1:2. A ratio with a part that is zero, or a letter, is only the same ratio."""
        if len(p) != len(q):
            return KINDS
        grade = all_of([self.nodes(("mul", (p[0], q[i])), ("mul", (q[0], p[i]))) for i in range(1, len(p))])
        if all(n == m for n, m in zip(p, q, strict=True)):
            return grade
        if any(not symbols(n) and sign_of(n) == 0 for n in (*p, *q)):
            return unknown("a ratio with zero")
        return grade

    def _times(self, a: Form, b: Form) -> Grade:
        """Compare times of day, which are equal at the same moment.

        Two times without a half of the day may be durations, and where no part is zero ratios. A ratio that may be a
        time equals only its own spelling.
        """
        for x, y in ((a, b), (b, a)):
            if isinstance(x, TimeOfDay) and isinstance(y, Ratio):
                grade = self._ratios([("num", n, 0) for n in x.parts], y.parts) if not x.half else KINDS
                return unknown("a time or a ratio") if grade.verdict is not Verdict.NOT_EQUAL else grade
            if isinstance(x, Collection) and len(x.items) == 1:
                return self.values(x.items[0], y)
        if not isinstance(a, TimeOfDay) or not isinstance(b, TimeOfDay):
            return unknown("a time against another kind of answer")
        if len(a.parts) != len(b.parts):
            return unknown("a time with seconds and one without")
        if a.half and b.half:
            return equal("same time") if _moment(a) == _moment(b) else not_equal("different times")
        if a.half or b.half:
            half, bare = (a, b) if a.half else (b, a)
            if _moment(half) % 43200 != _moment(bare) % 43200:
                return not_equal("different times")
            if 13 <= bare.parts[0] <= 24:
                return equal("same time") if _moment(half) == _moment(bare) else not_equal("different times")
            return unknown("a time without its half of the day")
        if a.parts == b.parts:
            return equal("same time")
        if _moment(a) % 43200 == _moment(b) % 43200:
            return unknown("times half a day apart")
        if self._ratios(*([("num", n, 0) for n in t.parts] for t in (a, b))).is_equal:
            return unknown("two times or two ratios")
        return not_equal("different times")

    def _approximations(self, a: Form, b: Form) -> Grade:
        """Compare a number and its rounding: 80/9, rounded 8.89, is 80/9. What is meant is compared; against the
        rounded number alone nothing is sure."""
        meant = [f.value if isinstance(f, Approximation) else f for f in (a, b)]
        grade = self.values(*meant)
        if grade.verdict is not Verdict.NOT_EQUAL:
            return grade
        rounded = [f.rounded if isinstance(f, Approximation) else (f,) for f in (a, b)]
        close = any(self.values(x, y).verdict is not Verdict.NOT_EQUAL for x in rounded[0] for y in rounded[1])
        return unknown("a rounding of the same number") if close else grade

    def _above_one(self, node: Node) -> bool:
        """Return whether 50 in 50% is clearly no fraction of one already."""
        try:
            value = Evaluator(64, {}, self.log_base).value(node)
            return sign(add(value, from_exact(-1, 64), 64).re) > 0 if isinstance(value, Ball) else value > 1
        except ArithmeticError:
            return False


def _moment(time: TimeOfDay) -> int:
    """Return the seconds since midnight; of a time without its half of the day, as its digits say."""
    hours, minutes, *seconds = time.parts
    if time.half:
        hours = hours % 12 + 12 * (time.half == "p")
    return hours * 3600 + minutes * 60 + sum(seconds)


def _scaled(node: Node, factor: Fraction) -> Node:
    return ("mul", (node, ("num", factor, 0)))
