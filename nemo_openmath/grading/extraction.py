r"""The answer a solution commits to: its last ``\boxed{...}`` that holds something.

The rule, in the order in which it is applied:

1. Where ``</think>`` occurs only what follows the last one (the summary) is looked at: a box in the reasoning alone is
   no answer.
2. Code is no text: what stands in ``<tool_call>`` blocks and in fences of a programming language or of program output
   (```` ```python ````, ```` ```output ````) is passed over. Other fences are text.
3. The last box counts. One that is never closed yields no answer: the text was cut, and an earlier box is not what it
   was about to say. Boxes that hold nothing or dots (``inside \boxed{}``, ``\boxed{...}``) are mentions of a box; the
   last one that holds something counts.
4. ``\fbox`` is a box. Without braces (``\boxed 5``, ``\boxed\frac12``) a box holds what follows up to white space,
   if that begins as mathematics does; ``in \boxed form`` is a mention.
5. Only where there is no box that holds something and the caller asked for it (``fallback``), the last final-answer
   phrase with something behind it counts: "the (final) answer is ...", "(Final) Answer: ...", or a heading "Final
   Answer" with the answer below it. It ends with its sentence or line; Markdown emphasis and the dollar signs around
   it are taken off.

One pass over the text with a stack of open braces, so the time is linear on any input. Escaped braces (``\{``) and
line breaks (``\\``) are single tokens and never open or close a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)(?![a-zA-Z])\s*\{?|\\.|[{}]", re.DOTALL)
_BARE = re.compile(
    r"(?=[-+.(]?[0-9]|[-+]?\\[a-zA-Z]|[a-zA-Z](?![a-zA-Z]))"  # no word; \boxed 42 is 42, though TeX boxes the 4
    r"(?:\\[a-zA-Z]+|\{[^{}\n]{0,200}\}|[^\s{}$\\`*])+"
)
_HOLLOW = re.compile(r"(?:[\s.\u2026~_?$]|\\(?:[lc]?dots|q?quad|square|Box)(?![a-zA-Z])|\\[,;:! ]|\\text\{\s*\})*")
_LANGUAGES = "python3?|py|ipython|sage|sympy|cpp|c\\+\\+|c|java|javascript|js|julia|bash|sh|shell|output|stdout|system"
_CODE = re.compile(rf"{CODE_START}|^[ \t]{{0,3}}```[ \t]*(?:{_LANGUAGES})[ \t]*$", re.MULTILINE | re.IGNORECASE)
_PHRASE = re.compile(
    r"\b(?:final\s{1,4})?answer\s{1,4}is\b[ \t]{0,8}:?"
    r"|\b(?:final\s{1,4})?answer\b[ \t*_]{0,8}[:\uff1a]"
    r"|^[ \t>#*_]{0,12}(?:the\s)?final\s{1,4}answer[ \t#*_.]{0,12}$",
    re.IGNORECASE | re.MULTILINE,
)
_DISPLAY = {r"\[": r"\]", r"\(": r"\)", "$$": "$$", "$": "$"}
_SENTENCE_END = re.compile(r"\.(?=[*_]{0,4}(?:\s|$))|\n")


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer of a text, and how it was found."""

    answer: str | None
    """None where the text commits to no answer."""
    boxes: tuple[str, ...]
    """The distinct boxed contents of the graded part, in order of appearance."""
    reason: str
    """How the answer was found, or why there is none."""


def extract_answer(text: str, *, fallback: bool = False) -> Extraction:
    r"""Return the content of the last complete ``\boxed{...}`` or ``\fbox{...}`` by the rule of this module."""
    part = text[text.rfind(THINK_END) + len(THINK_END) :] if THINK_END in text else text
    part = _without_code(part)
    first = _BOX.search(part)
    spans, last_is_open = _scan(part, first.start()) if first is not None else ([], False)
    contents = [content for a, b in spans if not _HOLLOW.fullmatch(content := part[a:b].strip())]
    boxes = tuple(dict.fromkeys(contents))
    if last_is_open:
        return Extraction(None, boxes, "the last box is not closed")
    if contents:
        return Extraction(contents[-1], boxes, "box" if len(boxes) == 1 else f"last of {len(boxes)} different boxes")
    if fallback:
        return _from_phrase(part)
    return Extraction(None, (), "no box" if first is None else "the last box is empty")


def box_spans(text: str) -> list[tuple[int, int]]:
    """Return where the boxes of a text that hold something have their contents, in order."""
    first = _BOX.search(text)
    spans, _ = _scan(text, first.start()) if first is not None else ([], False)
    return [(start, end) for start, end in spans if not _HOLLOW.fullmatch(text[start:end].strip())]


def _without_code(text: str) -> str:
    """Return the text with a line break for each closed block of code."""
    parts: list[str] = []
    position = 0
    ends = {CODE_START: CODE_END, "```": "\n```"}
    open_ended: set[str] = set()  # kinds of blocks that are closed no more
    for match in _CODE.finditer(text):
        kind = CODE_START if match.group().startswith("<") else "```"
        if match.start() < position or kind in open_ended:
            continue
        end = text.find(ends[kind], match.end())
        if end < 0:
            open_ended.add(kind)
            continue
        parts.append(text[position : match.start()])
        position = end + len(ends[kind])
    return "\n".join([*parts, text[position:]])


def _scan(text: str, start: int) -> tuple[list[tuple[int, int]], bool]:
    """Return where the outermost complete boxes from ``start`` on have their contents, and whether the last box stays
    open."""
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
            if token.endswith("{"):
                last_start = position
                stack.append(position)
            elif (bare := _BARE.match(text, position)) is not None:
                last_start = position
                end = position + len(bare.group().rstrip(".,;:!?)" if "(" not in bare.group() else ".,;:!?"))
                spans.append((position, end))
                position = bare.end()
    return spans, last_start in stack


def _from_phrase(text: str) -> Extraction:
    """Return the answer behind the last phrase that something follows. An empty phrase ends where the next one
    begins."""
    phrases = [(m.start(), m.end()) for m in _PHRASE.finditer(text)]
    limit = len(text)
    for start, end in reversed(phrases):
        if answer := _stated(text[end:limit]):
            return Extraction(answer, (), "final-answer phrase")
        limit = start
    reason = "nothing after the final-answer phrase" if phrases else "neither a box nor a final-answer phrase"
    return Extraction(None, (), reason)


def _stated(text: str) -> str:
    r"""The answer at the start of ``text``: ``**73**``, ``$73$.``, ``\[ 73 \]`` or words up to the sentence's end."""
    phrase = text.lstrip(" \t\r\n*_:`")
    for opening, closing in _DISPLAY.items():
        end = phrase.find(closing, len(opening)) if phrase.startswith(opening) else -1
        if end >= 0 and not phrase[end + len(closing) :].partition("\n")[0].strip(" \t\r.,;!*_`"):
            return phrase[len(opening) : end].strip()
    end_of_sentence = _SENTENCE_END.search(phrase)
    sentence = (phrase[: end_of_sentence.start()] if end_of_sentence else phrase).strip().strip("*_`").rstrip(" \t,;!")
    for opening, closing in _DISPLAY.items():
        inner = sentence.removeprefix(opening).removesuffix(closing)
        if len(sentence) - len(inner) == len(opening + closing) and closing not in inner:
            return inner.strip()
    return sentence
