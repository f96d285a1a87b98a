"""Subscripts: part of a name, the base of a number, or the n of a binomial coefficient."""

from __future__ import annotations

from nemo_openmath.grading.lexer import NotMath
from nemo_openmath.grading.nodes import Node


def counts(sub: Node) -> bool:
    """Return whether a subscript is the n of C_n^k: a number above one, or n itself."""
    return (sub[0] == "num" and isinstance(sub[1], int) and sub[1] > 1) or sub == ("sym", "n")


def plain(node: Node) -> str:
    """Return a subscript, or a name under a bar, as text. Raises NotMath for another expression."""
    match node:
        case ("num", value, _):
            return str(value)
        case ("sym" | "const", name):
            return str(name)
        case ("mul", nodes) | ("list", nodes, _):
            return ",".join(map(plain, nodes))
        case ("add", nodes):
            return "+".join(map(plain, nodes))
        case ("neg", a):
            return "-" + plain(a)
    raise NotMath("name")


def in_base(node: Node, base: Node) -> Node:
    """Return the number whose digits are ``node`` in ``base``. Raises NotMath where they are none."""
    match node, base:
        case ("num", int(value), 0), ("num", int(b), 0) if 2 <= b <= 36:
            try:
                return ("num", int(str(value), b), 0)
            except ValueError:
                raise NotMath("digit too large for its base") from None
    raise NotMath("base")
