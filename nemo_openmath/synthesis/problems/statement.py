"""What a problem states, without the form in which it is written: the rule by which two problems are one.

A problem is cut into *mathematics* (numbers, also in words; signs; letters; names of points and functions; commands of
LaTeX) and *words*. Two problems are the same where

1. their mathematics is the same in the same order. "x^2+3" and "x^2+5" are two problems, and so are "two" and "three",
   + and -, x and y, P(n+1) and P(n)+1;
2. their words are the same in the same order, except that
   - words that ask or connect or stand for others do not count ("find", "please", "the", "such that", "is", "she");
   - a word of five letters or more may have one letter too many, too few or wrong, or two exchanged, though not its
     first one, and not another last one ("cubes", "cubed");
   - a word may be left out that stands elsewhere in the problem ("9 football games", "9 games").

Whatever else differs makes two problems of them: whether "maximum" for "minimum", or "red" for "blue", changes the
answer is not for a program to say. So what is called the same is the same, and some that are the same are not so
called.

Form is: white space, dollars and delimiters of formulas, commands of spacing and of fonts, case of words, punctuation
(but a comma between two signs), braces around one sign, and which of several signs or commands says the same ("\\leq"
and "≤", "\\dfrac" and "\\frac").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

Token = tuple[str, bool]
"""A sign or word, and whether it is mathematics."""

SPELLED = 5
"""Words of so many letters may be misspelt."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ASKING = _words(
    "find determine compute calculate evaluate solve what which who whose where when how please help hi hello thanks "
    "thank you your me my we us our he she it they them him her his hers its their theirs this that these those there "
    "here an the of for as is are was were be been being am do does did done has have had having will would shall let "
    "given suppose assume consider denote such so then thus hence also and if just now following value values"
)
"""Words that ask, connect, or stand for others: none of them makes another problem of one where all else is the same.
Those that can are not here: "many" and "much", "not", "all", "or", "by" and "to", "can" and "must"."""
_NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion first "
    "second third fourth fifth sixth seventh eighth ninth tenth half quarter once twice thrice double triple"
)
_FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf gcd lcm mod deg det "
    "dim ker arg"
)
_SHORT_WORDS = _words(
    "ad add ads age ago air all any art ask at bad bag bar bed big bit box boy bus but buy by can cap car cat cm cow "
    "cup cut dad day die dog dot dry due eat egg end far fat few fit fix fly fun gas get go got gum guy gym hat hen "
    "hit hot ice in ink jam jar job key kg kid km lap leg lid lie lot low man map may men mix mm mom mph net new no "
    "nor not nut odd off oil old on or out own pan pay pen per pet pie pig pm pot put raw red row run sad saw say sea "
    "see set sit sky son sum tax tea tie tip to too top toy try up use van via war way wet why win won yes yet"
)
"""Words of up to three letters. Others so short are products of variables: xy, abc."""
_SAME = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "leq": "≤", "le": "≤", "leqslant": "≤", "⩽": "≤",
    "geq": "≥", "ge": "≥", "geqslant": "≥", "⩾": "≥", "neq": "≠", "ne": "≠", "cdot": "·", "∙": "·", "⋅": "·", "*": "·",
    "times": "×", "div": "÷", "ldots": "…", "cdots": "…", "dots": "…", "dotsc": "…", "dotsb": "…", "to": "→",
    "rightarrow": "→", "longrightarrow": "→", "implies": "⇒", "Rightarrow": "⇒", "iff": "⇔", "Leftrightarrow": "⇔",
    "infty": "∞", "angle": "∠", "triangle": "△", "circ": "°", "∘": "°", "sqrt": "√", "in": "∈", "cup": "∪", "cap": "∩",
    "pm": "±", "sum": "∑", "prod": "∏", "int": "∫", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "prime": "'",
    "′": "'", "’": "'", "−": "-", "–": "-", "⁄": "/", "lbrace": "⦃", "rbrace": "⦄", "lfloor": "⌊", "rfloor": "⌋",
    "lceil": "⌈", "rceil": "⌉", "subset": "⊂", "subseteq": "⊆", "perp": "⊥", "parallel": "∥", "equiv": "≡",
    "approx": "≈", ";": ",", "varphi": "φ", "varepsilon": "ε", "emptyset": "∅", "varnothing": "∅",
}  # fmt: skip
"""Signs, and commands without their backslash, that say what another one says."""
_NO_SIGNS = _words(
    "left right big bigg Big Bigg displaystyle textstyle limits quad qquad mathrm mathbb mathbf mathit mathcal mathsf "
    "boldsymbol operatorname rm bf it nonumber begin end"
)
"""Commands of spacing, size and font."""
_FORM = (
    ("\\", re.compile(r"\\(?:text|textbf|textit|textrm|mbox|hbox)\s*\{([^{}]*)\}"), r" \1 "),
    ("", re.compile(r"\\[hv]space\*?\{[^{}]*\}|\\[()\[\],;:! ]|\$|~|&nbsp;"), " "),
    ("\\", re.compile(r"\\\{"), "⦃"),
    ("\\", re.compile(r"\\\}"), "⦄"),
    ("\\", re.compile(r"\\([dt]?frac)\s*(\d)\s*(\d)"), r"\\\1{\2}{\3}"),
    ("\\", re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)"), "°"),
    ("..", re.compile(r"\.\.\.+"), "…"),
    ("->", re.compile(r"-{1,2}>"), "→"),
    ("<=", re.compile(r"<="), "≤"),
    (">=", re.compile(r">="), "≥"),
    (".", re.compile(r"\.(?<![\d.].)(?=\d)"), "0."),
    ("-", re.compile(r"-(?<=[a-z]{2}.)(?=[a-z]{2})"), ""),
    ("'s", re.compile(r"(?<=[A-Za-z]{2})\s?'s\b"), ""),
    ("’s", re.compile(r"(?<=[A-Za-z]{2})\s?’s\b"), ""),
)
"""What is written in several ways: a mark that each of them has, the form, and how it is compared."""
_TOKENS = re.compile(
    r"\\[A-Za-z]+|\\\\|\d+(?:\.\d+)?|[^\W\d_]{2,}(?:['’][a-z]+)?|[^\W\d_]|(?<=\d):(?=\d)|[^\s.:?\"“”\\]"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """What a problem states: its tokens in order, words that do not count left out."""

    tokens: tuple[Token, ...]

    @classmethod
    def of(cls, text: str) -> Statement:
        """Return what a problem states."""
        return cls(_tokens_of(text))

    @property
    def key(self) -> tuple[str, ...]:
        """A text for each sign, and the set of the words without their spelling: equal for all that may be the same."""
        signs = (text for text, mathematics in self.tokens if mathematics)
        words = {_rough(text) for text, mathematics in self.tokens if not mathematics}
        return (*signs, "\n", *sorted(words))

    def states(self, shorter: Statement) -> bool:
        """Return whether this is the same problem as ``shorter``, which has as many tokens or fewer. One that states
        nothing is the same as none."""
        words = {text for text, mathematics in shorter.tokens if not mathematics}
        tokens = iter(shorter.tokens)
        expected = next(tokens, None)
        for token in self.tokens:
            if expected is not None and _same(token, expected):
                expected = next(tokens, None)
            elif token[1] or not any(_same(token, (word, False)) for word in words):
                return False
        return expected is None and bool(shorter.tokens)


@lru_cache(maxsize=16)  # the checks of a reply, and the stages that compare problems, ask again for the same text
def _tokens_of(text: str) -> tuple[Token, ...]:
    return tuple(_classified(signs(text)))


def signs(text: str) -> list[str]:
    """Return a text as its numbers, words, letters, signs and commands in order, each in its one form."""
    return _without_single_braces(_signs(text))


def _signs(text: str) -> list[str]:
    """Cut a text into numbers, words, letters, signs and commands, each in its one form."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", re.sub(r"[^\x00-\x7f]", _raised, text))
    for mark, form, plain in _FORM:
        if mark in text:
            text = form.sub(plain, text)
    tokens = _TOKENS.findall(text)
    if _LOWER.search(text) is None and not re.search(r"[a-z]", re.sub(r"\\[A-Za-z]+", "", text)):  # it shouts
        tokens = [token.lower() if len(token) > 1 and token[0].isalpha() else token for token in tokens]
    return [sign for token in tokens if (sign := _sign(token))]


_LOWER = re.compile(r"(?<![\\A-Za-z])[a-z]")  # it is in no command


@lru_cache(maxsize=1 << 14)
def _sign(token: str) -> str:
    """Return the one form of a token; "" of a command that only sets text."""
    if token[0] == "\\" and token != "\\\\":
        name = token[1:]
        return "" if name in _NO_SIGNS else name if name in _FUNCTIONS else _SAME.get(name) or _greek(name) or token
    if len(token) > 1 and token[0].isalpha():
        lower = token.lower()
        return lower if not token.isupper() or lower in _FUNCTIONS else token
    return _SAME.get(token, token)


def _raised(character: re.Match[str]) -> str:
    """Return what a superscript or subscript is without that form: ² is ^2 and not 2."""
    form = unicodedata.decomposition(character[0])
    return {"<super>": "^", "<sub>": "_"}.get(form.partition(" ")[0], "") + character[0]


def _greek(name: str) -> str | None:
    size = "CAPITAL" if name[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
    except KeyError:
        return None


def _without_single_braces(signs: list[str]) -> list[str]:
    """Leave out the braces around a single sign: x^{2} is x^2, and x^{n+1} is not x^n+1."""
    if "{" not in signs and "⦃" not in signs and "⦄" not in signs:
        return signs
    bare: list[str] = []
    for sign in signs:
        if sign == "}" and bare[-2:-1] == ["{"]:
            bare[-2:] = bare[-1:]
        else:
            bare.append(sign)
    return [{"⦃": "{", "⦄": "}"}.get(sign, sign) for sign in bare]  # in plain text, sets have bare braces


def _classified(signs: list[str]) -> Iterable[Token]:
    """Yield the tokens that count.

    In front of a word, a letter that is also a word ("a", "A", "I") is one, and a minus is a hyphen. A comma counts
    between mathematics, where x, y is not x y."""
    for before, sign, behind in zip(["", *signs], signs, [*signs[1:], ""], strict=False):
        if sign in ("a", "A", "I", "-", ",") and _is_word(behind):
            continue
        if sign == "," and (not behind or _is_word(before)):
            continue
        if not _is_word(sign):
            yield sign, True
        elif sign not in _ASKING:
            yield sign, False


@lru_cache(maxsize=1 << 14)
def _is_word(sign: str) -> bool:
    """Return whether a sign is a word, and no mathematics."""
    if len(sign) < 2 or not sign[0].isalpha() or sign in _NUMBERS or sign in _FUNCTIONS:
        return False
    if not sign.isascii():
        return True
    return not sign.isupper() and (len(sign) > 3 or sign in _SHORT_WORDS or sign in _ASKING)


def _rough(word: str) -> str:
    """Return what two spellings of a word have in common."""
    return word[0] + "…" if len(word) >= SPELLED and word.isascii() else word


def _same(first: Token, second: Token) -> bool:
    return first == second or (not first[1] and not second[1] and misspelt(first[0], second[0]))


def misspelt(first: str, second: str) -> bool:
    """Return whether two words are one but for a letter: one too many or too few, one wrong, or two neighbours
    exchanged. The first is the same in both, and where one is wrong, the last. Words of other scripts are never so
    taken: there a sign can be a word."""
    short, long = sorted((first, second), key=len)
    if len(short) < SPELLED or len(long) - len(short) > 1 or short[0] != long[0] or not (short + long).isascii():
        return False
    at = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) < len(long):
        return short[at:] == long[at + 1 :]
    exchanged = short[at : at + 2] == long[at : at + 2][::-1] and short[at + 2 :] == long[at + 2 :]
    return exchanged or short[at + 1 :] == long[at + 1 :] != ""
