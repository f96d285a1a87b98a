r"""Another opinion on a pair that the grader calls equal: another parser (latex2sympy2_extended) and plain evaluation.

Nothing of ``nemo_openmath.grading`` is used. Expressions are evaluated by sympy to 50 digits, at points of several
signs and sizes where they hold letters; sets, tuples, intervals and matrices member by member; an equation or
inequality by the ratio of the differences of its sides, which must be one constant (positive for an inequality).
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy

DIGITS = 50
MIN_POINTS = 4
# Of both signs, around one, small and large; irrational, so that no coincidence of rational numbers is met.
_SIZES = [sympy.Rational(*pair) for pair in ((7, 5), (-13, 11), (5, 37), (-3, 41), (311, 7), (-977, 13), (19, 4))]
_DRESS = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|[bB]igg?[lr]?)(?![a-zA-Z])|\\[,;:!> ]|\\boxed(?=\{)|[~$]|\\[()\[\]]"
)
_FONT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?=(?![^=]*[=<>])")


def undressed(text: str) -> str:
    """The characters of an answer without white space, dollar signs, font commands and spacing."""
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    text = text.replace(r"\leqslant", r"\le ").replace(r"\geqslant", r"\ge ")
    return re.sub(r"\s+", " ", _FONT.sub(r" \1 ", _DRESS.sub(" ", text))).strip().rstrip(".,;").strip()


def confirmed(a: str, b: str) -> bool | None:
    """Whether two answers are the same by another way; None where this check cannot read one of them."""
    first, second = undressed(a), undressed(b)
    if first.replace(" ", "") == second.replace(" ", ""):
        return True
    squeezed = [re.sub(r"\s", "", text) for text in (first, second)]
    names = [_NAME.match(text) for text in squeezed]
    if (names[0] is None) != (names[1] is None):
        squeezed = [text[name.end() :] if name else text for text, name in zip(squeezed, names, strict=True)]
        first, second = squeezed
    try:
        return _same(latex2sympy(first), latex2sympy(second))
    except Exception:  # the other parser raises whatever it likes
        return None


def _same(a: Any, b: Any) -> bool | None:
    items = [_items(x) for x in (a, b)]
    if items[0] is not None and items[1] is not None:
        ordered = [isinstance(x, sympy.Tuple) for x in (a, b)]
        p, q = items[0], items[1]
        if any(ordered) or len(p) != len(q):
            return len(p) == len(q) and all(_same(x, y) is True for x, y in zip(p, q, strict=True))
        return any(
            all(_same(x, y) is True for x, y in zip(p, perm, strict=True))
            for perm in itertools.islice(itertools.permutations(q), 5040)
        )
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        return a.args[2:] == b.args[2:] and all(_same(x, y) is True for x, y in zip(a.args[:2], b.args[:2], strict=True))
    if isinstance(a, sympy.Union) and isinstance(b, sympy.Union):
        p, q = (sorted(x.args, key=lambda part: float(sympy.N(part.inf, 20))) for x in (a, b))
        return len(p) == len(q) and all(_same(x, y) is True for x, y in zip(p, q, strict=True))
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape == b.shape and all(_same(x, y) is True for x, y in zip(a, b, strict=True))
    if isinstance(a, sympy.core.relational.Relational) and isinstance(b, sympy.core.relational.Relational):
        return _relations(a, b)
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return _expressions(a, b)
    return None


def _items(x: Any) -> list[Any] | None:
    if isinstance(x, (sympy.Tuple, sympy.FiniteSet)):
        return list(x.args)
    return None


def _points(names: list[Any]) -> list[dict[Any, Any]]:
    points = []
    for i in range(14):
        points.append({n: _SIZES[(i + (2 * i + 1) * k) % len(_SIZES)] + sympy.Rational(i, 101) for k, n in enumerate(names)})
    return points


def _value(x: Any, point: dict[Any, Any]) -> complex | None:
    value = sympy.N(x.subs(point), DIGITS)
    return value if value.is_number and value.is_finite else None


def _close(x: Any, y: Any) -> bool:
    return bool(abs(x - y) <= sympy.Float(10) ** (8 - DIGITS) * max(1, abs(x), abs(y)))


def _letters(x: Any) -> Any:
    """The expression with i and e as the numbers that they are among others."""
    return x.subs({n: {"i": sympy.I, "e": sympy.E}[n.name] for n in x.free_symbols if n.name in ("i", "e")})


def _expressions(a: Any, b: Any) -> bool | None:
    a, b = _letters(a), _letters(b)
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.free_symbols != b.free_symbols and (sympy.simplify(a).free_symbols != sympy.simplify(b).free_symbols):
        return False
    seen = 0
    for point in _points(names) if names else [{}]:
        x, y = _value(a, point), _value(b, point)
        if x is None or y is None:
            continue
        if not _close(x, y):
            return False
        seen += 1
    return True if seen >= (MIN_POINTS if names else 1) else None


def _relations(a: Any, b: Any) -> bool | None:
    if isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq):
        sides = [(a.lhs, b.lhs), (a.rhs, b.rhs)]
        if all(_same(x, y) is True for x, y in sides):
            return True
    kinds = []
    differences = []
    for x in (a, b):
        strict = isinstance(x, (sympy.Gt, sympy.Lt))
        kinds.append("=" if isinstance(x, sympy.Eq) else "!=" if isinstance(x, sympy.Ne) else "<" if strict else "<=")
        differences.append(_letters(x.gts - x.lts if hasattr(x, "gts") else x.lhs - x.rhs))
    if kinds[0] != kinds[1] or differences[0].free_symbols != differences[1].free_symbols:
        return False
    ratios = []
    for point in _points(sorted(differences[0].free_symbols, key=str)):
        x, y = (_value(d, point) for d in differences)
        if x is not None and y is not None and y != 0:
            ratios.append(x / y)
    if len(ratios) < MIN_POINTS:
        return None
    constant = all(_close(ratios[0], r) for r in ratios)
    return constant and (kinds[0] in ("=", "!=") or bool(sympy.re(ratios[0]) > 0))
