"""Lists, sets, tuples, assignments and matrices."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading.forms import (
    INFINITY,
    MINUS_INFINITY,
    Assignment,
    Collection,
    Form,
    Matrix,
    Scalar,
    Tuple,
    as_region,
)
from nemo_openmath.grading.nodes import Node
from nemo_openmath.grading.region_rules import RegionRules
from nemo_openmath.grading.rules import KINDS, all_of
from nemo_openmath.grading.scalars import sign_of

MAX_PAIRS = 2500
"""Members of two collections that are compared at most, in pairs."""


class CollectionRules(RegionRules):
    """Rules for lists, sets, tuples, assignments and matrices."""

    def _collections(self, a: Collection, b: Collection) -> Grade:
        """Compare two lists or sets: each value of one needs an equal one of the other. A list that repeats values may
        be ordered."""
        xs, ys = a.items, b.items
        if len(xs) == len(ys) and xs == ys:
            return equal("same values")
        if len(xs) * len(ys) > MAX_PAIRS:
            return unknown("too many values to match")
        grades = [[self.values(x, y) for y in ys] for x in xs]
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
        """Compare two lists with dots: 1, 3, ..., 99 equals itself. What else its dots stand for is for a reader."""
        if isinstance(a, Collection | Tuple) and type(a) is type(b) and len(a.items) == len(b.items):
            grades = [self.values(x, y) for x, y in zip(a.items, b.items, strict=True)]
            if all(grade.is_equal for grade in grades):
                return equal("same values around the dots")
        return unknown("dots that stand for values")

    def _repeats(self, items: tuple[Form, ...]) -> bool:
        return any(self.values(x, y).is_equal for i, x in enumerate(items) for y in items[:i])

    def _tuples(self, a: Tuple, b: Tuple) -> Grade:
        """Compare two tuples, whose brackets may also be those of intervals."""
        if len(a.items) != len(b.items):
            return not_equal("different lengths")
        grade = all_of([self.values(x, y) for x, y in zip(a.items, b.items, strict=True)])
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
        """Compare a list with a tuple: without brackets it is the tuple with the same order. A set never is one for
        certain."""
        if len(a.items) != len(b.items):
            return not_equal("different numbers of values")
        ordered = all_of([self.values(x, y) for x, y in zip(a.items, b.items, strict=True)])
        if ordered.is_equal and not a.braces and (b.opening, b.closing) in (("(", ")"), ("[", "]"), ("<(", ")>")):
            return equal("same values in the same order")
        unordered = self._collections(_without_order(a), Collection(b.items, braces=True))
        return unknown("an ordered and an unordered answer") if unordered.is_equal else unordered

    def _assignment(self, a: Assignment, b: Form) -> Grade:
        """Compare names with values with another answer."""
        match b:
            case Assignment():
                return self._assignments(a, b)
            case Tuple(items=items) | Collection(items=items):
                if b.name and b.name != "(" + ",".join(sorted(name for name, _ in a.values)) + ")":
                    return unknown("several names against one")
                grade = self._assignment_with_values(a, items)
                if not grade.is_equal and any(isinstance(value, Collection) for _, value in a.values):
                    return unknown("several values of a name")
                return grade
        return unknown("several names against one value")

    def _assignments(self, a: Assignment, b: Assignment) -> Grade:
        x, y = dict(a.values), dict(b.values)
        if x.keys() != y.keys():
            return unknown("values of different names")
        return all_of([self.values(x[name], y[name]) for name in x])

    def _assignment_with_values(self, a: Assignment, items: Sequence[Form]) -> Grade:
        """Compare x = 1, y = 2 with (1, 2): values in the order of their names."""
        if len(a.values) != len(items):
            return not_equal("different numbers of values")
        by_name = [value for _, value in sorted(a.values, key=lambda pair: pair[0])]
        grade = all_of([self.values(x, y) for x, y in zip(by_name, items, strict=True)])
        if grade.is_equal:
            return grade
        as_sets = self._collections(Collection(tuple(by_name), True), Collection(tuple(items), True))
        return unknown("values given to names in another order") if as_sets.is_equal else grade

    def _matrix(self, a: Matrix, b: Form) -> Grade | None:
        """Compare a matrix with another answer; None where the pair is of different kinds."""
        match b:
            case Matrix():
                return self._matrices(a, b)
            case Tuple(items=items, opening="[") if (rows := rows_of(items)) is not None:
                return self._matrices(a, Matrix(rows))
            case Tuple(items=items) | Collection(items=items, braces=False):
                vector = [n for row in a.rows for n in row]
                if 1 not in (len(a.rows), len(a.rows[0])) or len(vector) != len(items):
                    return KINDS
                return all_of([self.values(Scalar(n), i) for n, i in zip(vector, items, strict=True)])
            case Scalar(node=("num", 0, _)) if all(sign_of(n) == 0 for row in a.rows for n in row):
                return unknown("a matrix of zeros and zero")
            case Scalar() if len(a.rows) == 2 and len(a.rows[0]) == 1:
                return unknown("a column or a binomial coefficient")
        return None

    def _matrices(self, a: Matrix, b: Matrix) -> Grade:
        """Compare two matrices entry by entry. A row and a column with equal entries are unknown."""
        if len(a.rows) != len(b.rows) or len(a.rows[0]) != len(b.rows[0]):
            flat = [[n for row in m.rows for n in row] for m in (a, b)]
            vectors = all(1 in (len(m.rows), len(m.rows[0])) for m in (a, b)) and len(flat[0]) == len(flat[1])
            if vectors and all(self.nodes(x, y).is_equal for x, y in zip(*flat, strict=True)):
                return unknown("a row and a column")
            return not_equal("different shapes")
        pairs = [(x, y) for r, s in zip(a.rows, b.rows, strict=True) for x, y in zip(r, s, strict=True)]
        return all_of([self.nodes(x, y) for x, y in pairs])


def rows_of(items: Sequence[Form]) -> tuple[tuple[Node, ...], ...] | None:
    """Return [[1, 2], [3, 4]] as the rows of a matrix; None where it is none."""
    rows = []
    for item in items:
        if not isinstance(item, Tuple) or item.opening != "[" or len(item.items) != len(items[0].items):  # type: ignore[union-attr]
            return None
        if not all(isinstance(i, Scalar) and i.unit is None for i in item.items):
            return None
        rows.append(tuple(i.node for i in item.items if isinstance(i, Scalar)))
    return tuple(rows)


def _without_order(c: Collection) -> Collection:
    return Collection(c.items, braces=True, name=c.name)


def _pair_up(grades: Sequence[Sequence[Grade]]) -> bool:
    """Return whether every row can be given an equal column of its own."""
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
