r"""Answers in any common markup -> tokens.

The markup (``\left``, ``\dfrac``, ``\,``, ``$``, ``\mathrm``, Unicode) is taken off here, so that the parser sees one
spelling of everything. All patterns are linear: no quantifier nests inside another over the same characters.

A token is ``(kind, value)``: ``num`` (Fraction, written digits of a decimal or 0), ``sym`` name, ``const`` name,
``fn`` name, ``cmd`` a LaTeX command that takes arguments, ``word`` a unit or connective, ``clock`` a time (its parts
and a, p or nothing), ``op`` anything else.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Any

from nemo_openmath.grading.units import COMPOSITE, COUNTED, LONE_LETTERS, SCALES, UNITS

Token = tuple[str, Any]


class NotMath(ValueError):
    """Raised where a text is not an expression of the grammar. Other graders may still know it."""


MAX_LENGTH = 10_000  # characters of an answer the parser looks at
MAX_DIGITS = 4_000  # of one number literal; longer integers are compared as strings (plain.py)

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "÷": "/", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ",
    "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ø": r"\emptyset ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "≡": r"\equiv ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ", "μ": r"\mu ", "ε": r"\epsilon ", "δ": r"\delta ", "σ": r"\sigma ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ", "º": "°", "′": "'",
    "\u200b": "",
    "\ufeff": "", "∖": r"\setminus ", "…": r"\ldots ", "↦": r"\mapsto ",
}  # fmt: skip
_UNICODE |= {c: rf"\frac{{{a}}}{{{b}}}" for c, a, b in
             (("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅖", 2, 5), ("⅗", 3, 5),
              ("⅘", 4, 5), ("⅙", 1, 6), ("⅚", 5, 6), ("⅛", 1, 8), ("⅜", 3, 8), ("⅝", 5, 8), ("⅞", 7, 8))}  # fmt: skip
_TRANSLATE = str.maketrans(_UNICODE)

_DRESS = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|middle)(?![a-zA-Z])\.?"
    r"|\\(?:displaystyle|textstyle|limits|nolimits|quad|qquad|mathstrut|angle|measuredangle|hspace\{[^{}]{0,20}\}|hline|bf|rm|it)(?![a-zA-Z])"
    r"|(?<!\\)\\[!,;:> ]|~"
)
_BOX = re.compile(r"\s*\$?\\boxed\{((?:[^{}\\]|\\.|\{[^{}]*\})*)\}\$?\s*", re.DOTALL)
_FONT = re.compile(r"\\(?:mathbf|mathit|mathcal|mathsf|boldsymbol|bm|pmb|ensuremath|boxed|fbox)(?![a-zA-Z])")
_ORDINAL = re.compile(r"(?<=\d)(?:\^?\{?\x01(?:st|nd|rd|th)\x02\}?|(?:st|nd|rd|th)(?![a-zA-Z]))")
_PMOD = re.compile(r"\\pmod\s*(?:\{([^{}]{0,60})\}|(\d+))")
# A comma with a negative or no space behind it groups digits; with a wider space it separates a list: 1,\\,234.
_GROUPED = re.compile(
    r"(?<![\d.])[1-9]\d{0,2}(?:(?:(?:\{,\}|,)\s?(?:\\!\s?){1,2}|\{,\}\s?|\\[!,;:> ]\s?|\\thinspace\s?|~| )\d{3})+(?!\d)"
)
_MERIDIEM = re.compile(  # 4:00 PM, 4:00\\text{ p.m.}; without minutes only where it cannot be a product: 4 p.m.
    r"(?<![\w.:])(\d{1,2})(?::([0-5]\d)(?::([0-5]\d))?(?:\\[,;: ]|~)?\s?\x01?\s?([ap])\s?\.?\s?m\b"
    r"|(?:\\[,;: ]|~)?\s?(?:\x01\s?([ap])\s?\.?\s?m\b|([ap])\.\s?m\b))\.?\s?\x02?(?![\w(^])",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"(?<![\w.:\x03])(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?!\d|:|\.\d|\s?\x03)")
_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")  # 1.2 x 10^3
_CHOOSE = re.compile(r"(?:\{\})?[_^]\{?(\d{1,9}|n)\}?\s?C_\{?(\d{1,9}|[a-z])\}?")  # {}_{10}C_3
_POWER_OF_TEN = re.compile(r"(?<=[\d.])\x01[eE]\x02(?=[+-]?\d)")  # 1.5\mathrm{e}3
_DOTS = re.compile(r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\s?\.\s?\.")
_PLUS_MINUS = re.compile(r"\+/-|(?:^|(?<==))\s*\+\s?-(?=\s?[\d\\a-z(])")
_DECIMAL_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d)")
_LEADING_ZERO = re.compile(r"[A-Za-z]\s?_\s?\{?0\d")  # x_{00} is not x_0
_OWN_MARKS = re.compile("[\x01-\x04]")
_PER_CENT = re.compile(r"\bper\s+cent\b")
_STRAY_DOLLAR = re.compile(r"(?<!\\)\$(?=\s*[(\[])")
COMMA_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mbox|operatorname\*?|emph)\s*\{((?:[^{}\\$]|\\[$%&_, ])*)\}"
)

_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<mixed>\d{1,60}\s+\d{1,60}/\d{1,60}(?![\d.]))"
    r"|(?P<repeat>\d{0,60}\.\d{0,60}\\(?:overline|bar|dot)\s*\{?\d{1,60}\}?)"
    r"|(?P<num>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,6}(?![\d.a-zA-Z]))?)"
    r"|(?P<env>\\(?:begin|end)\s*\{[a-zA-Z]+\*?\})"
    r"|(?P<cmd>\\[a-zA-Z]+)"
    r"|(?P<escaped>\\.)"
    r"|(?P<text>\x01[^\x02]*\x02)"
    r"|(?P<clock>\x03[^\x04]*\x04)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<op>\*\*|<=|>=|!=|==|->|=>|!!|[-+*/^_=<>!%'°()\[\]{}|,;:&?$€£¥₹¢.])"
    r"|(?P<other>\S)"
    r"|$)",
    re.DOTALL,
)

FUNCTIONS = frozenset(
    """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp gcd lcm max min abs sgn floor ceil
    det cosec arg""".split()  # noqa: SIM905
)  # fmt: skip
_FUNCTION_NAMES = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "arctg": "arctan",
    "tg": "tan",
    "ctg": "cot",
    "cosec": "csc",
}
_GREEK = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar""".split()  # noqa: SIM905
)
_OPS = {
    r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/", r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=",
    r"\ge": ">=",
    r"\geq": ">=", r"\geqslant": ">=", r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\{": "set(",
    r"\}": ")set",
    r"\lbrace": "set(", r"\rbrace": ")set", r"\langle": "<(", r"\rangle": ")>", r"\lvert": "|", r"\rvert": "|",
    r"\vert": "|",
    r"\|": "|", r"\lVert": "|", r"\rVert": "|", r"\lfloor": "floor(", r"\rfloor": ")floor", r"\lceil": "ceil(",
    r"\rceil": ")ceil", r"\cup": "cup", r"\cap": "cap", r"\setminus": "setminus", r"\backslash": "setminus",
    r"\in": "in",
    r"\pm": "pm", r"\mp": "mp", r"\equiv": "equiv", r"\approx": "approx", r"\%": "%", r"\circ": "°",
    r"\degree": "°", r"\prime": "'", r"\lor": "or", r"\vee": "or", r"\land": "and", r"\wedge": "and", r"\colon": ":",
    r"\lbrack": "[", r"\rbrack": "]", r"\\": "\\\\", r"\over": "over", r"\choose": "choose", r"\mid": "|",
    r"\bmod": "mod",
    r"\mod": "mod", r"\pmod": "mod", r"\euro": "€", r"\pounds": "£", r"\cents": "¢", r"\textdollar": r"\$",
    r"\$": r"\$",
    r"\_": "_", r"\#": "#", r"\&": "&", r"\implies": "=>", r"\Rightarrow": "=>", r"\dotsc": "dots", r"\ldots": "dots",
    r"\dots": "dots", r"\cdots": "dots", r"\infty": "oo", r"\lparen": "(", r"\rparen": ")",
}  # fmt: skip
_DASHED = re.compile(r"[\s$]*\d+\s*[–—]\s*\d+[\s$]*")  # 10–20, with a dash that typesetters use for spans
# Of nothing else than a date, or of a padded one anywhere: nobody leaves such a difference or quotient as an answer.
_MONTH, _DAY = "(?:0?[1-9]|1[0-2])", "(?:0?[1-9]|[12][0-9]|3[01])"
_DATE = re.compile(
    rf"[12]\d{{3}}([-/]){_MONTH}\1{_DAY}|{_DAY}([-/]){_DAY}\2[12]\d{{3}}|.*(?<!\d)[12]\d{{3}}([-/])[01]\d\3[0-3]\d(?!\d).*",
    re.DOTALL,
)
_COMMANDS = frozenset({"frac", "sqrt", "binom", "overline", "bar", "vec", "hat", "mathbb", "emptyset", "varnothing"})
_ALIASES = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom"}
CONNECTIVES = frozenset({"and", "or"})
UNIT_WORDS = frozenset({"square", "sq", "cubic", "per", "percent", "percents"})
_NUMBER_NAMES = {"pi": ("const", "pi"), "infinity": ("const", "oo"), "inf": ("const", "oo"), "oo": ("const", "oo")}


def clean(text: str) -> str:
    """Take off the markup that never changes the meaning."""
    if len(text) > MAX_LENGTH:
        raise NotMath("too long")
    if (box := _BOX.fullmatch(text)) is not None:
        text = box[1]
    if _DASHED.fullmatch(text):
        raise NotMath("a span or a difference")
    if not text.isascii():
        text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
        text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPT) + "}", text)
        text = text.translate(_TRANSLATE)
        text = unicodedata.normalize("NFKC", text)
    text = _OWN_MARKS.sub("", text)
    text = _PER_CENT.sub("percent", text)
    if _LEADING_ZERO.search(text):
        raise NotMath("a subscript with leading zeros")
    text = _GROUPED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _DECIMAL_COMMA.sub(".", text)
    text = _TEXT.sub(lambda m: f"\x01{m[1]}\x02", text)
    text = _POWER_OF_TEN.sub("e", text)
    text = _TIMES.sub(r" \\times ", text)
    if ":" in text or "m" in text or "M" in text:
        text = _CLOCK.sub(_clock, _MERIDIEM.sub(_half_day, text))
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = _DOTS.sub(r"\\ldots ", text)
    text = re.sub(r"\\([RZNQC])(?![a-zA-Z])", r"\\mathbb{\1}", text)
    text = _PMOD.sub(r"(\\bmod \1\2)", text)
    text = _ORDINAL.sub("", text)
    text = _FONT.sub(" ", text)
    text = _DRESS.sub(" ", text)
    text = text.replace(r"\(", " ").replace(r"\)", " ").strip()
    if text.startswith(r"\[") and text.endswith(r"\]"):
        text = text[2:-2]
    if text.count("$") - text.count("\\$") >= 2:
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = _STRAY_DOLLAR.sub(" ", text)
    text = _PLUS_MINUS.sub(r"\\pm ", text.rstrip(" \t\n.,;").lstrip())
    if text.endswith("$") and not text.endswith("\\$"):  # one that was never opened
        text = text[:-1].rstrip(" \t\n.,;")
    if (text.count("-") > 1 or text.count("/") > 1) and _DATE.fullmatch(text):
        raise NotMath("a date")
    return text[:-1].rstrip() if text.endswith("\\") and not text.endswith("\\\\") else text


