"""Compare a predicted answer with the expected one: fast path, words and choices, then expressions in every reading.

A pair whose text has two customary readings gets a verdict only where both readings agree on it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading import lexer, plain, texts
from nemo_openmath.grading.equivalence import Comparer
from nemo_openmath.grading.forms import Empty, Form, Scalar
from nemo_openmath.grading.lexer import NotMath
from nemo_openmath.grading.nodes import Node, symbols
from nemo_openmath.grading.parser import Parser
from nemo_openmath.grading.to_form import form
from nemo_openmath.grading.units import LONE_LETTERS, dimension, letter_unit

_SPACES = re.compile(r"\s+")
_BARE_LOG = re.compile(r"log(?![_\w])|\\log(?!\s*_)")
_LABEL = re.compile(r"\x01([A-Za-z][A-Za-z .'-]{0,59})\x02\s*[=:]\s*")
_NO_LABEL = frozenset({"answer", "final answer", "ans", "result"})
_IN_BASE = re.compile(r"(-?[0-9A-Z]{1,60})_\{?(?!10\b)\d{1,2}\}?")
_SPACING = re.compile(r"\\[!,;:> ]|\\thinspace|[\s~$]")
_DECIMAL_COMMA = re.compile(r"-?\d{1,30},\d{1,30}")  # 0,125
_AND_OR = re.compile(r"(?<![a-zA-Z\\])(and|or)(?![a-zA-Z])|\\(land|wedge|lor|vee)(?![a-zA-Z])")
_PARTS = re.compile(  # (a) 5 (b) 6
    r"\(a\)\s*[^\s(].*\(b\)|\(i\)\s*[^\s(].*\(ii\)|\(1\)\s*[^\s(].*\(2\)|\(A\)\s*[^\s(].*\(B\)", re.DOTALL
)
_COMMA_LIST = re.compile(r"(?<!\d),|,(?!\d)|,\d+,|\d,\d+[^\d;)\]}]")  # a comma that is no decimal point
_SPACED = re.compile(r",\s")
_CURRENCY = re.compile(r"\\?\$|[€£¥]")
_SURELY_DECIMAL = re.compile(r"-?0,\d{2,30}|-0,\d")  # as a list nobody writes it
_EUROPEAN = re.compile(r"-?\d{1,3}(?:\.\d{3}){1,10},\d{1,30}")  # 1.234,56
_POINTS = re.compile(r"-?\d{1,3}(?:\.\d{3}){2,10}")  # 1.234.567
_POINT = re.compile(r"-?[1-9]\d{0,2}\.\d{3}")  # 1.234
_GROUPS = re.compile(r"-?[1-9](?:\d{0,2}(?:,\d{3}){1,10}|\d?(?:,\d{2}){1,10},\d{3}|\d{0,3}(?:,\d{4}){1,10})")
_SPAN = re.compile(r"\d+(?:-\d+)+")  # 3-2: a score, pages, a difference
_VECTORS, _CROSS = re.compile(r"\\(?:vec|overrightarrow|mathbf|boldsymbol|bm|hat)\b"), re.compile(r"\\times|×|\\wedge")
_WORD = re.compile(r"[a-zA-Z]{3,}")
_NAMED = re.compile(r"([a-zA-Z])\s*=")
_COUNT_OF_PRIMES = re.compile(r"\\pi\(\d+\)")
_LETTERS = re.compile(r"[A-J]{2,10}")
_SPACE = re.compile(r"((?<=[\w.])\s+(?=[\w.])|(?<=,)\s+(?=\d))|\s+")  # group 1: a space that means something


def compare(predicted: str | None, expected: str | None, *, take_modulo: int | None = None) -> Grade:
    """Grade a predicted answer; never raises. The rules of equality are stated in the package's docstring.

    ``take_modulo``: whole numbers count as equal when they are congruent modulo this number. Work is bounded for any
    input, but not below the limit of a second: that is what GradingPool is for.
    """
    decided = plain.decide(predicted, expected)
    if predicted is None or expected is None or (decided is not None and (decided.is_equal or not take_modulo)):
        return decided if decided is not None else plain.MISSING
    if not predicted.strip() or not expected.strip():
        return decided if decided is not None else plain.MISSING
    try:
        if take_modulo and (residues := _residues(predicted, expected, take_modulo)) is not None:
            return residues
        return decided or _compare(predicted, expected)
    except RecursionError:
        return unknown("nested too deeply")


def is_mathematics(text: str) -> bool:
    """Return whether a text is read as mathematics: a value, an expression, a list, a set, an equation."""
    try:
        return bool(text.strip()) and bool(_read(text).forms)
    except RecursionError:
        return False


def _residues(predicted: str, expected: str, modulo: int) -> Grade | None:
    values = [_whole(text) for text in (predicted, expected)]
    if values[0] is None or values[1] is None:
        return None
    same = (values[0] - values[1]) % modulo == 0
    return equal(f"congruent modulo {modulo}") if same else not_equal(f"different modulo {modulo}")


def _whole(text: str) -> int | None:
    """Return the whole number that an answer is; None where it is another kind of answer."""
    from nemo_openmath.grading.evaluate import Evaluator

    try:
        for reading in _read(text).forms:
            if isinstance(reading, Scalar):
                value = Evaluator(128).value(reading.node)
                return value if isinstance(value, int) else None
    except ArithmeticError:
        pass
    return None


class _Reading:
    """One answer, read once: its canonical spelling, its expressions, or why it is none."""

    __slots__ = (
        "ambiguous",
        "canonical",
        "cleaned",
        "forms",
        "label",
        "problem",
        "spaced",
        "squeezed",
        "tight",
        "words",
    )

    def __init__(self, text: str):
        self.forms: list[Form] = []
        self.tight: list[Form] = []
        self.ambiguous = False
        self.problem = ""
        self.label = ""  # Area in \text{Area} = 5
        self.words = texts.unwrap(text)
        self.squeezed = _SPACING.sub("", text.replace("{,}", ",")) if len(text) < 200 else ""
        self.spaced = _SPACED.search(text) is not None  # 0, 125 is a list
        try:
            self.cleaned = lexer.clean(text)
        except NotMath as error:
            self.cleaned, self.problem = text, str(error)
            self.canonical = _SPACES.sub("", text)
            return
        if (label := _LABEL.match(self.cleaned)) is not None:
            name = " ".join(texts.words(label[1]))
            if len(name) == 1:  # \mathrm{r} = 5 is r = 5
                self.cleaned = label[1].strip() + self.cleaned[label.end(1) + 1 :]
            else:
                self.label = "" if name in _NO_LABEL else name
                self.cleaned = self.cleaned[label.end() :]
        self.canonical = _canonical(self.cleaned)
        if _PARTS.match(self.cleaned) is not None:
            self.problem = "labelled parts"
            return
        source = texts.number_word(self.words) or _large_base(self.canonical) or self.cleaned
        for variant in _comma_readings(source):
            try:
                self.forms.append(self._parse(variant, tight=False))
                self.tight.append(self._parse(variant, tight=True) if self.ambiguous else self.forms[-1])
            except NotMath as error:
                self.problem = str(error)
        del self.forms[len(self.tight) :]

    def _parse(self, text: str, tight: bool) -> Form:
        tokens = lexer.tokenize(text)
        if not tokens:
            raise NotMath("nothing to compare")
        parser = Parser(tokens, tight=tight)
        node: Node = parser.parse()
        self.ambiguous |= parser.ambiguous
        return form(node)


def _large_base(canonical: str) -> str | None:
    """Return the value of 2A_{16}, whose digits are letters too; else None."""
    m = re.fullmatch(r"(-?)([0-9A-Z]{1,60})_\{?(\d\d)\}?", canonical)
    if m is None or m[2].isdigit() or (m[2].isalpha() and m[3] != "16") or not 11 <= int(m[3]) <= 36:
        return None
    try:
        return m[1] + str(int(m[2], int(m[3])))
    except ValueError:
        return None


def _canonical(cleaned: str) -> str:
    """Return one spelling for texts that differ in markup alone. Spaces stay where they keep digits or words apart."""
    text = cleaned.replace("\x01", " ").replace("\x02", " ").strip()
    text = (
        text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\leq", r"\le").replace(r"\geq", r"\ge")
    )
    return _SPACE.sub(lambda m: " " if m[1] else "", text)


@lru_cache(maxsize=4096)
def _read_short(text: str) -> _Reading:
    return _Reading(text)


def _read(text: str) -> _Reading:
    return _read_short(text) if len(text) < 500 else _Reading(text)


def _comma_readings(text: str) -> Iterator[str]:
    """Yield the readings of commas: 1,234 is a number, and in a bare list perhaps two; (1,234) is a pair; in "1,234, 5"
    the space separates."""
    if not lexer.COMMA_GROUPED.search(text):
        yield text
        return
    grouped = lexer.COMMA_GROUPED.sub(lambda m: m[0].replace(",", ""), text)
    if _SPACED.search(text):
        yield grouped
    elif text.lstrip().startswith(("(", "[", "{", r"\{", r"\langle")):
        yield text
    else:
        yield grouped
        yield text


def _compare(predicted: str, expected: str) -> Grade:
    p, e = _read(predicted), _read(expected)
    grade = _compare_read(p, e)
    if grade.is_equal and {_connective(p.cleaned), _connective(e.cleaned)} == {"and", "or"}:
        return unknown("a list with and against one with or")
    names = [r.label or (getattr(r.forms[0], "name", None) if r.forms else None) for r in (p, e)]
    if grade.is_equal and (p.label or e.label) and None not in names and names[0] != names[1]:
        return unknown(f"the same value of {names[0]} and of {names[1]}")
    if grade.is_equal and p.canonical != e.canonical:
        if any(_VECTORS.search(text) and _CROSS.search(text) for text in (predicted, expected)):
            return unknown("a product of vectors depends on their order")
        letters = [r.canonical.lower() for r in (p, e)]
        if all(map(_WORD.fullmatch, letters)) and letters[0] != letters[1] and sorted(letters[0]) == sorted(letters[1]):
            return unknown("the same letters in another order")
    return grade


def _connective(text: str) -> str | None:
    """Return the one word that joins an answer without numbers, such as A and B, or values of several names; else an
    empty text. Of x = 1 and x = 2, and of x = 1 or x = 2, both are said of the solutions of an equation."""
    connectives = {"and" if m[0] in ("and", r"\land", r"\wedge") else "or" for m in _AND_OR.finditer(text)}
    numbers, names = re.search(r"\d", text), set(_NAMED.findall(text))
    return connectives.pop() if len(connectives) == 1 and (not numbers or len(names) > 1) else None


def _compare_read(p: _Reading, e: _Reading) -> Grade:
    if p.canonical == e.canonical and p.canonical:
        return equal("same but for the markup")
    chosen = _choices(p, e)
    if chosen is not None:
        return chosen
    by_words = texts.compare_words(p.words, e.words, bool(p.forms), bool(e.forms), _is_empty(p), _is_empty(e))
    if by_words is not None:
        return by_words
    if not p.forms or not e.forms:
        return unknown(f"not compared as an expression: {p.problem or e.problem}")
    for x, y in ((p, e), (e, p)):
        if (open_ := _notations(x, y)) is not None:
            return unknown(open_)
    grade = _compare_readings(p.forms, e.forms, p.cleaned + " " + e.cleaned)
    if grade.is_equal and all(map(_SURELY_DECIMAL.fullmatch, (p.squeezed, e.squeezed))):
        as_decimals = compare(*(r.squeezed.replace(",", ".") for r in (p, e)))
        return as_decimals if as_decimals.is_equal else unknown("a comma that may be a decimal point")
    if grade.verdict is Verdict.NOT_EQUAL:
        others = [_numbers_with_commas(x, y.canonical.startswith("(")) for x, y in ((p, e), (e, p))]
        for number, other_number in itertools.product(*others):
            if not _certainly_different(_read(number), _read(other_number)):
                return unknown("commas or points that may be read in two ways")
    if p.ambiguous or e.ambiguous:
        other = _compare_readings(p.tight, e.tight, p.cleaned + " " + e.cleaned)
        if other.verdict is not grade.verdict:
            return unknown("depends on how far a slash or a function reaches")
    if grade.verdict is Verdict.NOT_EQUAL and any(map(_COUNT_OF_PRIMES.fullmatch, (p.canonical, e.canonical))):
        return unknown("a multiple of pi or a number of primes")
    if grade.is_equal and _SPAN.fullmatch(p.canonical) and _SPAN.fullmatch(e.canonical):
        return unknown("the same as differences, and not as spans or scores")
    return grade


def _notations(x: _Reading, y: _Reading) -> str | None:
    """Return why ``x`` against ``y`` is a question of notation that mathematics does not answer; else None."""
    if (m := _IN_BASE.fullmatch(x.canonical)) is not None and m[1].lstrip("0") == y.canonical.lstrip("0"):
        return "digits of a base against digits without one"
    for number in _numbers_with_commas(x, y.canonical.startswith("(")):
        if not _certainly_different(_read(number), y):
            return "a comma or point that may be read in two ways"
    if _LETTERS.fullmatch(x.canonical) and sorted(x.canonical) == sorted(
        y.canonical.replace(",", "").replace("and", "")
    ):
        return "letters together and listed" if "," in y.canonical or "and" in y.canonical else None
    return None


def _certainly_different(x: _Reading, y: _Reading) -> bool:
    """Return whether two answers differ as they stand, no other reading of a comma or point considered."""
    return bool(x.forms and y.forms) and _compare_readings(x.forms, y.forms, "").verdict is Verdict.NOT_EQUAL


def _numbers_with_commas(reading: _Reading, beside_tuple: bool) -> Iterator[str]:
    """Return what a text of digits and commas also means somewhere: 0,125 is 0.125, and 1, 234 is perhaps 1234. The
    reading that the grader takes by custom is left out."""
    squeezed, canonical = _CURRENCY.sub("", reading.squeezed), reading.canonical
    if "," not in squeezed and "." not in squeezed:
        return
    if ";" in squeezed and not _COMMA_LIST.search(squeezed):  # 2,5; 3,5
        yield squeezed.replace(",", ".").replace(";", ",")
    if _DECIMAL_COMMA.fullmatch(squeezed) and not reading.spaced:
        yield squeezed.replace(",", ".")
    if _EUROPEAN.fullmatch(squeezed):
        yield squeezed.replace(".", "").replace(",", ".")
    if _POINTS.fullmatch(squeezed) or _POINT.fullmatch(squeezed):
        yield squeezed.replace(".", "")
    bare = squeezed[1:-1] if squeezed[:1] == "(" and squeezed[-1:] == ")" and not beside_tuple else squeezed
    if _GROUPS.fullmatch(bare) and not lexer.COMMA_GROUPED.fullmatch(canonical.lstrip("-")) and not canonical.isdigit():
        yield bare.replace(",", "")


def _is_empty(reading: _Reading) -> bool:
    return any(isinstance(f, Empty) for f in reading.forms)


def _compare_readings(p: list[Form], e: list[Form], source: str) -> Grade:
    """Compare all readings of two answers. The first reading of each side is the customary one, and it alone makes two
    answers equal."""
    a, b = p[0], e[0]
    customary = next(_letter_units(a, b), None)
    grade = _compare_forms(*(customary or (a, b)), source)
    if grade.is_equal or len(p) == len(e) == 1:
        return grade
    for x in p:
        for y in e:
            if (other := _compare_forms(x, y, source)).verdict is not Verdict.NOT_EQUAL:
                return unknown("equal in another reading") if other.is_equal else other
    return grade


def _letter_units(a: Form, b: Form) -> Iterator[tuple[Form, Form]]:
    """Read letters behind a number as units beside a quantity with a unit: 5m, or 9.8 m/s^2."""
    for x, y, turned in ((a, b, False), (b, a, True)):
        if isinstance(x, Scalar) and isinstance(y, Scalar) and x.unit is None and isinstance(y.unit, tuple):
            number: list[Node] = []
            powers: dict[str, int] = {}
            if _split(x.node, 1, number, powers) and powers and number:
                parts: dict[str, int] = {}
                size = Fraction(1)
                for letter, power in powers.items():
                    bases, factor = letter_unit(letter)
                    size *= factor**power
                    for base, exponent in bases.items():
                        parts[base] = parts.get(base, 0) + exponent * power
                node = number[0] if len(number) == 1 else ("mul", tuple(number))
                read = Scalar(node, (dimension(parts), size), x.name)
                yield (y, read) if turned else (read, y)


def _split(node: Node, power: int, number: list[Node], powers: dict[str, int]) -> bool:
    """Sort the factors of a product into numbers and letters that name units; return False where there are others."""
    match node:
        case ("sym", letter) if letter in LONE_LETTERS:
            powers[letter] = powers.get(letter, 0) + power
            return True
        case ("pow", ("sym", letter), ("num", int(exponent), 0)) if letter in LONE_LETTERS and 0 < exponent < 10:
            powers[letter] = powers.get(letter, 0) + power * exponent
            return True
        case ("mul", nodes):
            return all(_split(n, power, number, powers) for n in nodes)
        case ("div", top, bottom) if symbols(bottom):
            return _split(top, power, number, powers) and _split(bottom, -power, number, powers)
    if symbols(node) or power < 0:
        return False
    number.append(node)
    return True


def _compare_forms(a: Form, b: Form, source: str) -> Grade:
    natural = Comparer().forms(a, b)
    if not _BARE_LOG.search(source):
        return natural
    decimal = Comparer(log_base=10).forms(a, b)
    return natural if natural.verdict is decimal.verdict else unknown("depends on the base of the logarithm")


def _choices(p: _Reading, e: _Reading) -> Grade | None:
    """Compare multiple-choice answers: (B), B and (B) 12 are one choice; (B) 12 is also 12; a bare letter against a
    value is for the judge."""
    a, b = texts.choice(p.words), texts.choice(e.words)
    if a is None and b is None:
        return None
    if a is not None and b is not None:
        if a[0] != b[0]:
            return not_equal("different choices")
        if not a[1] or not b[1]:
            return equal("same choice")
        same = compare(a[1], b[1])
        return same if same.is_equal else unknown("the same letter with different texts")
    _, text = a or b  # type: ignore[misc]
    other = e if a is not None else p
    if not text:
        is_value = any(not (isinstance(f, Scalar) and f.node[0] == "sym") for f in other.forms)
        return unknown("a choice against its possible text") if is_value or not other.forms else None
    grade = compare(text, other.words)
    return grade if grade.is_equal else None if not grade.reason else unknown("a choice against another answer")
