"""Inequalities in one unknown, read as regions of the line."""

from __future__ import annotations

from nemo_openmath.grading.forms import INFINITY, MINUS_INFINITY, ZERO, Interval, Region
from nemo_openmath.grading.nodes import Node, symbols
from nemo_openmath.grading.scalars import sign_of

_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def inequality_region(operators: tuple[str, ...], nodes: tuple[Node, ...]) -> Region | None:
    """Return x > 1, 3 >= x, or 1 < x <= 2 with one symbol and constant ends as a region; None for others."""
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
    """Return |x - a| < r or |x - a| > r for a positive r as a region; None for others."""
    inner, radius = nodes
    if not (inner[0] == "fn" and inner[1] == "abs"):
        inner, radius, op = radius, inner, _FLIP.get(op, op)
    if op not in _FLIP or symbols(radius) or sign_of(radius) != 1:
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


def interval_between(a: Region, b: Region) -> Region | None:
    """Return the interval between x > 1 and x < 2; None where it is not certainly one."""
    for x, y in ((a, b), (b, a)):
        if len(x.intervals) == len(y.intervals) == 1:
            low, high = x.intervals[0], y.intervals[0]
            ends = (low.low, high.high)
            bounded = low.high == INFINITY and high.low == MINUS_INFINITY
            if bounded and INFINITY not in ends and MINUS_INFINITY not in ends:
                if sign_of(("add", (high.high, ("neg", low.low)))) != 1:
                    return None
                return Region((Interval(low.low, low.low_closed, high.high, high.high_closed),), a.name)
    return None