def _half_day(m: re.Match[str]) -> str:
    hour = int(m[1])
    if not 1 <= hour <= 12:
        return m[0]
    return _time(hour, m[2] or "00", m[3], (m[4] or m[5] or m[6]).lower())


def _clock(m: re.Match[str]) -> str:
    return _time(int(m[1]), m[2], m[3], "")


def _time(hour: int, minutes: str, seconds: str | None, half: str) -> str:
    """The spelling of a time between the lexer's own marks: hours, minutes, perhaps seconds, perhaps a or p."""
    return f"\x03{hour}:{minutes}" + (f":{seconds}" if seconds else "") + f"{half}\x04"


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a cleaned text. Raises NotMath at the first character that belongs to no expression."""
    tokens: list[Token] = []
    position, end = 0, len(text)
    while position < end:
        m = _TOKEN.match(text, position)
        if m is None:
            raise NotMath("unreadable")
        kind, position = m.lastgroup, m.end()
        if kind is None:
            break
        value = m[kind]
        if kind == "num":
            tokens.append(("num", _number(value)))
        elif kind == "op":
            tokens.append(("op", value))
        elif kind == "cmd" or kind == "escaped":
            tokens.append(_command(value))
        elif kind == "env":
            name = value[value.index("{") + 1 : -1]
            tokens.append(("begin" if value.startswith("\\b") else "end", name))
        elif kind == "letters":
            _letters(value, tokens)
        elif kind == "text":
            _words(value[1:-1], tokens)
        elif kind == "mixed":
            whole, numerator, denominator = map(int, re.findall(r"\d+", value))
            if denominator == 0 or numerator >= denominator:
                raise NotMath("not a mixed number")
            tokens.append(("num", (whole + Fraction(numerator, denominator), 0)))
        elif kind == "clock":
            digits = value[1:-1].rstrip("ap")
            tokens.append(("clock", (tuple(map(int, digits.split(":"))), value[1 + len(digits) : -1])))
        elif kind == "repeat":
            tokens.append(("num", (_repeating(value), 0)))
        else:
            raise NotMath(f"unexpected {value!r}")
    return tokens


def _number(text: str) -> tuple[int | Fraction, int]:
    if len(text) > MAX_DIGITS:
        raise NotMath("number too long")
    if text.isdigit():
        return int(text), 0
    mantissa, _, exponent = text.lower().partition("e")
    digits = len(mantissa.replace(".", "").lstrip("0"))
    if abs(int(exponent or 0)) > MAX_DIGITS:
        raise NotMath("exponent too large")
    value = Fraction(mantissa if mantissa[-1] != "." else mantissa[:-1]) * Fraction(10) ** int(exponent or 0)
    return value, digits if "." in mantissa else 0


def _repeating(text: str) -> Fraction:
    head, _, tail = text.partition("\\")
    block = re.sub(r"\D", "", tail)
    whole, _, start = head.partition(".")
    value = Fraction(int(whole or 0)) + (Fraction(int(start), 10 ** len(start)) if start else 0)
    return value + Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(start))


def _command(text: str) -> Token:
    if text in _OPS:
        value = _OPS[text]
        return ("const", "oo") if value == "oo" else ("op", value)
    name = text[1:]
    name = _ALIASES.get(name, name)
    if name in _COMMANDS:
        return "cmd", name
    if name in ("pi", "imath"):
        return "const", "pi" if name == "pi" else "i"
    if name in FUNCTIONS or name in _FUNCTION_NAMES:
        return "fn", _FUNCTION_NAMES.get(name, name)
    if name in _GREEK:
        return "sym", name.removeprefix("var")
    raise NotMath(f"unknown command {text}")


def _letters(text: str, tokens: list[Token]) -> None:
    """Return the tokens of a run of bare letters: a name the grammar knows, a unit, or a product of one-letter
    symbols."""
    if len(text) == 1:
        tokens.append(("const", text) if text in "ei" else ("sym", text))
        return
    lower = text.lower()
    if text == "min" and tokens and tokens[-1][0] == "num":
        tokens.append(("word", "min"))
    elif text in FUNCTIONS or text in _FUNCTION_NAMES:
        tokens.append(("fn", _FUNCTION_NAMES.get(text, text)))
    elif text in ("sqrt", "cbrt"):
        tokens.append(("cmd", "sqrt"))
        if text == "cbrt":
            tokens.extend([("op", "["), ("num", (3, 0)), ("op", "]")])
    elif lower in _NUMBER_NAMES:
        tokens.append(_NUMBER_NAMES[lower])
    elif text in _GREEK:
        tokens.append(("sym", text))
    elif lower == "mod":
        tokens.append(("op", "mod"))
    elif lower in CONNECTIVES:
        tokens.append(("op", lower))
    elif _is_unit(text) or _is_unit(lower):
        tokens.append(("word", text if _is_unit(text) else lower))
    elif len(text) <= 3 and lower not in _ENGLISH:
        tokens.extend(("const", c) if c in "ei" else ("sym", c) for c in text)
    else:
        raise NotMath(f"word {text!r}")


_ENGLISH = frozenset(
    """the of to in is it no yes not for are was all any one two six ten and but if so as at by on he she we you be
    red odd even day won lost via per our out may can has had her his its who why how now new old mon tue wed thu fri
    sat sun jan feb mar apr jun jul aug sep oct nov dec dne nil non set sum win tie""".split()  # noqa: SIM905
)


def _is_unit(word: str) -> bool:
    return word in UNITS or word in COUNTED or word in SCALES or word in UNIT_WORDS or word in COMPOSITE


def _words(text: str, tokens: list[Token]) -> None:
    r"""Return the tokens of ``\text{...}``: units and connectives, a number, or one upright letter."""
    text = text.strip().rstrip(".,;").strip()
    for word in text.replace("/", " per ").split():
        lower = word.lower().strip("()")
        if word in LONE_LETTERS:
            tokens.append(("word", word))
        elif lower in CONNECTIVES:
            tokens.append(("op", lower))
        elif word == ",":
            tokens.append(("op", ","))
        elif word.isalpha() and word.isascii():
            _letters(word, tokens)
        else:
            tokens.extend(tokenize(word) if "\x01" not in word else [])
