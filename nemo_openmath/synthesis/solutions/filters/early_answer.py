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
_IS = re.compile(
    rf"(?:[=≡≈:]|\\(?:equiv|approx)|\b(?:is|are|be|was|equals?|gives?|get|yields?|obtain|find|exactly|only|total))"
    rf"{_OPEN}\Z",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"\$?\s?(?:(?:to|through|modulo|mod|more|less|or)\b|,\s?(?:and\s)?[\d\\$])")  # a range, a list
_DECLARED = re.compile(
    rf"\b(?:answer|solution|result)\b[^.\n]{{0,40}}?(?:\b(?:is|be|equals)\b|[=:]){_OPEN}\Z", re.IGNORECASE
)
_DIGIT = re.compile(r"-?\d")
_LOOK = 80  # characters before an occurrence that decide on it
_SAID = {_IS: 18, _DECLARED: _LOOK}  # and of those the ones that such words reach over


def states_answer(text: str, answer: str, problem: str) -> bool:
    """Return whether ``text`` states ``answer`` to ``problem``; see the module's docstring."""
    answer = answer.strip().strip("$").strip()
    if not answer:
        return False
    if answer.replace(" ", "").isalpha() or any(True for _ in _values(problem, answer)):
        return any(True for _ in _values(text, answer, _DECLARED))
    if _DIGIT.fullmatch(answer):
        return any(not _GOES_ON.match(text, end) for end in _values(text, answer, _IS))
    return any(True for _ in _values(text, answer))


def _values(text: str, answer: str, said: re.Pattern[str] | None = None) -> Iterator[int]:
    """Yield where each occurrence of the answer as a value of its own ends, with ``said`` of those that these words
    stand before."""
    at = text.find(answer)
    while at >= 0:
        before = text[at - _LOOK : at] if at > _LOOK else f"\n{text[:at]}"
        end = at + len(answer)
        counts = said is None or said.search(before, max(0, len(before) - _SAID[said])) is not None
        if counts and not (_is_part(answer, before, text, end) or _is_label(before, text, end)):
            yield end
        at = text.find(answer, at + 1)


def _is_part(answer: str, before: str, text: str, end: int) -> bool:
    if _INSIDE.search(before, max(0, len(before) - 9)) is not None:
        return True
    if before.endswith("{") and _ARGUMENT.search(before) is not None:
        return True
    return answer[-1].isalnum() and _FOLLOWS.match(text, end) is not None


def _is_label(before: str, text: str, end: int) -> bool:
    if _LABEL.search(before, max(0, len(before) - 16)) is not None:
        return True
    return (
        text[end : end + 1] in tuple(".):")
        and _LINE_BEGINS.search(before) is not None
        and _LIST_NUMBER.match(text, end) is not None
    )
