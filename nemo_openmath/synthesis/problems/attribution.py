"""Tell to which problem an answer belongs, where one post poses several and the replies answer them in one place.

A post that lists problems gives each a *label*: "3.", "b)", "Problem 2:". Replies name the label, quote the problem, or
write it again. So a reply is cut into *segments*, each of one problem or of none that is known:

- a label begins a segment of its problem. Its last one in a reply ends with its paragraph, for what follows may be
  about anything;
- a line that states a listed problem again, or a quote of one alone, begins such a segment too, of two paragraphs;
- the labels of a reply must rise. A list from the first label on may be the steps of one solution: it counts only where
  its entries are answers by their form, or speak of the problems whose labels they have.

An answer that stands in a segment of its own problem is that problem's. One that stands in segments of other problems
alone is another problem's. Everything else is not known, and is no reason to reject an answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise

from nemo_openmath.synthesis.problems.checks import contents, follows_from, is_answer, poses_something

_LEAST_SHARED = 0.45  # of the pairs of neighbours of a problem and an item, the shorter of the two
_LEAST_AGAIN = 0.6  # of the pairs of a line that states an item again
_FEW, _LEAST_OF_FEW = 6, 0.8  # of fewer pairs, more must be shared
_MOST_LABELS = 40

_LABEL = r"(?:\d{1,2}|[a-h]|[ivx]{1,4})"
_TAGS = r"(?:\[(?!/?quote\])/?[a-z]+(?:=[^\]\n]{1,30})?\][ \t]*|answers?:[ \t]*)*"
_NAMED = (
    rf"(?:(?:problem|question|exercise|prob|ex|part)s?\.?[ \t]*[#(]?(?P<named>{_LABEL})\b"
    r"|(?:(?:number|no|nr|q|p)\.?[ \t]*#?|#[ \t]*)(?P<numbered>\d{1,2})\b)[ \t]*[).:\]]?"
)
_AT_LINE = re.compile(
    rf"^[ \t]*{_TAGS}[*_]{{0,2}}(?:for[ \t]+)?(?:{_NAMED}|[(\[]?(?P<bare>{_LABEL})[ \t]?(?:[)\]]|[.:](?!\d)))",
    re.I | re.M,
)
_WITHIN = re.compile(rf"(?<![^\s,;])(?:{_NAMED}|\(?(?P<bare>\d{{1,2}}|[a-h])\)(?=\s))", re.I)
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
_QUOTE = re.compile(r"\[(/?)quote\]")
_LEAD = re.compile(r"^(?:(?:the\s+)?answer(?:\s+is|\s*[:=])?|gives|it\s+is|it['’]s|=)\s+", re.I)
_GAP = re.compile(r"\n[ \t]*\n")
_OTHERS = re.compile(
    r"\b(?:first|second|third|fourth|fifth|sixth|last|next|other|others|both|rest|one|two|three|four)\b", re.I
)


class Whose(StrEnum):
    """Whose answer one is."""

    OWN = "own"
    OTHER = "other"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Marker:
    label: str
    start: int
    end: int
    named: bool
    """Whether a word or a sign says that it is a label: "Problem 3", "#3"."""


@dataclass(frozen=True, slots=True)
class ReplySegment:
    """A part of a reply, and the number of the item that it is about; None where that is not known."""

    item: int | None
    text: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a segment begins: a label from ``start`` to ``end``, its item, and the paragraphs it has at the end of a
    reply."""

    start: int
    end: int
    item: int | None
    paragraphs: int


