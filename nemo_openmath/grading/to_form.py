"""The form of an expression tree."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from nemo_openmath.grading import numeric
from nemo_openmath.grading.decimals import last_place
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
from nemo_openmath.grading.inequalities import inequality_region, interval_between
from nemo_openmath.grading.lexer import NotMath
from nemo_openmath.grading.matrices import has_matrix, matrix_rows
from nemo_openmath.grading.nodes import Node, symbols
from nemo_openmath.grading.scalars import sign_of
from nemo_openmath.grading.subscripts import plain

NEARLY: Node = ("num", Fraction(1, 20), 0)  # relative error of what is called an approximation
_FUNCTION_LETTERS = frozenset("fghFGHPQRTpq") | {"phi", "psi"}


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
    if has_matrix(node):
        rows = matrix_rows(node)
        if rows is None:
            raise NotMath("a matrix inside an expression")
        return Matrix(rows)
    return _scalar(node)


def _built(name: str, condition: Form) -> Form:
    r"""Read a set by a condition, \{x : 1 < x < 2\}, as the region of x. Raises NotMath for others."""
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
    """Return the expressions that a plus-minus stands for. All its signs change together."""
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
    """Return the name on the left of "x = ...", "f(x) = ..." or "(x, y) = ..."; None where it is an expression."""
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
    """Return the argument of a function as part of its name."""
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
    region = inequality_region(operators, nodes)
    return region if region is not None else Relation(operators, nodes)


def _equal_values(operators: tuple[str, ...], nodes: tuple[Node, ...]) -> Form:
    """Read a chain of numbers that are equal, or of a number and roundings of it. Raises NotMath where it does not
    hold: what stands behind an equals sign and is no decimal is no rounding."""
    if all(numeric.same(nodes[0], node).is_equal for node in nodes[1:]):
        return form(nodes[-1])
    value, *candidates = (_scalar(node) for node in nodes)
    rounded = tuple(other for other in candidates if isinstance(other, Scalar))
    if not isinstance(value, Scalar) or len(rounded) != len(candidates):
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
        if sign_of(("add", (allowed, ("neg", gap)))) == -1 or sign_of(gap) is None:
            raise NotMath("an equation that does not hold")
    return Approximation(value, rounded)


def _last_place(node: Node) -> Fraction | None:
    """Return the worth of the last digit of a number as written, zeros at the end of a whole one left out; None for
    others."""
    match node:
        case ("num", 0, 0):
            return Fraction(1)
        case ("num", int(value), 0):
            digits = str(value)
            return Fraction(10) ** (len(digits) - len(digits.rstrip("0")))
        case ("num", value, digits) if digits:
            return last_place(Fraction(value), digits)
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


def _listed(nodes: tuple[Node, ...], connective: str) -> Form:
    forms = [form(n) for n in nodes]
    names = [f.name if not isinstance(f, Assignment) else None for f in forms]
    if any(isinstance(f, Region) and f.name for f in forms):
        if connective == "or" and len(set(names)) == 1 and all(isinstance(f, Region) for f in forms):
            return _named(_united(forms), names[0])
        if connective == "and" and len(forms) == 2 and len(set(names)) == 1:
            first, second = forms
            if (
                isinstance(first, Region)
                and isinstance(second, Region)
                and (both := interval_between(first, second)) is not None
            ):
                return both
        raise NotMath("several conditions")
    if isinstance(forms[0], Relation) and any(isinstance(f, Scalar) and f.name is None for f in forms[1:]):
        raise NotMath("a relation beside values")
    known_names = [name for name in names if name]
    if len(known_names) == len(forms) and len(set(known_names)) == len(forms):
        return Assignment(tuple((str(name), _anonymous(f)) for name, f in zip(names, forms, strict=True)))
    if len(set(known_names)) == 1 and (len(known_names) == len(forms) or (names[0] and len(known_names) == 1)):
        anonymous = tuple(_anonymous(f) for f in forms)
        return Collection(_flat(anonymous), name=known_names[0])
    if known_names:
        raise NotMath("values of several names")
    return Collection(_flat(tuple(forms)))


def _anonymous(f: Form) -> Form:
    return f if isinstance(f, Assignment | Relation) else replace(f, name=None)


def _flat(items: tuple[Form, ...]) -> tuple[Form, ...]:
    r"""Return the values of a list: 0, \pm 1 has three."""
    flat: list[Form] = []
    for item in items:
        if isinstance(item, Collection) and not item.braces and item.name is None:
            flat.extend(item.items)
        else:
            flat.append(item)
    return tuple(flat)


def _united(forms: list[Form]) -> Form:
    """Return a union of intervals and finite sets."""
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
