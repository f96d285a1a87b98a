"""Texts of strangers and models as markup: formulas as MathML where they can be read, everything else escaped.

latex2mathml parses a formula into a tree. Its own text form is not used: it lets ``<script>`` in ``\\text`` through as
it stands. The tree is written here, with elements and attributes of a fixed list and every text escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from markupsafe import Markup, escape

from nemo_openmath.data.records.shown import printable

LONGEST = 1000
"""Longest formula that is parsed, in characters."""
MOST = 20_000
"""Characters of formulas on a page that are parsed: some 50 ms. The rest stays as it is written, and the page says
so."""
_DEEPEST = 24  # braces within braces
_OPENING = re.compile(r"\$\$|\\\[|\\\(|(?<![\\$])\$|\\boxed\{")
_CLOSING = {"$$": "$$", r"\[": r"\]", r"\(": r"\)", "$": "$"}
_BOXED = re.compile(r"\\boxed\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})++\}")
_ELEMENTS = frozenset(
    (
        *("math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup"),
        *("msubsup", "munder", "mover", "munderover", "mmultiscripts", "mprescripts", "none"),
        *("mtable", "mtr", "mtd", "mstyle", "menclose", "mpadded", "mphantom"),
    )
)
_ATTRIBUTES = {
    "display": r"block|inline",
    "displaystyle|stretchy|fence|separator|accent|accentunder|symmetric|largeop|movablelimits": r"true|false",
    "scriptlevel": r"[+-]?\d",
    "linethickness|width|height|depth|lspace|rspace|minsize|maxsize": r"-?[\d.]{1,8}(em|ex|px|pt|%)?",
    "mathvariant|form|notation|columnalign|rowalign": r"[a-z -]{1,40}",
}
_ALLOWED = {name: re.compile(value) for names, value in _ATTRIBUTES.items() for name in names.split("|")}
_NESTING = re.compile(r"\\\\|\\[{}]|[{}]|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\begin|\\end(?![a-zA-Z])")
_REFERENCE = re.compile(r"&#x([0-9A-Fa-f]{1,6});")


@cache
def parser() -> Callable[..., Any] | None:
    """Return latex2mathml's parser; None where it is not installed."""
    try:
        from latex2mathml.converter import convert_to_element
    except ImportError:
        return None
    return convert_to_element


@dataclass
class MathWriter:
    """Writes the texts of one page."""

    left: int = MOST
    """Characters of formulas that may still be parsed."""
    written: int = 0
    """Formulas that were written as MathML."""
    unread: int = 0
    """Formulas that could not be parsed."""
    beyond: int = 0
    """Formulas that were not parsed, for the page has too many or they are too long."""

    def text(self, text: str) -> Markup:
        """Return a text with its formulas. Nothing of it can be markup."""
        text = text.replace("\r\n", "\n")
        parts: list[str] = []
        at = 0
        for formula in _formulas(text):
            parts.append(escape(printable(text[at : formula.start])))
            raw = printable(text[formula.start : formula.end])
            parts.append(self._parsed(formula.latex, raw, block=formula.block))
            at = formula.end
        parts.append(escape(printable(text[at:])))
        return Markup("".join(parts))

    def answer(self, text: str) -> Markup:
        """Return an answer: the whole is a formula where it looks like one."""
        if parser() is None or not re.search(r"[\\^_]", text):
            return escape(printable(text))
        return self._parsed(text, printable(text), block=False)

    def note(self) -> str:
        """Return what has to be said of the formulas of the page; "" where all are written."""
        if parser() is None:
            if not self.beyond:
                return ""
            return "Formulas are shown as they are written: pip install 'nemo-openmath[view]' renders them."
        parts = []
        if self.unread:
            parts.append(f"{self.unread:,} formulas could not be parsed")
        if self.beyond:
            parts.append(f"{self.beyond:,} formulas are beyond what one page renders")
        return f"{' and '.join(parts)}: they are shown as they are written." if parts else ""

    def _parsed(self, latex: str, raw: str, *, block: bool) -> Markup:
        if parser() is None or len(latex) > min(LONGEST, self.left):
            self.beyond += 1
            return escape(raw)
        self.left -= len(latex)
        made = _mathml(latex.strip(), block)
        if made is None:
            self.unread += 1
            return Markup('<span class="unread">{}</span>').format(raw)
        self.written += 1
        return made


@dataclass(frozen=True, slots=True)
class _Formula:
    start: int
    end: int
    latex: str
    block: bool


def _formulas(text: str) -> Iterator[_Formula]:
    """Yield the formulas of a text. Every text takes time in proportion to its length."""
    closings = dict.fromkeys(_CLOSING, -1)  # where the next one is, of those that were looked for
    at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        mark, start = opening[0], opening.end()
        at = start
        if mark not in _CLOSING:
            if (boxed := _BOXED.match(text, opening.start())) is not None:
                at = boxed.end()
                yield _Formula(opening.start(), at, boxed[0], False)
            continue
        if closings[mark] < start:
            place = text.find(_CLOSING[mark], start)
            closings[mark] = len(text) if place < 0 else place
        end = closings[mark]
        if end == len(text) or end == start or (mark == "$" and not _is_inline(text, start, end)):
            continue
        at = end + len(mark)
        yield _Formula(opening.start(), at, text[start:end], mark in ("$$", r"\["))


def _is_inline(text: str, start: int, end: int) -> bool:
    """Whether a dollar sign closes a formula, and is no price: ``$5 and $6`` is none."""
    inside = text[start:end]
    return (
        "\n" not in inside
        and not inside[0].isspace()
        and not inside[-1].isspace()
        and not text[end + 1 : end + 2].isdigit()
        and inside[-1] != "\\"
    )


@lru_cache(maxsize=4096)
def _mathml(latex: str, block: bool) -> Markup | None:
    """Return a formula as MathML; None where it cannot be parsed."""
    convert = parser()
    if convert is None or not latex or not _is_balanced(latex):
        return None
    try:
        root = convert(latex, display="block" if block else "inline")
        return Markup(_written(root))
    except Exception:  # of a parser that knows no hostile text: StopIteration, IndexError, RecursionError ...
        return None


def _is_balanced(latex: str) -> bool:
    """Whether every brace is closed, and none lies too deep. The parser takes half a formula for a whole one."""
    depth = braces = 0
    for mark in _NESTING.findall(latex):
        step = 1 if mark in ("{", r"\left", r"\begin") else -1 if mark in ("}", r"\right", r"\end") else 0
        depth += step
        braces += step if mark in "{}" else 0
        if depth > _DEEPEST or braces < 0:
            return False
    return braces == 0


def _written(element: Any) -> str:
    """Write an element of the tree. Raises ValueError for what is not on the list, and for a command that the parser
    did not know: it leaves that as a text with its backslash."""
    tag = str(element.tag)
    if tag not in _ELEMENTS:
        raise ValueError(tag)
    own = _REFERENCE.sub(lambda match: chr(int(match[1], 16)), element.text or "")
    if own.startswith("\\") and len(own) > 1 and tag != "mtext":
        raise ValueError(own)
    attributes = "".join(
        f' {name}="{escape(value)}"'
        for name, value in element.attrib.items()
        if (pattern := _ALLOWED.get(name)) is not None and pattern.fullmatch(value)
    )
    inner = str(escape(printable(own))) + "".join(_written(child) for child in element)
    return f"<{tag}{attributes}>{inner}</{tag}>"