class PosedProblems:
    """The problems that a post lists, or its paragraphs where it lists none."""

    def __init__(self, items: Sequence[tuple[str, str]]):
        self._labels = {label: number for number, (label, _) in enumerate(items) if label}
        self._texts = [text for _, text in items]

    @classmethod
    def of(cls, post: str, *, several: bool = False) -> PosedProblems | None:
        """Return the problems that a post lists; None where it lists fewer than two. ``several``: whether several were
        extracted from it, so that paragraphs take the place of a list."""
        labels = _longest_run(_AT_LINE, post) or _longest_run(_WITHIN, post)
        ends = [*(marker.start for marker in labels), len(post)][1:]
        items = [(marker.label, post[marker.end : end].strip()) for marker, end in zip(labels, ends, strict=True)]
        if sum(poses_something(text) for _, text in items) >= 2:
            return cls(items)
        paragraphs = [text for text in re.split(r"\n\s*", post) if len(contents(text)) >= 3] if several else []
        return cls([("", text) for text in paragraphs]) if paragraphs else None

    @cached_property
    def _pairs(self) -> list[frozenset[tuple[str, str]]]:
        return [_pairs(text) for text in self._texts]

    @cached_property
    def _tokens(self) -> list[frozenset[str]]:
        return [frozenset(token for token, _ in contents(text)) for text in self._texts]

    @cached_property
    def _own_tokens(self) -> list[frozenset[str]]:
        """Of each item, the tokens that stand in no other one."""
        counts = Counter(token for item in self._tokens for token in item)
        return [frozenset(token for token in item if counts[token] == 1) for item in self._tokens]

    def whose(self, answer: str, problem: str, replies: Iterable[str]) -> Whose:
        """Return whether an answer that stands in the replies belongs to a problem of this post."""
        own = self._items_of(problem)
        if not own:
            return Whose.UNKNOWN
        segments = [segment for reply in replies for segment in self.segments(reply)]
        if any(segment.item in own and follows_from(answer, segment.text) for segment in segments):
            return Whose.OWN
        if any(segment.item is None and follows_from(answer, segment.text) for segment in segments):
            return Whose.UNKNOWN
        others = [s for s in segments if s.item not in (None, *own) and follows_from(answer, s.text)]
        if not others or any(self._may_be_about(own, segment) for segment in others):
            return Whose.UNKNOWN
        return Whose.OTHER

    def _items_of(self, problem: str) -> frozenset[int]:
        """Return the items that a problem was made of: the ones most like it. Where it holds several, all of them."""
        if (same := self._same(problem)) is not None:
            return frozenset([same])
        pairs = _pairs(problem)
        sizes = [min(len(pairs), len(item)) for item in self._pairs]
        shares = [len(pairs & item) / max(1, size) for item, size in zip(self._pairs, sizes, strict=True)]
        least = max(_LEAST_SHARED, 0.9 * max(shares))
        return frozenset(
            number
            for number, (share, size) in enumerate(zip(shares, sizes, strict=True))
            if share >= (least if size >= _FEW else max(least, _LEAST_OF_FEW)) and size > 2
        )

    def _same(self, text: str) -> int | None:
        """Return the one item that has the contents of a text, however short; None where there is none, or several."""
        tokens = frozenset(token for token, _ in contents(text))
        same = [number for number, item in enumerate(self._tokens) if item == tokens]
        return same[0] if tokens and len(same) == 1 else None

    def _may_be_about(self, own: frozenset[int], segment: ReplySegment) -> bool:
        """Return whether a segment of another item may speak of these, too: it has their label, or a word that
        counts."""
        labels = {label for label, number in self._labels.items() if number in own}
        mentioned = re.findall(rf"(?<![\w.])({_LABEL})(?=[ \t]?[).:\]])|#[ \t]*({_LABEL})\b", segment.text, re.I)
        return bool(labels & {(a or b).lower() for a, b in mentioned}) or _OTHERS.search(segment.text) is not None

    def segments(self, reply: str) -> list[ReplySegment]:
        """Return a reply as its segments, in their order."""
        segments: list[ReplySegment] = []
        opened: list[int] = []  # of open quotes: where they begin in ``segments``
        after: int | None = None  # the item of the quote that ends in front of this
        end = 0
        for tag in (*_QUOTE.finditer(reply), None):
            block = reply[end : tag.start() if tag is not None else len(reply)]
            segments += self._segments_of(block, after)
            after = None
            if tag is None:
                break
            end = tag.end()
            if not tag[1]:
                opened.append(len(segments))
            elif opened:
                quoted = {segment.item for segment in segments[opened.pop() :] if segment.text.strip()}
                after = quoted.pop() if len(quoted) == 1 else None
        return segments

    def _segments_of(self, block: str, after: int | None) -> Iterator[ReplySegment]:
        """Yield the segments of a part of a reply without quotes. ``after``: the item of the quote in front of it."""
        places = sorted([*self._labelled(block), *self._stated_again(block)], key=lambda place: place.start)
        places = [_Place(0, 0, after, 2), *places]
        for place, following in zip(places, [*places[1:], None], strict=True):
            text = block[place.end : following.start if following is not None else len(block)]
            cut = (
                len(text) if place.item is None or following is not None else _end_of_paragraph(text, place.paragraphs)
            )
            yield ReplySegment(place.item, text[:cut])
            yield ReplySegment(None, text[cut:])

    def _labelled(self, block: str) -> Iterator[_Place]:
        markers = [marker for marker in _all_markers(block) if marker.label in self._labels]
        items = [self._labels[marker.label] for marker in markers]
        if not markers or any(first >= second for first, second in pairwise(items)):
            return
        ends = [marker.start for marker in markers[1:]] + [len(block)]
        texts = [block[marker.end : end] for marker, end in zip(markers, ends, strict=True)]
        if items[0] == 0 and len(items) > 1 and not all(marker.named for marker in markers):
            texts[-1] = texts[-1][: _end_of_paragraph(texts[-1], 1)]
            if not (all(_is_short(text) for text in texts) or self._fit(items, texts)):
                return
        for marker, item in zip(markers, items, strict=True):
            yield _Place(marker.start, marker.end, item, 1)

    def _fit(self, items: Sequence[int], texts: Sequence[str]) -> bool:
        """Return whether entries of a list speak of the items whose labels they have: some do, and none more of another
        one."""
        fitting = 0
        for item, text in zip(items, texts, strict=True):
            tokens = {token for token, _ in contents(text)}
            shared = [len(tokens & own) for own in self._own_tokens]
            if max(shared) > shared[item]:
                return False
            fitting += shared[item] > 0
        return fitting > 0

    def _stated_again(self, block: str) -> Iterator[_Place]:
        """Yield the lines that state an item again. They belong to their segments."""
        for line in re.finditer(r"[^\n]+", block):
            pairs = _pairs(line[0])
            if len(pairs) < 3:
                if len(pairs) and (same := self._same(line[0])) is not None:
                    yield _Place(line.start(), line.start(), same, 2)
                continue
            shares = [len(pairs & item) / len(pairs) for item in self._pairs]
            if len(pairs) < _FEW:  # a part of a formula is no statement: such a line is most of the item, too
                shares = [
                    share if len(pairs & item) >= _LEAST_OF_FEW * len(item) else 0.0
                    for share, item in zip(shares, self._pairs, strict=True)
                ]
            best = max(shares)
            if best >= _LEAST_AGAIN and sum(share >= 0.9 * best for share in shares) == 1:
                yield _Place(line.start(), line.start(), shares.index(best), 2)


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairwise(token for token, _ in contents(text)))


