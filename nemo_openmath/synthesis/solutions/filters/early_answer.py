r"""Whether a solution states its answer before it ran any code, which then only checks what was known.

The answer counts where it stands as a token of its own. It does not where the same characters are

- a part of another number or term: 3 in 13, 3.5, 1,300, -3, 3/4, 3x, x^3, a_3, \frac{3}{4};
- the number of a step: "Step 3", "Case 3:", "Equation (3)", or "3." and "(3)" at the beginning of a line. A list of
  three steps would otherwise drop every solution whose answer is 3, and it says nothing of the answer;
- stated by the problem itself, which solutions begin by repeating, or words alone (an option's letter, "yes"). Such an
  answer counts only where the solution says that it is the answer ("the answer is 3").

The reference pipeline drops a solution on any occurrence of these characters, and with it most solutions whose answer
is a digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What stands directly before and behind characters that are a part of something else.
_INSIDE = re.compile(
    r"(?:[\w\\.\-−]|\d,|[\^_]\{?|/\s?|\\[dt]?(?:frac|binom|sqrt)(?:\{[^{}]*\})?\{)\Z",
)
_FOLLOWS = re.compile(r"\w|[.,]\d|\s?[\^!]|\s?/\s?[\w\\(]|\\(?:pi|sqrt|[dt]?frac|%)|%")
_LABEL = re.compile(
    r"(?:\b(?:step|case|part|problem|question|equation|eq|figure|table|lemma|theorem|method|approach|section|option|"
    r"item|chapter|example|exercise|condition|constraint|phase|stage|line|claim|python|type|level|version)s?\.?"
    r"\s{0,2}\(?|\#\s?)\Z",
    re.IGNORECASE,
)
_LINE_BEGINS = re.compile(r"\n[ \t>#*_-]*\(?\Z")
_LIST_NUMBER = re.compile(r"[.):][*_]{0,3}(?:\s|\Z)")
_DECLARED = re.compile(
    r"\b(?:answer|solution|result)\b[^.\n]{0,40}?(?:\b(?:is|be|equals)\b|[=:])[\s$*\\({]{0,6}\Z", re.IGNORECASE
)
_LOOK = 80  # characters before an occurrence that decide on it


def states_answer(text: str, answer: str, problem: str) -> bool:
    """Return whether ``text`` states ``answer`` to ``problem``; see the module's docstring."""
    answer = answer.strip().strip("$").strip()
    if not answer:
        return False
    ambiguous = answer.replace(" ", "").isalpha() or any(_values(problem, answer))
    return any(not ambiguous or _DECLARED.search(before) for before in _values(text, answer))


def _values(text: str, answer: str) -> Iterator[str]:
    """Yield what stands before each occurrence of the answer as a value of its own."""
    at = text.find(answer)
    while at >= 0:
        before = text[at - _LOOK : at] if at > _LOOK else f"\n{text[:at]}"
        if not (_is_part(answer, before, text, at + len(answer)) or _is_label(before, text, at + len(answer))):
            yield before
        at = text.find(answer, at + 1)


def _is_part(answer: str, before: str, text: str, end: int) -> bool:
    if _INSIDE.search(before) is not None:
        return True
    return answer[-1].isalnum() and _FOLLOWS.match(text, end) is not None


def _is_label(before: str, text: str, end: int) -> bool:
    if _LABEL.search(before) is not None:
        return True
    return _LINE_BEGINS.search(before) is not None and _LIST_NUMBER.match(text, end) is not None
