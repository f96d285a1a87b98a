"""What a judge said: the line ``Judgement: Yes`` or ``Judgement: No`` at the end of its answer."""

from __future__ import annotations

import re

from nemo_openmath.core.tags import THINK_END, THINK_START

# Emphasis, quotes and brackets around the words do not matter; a colon, a dash or an equals sign stands between them.
_SAID = (
    r"(?i:judge?ment)(?:\s+is)?[\s*_`\"'\])]{0,8}[:=\uff1a\u2013\u2014-][\s*_`\"'\[(]{0,8}"
    r"(?:\\(?:boxed|text(?:bf)?)\{){0,2}(?i:(yes|no))\b"
)
_ANYWHERE = re.compile(_SAID)
_DRESS = r"[\W_]{0,40}"  # bounded, as is what follows: two runs without a bound are tried in all ways to share a line
_LAST_LINE = re.compile(rf"{_DRESS}(?:(?i:my|the|final|overall|conclusion)[\s:,]{{1,8}}){{0,3}}{_DRESS}{_SAID}[\W_]*")


def parse_judgement(text: str) -> bool | None:
    """Return True or False where the text commits itself, else None.

    It does where its last line is ``Judgement: Yes`` or ``Judgement: No`` and nothing else (``Final judgement``,
    emphasis and a full stop allowed), and nowhere behind ``</think>`` it says the opposite. Thinking that is never
    closed commits to nothing.
    """
    answer = text.rpartition(THINK_END)[2]
    lines = [line for line in answer.splitlines() if line.strip()]
    if not lines or THINK_START in answer or (last := _LAST_LINE.fullmatch(lines[-1].strip())) is None:
        return None
    verdicts = {
        match[1].casefold() for match in _ANYWHERE.finditer(answer)
    }  # "ye\u017f" is a "yes" to the pattern, too
    return last[1].casefold() == "yes" if len(verdicts) == 1 else None
