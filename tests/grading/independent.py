r"""Another opinion on a pair that the grader calls equal: another parser (latex2sympy2_extended) and plain evaluation.

Nothing of ``nemo_openmath.grading`` is used. Lists, tuples, intervals and unions are taken apart here and compared
member by member. Expressions are evaluated by sympy to 50 digits, at points of several signs and sizes where they
hold letters; points where one has no real value are passed over. An equation or inequality is compared by the ratio
of the differences of its sides, which must be one constant (positive for an inequality).

The conventions under which two answers may be called equal are applied one at a time: the marks of thousands, a unit
or percent sign on one side, the name before an equals sign on one side, the brackets of a list on one side.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy

DIGITS = 50
MIN_POINTS = 4
# Of both signs, around one, small and large.
_SIZES = [
    sympy.Rational(*pair)
    for pair in ((7, 5), (-13, 11), (5, 37), (19, 4), (-3, 41), (311, 7), (-977, 13), (8, 3), (47, 12))
]
_DRESS = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|[bB]igg?[lr]?)(?![a-zA-Z])|\\[,;:!> ]|\\[()]|\\boxed(?=\{)|[~$]"
)
_FONT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPELLINGS = (
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\leqslant", r"\le "), (r"\geqslant", r"\ge "), (r"\%", "%"),
    (r"\leq", r"\le "), (r"\geq", r"\ge "), ("{,}", ","), ("+\\infty", "\\infty"), (r"\{", "{"), (r"\}", "}"),
    ("π", r"\pi "), (r"\$", ""), (r"^{\circ}", r"\circ"), (r"^\circ", r"\circ"),
    (r"\lvert", "|"), (r"\rvert", "|"), (r"\cdot", r"\cdot "),
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z]\w{0,3}(?:_\{?\w+\}?)?(?:\([a-z]\))?=(?![^=]*[=<>])")
_FUNCTION = re.compile(r"([A-Za-z]\w{0,3}(?:_\{?\w+\}?)?)\(([A-Za-z])\)=")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_UNIT = re.compile(
    r"(?<=[\d})])\s*(?:%|\^?\{?\\circ\}?|[€£¥]|(?:square |cubic )?(?:miles|feet|inches|yards|hours|[a-z]{1,3}|units?)"
    r"(?:\^\{?\d\}?)?(?:/[a-z]+)?)$"
)
_CONNECTIVE = re.compile(r"\s*(?:,\s*(?:and|or)\s|;|,|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*")
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?!\d)")


def confirmed(a: str, b: str, *, units: bool = True) -> bool | None:
    """Whether two answers are the same by another way; None where this check cannot read one of them. ``units``: a
    unit may be left out on one side."""
    opinions = [_opinion(x, y) for x, y in _readings(undressed(a), undressed(b), units)]
    return True if True in opinions else False if False in opinions else None


def undressed(text: str) -> str:
    """The characters of an answer without dollar signs, font commands and spacing."""
    text = _FONT.sub(r" \1 ", _DRESS.sub(" ", text))
    for spelling, other in _SPELLINGS:
        text = re.sub(
            re.escape(spelling) + ("(?![a-zA-Z])" if spelling[-1].isalpha() else ""),
            functools.partial(_constant, other),
            text,
        )
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;").strip()


def _constant(text: str, _: re.Match[str]) -> str:
    return text


def _readings(a: str, b: str, with_units: bool) -> Iterator[tuple[str, str]]:
    """The pair as it stands, then with one convention applied."""
    yield a, b
    whole = [_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text) for text in (a, b)]
    if whole != [a, b]:
        yield whole[0], whole[1]
    units = [_UNIT.search(text) for text in whole]
    if with_units and (units[0] is None) != (units[1] is None):
        bare = [text[: unit.start()] if unit else text for text, unit in zip(whole, units, strict=True)]
        yield bare[0], bare[1]
        if (unit := units[0] or units[1]) is not None and "circ" in unit[0]:
            turned = [rf"({n})\pi/180" if u else n for n, u in zip(bare, units, strict=True)]
            yield turned[0], turned[1]


def _opinion(a: str, b: str) -> bool | None:
    if a.replace(" ", "") == b.replace(" ", ""):
        return True
    first, second = _parts(a), _parts(b)
    if first is not None and second is not None:
        return _lists(first, second)
    if first is None and second is None:
        return _single(a, b)
    return False


Parts = tuple[str, str, list[str]]  # opening bracket, closing bracket, members


def _parts(text: str) -> Parts | None:
    """The members of a list, tuple, interval or union; None of a single value."""
    opening = closing = ""
    if text[:1] in ("(", "[", "{") and _closes(text) == len(text) - 1:
        opening, closing, text = text[0], text[-1], text[1:-1].strip()
    if len(union := _split(text, re.compile(r"\s*\\cup(?![a-zA-Z])\s*"))) > 1:
        return "cup", "", union
    members = _split(text, _CONNECTIVE)
    if r"\pm" in text:
        members = [m.replace(r"\pm", sign) for m in members for sign in (("+", "-") if r"\pm" in m else ("",))]
    if len(members) == 1 and not opening:
        return None
    return opening, closing, members


def _closes(text: str) -> int:
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0:
            return i
    return -1


def _split(text: str, mark: re.Pattern[str]) -> list[str]:
    """The parts between marks outside brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0 and (m := mark.match(text, i)) is not None and m[0].strip():
            parts.append(text[start:i].strip())
            i = start = m.end()
        else:
            i += 1
    return [*parts, text[start:].strip()]


