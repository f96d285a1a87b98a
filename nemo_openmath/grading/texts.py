r"""Answers in words: yes and no, choices, "no solution", and free text compared by its words.

Closed classes (yes/no, parity, weekdays, ...) can be told apart; two free texts that differ can be paraphrases, so
they are never more than unknown.
"""

from __future__ import annotations

import re

from nemo_openmath.core.grader import Grade, equal, not_equal, unknown

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox|emph|operatorname\*?|boldsymbol)\s*\{([^{}]*)\}"
)
_CHOICE = re.compile(
    r"\(\s*([A-Ja-e])\s*\)|([A-Ja-e])[.)]|([A-J])"  # the letter alone: (B), b), B
    r"|(?:\(\s*([A-J])\s*\)|([A-J])\s?[.):])[.:]?\s+(\S.*)",  # with the choice's text: (B) 12, B. 12
    re.DOTALL,
)
_OPTION_WORD = re.compile(r"(?:option|choice|answer)\s+\(?([A-Ja-j])\)?\s*", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")

# Class -> values; "/" separates the spellings of one value, the first of which is its name.
_CLASSES = {
    "truth": ["yes/y", "no"],
    "boolean": ["true", "false"],
    "emptiness": ["no solution/no solutions/no real solution/no real solutions/none/empty set/the empty set/nothing"],
    "existence": ["does not exist/do not exist/dne/undefined/not defined"],
    "parity": ["even", "odd"],
    "quantity": ["finite", "infinite", "infinitely many/infinitely many solutions/infinite solutions"],
    "weekday": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    "month": "january february march april may june july august september october november december".split(),  # noqa: SIM905
    "color": ["red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "pink", "gray/grey"],
    "curve": ["circle", "ellipse", "parabola", "hyperbola", "line"],
    "winner": ["alice", "bob"],
    "player": ["first player/the first player/first", "second player/the second player/second"],
    "trend": ["increasing", "decreasing"],
    "limit": ["converges/convergent", "diverges/divergent"],
    "direction": ["north", "south", "east", "west"],
    "side": ["left", "right"],
    "angle": ["acute", "obtuse"],
}
CLASSES: dict[str, tuple[str, str]] = {
    spelling: (kind, value.partition("/")[0])
    for kind, values in _CLASSES.items()
    for value in values
    for spelling in value.split("/")
}
_NO_SOLUTION = ("emptiness", "no solution")
# Words of these classes are never a number (the "second" of a list could be).
_EXCLUSIVE = frozenset({"truth", "boolean", "emptiness", "parity", "weekday", "month", "color", "winner", "existence"})

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_NUMBER_WORDS = {word: str(i) for i, word in enumerate(_ONES)}
_NUMBER_WORDS |= {word: str(20 + 10 * i) for i, word in enumerate(_TENS)}
_NUMBER_WORDS |= {
    f"{ten} {one}": str(20 + 10 * i + j) for i, ten in enumerate(_TENS) for j, one in enumerate(_ONES[:10]) if j
}
_NUMBER_WORDS |= {"hundred": "100", "one hundred": "100", "a hundred": "100", "one thousand": "1000"}
_SETS = {
    "real numbers": r"\mathbb{R}",
    "reals": r"\mathbb{R}",
    "integers": r"\mathbb{Z}",
    "natural numbers": r"\mathbb{N}",
}
_ALL = re.compile(r"(?:the set of |set of )?all (real numbers|reals|integers|natural numbers)(?: [a-z])?")


def unwrap(text: str) -> str:
    r"""Return a text without its LaTeX wrappers: ``\text{yes}.`` -> ``yes``."""
    for _ in range(3):
        shorter = _WRAPPER.sub(r" \1 ", text)
        if shorter == text:
            break
        text = shorter
    return text.replace("$", " ").replace(r"\ ", " ").replace("~", " ").strip().rstrip(".,;!").strip()


def closed_class(text: str) -> tuple[str, str] | None:
    """Return (class, canonical value) of a word of a closed class, else None. ``text`` is unwrapped."""
    return CLASSES.get(" ".join(text.lower().split()))


def number_word(text: str) -> str | None:
    """Return a number up to a hundred written as a word, or "all real numbers", in symbols; else None."""
    if (m := _ALL.fullmatch(text.lower())) is not None:
        return _SETS[m[1]]
    return _NUMBER_WORDS.get(text.lower().replace("-", " "))


def choice(text: str) -> tuple[str, str] | None:
    """Return (letter, text of the choice or "") of a multiple-choice answer such as ``(B)``, ``B. 12`` or ``B``; else
    None."""
    text = text.strip()
    if (m := _OPTION_WORD.match(text)) is not None:
        return m[1].upper(), text[m.end() :].strip()
    if (m := _CHOICE.fullmatch(text)) is None:
        return None
    if m[6] and re.match(r"(?:and|or)\b|[,&;(]", m[6]):  # several choices
        return None
    letter = m[1] or m[2] or m[3] or m[4] or m[5]
    return letter.upper(), (m[6] or "").strip()


def words(text: str) -> tuple[str, ...]:
    """Return the lower-case words without a leading article. Symbols other than letters and digits separate."""
    named = tuple(_WORD.findall(text.lower()))
    return named[1:] if len(named) > 1 and named[0] in ("a", "an", "the") else named


def is_wordy(text: str) -> bool:
    """Return whether a text is made of words, a real one among them, and of nothing that counts as mathematics."""
    return re.fullmatch(r"[A-Za-z][A-Za-z' \-,.]*", text) is not None and re.search("[A-Za-z]{3}", text) is not None


def compare_words(p: str, e: str, p_is_math: bool, e_is_math: bool, p_is_empty: bool, e_is_empty: bool) -> Grade | None:
    """Compare two unwrapped texts of which at least one is no expression; None: words do not decide."""
    a, b = closed_class(p), closed_class(e)
    if a and b:
        if a == b:
            return equal("same word")
        return not_equal("different words of one kind") if a[0] == b[0] else unknown("different words")
    if (a == _NO_SOLUTION and e_is_empty) or (b == _NO_SOLUTION and p_is_empty):
        return equal("nothing")
    if (a and a[0] in _EXCLUSIVE and e_is_math) or (b and b[0] in _EXCLUSIVE and p_is_math):
        if any(len(text) == 1 and text.isalpha() for text in (p, e)):
            return unknown("a word against a letter")
        return not_equal("a word against a number")
    if not (p_is_math and e_is_math) and is_wordy(p) and is_wordy(e) and words(p) == words(e):
        letters = [[w for w in _WORD.findall(text) if len(w) == 1 and w not in "aAI"] for text in (p, e)]
        return equal("same words") if letters[0] == letters[1] else unknown("letters in another case")
    return None