def _is_short(text: str) -> bool:
    """Return whether an entry of a list is no more than an answer."""
    text = _LEAD.sub("", text.strip(" \t\n,;[]/"), count=1)
    return not text or ("\n" not in text and is_answer(text))


def _end_of_paragraph(text: str, number: int) -> int:
    """Return where the paragraph ``number`` of a text ends, counted from 1; empty ones do not count."""
    for gap in _GAP.finditer(text):
        if text[: gap.start()].strip():
            number -= 1
            if not number:
                return gap.start()
    return len(text)


def _markers(pattern: re.Pattern[str], text: str) -> Iterator[_Marker]:
    for match in pattern.finditer(text):
        named = match["named"] or match["numbered"]
        yield _Marker((named or match["bare"]).lower(), match.start(), match.end(), named is not None)


def _all_markers(text: str) -> list[_Marker]:
    """Return the markers of a text, at the beginning of lines and within them, without those that overlap."""
    markers = sorted(
        [*_markers(_AT_LINE, text), *_markers(_WITHIN, text)], key=lambda marker: (marker.start, -marker.end)
    )
    apart: list[_Marker] = []
    for marker in markers:
        if not apart or marker.start >= apart[-1].end:
            apart.append(marker)
    return apart


def _longest_run(pattern: re.Pattern[str], text: str) -> list[_Marker]:
    """Return the longest run of markers that count up by one: 1. 2. 3., a) b), i) ii). Empty where none has two."""
    markers = list(_markers(pattern, text))[:_MOST_LABELS]
    best: list[_Marker] = []
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