def _lists(a: Parts, b: Parts) -> bool | None:
    if (a[0] == "cup") != (b[0] == "cup"):
        return False
    if a[0] == "cup" or not (a[0] in ("(", "[") or b[0] in ("(", "[")):
        return _matched(_unnamed(a[2]), _unnamed(b[2]), repeated=a[0] == b[0] == "{")
    if len(a[2]) != len(b[2]):
        return False
    ends = [(p[0] if "infty" not in p[2][0] else "(", p[1] if "infty" not in p[2][-1] else ")") for p in (a, b)]
    if ends[0] != ends[1] and all(p[0] for p in (a, b)) and len(a[2]) != 1:
        return False
    return _all(_opinion(x, y) for x, y in zip(_unnamed(a[2]), _unnamed(b[2]), strict=True))


def _unnamed(members: list[str]) -> list[str]:
    """x=1, x=2 as 1, 2, and y=2, x=1 as 1, 2; members that are no named values as they are."""
    squeezed = [re.sub(r"\s", "", m) for m in members]
    names = [_NAME.match(m) for m in squeezed]
    if names[0] is None or len(members) < 2:
        return members
    found = [n[0] if n else None for n in names]
    values = [m[n.end() :] if n else m for m, n in zip(squeezed, names, strict=True)]
    if len({n for n in found if n}) == 1:
        return values
    if None in found or len(set(found)) != len(found):
        return members
    return [value for _, value in sorted(zip(found, values, strict=True))]  # type: ignore[type-var]


def _matched(a: list[str], b: list[str], repeated: bool) -> bool | None:
    """Whether the members of two sets can be paired."""
    if len(a) != len(b) and not repeated:
        return False
    opinions = [[_opinion(x, y) for y in b] for x in a]
    if not all(any(o is True for o in row) for row in (*opinions, *zip(*opinions, strict=True))):
        return None if any(o is None for row in opinions for o in row) else False
    free = list(range(len(b)))
    for row in opinions:
        match = next((j for j in free if row[j]), None)
        if match is None:
            return repeated
        free.remove(match)
    return True


def _all(opinions: Iterator[bool | None]) -> bool | None:
    found = list(opinions)
    return False if False in found else None if None in found else True


def _single(a: str, b: str) -> bool | None:
    a, b = (text.replace(r"\approx", "=") for text in (a, b))
    squeezed = [re.sub(r"\s", "", text) for text in (a, b)]
    chains = [text.split("=") for text in squeezed]
    if any(len(c) > 2 or (len(c) == 2 and all(map(_is_number, c))) for c in chains):
        return _chain(*chains)
    functions = [_FUNCTION.match(text) for text in squeezed]
    if functions[0] and functions[1] and functions[0][1] == functions[1][1] and functions[0][2] != functions[1][2]:
        f, x, y = functions[0][1], functions[0][2], functions[1][2]
        values = [text[m.end() :] for text, m in zip(squeezed, functions, strict=True) if m]
        if re.search(_letter(y), values[0]) or not re.search(_letter(y), values[1]):
            return False  # another letter, or no function of its argument
        return _single(values[0], re.sub(_letter(y), lambda _: f" {x} ", values[1])) if f else None
    names = [_NAME.match(text) for text in squeezed]
    if (names[0] is None) != (names[1] is None) or (names[0] and names[1] and names[0][0] == names[1][0]):
        a, b = (text[name.end() :] if name else text for text, name in zip(squeezed, names, strict=True))
        if _parts(a) is not None or _parts(b) is not None:
            return _opinion(a, b)
    try:
        return _same(_read(a), _read(b))
    except Exception:  # the other parser raises whatever it likes
        return None


def _letter(name: str) -> str:
    return rf"(?<![a-zA-Z\\]){name}(?![a-zA-Z])"


