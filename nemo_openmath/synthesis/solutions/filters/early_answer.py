r"""Whether a solution states its answer before it ran any code, which then only checks what was known.

The answer counts where it stands as a token of its own. It does not where the same characters are

- a part of another number, or of a term: 13 in 213, 13.5, 1,300, -13, 13/4, 13x, x^{13}, a_13, \frac{13}{4}, 13 + n;
- the number of a step: "Step 13", "Case 13:", "Equation (13)", or "13." and "(13)" at the beginning of a line.

Three kinds of answers stand in many solutions for other reasons, so they count only with the words before them:

- a digit: as what something is ("there are 3", "= 3"). "from 1 to 80", "1, 3 and 9" or "3 cases" say nothing of the
  answer;
- what the problem itself states, which solutions begin by repeating: as the answer ("the answer is 25");
- words alone, such as an option's letter or "yes": as the answer, too.

The reference pipeline drops a solution on any occurrence of these characters, and with it most solutions whose answer
is a digit: a list of three steps is enough for 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What stands directly before and behind characters that are a part of something else.
_INSIDE = re.compile(
    r"(?:[\w\\.\-−]|\d,|[\^_]\{?|/\s?|\S\s?[+×·<>≤≥]\s?|[\w)\]}]\s?[-−]\s|\s\*\s|[\d)]\*"
    r"|\\(?:times|cdot|leq?|geq?|p?mod)\s?\{?)\Z"
)
_ARGUMENT = re.compile(r"\\[dt]?(?:frac|binom|sqrt)(?:\{[^{}]*\})?\{\Z")
_FOLLOWS = re.compile(
    r"\w|[.,]\d|\s?[\^!]|\s?/\s?[\w\\(]|\\(?:pi|sqrt|[dt]?frac|%)|%"
    r"|\s?[+×·<>≤≥]|\s?[-−]\s?[\d(]|\s\*\s|\*[\d(]|\s?\\(?:times|cdot|leq?|geq?|mod)\b"
)
_LABEL = re.compile(
    r"(?:\b(?:step|case|part|problem|question|equation|eq|figure|table|lemma|theorem|method|approach|section|option|"
    r"item|chapter|example|exercise|condition|constraint|phase|stage|line|claim|python|type|level|version)s?\.?"
    r"\s{0,2}\(?|\#\s?)\Z",
    re.IGNORECASE,
)
_LINE_BEGINS = re.compile(r"\n[ \t>#*_-]*\(?\Z")
_LIST_NUMBER = re.compile(r"[.):][*_]{0,3}(?:\s|\Z)")
_OPEN = r"[\s$*\\({]{0,6}"
_IS = (
    r"(?:[=≡≈:]|\\(?:equiv|approx)|\b(?i:is|are|be|was|equals?|gives?|get|yields?|obtain|find|exactly|only|total))"
    + _OPEN
)
_DECLARES = rf"(?:\b(?i:is|be|equals)\b|[=:]){_OPEN}"
_GOES_ON = re.compile(r"\$?\s?(?:(?:to|through|modulo|mod|more|less|or)\b|,\s?(?:and\s)?[\d\\$])")  # a range, a list
_DECLARED = re.compile(rf"\b(?:answer|solution|result)\b[^.\n]{{0,40}}?{_DECLARES}\Z", re.IGNORECASE)
_DIGIT = re.compile(r"-?\d")
_LOOK = 80  # characters before an occurrence that decide on it
_STEPS = 64  # steps over an answer that looks for it within itself take, at least


def states_answer(text: str, answer: str, problem: str) -> bool:
    """Return whether ``text`` states ``answer`` to ``problem``; see the module's docstring."""
    answer = answer.strip().strip("$").strip()
    if not answer or answer not in text:
        return False
    text, problem = f"\n{text}", f"\n{problem}"  # a text's first line begins as the others do
    if answer.replace(" ", "").isalpha() or any(_is_value(answer, problem, at) for at in _places(problem, answer)):
        declared = (at for at in _places_behind(_DECLARES, text, answer) if _search(_DECLARED, text, at, _LOOK))
        return any(_is_value(answer, text, at) for at in declared)
    if _DIGIT.fullmatch(answer):
        values = (at for at in _places_behind(_IS, text, answer) if _is_value(answer, text, at))
        return any(_GOES_ON.match(text, at + len(answer)) is None for at in values)
    return any(_is_value(answer, text, at) for at in _places(text, answer))


def _places(text: str, answer: str) -> Iterator[int]:
    """Yield where the answer's characters stand."""
    at, step = text.find(answer), max(1, len(answer) // _STEPS)
    while at >= 0:
        yield at
        at = text.find(answer, at + step)


def _places_behind(words: str, text: str, answer: str) -> Iterator[int]:
    """Yield where the answer's characters stand directly behind such words. All other places, of which a text can have
    one in every two characters, are passed over by one search."""
    return (match.end() for match in re.finditer(f"{words}(?={re.escape(answer)})", text))


def _is_value(answer: str, text: str, at: int) -> bool:
    """Tell whether the answer's characters at a place are a value of their own."""
    end = at + len(answer)
    return not (_is_part(answer, text, at, end) or _is_label(text, at, end))


def _is_part(answer: str, text: str, at: int, end: int) -> bool:
    if _search(_INSIDE, text, at, 9):
        return True
    if text[at - 1] == "{" and _search(_ARGUMENT, text, at, _LOOK):
        return True
    return answer[-1].isalnum() and _FOLLOWS.match(text, end) is not None


def _is_label(text: str, at: int, end: int) -> bool:
    if _search(_LABEL, text, at, 16):
        return True
    return (
        text[end : end + 1] in tuple(".):")
        and _search(_LINE_BEGINS, text, at, _LOOK)
        and _LIST_NUMBER.match(text, end) is not None
    )


def _search(pattern: re.Pattern[str], text: str, at: int, chars: int) -> bool:
    """Tell whether a pattern ends at a place, within so many characters before it."""
    return pattern.search(text, max(0, at - chars), at) is not None
