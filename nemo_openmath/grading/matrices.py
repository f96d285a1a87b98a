"""Matrix expressions, multiplied out."""

from __future__ import annotations

from collections.abc import Callable

from nemo_openmath.grading.evaluate import Evaluator
from nemo_openmath.grading.intervals import Ball
from nemo_openmath.grading.lexer import NotMath
from nemo_openmath.grading.nodes import Node
from nemo_openmath.grading.scalars import FIRST_PRECISION

MAX_MATRIX = 8  # rows and columns of matrices that are multiplied out
MAX_POWER = 20  # of a matrix


def has_matrix(node: Node) -> bool:
    """Return whether an expression is a matrix, not a number that is made of one."""
    if (node and node[0] in ("matrix", "seq")) or (node and node[0] == "fn" and node[1] == "det"):
        return node[0] == "matrix"
    return any(has_matrix(part) for part in node if isinstance(part, tuple))


def matrix_rows(node: Node) -> tuple[tuple[Node, ...], ...] | None:
    """Return the entries of a matrix expression: sums, products, powers and multiples. None where it is a number.
    Raises NotMath for others."""
    if not has_matrix(node):
        return None
    match node:
        case ("matrix", rows):
            if len(rows) > MAX_MATRIX or len(rows[0]) > MAX_MATRIX:
                raise NotMath("a large matrix inside an expression")
            return rows
        case ("neg", a):
            return _each(_matrix(a), lambda n: ("neg", n))
        case ("div", a, divisor) if not has_matrix(divisor):
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
            factors = tuple(n for n in nodes if not has_matrix(n))
            product: tuple[tuple[Node, ...], ...] | None = None
            for matrix in (_matrix(n) for n in nodes if has_matrix(n)):
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
    if (rows := matrix_rows(node)) is None:
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
    """Return a rational number as one node, so that powers of matrices do not grow."""
    try:
        value = Evaluator(FIRST_PRECISION).value(node)
    except ArithmeticError:
        return node
    return node if isinstance(value, Ball) else ("num", value, 0)
