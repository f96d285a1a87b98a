"""Units behind a number: 5 km/h, 3 square metres, 2 hours 30 minutes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from nemo_openmath.grading.cursor import Cursor
from nemo_openmath.grading.lexer import NotMath, Token
from nemo_openmath.grading.nodes import Node
from nemo_openmath.grading.units import COMPOSITE, LONE_LETTERS, MIXED, SCALES, UNITS, dimension


def with_units(cursor: Cursor, node: Node) -> Node:
    """Return ``node`` with the unit words that stand behind it and smaller parts of the same quantity."""
    node = _simple(cursor, node)
    while node[0] == "unit" and (part := _smaller(cursor, node)) is not None:
        node = part
    return node


def _smaller(cursor: Cursor, whole: Node) -> Node | None:
    """Return 2 hours 30 minutes, or 5 feet and 6 inches, as the sum in the first unit. None where no smaller part
    follows; "and" between other units than those of time, money and feet makes a list."""
    start = cursor.position
    joined = cursor.peek() == ("op", "and")
    ahead = 1 if joined else 0
    kind, value = cursor.peek(ahead)
    if kind != "num" or cursor.peek(ahead + 1)[0] != "word" or cursor.peek(-1)[0] != "word":
        return None
    first = cursor.peek(-1)[1]
    cursor.position += ahead + 1
    part = _simple(cursor, ("num", *value))
    if part[0] == "unit" and part[2] == whole[2] and part[3] < whole[3] and (first in MIXED or not joined):
        return ("unit", ("add", (whole[1], ("mul", (part[1], ("num", part[3] / whole[3], 0))))), whole[2], whole[3])
    cursor.position = start
    return None


def _simple(cursor: Cursor, node: Node) -> Node:
    """Read the unit words behind a term, with exponents and one "per"."""
    if cursor.peek()[0] != "word":
        return node
    parts: dict[str, int] = {}
    factor = Fraction(1)
    sign, pending, seen = 1, 1, False
    while cursor.peek()[0] == "word" or (seen and cursor.op() == "/" and _is_word(cursor.peek(1))):
        kind, word = cursor.peek()
        cursor.position += 1
        if kind == "op" or word == "per":
            if sign < 0:
                raise NotMath("unit")
            sign = -1
            if cursor.peek()[0] == "sym" and _is_word(cursor.peek()):
                cursor.tokens[cursor.position] = ("word", cursor.peek()[1])
        elif word in ("square", "sq"):
            pending = 2
        elif word == "cubic":
            pending = 3
        elif word in ("percent", "percents"):
            return ("percent", node)
        elif word in SCALES:
            node = ("mul", (node, ("num", SCALES[word], 0)))
        elif word in COMPOSITE:
            power = _exponent(cursor, pending)
            for base, size, exponent in COMPOSITE[word]:
                parts[base] = parts.get(base, 0) + sign * exponent * power
                factor *= size ** (sign * power * (1 if exponent > 0 else -1))
            pending, seen = 1, True
        else:
            base, size, exponent = UNITS.get(word, (word, Fraction(1), 1))
            power = _exponent(cursor, pending)
            parts[base] = parts.get(base, 0) + sign * exponent * power
            factor *= size ** (sign * power)
            pending, seen = 1, True
    if seen:
        return ("unit", node, dimension(parts), factor)
    if sign > 0 and pending == 1:
        return node
    raise NotMath("unit")


def _is_word(token: Token) -> bool:
    """Return whether a unit can be read: km/h has a lone letter behind the slash."""
    return token[0] == "word" or (token[0] == "sym" and token[1] in LONE_LETTERS)


def _exponent(cursor: Cursor, pending: int) -> int:
    power: Any = pending
    if cursor.op() == "^" and cursor.peek(1)[0] == "num":
        power, cursor.position = cursor.peek(1)[1][0], cursor.position + 2
    elif cursor.op() == "^" and cursor.op(1) == "{" and cursor.peek(2)[0] == "num":
        power, cursor.position = cursor.peek(2)[1][0], cursor.position + 4
    if not isinstance(power, int) or not 0 < power < 10:
        raise NotMath("unit")
    return power
