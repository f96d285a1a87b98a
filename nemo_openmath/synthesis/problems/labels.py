"""Labels of problems: "3.", "b)", "Problem 2:" in a post that lists several, and how replies name one of them.

A reply names a problem by its label, or by its place: "(b) gives 5", "#2: 24", "the answer to 2 is 24", "for the first
one I get 13", "second problem: 7". Many other texts look alike: "from (1) and (2)", "the number 2 is prime", "the first
one is the greater root". So a name counts only in forms that are hardly anything else, and what refers to a problem
("using problem 1", "like the second one") names none: it ends what is known to be about another one
(:func:`first_reference`).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import pairwise

_MOST_LABELS = 40
LABEL = r"(?:\d{1,2}|[a-h]|[ivx]{1,4})"
_COUNTED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_ORDINAL = rf"(?:{'|'.join(_ORDINALS)}|last|\d{{1,2}}(?:st|nd|rd|th))"
_NOUN = r"(?:problem|question|exercise|prob|ex|part)"
_TAGS = r"(?:\[(?!/?quote\])/?[a-z]+(?:=[^\]\n]{1,30})?\][ \t]*|answers?:[ \t]*)*"
_NAMED_IN_POST = (
    rf"(?:{_NOUN}s?\.?[ \t]*[#(]?(?P<named>{LABEL})\b"
    r"|(?:(?:number|no|nr|q|p)\.?[ \t]*#?|#[ \t]*)(?P<numbered>\d{1,2})\b)[ \t]*[).:\]]?"
)
_NAMED = (
    rf"(?:{_NOUN}s?\.?[ \t]*(?:number[ \t]*)?[#(]?(?P<named>{LABEL}|{'|'.join(_COUNTED)})\b"
    r"|(?:q\.?[ \t]*#?|#[ \t]*)(?P<numbered>\d{1,2})\b"
    r"|(?:number|no\.?|nr\.?|p\.)[ \t]*#?(?P<counted>\d{1,2})(?=[ \t]*[):=\]]))[ \t]*[).:\]]?"
)
_BARE = rf"(?:\(?(?P<bare>{LABEL})[ \t]?(?:\)|[.:](?!\d))|\[(?P<boxed>\d{{1,2}})\])"  # [b] is bold
_BEGIN = rf"^[ \t]*{_TAGS}[*_]{{0,2}}(?:for[ \t]+)?"
_OF_POSTS = (
    re.compile(rf"{_BEGIN}(?:{_NAMED_IN_POST}|{_BARE})", re.I | re.M),
    re.compile(rf"(?<![^\s,;])(?:{_NAMED_IN_POST}|\(?(?P<bare>\d{{1,2}}|[a-h])\)(?=\s))", re.I),
)
_REPLIES = (
    re.compile(rf"{_BEGIN}(?:{_NAMED}|{_BARE})", re.I | re.M),
    re.compile(
        rf"(?<![\w#$\\])(?:{_NOUN}s?\.?[ \t]*(?:number[ \t]*)?(?:[#(][ \t]*(?P<a>{LABEL}|\d{{1,2}})|"
        rf"(?P<b>{LABEL}|{'|'.join(_COUNTED)}))(?![\w=^*/+])|#[ \t]*(?P<c>\d{{1,2}})(?![\w.]\w)"
        rf"|(?:for|on|to)[ \t]+number[ \t]*#?(?P<d>\d{{1,2}}|{'|'.join(_COUNTED)})\b)[ \t]*[).:\]]?",
        re.I,
    ),
    re.compile(
        r"\banswers?[ \t]+(?:to|for)[ \t]+(?:number[ \t]*#?|no\.[ \t]*)?"
        rf"(?:\((?P<a>{LABEL})\)|(?P<b>\d{{1,2}})\)?(?=[ \t]*(?:is\b|was\b|:|=|should\b|gives\b|->)))",
        re.I,
    ),
)
_BARE_WITHIN = re.compile(r"(?<![^\s,;.])\(?(?P<bare>\d{1,2}|[a-h]|[ivx]{1,4})\)(?=[\s,:=]|$)", re.I)
_BY_PLACE = (
    re.compile(
        rf"(?<!\w)(?P<place>{_ORDINAL})[ \t]+(?:problem|question|exercise|prob)\b"
        r"(?![ \t]+(?:with|in|of)\b|[ \t]+is[ \t]+(?:how|why|what|whether|that|to|when|if)\b)[ \t]*[:=]?",
        re.I,
    ),
    re.compile(rf"(?<!\w)(?P<place>{_ORDINAL})[ \t]+part[ \t]*:", re.I),
    re.compile(rf"\b(?:as[ \t]+)?for[ \t]+(?:the[ \t]+)?(?P<place>{_ORDINAL})[ \t]+one\b", re.I),
    re.compile(
        rf"\banswers?[ \t]+(?:to|for)[ \t]+(?:the[ \t]+)?(?P<place>{_ORDINAL})"
        r"(?:[ \t]+one\b|(?=[ \t]*(?:is\b|was\b|:|=)))",
        re.I,
    ),
)
_PLACE_AT_LINE = re.compile(rf"^[ \t]*{_TAGS}(?:the[ \t]+)?(?P<place>{_ORDINAL})(?:[ \t]+one)?[ \t]*[:=)]", re.I | re.M)
_REFERS = re.compile(
    r"\b(?:from|by|us(?:e|es|ing)|via|into|with|than|like|as[ \t]in|see|similar[ \t]to|same[ \t]as|due[ \t]to|not|after"
    r"|before|apply(?:ing)?|solv(?:e|ed|ing)|recall(?:ing)?|about|instead[ \t]of)[ \t]+(?:(?:the|our|your)[ \t]+)?$",
    re.I,
)
_REFERS_BARE = re.compile(
    r"\b(?:and|in|of|to|eqs?\.?|equations?|formulas?|relations?|conditions?|cases?|steps?|lemmas?|claims?|facts?|theorems?"
    r"|inequalit(?:y|ies)|add(?:ing)?|subtract(?:ing)?|substitut(?:e|ing)|both|that|multiply(?:ing)?|have|get|so|is|are)"
    r"[ \t]*$|[=+\-*/^,$][ \t]*$",
    re.I,
)
_ANSWER_OF = re.compile(r"\b(?:answers?|ans)[ \t]+(?:to|of|for|in)[ \t]+$", re.I)
_AND_MORE = re.compile(
    rf"(?:[ \t]*(?:and|&|,|or|/|to|through|\+)[ \t]*|[-–])(?:{_NOUN}s?[ \t]*)?[#(]?{LABEL}(?![\w=^*/+])", re.I
)
_OTHER = re.compile(
    rf"\b(?:{_ORDINAL}|next|other|previous|same|rest|whole)[ \t]+(?:ones?|problems?|questions?|exercises?|parts?)\b"
    r"|\b(?:others|the[ \t]+rest|both[ \t]+(?:answers|problems|questions|parts))\b",
    re.I,
)
_LABEL_IS = re.compile(rf"(?<![\w.,=+*/^$-])(?P<a>{LABEL})\.(?=[ \t]+(?:is|gives|was|should|would)\b)", re.I)
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")


@dataclass(frozen=True, slots=True)
class Marker:
    """A place in a text that names a problem."""

    label: str
    """In lower case; empty where ``place`` says which one it is, or where several are named at once."""
    start: int
    end: int
    named: bool
    """Whether a word or a sign says that it is a label: "Problem 3", "#3"."""
    place: int | None = None
    """Which one it is of those that are listed, from 0; -1 is the last."""


def in_post(post: str) -> tuple[list[Marker], bool]:
    """Return the labels that a post gives its problems, and whether each of them stands there once. Where one stands
    twice (1. a) b) 2. a) b)), no reply can name a problem by it."""
    for pattern in _OF_POSTS:
        if run := _longest_run(pattern, post):
            labels = {marker.label for marker in run}
            markers = [m for m in _markers(pattern, post) if m.label in labels]
            return (run, True) if len(markers) == len(run) else (markers, False)
    return [], True


def in_reply(text: str) -> list[Marker]:
    """Return what names problems in a reply, in order, without what overlaps or only refers to one. A marker without
    label and place names several at once."""
    markers = [*_markers_of(text), *_places_of(text)]
    apart: list[Marker] = []
    for marker in sorted(markers, key=lambda marker: (marker.start, -marker.end)):
        if not apart or marker.start >= apart[-1].end:
            apart.append(marker)
    together = {
        at
        for number, (first, second) in enumerate(pairwise(apart))
        if re.fullmatch(r"[ \t]*(?:and|&|,|or|/|-|to|\+)?[ \t]*(?:for[ \t]+)?", text[first.end : second.start])
        for at in (number, number + 1)
    }
    together |= {number for number, m in enumerate(apart) if m.named and _AND_MORE.match(text, m.end)}
    return [
        Marker("", marker.start, marker.end, marker.named) if number in together else marker
        for number, marker in enumerate(apart)
    ]


def first_reference(text: str, others: Container[str]) -> int | None:
    """Return where a text about one problem first speaks of another one, which has one of the labels ``others``, or is
    named by its place; None where it does not."""
    at = [match.start() for match in _OTHER.finditer(text)]
    for pattern in (*_REPLIES[1:], _BARE_WITHIN, _LABEL_IS):
        at += [match.start() for match in pattern.finditer(text) if _label_of(match) in others]
    return min(at, default=None)


def _markers_of(text: str) -> Iterator[Marker]:
    for number, pattern in enumerate(_REPLIES):
        for match in pattern.finditer(text):
            groups = match.groupdict()
            if not _refers(text, match.start()):
                named = number > 0 or not (groups["bare"] or groups["boxed"])
                yield Marker(_label_of(match), match.start(), match.end(), named)
    for match in _BARE_WITHIN.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        if _ANSWER_OF.search(before) or not (_refers(text, match.start()) or _REFERS_BARE.search(before)):
            yield Marker(_label_of(match), match.start(), match.end(), named=False)


def _places_of(text: str) -> Iterator[Marker]:
    for pattern in (*_BY_PLACE, _PLACE_AT_LINE):
        for match in pattern.finditer(text):
            if not _refers(text, match.start()):
                yield Marker("", match.start(), match.end(), pattern is not _PLACE_AT_LINE, _place_of(match["place"]))


def _refers(text: str, start: int) -> bool:
    return _REFERS.search(text, max(0, start - 40), start) is not None


def _place_of(word: str) -> int:
    word = word.lower()
    if word == "last":
        return -1
    return _ORDINALS.index(word) if word in _ORDINALS else int(re.sub(r"\D", "", word)) - 1


def _label_of(match: re.Match[str]) -> str:
    label = next(value for value in match.groupdict().values() if value).lower()
    return str(_COUNTED.index(label) + 1) if label in _COUNTED else label


def _markers(pattern: re.Pattern[str], text: str) -> Iterator[Marker]:
    for match in pattern.finditer(text):
        named = bool(match["named"] or match["numbered"])
        yield Marker(_label_of(match), match.start(), match.end(), named)


def _longest_run(pattern: re.Pattern[str], text: str) -> list[Marker]:
    """Return the longest run of markers that count up by one: 1. 2. 3., a) b), i) ii). Empty where none has two."""
    markers = list(_markers(pattern, text))[:_MOST_LABELS]
    best: list[Marker] = []
    for place in (_as_number, _as_letter, _as_roman):
        placed = [(value, marker) for marker in markers if (value := place(marker.label)) is not None]
        for at in range(len(placed)):
            run = placed[at : at + 1]
            for value, marker in placed[at + 1 :]:
                if value == run[-1][0] + 1:
                    run.append((value, marker))
            if len(run) > max(1, len(best)):
                best = [marker for _, marker in run]
    return best


def _as_number(label: str) -> int | None:
    return int(label) if label.isdigit() else None


def _as_letter(label: str) -> int | None:
    return ord(label) if label in tuple("abcdefgh") else None


def _as_roman(label: str) -> int | None:
    return _ROMAN.index(label) if label in _ROMAN else None
