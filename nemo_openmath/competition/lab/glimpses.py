"""What can be found in a solution while it is unfinished.

At the deadline the live solver looks for an answer in the text so far, by the same rule as in a whole text. The answer
of a beginning changes at few places: where a box opens or closes, and where the thinking ends.
"""

from __future__ import annotations

import re

from nemo_openmath.competition.lab.rollouts import Glimpse
from nemo_openmath.core.tags import CODE_END, THINK_END
from nemo_openmath.grading.extraction import box_spans, extract_answer

_OPENS = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MOST = 64  # places of a text that are looked at, the last ones


def glimpses_of(said: str, tokens: int) -> tuple[Glimpse, ...]:
    """Return the answers of the beginnings of a text of so many tokens.

    Where a token lies in the text is not stored; it is taken from the share of characters. What programs printed is no
    part of ``said``.
    """
    if not _OPENS.search(said):
        return ()
    places = {match.end() for match in _OPENS.finditer(said)}
    places |= {end + 1 for _, end in box_spans(said)}
    for tag in (THINK_END, CODE_END):
        places |= {match.end() for match in re.finditer(re.escape(tag), said)}
    glimpses: list[Glimpse] = []
    for place in sorted(p for p in places if p <= len(said))[-_MOST:]:
        answer = extract_answer(said[:place]).answer
        if answer != (glimpses[-1].answer if glimpses else None):
            glimpses.append(Glimpse(-(-tokens * place // len(said)), answer))
    return tuple(glimpses)
