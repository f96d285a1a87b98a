"""Are two answers, as forms, the same answer?

Every rule that is a convention and not mathematics is stated where it is applied. Where custom leaves both verdicts
open (is a list ordered? is ``[1, 2]`` an interval?) the grade is unknown.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading import numeric
from nemo_openmath.grading.equations import compare_relations, pairs, proportional, solutions
from nemo_openmath.grading.evaluate import Evaluator
from nemo_openmath.grading.forms import (
    INFINITY,
    MINUS_INFINITY,
    ZERO,
    Approximation,
    Assignment,
    Collection,
    Congruence,
    Empty,
    Form,
    Interval,
    Matrix,
    Ratio,
    Region,
    Relation,
    Scalar,
    TimeOfDay,
    Tuple,
    Without,
    as_region,
)
from nemo_openmath.grading.intervals import Ball, OutOfReach, add, from_exact, midpoint, sign
from nemo_openmath.grading.names import DOTS, Node
from nemo_openmath.grading.numeric import symbols
from nemo_openmath.grading.units import COUNTED, measured

_FUNCTION = re.compile(r"([A-Za-z]+)\(([A-Za-z]+)\)")
_LETTER = re.compile(r"[A-Za-z](?:_\w+)?'*|[a-z]{2,}(?:_\w+)?'*")  # a name that stands for a number: y, x_1, theta
_SUMMANDS = frozenset("abcdkmnpqrstABCDMNPQRST")
MAX_PAIRS = 2500  # comparisons of members of two collections
KINDS = not_equal("different kinds of answer")


def all_of(grades: Sequence[Grade]) -> Grade:
    """Equal if all are, not equal if one is not, else unknown."""
    for wanted in (Verdict.NOT_EQUAL, Verdict.UNKNOWN):
        for grade in grades:
            if grade.verdict is wanted:
                return grade
    return grades[0] if len(grades) == 1 else equal("all parts are equal")


class Comparer:
    r"""Compares forms. ``log_base``: what a bare \log means, 0 for the natural one."""

    def __init__(self, log_base: int = 0):
        self.log_base = log_base

    def forms(self, a: Form, b: Form) -> Grade:
        a, b = self._holes(a), self._holes(_same_argument(a, b))
        first, second = getattr(a, "name", None), getattr(b, "name", None)
        if first and second and first != second:
            if isinstance(a, Scalar) and isinstance(b, Scalar) and (symbols(a.node) or symbols(b.node)):
                return self._relations(a, b)
            grade = self._values(a, b)
            both = f"{first} and of {second}"
            return unknown(f"the same value of {both}") if grade.is_equal else unknown(f"values of {both}")
        return self._values(a, b)

    def nodes(self, a: Node, b: Node) -> Grade:
        infinite = [n in (INFINITY, MINUS_INFINITY) for n in (a, b)]
        if any(infinite):
            if all(infinite):
                return equal("infinite") if a == b else not_equal("infinities of different sign")
            other = b if infinite[0] else a
            return (
                unknown("an expression with infinity")
                if _mentions_infinity(other)
                else not_equal("infinite and finite")
            )
        return numeric.same(a, b, self.log_base)

    def _values(self, a: Form, b: Form) -> Grade:
        grade = self._kinds(a, b)
        if grade is KINDS and (_has_letters(a) or _has_letters(b)):
            return unknown("another kind of answer, with letters")
        return grade

    def _kinds(self, a: Form, b: Form) -> Grade:
        if isinstance(a, Scalar) and isinstance(b, Scalar):
            return self._scalars(a, b)
        if _elided(a) or _elided(b):
            return self._elided_lists(a, b)
        if isinstance(a, Approximation) or isinstance(b, Approximation):
            return self._approximations(a, b)
        if isinstance(a, TimeOfDay) or isinstance(b, TimeOfDay):
            return self._times(a, b)
        if isinstance(a, Relation) or isinstance(b, Relation):
            return self._relations(a, b)
        regions = as_region(a), as_region(b)
        if (isinstance(a, Region) or isinstance(b, Region)) and regions[0] is not None and regions[1] is not None:
            return self._regions(regions[0], regions[1])
        for x, y in ((a, b), (b, a)):
            match x, y:
                case Collection(), Collection():
                    return self._collections(x, y)
                case Collection(items=(only,)), Scalar() | Tuple():
                    return self._values(only, y)
                case Tuple(), Tuple():
                    return self._tuples(x, y)
                case Collection(), Tuple():
                    return self._collection_with_tuple(x, y)
                case Assignment(), Assignment():
                    return self._assignments(x, y)
                case Assignment(), Tuple(items=items) | Collection(items=items):
                    if y.name and y.name != "(" + ",".join(sorted(name for name, _ in x.values)) + ")":
                        return unknown("several names against one")
                    grade = self._assignment_with_values(x, items)
                    if not grade.is_equal and any(isinstance(value, Collection) for _, value in x.values):
                        return unknown("several values of a name")
                    return grade
                case Assignment(), _:
                    return unknown("several names against one value")
                case Matrix(), Matrix():
                    return self._matrices(x, y)
                case Matrix(), Tuple(items=items, opening="[") if (rows := _rows(items)) is not None:
                    return self._matrices(x, Matrix(rows))
                case Matrix(), Tuple(items=items) | Collection(items=items, braces=False):
                    vector = [n for row in x.rows for n in row]
                    if 1 not in (len(x.rows), len(x.rows[0])) or len(vector) != len(items):
                        return KINDS
                    return all_of([self._values(Scalar(n), i) for n, i in zip(vector, items, strict=True)])
                case Matrix(), Scalar(node=("num", 0, _)) if all(
                    numeric.sign_of(n) == 0 for row in x.rows for n in row
                ):
                    return unknown("a matrix of zeros and zero")
                case Matrix(rows=((_,), (_,))), Scalar():
                    return unknown("a column or a binomial coefficient")
                case Congruence(), Congruence():
                    return self._congruences(x, y)
                case Congruence(), _:
                    return unknown("a residue class against a value")
                case Ratio(), Ratio():
                    return self._ratios(x.parts, y.parts)
                case Ratio(parts=(p, q)), Scalar(unit=None):
                    grade = self.nodes(("div", p, q), y.node)
                    return grade if grade.is_equal else unknown("a ratio against a number")
                case Ratio(), _:
                    return unknown("a ratio against another kind of answer")
                case Without(), Without():
                    return all_of([self._values(x.whole, y.whole), self._values(x.removed, y.removed)])
                case Without(), _:
                    return unknown("a set difference against another kind of answer")
                case Empty(), Empty():
                    return equal("both empty")
        return KINDS

    def _scalars(self, a: Scalar, b: Scalar) -> Grade:
        """One unit left out is no difference: the problem asks for it. Two units must agree after conversion."""
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
        """2:4 is 1:2; a ratio with a part that is zero, or a letter, is only the same ratio."""
        if len(p) != len(q):
            return KINDS
        grade = all_of([self.nodes(("mul", (p[0], q[i])), ("mul", (q[0], p[i]))) for i in range(1, len(p))])
        if all(n == m for n, m in zip(p, q, strict=True)):
            return grade
        if any(not symbols(n) and numeric.sign_of(n) == 0 for n in (*p, *q)):
            return unknown("a ratio with zero")
        return grade

    def _times(self, a: Form, b: Form) -> Grade:
        """Times of day are equal at the same moment; two times without a half of the day may be durations, and where
        no part is zero ratios. A ratio that may be a time equals only its own spelling."""
        for x, y in ((a, b), (b, a)):
            if isinstance(x, TimeOfDay) and isinstance(y, Ratio):
                grade = self._ratios([("num", n, 0) for n in x.parts], y.parts) if not x.half else KINDS
                return unknown("a time or a ratio") if grade.verdict is not Verdict.NOT_EQUAL else grade
            if isinstance(x, Collection) and len(x.items) == 1:
                return self._values(x.items[0], y)
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
        """80/9, rounded 8.89, is 80/9: what is meant is compared; against the rounded number alone nothing is sure."""
        meant = [f.value if isinstance(f, Approximation) else f for f in (a, b)]
        grade = self._values(*meant)
        if grade.verdict is not Verdict.NOT_EQUAL:
            return grade
        rounded = [f.rounded if isinstance(f, Approximation) else (f,) for f in (a, b)]
        close = any(self._values(x, y).verdict is not Verdict.NOT_EQUAL for x in rounded[0] for y in rounded[1])
        return unknown("a rounding of the same number") if close else grade

    def _above_one(self, node: Node) -> bool:
        """Whether 50 in 50% is clearly no fraction of one already."""
        try:
            value = Evaluator(64, {}, self.log_base).value(node)
            return sign(add(value, from_exact(-1, 64), 64).re) > 0 if isinstance(value, Ball) else value > 1
        except ArithmeticError:
            return False

    def _collections(self, a: Collection, b: Collection) -> Grade:
        xs, ys = a.items, b.items
        if len(xs) == len(ys) and xs == ys:
            return equal("same values")
        if len(xs) * len(ys) > MAX_PAIRS:
            return unknown("too many values to match")
        grades = [[self._values(x, y) for y in ys] for x in xs]
        lists = not (a.braces and b.braces)
        if lists and len(xs) == len(ys) and all(grades[i][i].is_equal for i in range(len(xs))):
            return equal("same values")
        rows_ok = [_best(row) for row in grades]
        columns_ok = [_best(column) for column in zip(*grades, strict=True)]
        verdict = all_of([*rows_ok, *columns_ok])
        if not verdict.is_equal:
            return verdict
        if not lists:
            return equal("same values")
        if a.braces or b.braces:
            return equal("same values") if len(xs) == len(ys) else unknown("values are repeated")
        if not _pair_up(grades):
            return not_equal("different numbers of values")
        if self._repeats(xs):
            # A list with repetitions is a sequence: its order may matter.
            return unknown("the same values in another order, with repetitions")
        return equal("same values")

    def _elided_lists(self, a: Form, b: Form) -> Grade:
        """1, 3, ..., 99 equals itself; what else its dots stand for is for a reader."""
        if isinstance(a, Collection | Tuple) and type(a) is type(b) and len(a.items) == len(b.items):
            grades = [self._values(x, y) for x, y in zip(a.items, b.items, strict=True)]
            if all(grade.is_equal for grade in grades):
                return equal("same values around the dots")
        return unknown("dots that stand for values")

    def _holes(self, f: Form) -> Form:
        """The line without finitely many points, as a region."""
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

    def _repeats(self, items: tuple[Form, ...]) -> bool:
        return any(self._values(x, y).is_equal for i, x in enumerate(items) for y in items[:i])

    def _tuples(self, a: Tuple, b: Tuple) -> Grade:
        if len(a.items) != len(b.items):
            return not_equal("different lengths")
        grade = all_of([self._values(x, y) for x, y in zip(a.items, b.items, strict=True)])
        if not grade.is_equal:
            return grade
        if len(a.items) > 2:
            fitting = all(t.opening + t.closing in ("()", "[]", "<()>") for t in (a, b))
            return grade if fitting else unknown("brackets that do not match")
        ends = [(t.opening.replace("<(", "("), t.closing.replace(")>", ")")) for t in (a, b)]
        if ends[0] == ends[1]:
            return grade
        half_open = any(opening + closing in ("(]", "[)") for opening, closing in ends)
        infinite = any(isinstance(i, Scalar) and i.node in (INFINITY, MINUS_INFINITY) for i in a.items)
        if not (half_open or infinite):
            return unknown("round and square brackets")
        first, second = as_region(a), as_region(b)
        return self._regions(first, second) if first and second else not_equal("open and closed ends")

    def _collection_with_tuple(self, a: Collection, b: Tuple) -> Grade:
        """A list without brackets is the tuple with the same order; a set never is one for certain."""
        if len(a.items) != len(b.items):
            return not_equal("different numbers of values")
        ordered = all_of([self._values(x, y) for x, y in zip(a.items, b.items, strict=True)])
        if ordered.is_equal and not a.braces and (b.opening, b.closing) in (("(", ")"), ("[", "]"), ("<(", ")>")):
            return equal("same values in the same order")
        unordered = self._collections(replace_braces(a), Collection(b.items, braces=True))
        return unknown("an ordered and an unordered answer") if unordered.is_equal else unordered

    def _assignments(self, a: Assignment, b: Assignment) -> Grade:
        x, y = dict(a.values), dict(b.values)
        if x.keys() != y.keys():
            return unknown("values of different names")
        return all_of([self._values(x[name], y[name]) for name in x])

    def _assignment_with_values(self, a: Assignment, items: Sequence[Form]) -> Grade:
        """x = 1, y = 2 is (1, 2): values in the order of their names."""
        if len(a.values) != len(items):
            return not_equal("different numbers of values")
        by_name = [value for _, value in sorted(a.values, key=lambda pair: pair[0])]
        grade = all_of([self._values(x, y) for x, y in zip(by_name, items, strict=True)])
        if grade.is_equal:
            return grade
        as_sets = self._collections(Collection(tuple(by_name), True), Collection(tuple(items), True))
        return unknown("values given to names in another order") if as_sets.is_equal else grade

    def _matrices(self, a: Matrix, b: Matrix) -> Grade:
        if len(a.rows) != len(b.rows) or len(a.rows[0]) != len(b.rows[0]):
            flat = [[n for row in m.rows for n in row] for m in (a, b)]
            vectors = all(1 in (len(m.rows), len(m.rows[0])) for m in (a, b)) and len(flat[0]) == len(flat[1])
            if vectors and all(self.nodes(x, y).is_equal for x, y in zip(*flat, strict=True)):
                return unknown("a row and a column")
            return not_equal("different shapes")
        pairs = [(x, y) for r, s in zip(a.rows, b.rows, strict=True) for x, y in zip(r, s, strict=True)]
        return all_of([self.nodes(x, y) for x, y in pairs])

    def _congruences(self, a: Congruence, b: Congruence) -> Grade:
        match a.modulus, b.modulus, a.residue, b.residue:
            case ("num", int(m), _), ("num", int(n), _), x, y:
                if m != n or m == 0:
                    return not_equal("different moduli")
                values = [_integer(x), _integer(y)]
                if values[0] is None or values[1] is None:
                    return unknown("residues")
                return equal("congruent") if (values[0] - values[1]) % m == 0 else not_equal("not congruent")
        return unknown("moduli")

    def _regions(self, a: Region, b: Region) -> Grade:
        xs, ys = self._merged(a.intervals), self._merged(b.intervals)
        if xs is None or ys is None:
            return unknown("ends of intervals that are no real numbers")
        if len(xs) != len(ys):
            return not_equal("different numbers of intervals")
        return all_of([self._intervals(x, y) for x, y in zip(xs, ys, strict=True)])

    def _merged(self, intervals: Sequence[Interval]) -> list[Interval] | None:
        """Intervals from left to right, those that overlap or touch made one."""
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
        """Where an end lies, exactly or to 100 bits; equal ends have equal places."""
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

    def _relations(self, a: Form, b: Form) -> Grade:
        """Conditions are compared as such; an equation in one unknown equals the list of its roots."""
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Relation) and isinstance(y, Scalar) and (total := _total(x)) is not None and not y.name:
                return self._values(total, y)
            if isinstance(x, Relation) and (grade := self._roots(x, y)) is not None:
                return grade
        first, second = _condition(a, b), _condition(b, a)
        if first is None or second is None:
            return unknown("a relation against another kind of answer")
        return compare_relations(first, second, self.log_base)

    def _roots(self, equation: Relation, values: Form) -> Grade | None:
        """An equation in one unknown against the values it may have, None where the pair is another."""
        unknowns = symbols(("rel", equation.nodes))
        items = values.items if isinstance(values, Collection) else (values,)
        scalars = [i for i in items if isinstance(i, Scalar) and i.unit is None and not symbols(i.node)]
        if equation.operators != ("=",) or len(unknowns) != 1 or len(scalars) != len(items) or not items:
            return None
        (name,) = unknowns
        if (given := getattr(values, "name", None)) and given != name:
            return unknown(f"an equation in {name} against a value of {given}")
        left, right = equation.nodes
        for i in scalars:
            sides = (numeric.put(side, name, i.node) for side in (left, right))
            if self.nodes(*sides).verdict is Verdict.NOT_EQUAL:
                return not_equal("a value that does not solve the equation")
        function: Node = ("add", (left, ("neg", right)))
        factors = tuple(("add", (("sym", name), ("neg", i.node))) for i in scalars)
        roots: Node = factors[0] if len(factors) == 1 else ("mul", factors)
        if proportional(function, roots, self.log_base) is not None:
            return equal("the equation and its roots")
        for solution in solutions(function, name, self.log_base):
            solved = numeric.same_number(numeric.put(function, name, solution), ZERO, {}, self.log_base, real=True)
            is_listed = any(self.nodes(solution, i.node).verdict is not Verdict.NOT_EQUAL for i in scalars)
            if solved.is_equal and not is_listed and name in "xyzt":
                return not_equal("a solution is missing")
        return unknown("an equation that is no multiple of that of the values")


def _condition(f: Form, other: Form) -> tuple[tuple[str, Node, Node], ...] | None:
    """A relation, a named value or a half line as a chain of pairs of sides, None of another answer."""
    match f:
        case Relation(operators, nodes):
            return pairs(operators, nodes)
        case Scalar(node, None, str(name)) if _LETTER.fullmatch(name):
            return (("=", ("sym", name), node),)
        case Region(intervals=(only,)):
            names = symbols(("rel", other.nodes)) if isinstance(other, Relation) else set()
            letter = f.name or (next(iter(names)) if len(names) == 1 else None)
            if letter is None or (only.low == MINUS_INFINITY) == (only.high == INFINITY):
                return None
            if only.low == MINUS_INFINITY:
                return (("<=" if only.high_closed else "<", ("sym", letter), only.high),)
            return (("<=" if only.low_closed else "<", only.low, ("sym", letter)),)
    return None


def _moment(time: TimeOfDay) -> int:
    """Seconds since midnight; of a time without its half of the day, as its digits say."""
    hours, minutes, *seconds = time.parts
    if time.half:
        hours = hours % 12 + 12 * (time.half == "p")
    return hours * 3600 + minutes * 60 + sum(seconds)


def _has_letters(f: Any) -> bool:
    """Whether a form holds a letter, or a function that is not known here."""
    if isinstance(f, TimeOfDay):
        return False
    if isinstance(f, tuple):
        if f and isinstance(f[0], str):
            return bool(symbols(f)) or f[0] == "call"
        return any(map(_has_letters, f))
    if is_dataclass(f):
        return any(_has_letters(getattr(f, field.name)) for field in fields(f) if field.name not in ("name", "unit"))
    return False


def _total(f: Relation) -> Scalar | None:
    """70 of "m + n = 70", the usual last line of a contest answer: a sum of letters and a positive whole number. None
    of other equations."""
    if f.operators != ("=",) or f.nodes[0][0] != "add" or (_integer(f.nodes[1]) or 0) <= 0:
        return None
    terms = f.nodes[0][1]
    names = {term[1] for term in terms if term[0] == "sym"}
    return Scalar(f.nodes[1]) if len(names) == len(terms) and names <= _SUMMANDS else None


def _elided(f: Form) -> bool:
    return isinstance(f, Collection | Tuple) and any(isinstance(i, Scalar) and i.node == DOTS for i in f.items)


def _rows(items: Sequence[Form]) -> tuple[tuple[Node, ...], ...] | None:
    """[[1, 2], [3, 4]] as the rows of a matrix, None where it is none."""
    rows = []
    for item in items:
        if not isinstance(item, Tuple) or item.opening != "[" or len(item.items) != len(items[0].items):  # type: ignore[union-attr]
            return None
        if not all(isinstance(i, Scalar) and i.unit is None for i in item.items):
            return None
        rows.append(tuple(i.node for i in item.items if isinstance(i, Scalar)))
    return tuple(rows)


def _same_argument(a: Form, b: Form) -> Form:
    """``b`` with the argument of its function called as in ``a``: f(t) = t + 1 is f(x) = x + 1."""
    first, second = (_FUNCTION.fullmatch(getattr(f, "name", None) or "") for f in (a, b))
    if first is None or second is None or first[1] != second[1] or first[2] == second[2] or not isinstance(b, Scalar):
        return b
    if first[2] in symbols(b.node) or second[2] not in symbols(b.node):  # P(A) = 1/3 is not P(B) = 1/3
        return b
    return replace(b, node=numeric.put(b.node, second[2], ("sym", first[2])), name=first[0])


def replace_braces(c: Collection) -> Collection:
    return Collection(c.items, braces=True, name=c.name)


def _pair_up(grades: Sequence[Sequence[Grade]]) -> bool:
    """Whether every row can be given an equal column of its own."""
    free = list(range(len(grades[0])))
    for row in grades:
        match = next((j for j in free if row[j].is_equal), None)
        if match is None:
            return False
        free.remove(match)
    return not free


def _best(grades: Sequence[Grade]) -> Grade:
    for wanted in (Verdict.EQUAL, Verdict.UNKNOWN):
        for grade in grades:
            if grade.verdict is wanted:
                return grade
    return not_equal("a value without a counterpart")


def _scaled(node: Node, factor: Fraction) -> Node:
    return ("mul", (node, ("num", factor, 0)))


def _integer(node: Node) -> int | None:
    match node:
        case ("num", int(value), 0):
            return value
        case ("neg", ("num", int(value), 0)):
            return -value
    return None


def _mentions_infinity(node: Node) -> bool:
    return node == INFINITY or any(_mentions_infinity(part) for part in node if isinstance(part, tuple))


__all__ = ["Comparer", "all_of"]
