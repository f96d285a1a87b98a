r"""The answer a solution commits to: its last ``\boxed{...}``.

One pass over the text with a stack of open braces, so the time is linear on any input. Escaped braces (``\{``) and
line breaks (``\\``) are single tokens and never open or close a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

THINK_END = "</think>"

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)(?![a-zA-Z])\s*\{?|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"[^\s{}$\\]+")  # \boxed 42: authors mean 42, though TeX would box the 4
_PHRASE = re.compile(r"\b(?:final\s{1,4})?answer\s{1,4}is\b[ \t]{0,8}:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")


@dataclass(frozen=True, slots=True)
class Extraction:
    """``answer``: None where the text commits to none. ``boxes``: the distinct boxed contents of the graded part, in
    order of appearance. ``reason``: how the answer was found, or why there is none."""

    answer: str | None
    boxes: tuple[str, ...]
    reason: str


def extract_answer(text: str, *, fallback: bool = False) -> Extraction:
    r"""Return the content of the last complete ``\boxed{...}`` or ``\fbox{...}``.

    Where ``</think>`` occurs only what follows the last one (the summary) is looked at. A last box that is never
    closed yields no answer: the text was cut, and an earlier box is not what it was about to say. ``fallback`` also
    accepts "(final) answer is ..." where there is no box at all.
    """
    part = text[text.rfind(THINK_END) + len(THINK_END) :] if THINK_END in text else text
    first = _BOX.search(part)
    if first is None:
        return _from_phrase(part) if fallback else Extraction(None, (), "no box")
    contents, last_is_open = _scan(part, first.start())
    boxes = tuple(dict.fromkeys(c for c in contents if c))
    if last_is_open:
        return Extraction(None, boxes, "the last box is not closed")
    if not contents or not contents[-1]:
        return Extraction(None, boxes, "the last box is empty")
    return Extraction(contents[-1], boxes, "box" if len(boxes) == 1 else f"last of {len(boxes)} different boxes")


def _scan(text: str, start: int) -> tuple[list[str], bool]:
    """Return the contents of the outermost complete boxes from ``start`` on, and whether the last box stays open."""
    spans: list[tuple[int, int]] = []  # of contents, in order of closing; inner ones precede the box around them
    stack: list[int] = []  # content start of a box, -1 of a plain group
    last_start, position = -1, start
    while (match := _TOKEN.search(text, position)) is not None:
        token, position = match.group(), match.end()
        if token == "{":
            stack.append(-1)
        elif token == "}":
            if stack and (opened := stack.pop()) >= 0:
                while spans and spans[-1][0] >= opened:
                    spans.pop()
                spans.append((opened, match.start()))
        elif token.lstrip("\\").startswith(("boxed", "fbox")):  # \\\\boxed: a text that was escaped twice
            last_start = position
            if token.endswith("{"):
                stack.append(position)
            elif (bare := _BARE.match(text, position)) is not None:
                spans.append(bare.span())
                position = bare.end()
            else:
                spans.append((position, position))
    return [text[a:b].strip() for a, b in spans], last_start in stack


def _from_phrase(text: str) -> Extraction:
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return Extraction(None, (), "neither a box nor a final-answer phrase")
    last = phrases[-1]
    end = _SENTENCE_END.search(text, last.end())
    rest = text[last.end() : end.start() if end else len(text)].strip().strip("*").rstrip(",;!").strip()
    return Extraction(rest or None, (), "final-answer phrase" if rest else "nothing after the final-answer phrase")
