"""Intervals, their unions, and lines without points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

from nemo_openmath.core.grader import Grade, not_equal, unknown
from nemo_openmath.grading.evaluate import Evaluator
from nemo_openmath.grading.forms import INFINITY, MINUS_INFINITY, Collection, Form, Interval, Region, Scalar, Without
from nemo_openmath.grading.intervals import Ball, OutOfReach, midpoint
from nemo_openmath.grading.nodes import Node, symbols
from nemo_openmath.grading.rules import Rules, all_of


class RegionRules(Rules):
    """Rules for intervals and unions of them."""

    def _holes(self, f: Form) -> Form:
        """Return the line without finitely many points as a region; any other form as it is."""
        line = (Interval(MINUS_INFINITY, False, INFINITY, False),)
        if not (isinstance(f, Without) and isinstance(f.whole, Region) and f.whole.intervals == line):
            return f
        points = f.removed.items if isinstance(f.removed, Collection) else ()
        if not points or not all(isinstance(p, Scalar) and p.unit is None and not symbols(p.node) for p in points):
            return f
        try:
            places = {self._place(p.node): p.node for p in points if isinstance(p, Scalar)}
        except ArithmeticError:
            return f
        ends = [MINUS_INFINITY, *(places[place] for place in sorted(places)), INFINITY]
        return Region(tuple(Interval(a, False, b, False) for a, b in itertools.pairwise(ends)), f.name)

    def _regions(self, a: Region, b: Region) -> Grade:
        """Compare two unions of intervals, each as its disjoint parts from left to right."""
        xs, ys = self._merged(a.intervals), self._merged(b.intervals)
        if xs is None or ys is None:
            return unknown("ends of intervals that are no real numbers")
        if len(xs) != len(ys):
            return not_equal("different numbers of intervals")
        return all_of([self._intervals(x, y) for x, y in zip(xs, ys, strict=True)])

    def _merged(self, intervals: Sequence[Interval]) -> list[Interval] | None:
        """Return the intervals from left to right, those that overlap or touch made one; None where an end is no real
        number."""
        if len(intervals) == 1:
            return list(intervals)
        try:
            ends = [(self._place(i.low), self._place(i.high)) for i in intervals]
        except ArithmeticError:
            return None
        merged: list[Interval] = []
        reach: float | Fraction = 0
        for (low, high), i in sorted(zip(ends, intervals, strict=True), key=lambda pair: pair[0]):
            last = merged[-1] if merged else None
            if last is None or low > reach or (low == reach and not (i.low_closed or last.high_closed)):
                merged.append(i)
                reach = high
                continue
            start_closed = last.low_closed or (i.low_closed and self._place(last.low) == low)
            if high > reach:
                merged[-1], reach = Interval(last.low, start_closed, i.high, i.high_closed), high
            else:
                end_closed = last.high_closed or (i.high_closed and high == reach)
                merged[-1] = Interval(last.low, start_closed, last.high, end_closed)
        return merged

    def _place(self, node: Node) -> float | Fraction:
        """Return where an end lies, exactly or to 100 bits. Equal ends have equal places."""
        if node in (INFINITY, MINUS_INFINITY):
            return float("inf") if node == INFINITY else float("-inf")
        value = Evaluator(192, {}, self.log_base).value(node)
        if not isinstance(value, Ball):
            return Fraction(value)
        if value.im is not None:
            raise OutOfReach("complex end")
        return Fraction(round(midpoint(value.re) * (1 << 100)), 1 << 100)

    def _intervals(self, a: Interval, b: Interval) -> Grade:
        ends = all_of([self.nodes(a.low, b.low), self.nodes(a.high, b.high)])
        if ends.is_equal and (a.low_closed, a.high_closed) != (b.low_closed, b.high_closed):
            low = a.low_closed == b.low_closed or a.low == MINUS_INFINITY
            high = a.high_closed == b.high_closed or a.high == INFINITY
            return ends if low and high else not_equal("open and closed ends")
        return ends