def _is_number(text: str) -> bool:
    return not re.search("[a-zA-Z]", re.sub(r"\\[a-z]+|(?<![a-zA-Z])[ei](?![a-zA-Z])", "", text))


def _chain(a: list[str], b: list[str]) -> bool | None:
    """The values behind chains of numbers, which must hold but for decimals; a name may stand in front."""
    values = []
    for sides in (a, b):
        sides = sides if _is_number(sides[0]) or len(sides) == 1 else sides[1:]
        if not all(map(_is_number, sides)):
            return None
        exact = [s for s in sides if "." not in s] or sides
        if len(exact) > 1 and not all(_single(exact[0], side) for side in exact[1:]):
            return False
        values.append(exact[0])
    return _single(values[0], values[1])


@functools.lru_cache(maxsize=20_000)
def _read(text: str) -> Any:
    text = re.sub(r"\s*([{}])\s*", r"\1", text)
    text = text.replace(r"\circ", r"^{\circ}")
    text = re.sub(r"\\begin\{array\}\{[a-z]*\}", r"\\begin{pmatrix}", text).replace(r"\end{array}", r"\end{pmatrix}")
    text = _DECIMAL.sub(lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    text = re.sub(r"([\^_])(\\frac\{\d+\}\{\d+\})", r"\1{\2}", text)
    text = re.sub(r"\\(frac|binom)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}", text)
    text = re.sub(r"\\(frac|binom)\s*(\d)\s*\{", r"\\\1{\2}{", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    return latex2sympy(text)


def _same(a: Any, b: Any) -> bool | None:
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape == b.shape and all(_same(x, y) is True for x, y in zip(a, b, strict=True))
    if isinstance(a, sympy.core.relational.Relational) and isinstance(b, sympy.core.relational.Relational):
        return _relations(a, b)
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return _expressions(a, b)
    if isinstance(a, sympy.Basic) and isinstance(b, sympy.Basic):
        return a == b
    return None


def _points(names: list[Any], whole: bool = False) -> Iterator[dict[Any, Any]]:
    if not names:
        yield {}
        return
    if whole:
        for i in range(12):
            yield {name: sympy.Integer(3 * i + 2 + (7 * k + i * k) % 11) for k, name in enumerate(names)}
        return
    for i in range(24):
        yield {
            name: _SIZES[(i * (1 + 2 * k) + k) % len(_SIZES)] * (1 if i < 12 else sympy.sign(_SIZES[i % 9]))
            + sympy.Rational(i, 101)
            for k, name in enumerate(names)
        }


def _value(x: Any, point: dict[Any, Any]) -> Any:
    value = sympy.N(x.subs(point), DIGITS)
    return value if value.is_number and value.is_finite else None


def _real(*values: Any) -> bool:
    return all(abs(sympy.im(value)) < sympy.Float(10) ** (8 - DIGITS) * max(1, abs(value)) for value in values)


def _close(x: Any, y: Any) -> bool:
    return bool(abs(x - y) <= sympy.Float(10) ** (8 - DIGITS) * max(1, abs(x), abs(y)))


def _letters(x: Any) -> Any:
    """The expression with i and e as the numbers that they are among others."""
    return x.subs({n: {"i": sympy.I, "e": sympy.E}[n.name] for n in x.free_symbols if n.name in ("i", "e")})


def _expressions(a: Any, b: Any) -> bool | None:
    complex_ = any(n.name == "i" for n in a.free_symbols | b.free_symbols)
    a, b = _letters(a), _letters(b)
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.free_symbols != b.free_symbols and (sympy.simplify(a).free_symbols != sympy.simplify(b).free_symbols):
        return False
    seen = 0
    whole = any(x.has(sympy.factorial, sympy.binomial, sympy.floor, sympy.ceiling) for x in (a, b))
    for point in _points(names, whole):
        x, y = _value(a, point), _value(b, point)
        if x is None or y is None or (names and not complex_ and not _real(x, y)):
            continue
        if not _close(x, y):
            return False
        seen += 1
    return True if seen >= (MIN_POINTS if names else 1) else None


def _relations(a: Any, b: Any) -> bool | None:
    if isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq):
        for sides in (((a.lhs, b.lhs), (a.rhs, b.rhs)), ((a.lhs, b.rhs), (a.rhs, b.lhs))):
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
        if x is not None and y is not None and y != 0 and _real(x, y):
            ratios.append(x / y)
    if len(ratios) < MIN_POINTS:
        return None
    constant = all(_close(ratios[0], r) for r in ratios) and not _close(ratios[0], 0)
    return constant and (kinds[0] in ("=", "!=") or bool(sympy.re(ratios[0]) > 0))
