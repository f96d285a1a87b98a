r"""What kind of answer an expression is: one value, several, an ordered tuple, a region, a relation, ...

Spellings of one thing become one form: ``x = \pm 3``, ``3, -3`` and ``\{-3, 3\}`` are collections of 3 and -3;
``1 < x \le 2`` and ``(1, 2]`` are regions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from nemo_openmath.grading import numeric
from nemo_openmath.grading.evaluate import Ball, Evaluator
from nemo_openmath.grading.lexer import NotMath
from nemo_openmath.grading.names import Node, plain
from nemo_openmath.grading.numeric import symbols
from nemo_openmath.grading.units import Dimension

INFINITY: Node = ("const", "oo")
MINUS_INFINITY: Node = ("neg", INFINITY)
ZERO: Node = ("num", 0, 0)
NEARLY: Node = ("num", Fraction(1, 20), 0)  # relative error of what is called an approximation
MAX_SIGNS = 4  # plus-minus signs of one expression
MAX_MATRIX = 8  # rows and columns of matrices that are multiplied out
MAX_POWER = 20  # of a matrix


@dataclass(frozen=True)
class Scalar:
    """One value. ``unit``: (dimension, size), "percent" or None. ``name``: x in x = 5."""

    node: Node
    unit: tuple[Dimension, Fraction] | str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Collection:
    """Several values in no order. ``braces``: written as a set, so that repetition means nothing."""

    items: tuple[Form, ...]
    braces: bool = False
    name: str | None = None


@dataclass(frozen=True)
class Tuple:
    """Values in order; with two of them perhaps an interval."""

    items: tuple[Form, ...]
    opening: str
    closing: str
    name: str | None = None


@dataclass(frozen=True)
class Interval:
    low: Node
    low_closed: bool
    high: Node
    high_closed: bool


@dataclass(frozen=True)
class Region:
    """A union of intervals and points of the line."""

    intervals: tuple[Interval, ...]
    name: str | None = None


@dataclass(frozen=True)
class Assignment:
    """x = 1, y = 2: names with their values, as written."""

    values: tuple[tuple[str, Form], ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]
    name: str | None = None


@dataclass(frozen=True)
class Relation:
    """An equation or inequality that is no assignment."""

    operators: tuple[str, ...]
    nodes: tuple[Node, ...]
    name: None = None


@dataclass(frozen=True)
class Congruence:
    residue: Node
    modulus: Node
    name: str | None = None


@dataclass(frozen=True)
class Ratio:
    parts: tuple[Node, ...]
    name: str | None = None


@dataclass(frozen=True)
class TimeOfDay:
    """12:30 or 4:00 PM: hours and minutes, perhaps seconds, and "a", "p" or ""; without a half of the day perhaps a
    duration or a ratio."""

    parts: tuple[int, ...]
    half: str
    name: str | None = None


@dataclass(frozen=True)
class Approximation:
    """80/9 \\approx 8.89: the value that is meant and the numbers that stand for it."""

    value: Scalar
    rounded: tuple[Scalar, ...]
    name: str | None = None


@dataclass(frozen=True)
class Without:
    """A set without another."""

    whole: Form
    removed: Form
    name: str | None = None


@dataclass(frozen=True)
class Empty:
    name: str | None = None


Form = (
    Scalar
    | Collection
    | Tuple
    | Region
    | Assignment
    | Matrix
    | Relation
    | Congruence
    | Ratio
    | TimeOfDay
    | Approximation
    | Without
    | Empty
)

_FUNCTION_LETTERS = frozenset("fghFGHPQRTpq") | {"phi", "psi"}
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def form(node: Node) -> Form:
    """Return the form of an expression. Raises NotMath where it is none that is compared here."""
    match node:
        case ("list", nodes, connective):
            return _listed(nodes, connective)
        case ("seq", opening, closing, nodes):
            items = tuple(form(n) for n in nodes)
            if opening == "set(":
                return Collection(_flat(items), braces=True)
            return Tuple(items, opening, closing)
        case ("rel", operators, nodes):
            return _related(operators, nodes)
        case ("builder", name, condition):
            return _built(str(name), form(condition))
        case ("in", a, whole):
            return _named(form(whole), _name(a) or _refuse("member"))
        case ("union", nodes):
            return _united([form(n) for n in nodes])
        case ("setminus", a, b):
            return Without(form(a), form(b))
        case ("matrix", rows):
            return Matrix(rows)
        case ("ratio", nodes):
            return Ratio(nodes)
        case ("clock", parts, half):
            return TimeOfDay(parts, half)
        case ("empty",):
            return Empty()
        case ("mod", ("rel", operators, nodes), modulus) if set(operators) <= {"equiv", "="}:
            return Congruence(nodes[-1], modulus, _name(nodes[0]))
        case ("mod", residue, modulus):
            return Congruence(residue, modulus)
        case ("mul", (("sym", point), ("seq", "(", ")", nodes))) if point.isupper() and point[0] not in "CPNU":
            return Tuple(tuple(form(n) for n in nodes), "(", ")", str(point))  # the point A(1, 2)
        case ("sym", "mathbb_R"):
            return Region((Interval(MINUS_INFINITY, False, INFINITY, False),))
    if _has_matrix(node):
        rows = _rows(node)
        if rows is None:
            raise NotMath("a matrix inside an expression")
        return Matrix(rows)
    return _scalar(node)


def _has_matrix(node: Node) -> bool:
    if (node and node[0] in ("matrix", "seq")) or (node and node[0] == "fn" and node[1] == "det"):
        return node[0] == "matrix"
    return any(_has_matrix(part) for part in node if isinstance(part, tuple))


def _rows(node: Node) -> tuple[tuple[Node, ...], ...] | None:
    """The entries of a matrix expression: sums, products, powers and multiples. None of one that is a number."""
    if not _has_matrix(node):
        return None
    match node:
        case ("matrix", rows):
            if len(rows) > MAX_MATRIX or len(rows[0]) > MAX_MATRIX:
                raise NotMath("a large matrix inside an expression")
            return rows
        case ("neg", a):
            return _each(_matrix(a), lambda n: ("neg", n))
        case ("div", a, divisor) if not _has_matrix(divisor):
            return _each(_matrix(a), lambda n: ("div", n, divisor))
        case ("add", nodes):
            total = _matrix(nodes[0])
            for term in map(_matrix, nodes[1:]):
                if len(term) != len(total) or len(term[0]) != len(total[0]):
                    raise NotMath("a sum of matrices of different shapes")
                total = tuple(
                    tuple(("add", (x, y)) for x, y in zip(r, s, strict=True)) for r, s in zip(total, term, strict=True)
                )
            return total
        case ("mul", nodes):
            factors = tuple(n for n in nodes if not _has_matrix(n))
            product: tuple[tuple[Node, ...], ...] | None = None
            for matrix in (_matrix(n) for n in nodes if _has_matrix(n)):
                product = matrix if product is None else _product(product, matrix)
            assert product is not None
            return _each(product, lambda n: ("mul", (*factors, n))) if factors else product
        case ("pow", a, ("num", int(power), 0)) if 0 < power <= MAX_POWER:
            base = result = _matrix(a)
            for _ in range(power - 1):
                result = _product(result, base)
            return result
    raise NotMath("a matrix inside an expression")


def _matrix(node: Node) -> tuple[tuple[Node, ...], ...]:
    if (rows := _rows(node)) is None:
        raise NotMath("a number beside a matrix")
    return rows


def _each(rows: tuple[tuple[Node, ...], ...], change: Callable[[Node], Node]) -> tuple[tuple[Node, ...], ...]:
    return tuple(tuple(change(n) for n in row) for row in rows)


def _product(a: tuple[tuple[Node, ...], ...], b: tuple[tuple[Node, ...], ...]) -> tuple[tuple[Node, ...], ...]:
    if len(a[0]) != len(b):
        raise NotMath("a product of matrices of unfitting shapes")
    entries = [
        [("add", tuple(("mul", (x, y)) for x, y in zip(row, column, strict=True))) for column in zip(*b, strict=True)]
        for row in a
    ]
    return tuple(tuple(map(_folded, row)) for row in entries)


def _folded(node: Node) -> Node:
    """A rational number as one, so that powers of matrices do not grow."""
    try:
        value = Evaluator(numeric.FIRST_PRECISION).value(node)
    except ArithmeticError:
        return node
    return node if isinstance(value, Ball) else ("num", value, 0)


def _built(name: str, condition: Form) -> Form:
    r"""\{x : 1 < x < 2\}: a condition that is a region of x is that region."""
    if not isinstance(condition, Region | Collection) or condition.name != name:
        raise NotMath("set by a condition")
    return replace(condition, name=None)


def _refuse(what: str) -> Any:
    raise NotMath(what)


def _scalar(node: Node) -> Form:
    expanded = _expand_signs(node)
    if len(expanded) > 1:
        return Collection(tuple(_with_unit(n) for n in expanded))
    return _with_unit(node)


def _with_unit(node: Node) -> Scalar:
    match node:
        case ("unit", a, dimension, factor):
            return Scalar(a, (dimension, factor)) if dimension else Scalar(a)
        case ("percent", a):
            return Scalar(a, "percent")
        case ("neg", ("unit" | "percent", a, *_)):
            inner = _with_unit(node[1])
            return replace(inner, node=("neg", a))
        case ("mul", (("unit", a, dimension, factor), *rest)):  # \$5 million
            return Scalar(("mul", (a, *rest)), (dimension, factor))
    return Scalar(node)


def _expand_signs(node: Node) -> list[Node]:
    """The expressions that a plus-minus stands for; all its signs change together."""
    if not _has_sign(node):
        return [node]
    return [_choose(node, 1), _choose(node, -1)]


def _has_sign(node: Node) -> bool:
    if node and node[0] == "pm":
        return True
    return any(_has_sign(part) for part in node if isinstance(part, tuple))


def _choose(node: Node, upper: int) -> Node:
    if node and node[0] == "pm":
        _, a, b, sign = node
        a, b = _choose(a, upper), _choose(b, upper)
        b = b if sign * upper > 0 else ("neg", b)
        return b if a == ZERO else ("add", (a, b))
    return tuple(_choose(part, upper) if isinstance(part, tuple) else part for part in node)


def _name(node: Node) -> str | None:
    """The name on the left of "x = ...", "f(x) = ..." or "(x, y) = ..."; None where it is an expression."""
    match node:
        case ("sym", name):
            return str(name)
        case ("call", ("sym", f), argument) if argument[0] in ("sym", "num"):
            return f"{f}({argument[1]})"
        case ("mul", (("sym", f), argument)) if f in _FUNCTION_LETTERS and argument[0] == "seq":
            return f"{f}({_argument(argument)})"
        case ("mul", nodes) if all(n[0] == "sym" and len(n[1]) == 1 for n in nodes):  # the segment AB, the angle ABC
            name = "".join(n[1] for n in nodes)
            upper = name.removeprefix("m") if len(name) > 2 else name  # m of the measure of an angle
            return upper if len(name) <= 5 and upper.isupper() else None
        case ("seq", "(", ")", nodes) if all(n[0] == "sym" for n in nodes):
            return "(" + ",".join(n[1] for n in nodes) + ")"
    return None


def _argument(node: Node) -> str:
    """The argument of a function as part of its name."""
    try:
        return ",".join(map(plain, node[3]))
    except NotMath:
        return repr(node[3])


def _named(value: Form, name: str | None) -> Form:
    if name is None or isinstance(value, Relation | Assignment):
        return value
    return replace(value, name=name)


def _related(operators: tuple[str, ...], nodes: tuple[Node, ...]) -> Form:
    if set(operators) <= {"=", "approx"}:
        name = _name(nodes[0])
        agreed = all(numeric.same(node, nodes[-1]).is_equal for node in nodes[1:-1])
        if name is not None and agreed and not (nodes[0][0] == "mul" and "(" not in name and symbols(nodes[-1])):
            return _named(form(nodes[-1]), name)
        if len(nodes) == 2 and (turned := _name(nodes[1])) is not None and not symbols(nodes[0]):
            return _named(form(nodes[0]), turned)
        values = nodes[1:] if name is not None else nodes
        if not any(map(symbols, values)):
            return _named(_equal_values(operators[len(operators) + 1 - len(values) :], values), name)
        if "approx" in operators:
            raise NotMath("an approximation of an expression with letters")
        return Relation(operators, nodes)
    region = _inequality(operators, nodes)
    return region if region is not None else Relation(operators, nodes)


def _equal_values(operators: tuple[str, ...], nodes: tuple[Node, ...]) -> Form:
    """A chain of numbers that are equal, or of a number and roundings of it. Raises NotMath where it does not hold:
    what stands behind an equals sign and is no decimal is no rounding."""
    if all(numeric.same(nodes[0], node).is_equal for node in nodes[1:]):
        return form(nodes[-1])
    value, *others = (_scalar(node) for node in nodes)
    rounded = tuple(other for other in others if isinstance(other, Scalar))
    if not isinstance(value, Scalar) or len(rounded) != len(others):
        raise NotMath("an equation that does not hold")
    for op, other in zip(operators, rounded, strict=True):
        if op == "=" and not _is_decimal(other.node) and not numeric.same(value.node, other.node).is_equal:
            raise NotMath("an equation that does not hold")
        left, right = (("percent", s.node) if s.unit == "percent" else s.node for s in (value, other))
        gap: Node = ("fn", "abs", ("add", (left, ("neg", right))), None)
        place = _last_place(other.node)
        allowed: Node = ("num", place, 0) if place else ("fn", "abs", ("mul", (left, NEARLY)), None)
        if other.unit == "percent" and place:
            allowed = ("percent", allowed)
        if numeric.sign_of(("add", (allowed, ("neg", gap)))) == -1 or numeric.sign_of(gap) is None:
            raise NotMath("an equation that does not hold")
    return Approximation(value, rounded)


def _last_place(node: Node) -> Fraction | None:
    """Worth of the last digit of a number as written, zeros at the end of a whole one left out; None of others."""
    match node:
        case ("num", 0, 0):
            return Fraction(1)
        case ("num", int(value), 0):
            digits = str(value)
            return Fraction(10) ** (len(digits) - len(digits.rstrip("0")))
        case ("num", value, digits) if digits:
            return numeric.last_place(Fraction(value), digits)
        case ("neg", a):
            return _last_place(a)
    return None


def _is_decimal(node: Node) -> bool:
    match node:
        case ("num", _, digits):
            return bool(digits)
        case ("neg", a):
            return _is_decimal(a)
    return False


def _inequality(operators: tuple[str, ...], nodes: tuple[Node, ...]) -> Region | None:
    """x > 1, 3 >= x, 1 < x <= 2 with one symbol and constant ends, as a region."""
    if len(nodes) == 2 and any(n[0] == "fn" and n[1] == "abs" for n in nodes):
        return _around(operators[0], nodes)
    places = [i for i, n in enumerate(nodes) if n[0] == "sym"]
    if len(places) == 1 and operators == ("!=",) and not symbols(nodes[1 - places[0]]):
        hole, name = nodes[1 - places[0]], nodes[places[0]][1]
        return Region((Interval(MINUS_INFINITY, False, hole, False), Interval(hole, False, INFINITY, False)), name)
    if len(places) != 1 or not set(operators) <= {"<", ">", "<=", ">="}:
        return None
    place = places[0]
    if any(symbols(n) for i, n in enumerate(nodes) if i != place) or len(nodes) > 3:
        return None
    low, low_closed, high, high_closed = MINUS_INFINITY, False, INFINITY, False
    for i, op in enumerate(operators):
        if i + 1 == place:  # constant op x
            other, op = nodes[i], _FLIP[op]
        elif i == place:
            other = nodes[i + 1]
        else:
            return None
        if op in ("<", "<="):
            high, high_closed = other, op == "<="
        else:
            low, low_closed = other, op == ">="
    if len(operators) == 2 and (low == MINUS_INFINITY or high == INFINITY):
        return None
    return Region((Interval(low, low_closed, high, high_closed),), nodes[place][1])


def _around(op: str, nodes: tuple[Node, ...]) -> Region | None:
    """|x - a| < r and |x - a| > r for a positive r, as a region."""
    inner, radius = nodes
    if not (inner[0] == "fn" and inner[1] == "abs"):
        inner, radius, op = radius, inner, _FLIP.get(op, op)
    if op not in _FLIP or symbols(radius) or numeric.sign_of(radius) != 1:
        return None
    match inner[2]:
        case ("sym", name):
            middle: Node = ZERO
        case ("add", (("sym", name), offset)) if not symbols(offset):
            middle = ("neg", offset)
        case _:
            return None
    low, high = ("add", (middle, ("neg", radius))), ("add", (middle, radius))
    closed = op.endswith("=")
    if op[0] == "<":
        return Region((Interval(low, closed, high, closed),), name)
    return Region((Interval(MINUS_INFINITY, False, low, closed), Interval(high, closed, INFINITY, False)), name)


def _both(a: Region, b: Region) -> Region | None:
    """x > 1 and x < 2: the interval between, None where it is not certainly one."""
    for x, y in ((a, b), (b, a)):
        if len(x.intervals) == len(y.intervals) == 1:
            low, high = x.intervals[0], y.intervals[0]
            ends = (low.low, high.high)
            bounded = low.high == INFINITY and high.low == MINUS_INFINITY
            if bounded and INFINITY not in ends and MINUS_INFINITY not in ends:
                if numeric.sign_of(("add", (high.high, ("neg", low.low)))) != 1:
                    return None
                return Region((Interval(low.low, low.low_closed, high.high, high.high_closed),), a.name)
    return None


def _listed(nodes: tuple[Node, ...], connective: str) -> Form:
    forms = [form(n) for n in nodes]
    names = [f.name if not isinstance(f, Assignment) else None for f in forms]
    if any(isinstance(f, Region) and f.name for f in forms):
        if connective == "or" and len(set(names)) == 1 and all(isinstance(f, Region) for f in forms):
            return _named(_united(forms), names[0])
        if connective == "and" and len(forms) == 2 and len(set(names)) == 1:
            first, second = forms
            if isinstance(first, Region) and isinstance(second, Region) and (both := _both(first, second)) is not None:
                return both
        raise NotMath("several conditions")
    if isinstance(forms[0], Relation) and any(isinstance(f, Scalar) and f.name is None for f in forms[1:]):
        raise NotMath("a relation beside values")
    given = [name for name in names if name]
    if len(given) == len(forms) and len(set(given)) == len(forms):
        return Assignment(tuple((str(name), _anonymous(f)) for name, f in zip(names, forms, strict=True)))
    if len(set(given)) == 1 and (len(given) == len(forms) or (names[0] and len(given) == 1)):
        anonymous = tuple(_anonymous(f) for f in forms)
        return Collection(_flat(anonymous), name=given[0])
    if given:
        raise NotMath("values of several names")
    return Collection(_flat(tuple(forms)))


def _anonymous(f: Form) -> Form:
    return f if isinstance(f, Assignment | Relation) else replace(f, name=None)


def _flat(items: tuple[Form, ...]) -> tuple[Form, ...]:
    r"""0, \pm 1 is three values."""
    flat: list[Form] = []
    for item in items:
        if isinstance(item, Collection) and not item.braces and item.name is None:
            flat.extend(item.items)
        else:
            flat.append(item)
    return tuple(flat)


def _united(forms: list[Form]) -> Form:
    """A union of intervals and finite sets."""
    if all(isinstance(f, Collection) for f in forms):
        return Collection(tuple(i for f in forms if isinstance(f, Collection) for i in f.items), braces=True)
    intervals: list[Interval] = []
    for f in forms:
        region = as_region(f)
        if region is not None:
            intervals.extend(region.intervals)
        elif isinstance(f, Collection) and all(isinstance(i, Scalar) and i.unit is None for i in f.items):
            points = [i.node for i in f.items if isinstance(i, Scalar)]
            if INFINITY in points or MINUS_INFINITY in points:
                raise NotMath("infinity in a set")
            intervals.extend(Interval(point, True, point, True) for point in points)
        else:
            raise NotMath("union")
    return Region(tuple(intervals))


def as_region(f: Form) -> Region | None:
    """The interval that a form can be read as, None where it cannot."""
    if isinstance(f, Region):
        return f
    if isinstance(f, Tuple) and len(f.items) == 2 and f.opening in "([" and f.closing in ")]":
        low, high = f.items
        if isinstance(low, Scalar) and isinstance(high, Scalar) and low.unit is None and high.unit is None:
            return Region((Interval(low.node, f.opening == "[", high.node, f.closing == "]"),), f.name)
    return None
