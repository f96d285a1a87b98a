r"""What rows do not tell of a recovered template: whether words beside a problem are of the prompt or of the problem.

    two prompts, one ending     Be brief.\nP1\nBox it.   Be brief.\nP2\nBox it.   Use code.\nP3\nBox it. ...
    one template of both        {problem}\nBox it.   reproduces all rows, and hides the beginnings in the problems

1. Rows that say their problem (``RowQuestion.problem``) leave no doubt: a template counts only where it has the same.
2. Of the others the texts at the place ``{problem}`` are looked at. Where nearly all begin (or end) with one of a few
   lines, each of several problems, these lines are of several prompts: the rows are divided, and each part is learnt
   anew. Where some do, or where it is a label or a word, nobody can tell, and the rows are refused by name.
3. Words of the template on the line of the problem may be of all problems: ``Find {problem}``. They are refused, unless
   they end as a label, a tag or a sentence does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nemo_openmath.chat.prompts import Template

Side = Literal["begin", "end"]
_SHARE = 0.1  # of the problems: so many begin alike by chance only where all are alike
_NEARLY_ALL = 0.95
_MANY = 30  # different problems that end with the same sentence only where they are asked so
_NUMBER = re.compile(r"\d+")
_TAG = r"(?:<[^<>\s][^<>]*>|\[/?[A-Za-z_ ]+\])"
_FRONT = re.compile(rf"(?:[:：]\**\s+|\w{{3}}\**[:：]\**|{_TAG}\s*|[.!?][\"')]?\s+|\")\Z")
"""What the words of a prompt end with in front of a problem on their line."""
_BEHIND = re.compile(rf"\s*(?:{_TAG}|\"(?:\s|\Z))")
"""What the words of a prompt begin with behind a problem on its line."""
_SENTENCE_END = re.compile(r"[.?!:$)\]}\"]\s*\Z")
_FIRST_LINE = re.compile(r"\s*[^\w\n]*\w[^\n]*\n")
_LABEL = re.compile(rf"\s*(?:[^\n:：$\\]{{1,60}}[:：]\**\s|[^\n<$\\]{{0,60}}{_TAG}|\w+>)")
_LAST_LINE = re.compile(r"\n[^\w\n]*\w[^\n]*\Z")
_LAST_TAG = re.compile(rf"(?:{_TAG}[^\n<]{{0,60}}|</\w+)\s*\Z")
_FIRST_WORD = re.compile(r"\s*[^\W\d]\w*")
_LAST_WORDS = re.compile(r"\S*[^\W\d]\S*\s+\S*[^\W\d]\S*\Z")


@dataclass(frozen=True)
class Division:
    """Beginnings or ends of problems that several problems share. ``parts``: the rows of each, by their numbers."""

    side: Side
    parts: dict[str, list[int]]
    is_clear: bool
    """They are lines of several prompts: nearly all problems have one of them, and each is a whole line."""

    def __str__(self) -> str:
        shown = ", ".join(f"{text.strip()[:60]!r} ({len(rows)})" for text, rows in list(self.parts.items())[:3])
        return f"problems {self.side} with {shown}"


def unclear_words(template: Template, problems: Sequence[str]) -> str:
    """Return the words of a template on the line of the problem that may be of all problems as well; "" where there
    are none. ``problems``: the texts at its place."""
    before, _, after = template.user.partition("{problem}")
    line = before.rpartition("\n")[2]
    if re.search(r"\w", line) and not _FRONT.search(line):
        return line.strip()
    line = after.partition("\n")[0]
    if not line.strip() or line.lstrip().startswith("{solutions}") or _BEHIND.match(line):
        return ""
    different = set(problems)
    sentences = sum(_SENTENCE_END.search(problem) is not None for problem in different)
    is_sentence = line[:1].isspace() and _SENTENCE_END.search(line) is not None
    if is_sentence and len(different) >= _MANY and sentences >= _NEARLY_ALL * len(different):
        return ""
    return line.strip()


def division(template: Template, problems: Sequence[str], ends: Sequence[Sequence[str]] = ()) -> Division | None:
    """Return what several of the problems of a template's rows begin or end with; None where there is nothing.

    ``problems``: the text at the place of the problem, of each row. ``ends``: of each row the solutions of a listing,
    the last of which may have taken the beginning of what stands behind it.
    """
    before, _, after = template.user.partition("{problem}")
    sides: list[tuple[Side, tuple[re.Pattern[str], ...], str]] = [
        ("begin", (_FIRST_LINE, _LABEL), before),
        ("end", (_LAST_LINE, _LAST_TAG), after),
    ]
    for side, patterns, literal in sides:
        for pattern in patterns:
            parts = _alike(problems, pattern)
            share = _share(parts, problems)
            if any(len({problems[row] for row in rows}) >= _SHARE * len(set(problems)) for rows in parts.values()):
                is_line = pattern in (_FIRST_LINE, _LAST_LINE)
                return Division(side, parts, is_line and share >= _NEARLY_ALL)
        if not re.search(r"\w", literal):  # nothing shows where the prompt ends
            parts = _large(_alike(problems, _FIRST_WORD if side == "begin" else _LAST_WORDS), problems)
            if _share(parts, problems) >= _NEARLY_ALL:
                return Division(side, parts, False)
    inner = {_key(text, _LAST_LINE) for solutions in ends for text in solutions[:-1]}
    last = [solutions[-1] for solutions in ends]
    parts = {key: rows for key, rows in _alike(last, _LAST_LINE).items() if key not in inner}
    if _large(parts, last):
        return Division("end", parts, _share(parts, last) >= _NEARLY_ALL)
    return None


def _alike(texts: Sequence[str], pattern: re.Pattern[str]) -> dict[str, list[int]]:
    """Return what several different texts have at one end -> the texts, by their numbers, the most frequent first."""
    parts: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        if (key := _key(text, pattern)) is not None:
            parts.setdefault(key, []).append(row)
    several = {key: rows for key, rows in parts.items() if len({texts[row] for row in rows}) > 1}
    return dict(sorted(several.items(), key=lambda part: -len(part[1])))


def _key(text: str, pattern: re.Pattern[str]) -> str | None:
    is_first = pattern in (_FIRST_LINE, _LABEL, _FIRST_WORD)
    match = pattern.match(text) if is_first else pattern.search(text)
    return None if match is None else _NUMBER.sub("0", match.group())


def _large(parts: Mapping[str, list[int]], texts: Sequence[str]) -> dict[str, list[int]]:
    least = max(2.0, _SHARE * len(set(texts)))
    return {key: rows for key, rows in parts.items() if len({texts[row] for row in rows}) >= least}


def _share(parts: Mapping[str, list[int]], texts: Sequence[str]) -> float:
    different = {texts[row] for rows in parts.values() for row in rows}
    return len(different) / max(1, len(set(texts)))
