"""Units behind a number: 5 km/h, 3 square metres, 2 hours 30 minutes."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from nemo_openmath.grading.lexer import NotMath, Token
from nemo_openmath.grading.names import Node
from nemo_openmath.grading.units import COMPOSITE, LONE_LETTERS, MIXED, SCALES, UNITS, dimension

if TYPE_CHECKING:
    from nemo_openmath.grading.parser import Parser


def with_units(parser: Parser, node: Node) -> Node:
    """``node`` with the unit words that stand behind it and smaller parts of the same quantity."""
    node = _simple(parser, node)
    while node[0] == "unit" and (part := _smaller(parser, node)) is not None:
        node = part
    return node


def _smaller(parser: Parser, whole: Node) -> Node | None:
    """2 hours 30 minutes, 5 feet and 6 inches: the sum, in the first unit. None where no smaller part follows; "and"
    between other units than those of time, money and feet makes a list."""
    start = parser.position
    joined = parser._peek() == ("op", "and")
    ahead = 1 if joined else 0
    kind, value = parser._peek(ahead)
    if kind != "num" or parser._peek(ahead + 1)[0] != "word" or parser._peek(-1)[0] != "word":
        return None
    first = parser._peek(-1)[1]
    parser.position += ahead + 1
    part = _simple(parser, ("num", *value))
    if part[0] == "unit" and part[2] == whole[2] and part[3] < whole[3] and (first in MIXED or not joined):
        return ("unit", ("add", (whole[1], ("mul", (part[1], ("num", part[3] / whole[3], 0))))), whole[2], whole[3])
    parser.position = start
    return None


def _simple(parser: Parser, node: Node) -> Node:
    """Unit words behind a term, with exponents and one "per"."""
    if parser._peek()[0] != "word":
        return node
    parts: dict[str, int] = {}
    factor = Fraction(1)
    sign, pending, seen = 1, 1, False
    while parser._peek()[0] == "word" or (seen and parser._op() == "/" and _is_word(parser._peek(1))):
        kind, word = parser._peek()
        parser.position += 1
        if kind == "op" or word == "per":
            if sign < 0:
                raise NotMath("unit")
            sign = -1
            if parser._peek()[0] == "sym" and _is_word(parser._peek()):
                parser.tokens[parser.position] = ("word", parser._peek()[1])
        elif word in ("square", "sq"):
            pending = 2
        elif word == "cubic":
            pending = 3
        elif word in ("percent", "percents"):
            return ("percent", node)
        elif word in SCALES:
            node = ("mul", (node, ("num", SCALES[word], 0)))
        elif word in COMPOSITE:
            power = _exponent(parser, pending)
            for base, size, exponent in COMPOSITE[word]:
                parts[base] = parts.get(base, 0) + sign * exponent * power
                factor *= size ** (sign * power * (1 if exponent > 0 else -1))
            pending, seen = 1, True
        else:
            base, size, exponent = UNITS.get(word, (word, Fraction(1), 1))
            power = _exponent(parser, pending)
            parts[base] = parts.get(base, 0) + sign * exponent * power
            factor *= size ** (sign * power)
            pending, seen = 1, True
    if seen:
        return ("unit", node, dimension(parts), factor)
    if sign > 0 and pending == 1:
        return node
    raise NotMath("unit")


def _is_word(token: Token) -> bool:
    """Whether a unit can be read: km/h has a lone letter behind the slash."""
    return token[0] == "word" or (token[0] == "sym" and token[1] in LONE_LETTERS)


def _exponent(parser: Parser, pending: int) -> int:
    power: Any = pending
    if parser._op() == "^" and parser._peek(1)[0] == "num":
        power, parser.position = parser._peek(1)[1][0], parser.position + 2
    elif parser._op() == "^" and parser._op_at(1) == "{" and parser._peek(2)[0] == "num":
        power, parser.position = parser._peek(2)[1][0], parser.position + 4
    if not isinstance(power, int) or not 0 < power < 10:
        raise NotMath("unit")
    return power
