"""Tell to which problem an answer belongs, where one post poses several and the replies answer them in one place.

A post that lists problems gives each a *label*: "3.", "b)", "Problem 2:". Replies name the label or the place in the
list (labels.py), quote the problem, or write it again. So a reply is cut into *segments*, each of one problem or of
none that is known:

- a label begins a segment of its problem, which ends where another problem is spoken of. The last one in a reply ends
  with its paragraph, for what follows may be about anything;
- a line that states a listed problem again, or a quote of one alone, begins such a segment too, of two paragraphs;
- the labels of a reply must rise. A list from the first label on may be the steps of one solution: it counts only where
  its entries are answers by their form, or speak of the problems whose labels they have.

An answer that stands in a segment of its own problem is that problem's, unless it also stands in one of another problem
and is not all that its own segment says. One that stands in segments of other problems alone is another problem's.
Everything else is not known. Nor is whose an answer is where an item of the post holds several problems, or a problem
several items.
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
from nemo_openmath.synthesis.problems.labels import LABEL, Marker, first_reference, in_post, in_reply

_LEAST_SHARED = 0.45  # of the pairs of neighbours of a problem and an item, the shorter of the two
_LEAST_AGAIN = 0.6  # of the pairs of a line that states an item again
_FEW, _LEAST_OF_FEW = 6, 0.8  # of fewer pairs, more must be shared

_QUOTE = re.compile(r"\[(/?)quote\]")
_LEAD = re.compile(
    r"^(?:(?:i\s+(?:get|got|have)|(?:the\s+|my\s+)?answer(?:\s+is|\s*[:=])?|gives|is|it\s+is|it['\u2019]s|=|->)\s+)+",
    re.I,
)
_GAP = re.compile(r"\n[ \t]*\n")
_OTHERS = re.compile(
    r"\b(?:first|second|third|fourth|fifth|sixth|last|next|other|others|both|rest|one|two|three|four)\b", re.I
)


_MATHEMATICS = re.compile(r"[\d=$<>\\]")
_TALK = re.compile(r"\b(?:i|i['\u2019]m|me|my|you|your|please|thanks|thx|help|hints?|ideas?)\b", re.I)


class Whose(StrEnum):
    """Whose answer one is."""

    OWN = "own"
    OTHER = "other"
    UNKNOWN = "unknown"


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

    def __init__(self, items: Sequence[tuple[str, str]], places: Sequence[int] = (), siblings: Sequence[str] = ()):
        """``items``: label, or nothing, and text. ``places``: the items that "the first one" and so on are.
        ``siblings``: texts of problems that were extracted from the post."""
        self._labels = {label: number for number, (label, _) in enumerate(items) if label}
        self._texts = [text for _, text in items]
        self._places = list(places)
        self._siblings = siblings

    @classmethod
    def of(cls, post: str, *, number: int = 0, siblings: Sequence[str] = ()) -> PosedProblems | None:
        """Return the problems that a post lists; None where it lists fewer than two, and no more were extracted from
        it (``number``). Paragraphs take the place of a list that is not there."""
        number = max(number, len(siblings))
        labels, once = in_post(post)
        ends = [*(marker.start for marker in labels), len(post)][1:]
        items = [(marker.label, post[marker.end : end].strip()) for marker, end in zip(labels, ends, strict=True)]
        if sum(poses_something(text) for _, text in items) >= 2:
            items[-1] = items[-1][0], _without_thanks(items[-1][1])
            if once:
                return cls(items, range(len(items)), siblings)
            return cls([("", text) for _, text in items], (), siblings)
        if number < 2:
            return None
        paragraphs = [text for text in re.split(r"\n\s*", post) if len(contents(text)) >= 3]
        posing = [at for at, text in enumerate(paragraphs) if poses_something(text)]
        if len(posing) < number:  # one of them poses several
            return cls([("", post)], (), siblings)
        if len(posing) > number:
            return cls([("", text) for text in paragraphs], (), siblings)
        numbered = {at: str(place) for place, at in enumerate(posing, 1)}
        return cls([(numbered.get(at, ""), text) for at, text in enumerate(paragraphs)], posing, siblings)

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

    @cached_property
    def _shared(self) -> frozenset[int]:
        """The items that hold several problems: they list some of their own, or several were made of them."""
        made = Counter(item for sibling in set(self._siblings) for item in self._items_of(sibling))
        return frozenset(
            item for item, text in enumerate(self._texts) if made[item] > 1 or len(self._texts) == 1 or _lists(text)
        )

    def whose(self, answer: str, problem: str, replies: Iterable[str]) -> Whose:
        """Return whether an answer that stands in the replies belongs to a problem of this post."""
        own = self._items_of(problem)
        if not own or own & self._shared or (len(own) > 1 and len(own & set(self._labels.values())) > 1):
            return Whose.UNKNOWN
        segments = [segment for reply in replies for segment in self.segments(reply)]
        here = [segment for segment in segments if follows_from(answer, segment.text)]
        others = [segment for segment in here if segment.item not in (None, *own)]
        own_here = [segment for segment in here if segment.item in own]
        if own_here:
            taken = [s for s in others if s.item is not None and not follows_from(answer, self._texts[s.item])]
            return Whose.UNKNOWN if taken and not any(_is_short(s.text) for s in own_here) else Whose.OWN
        if len(others) < len(here) or not others or any(self._may_be_about(own, segment) for segment in others):
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
        mentioned = re.findall(rf"(?<![\w.])({LABEL})(?=[ \t]?[).:\]])|#[ \t]*({LABEL})\b", segment.text, re.I)
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
            if place.item is not None:
                others = self._labels.keys() - {label for label, item in self._labels.items() if item == place.item}
                cut = min(cut, at) if (at := first_reference(text, others)) is not None else cut
            yield ReplySegment(place.item, text[:cut])
            yield ReplySegment(None, text[cut:])

    def _labelled(self, block: str) -> Iterator[_Place]:
        markers = [(m, item) for m in in_reply(block) if (item := self._item_of(m)) is not None or m.named]
        known = [(m, item) for m, item in markers if item is not None]
        if not known or any(
            first > second or (first == second and not (m.named and n.named))
            for (m, first), (n, second) in pairwise(known)
        ):
            return
        ends = [marker.start for marker, _ in markers[1:]] + [len(block)]
        texts = [block[marker.end : end] for (marker, _), end in zip(markers, ends, strict=True)]
        if known[0][1] == 0 and not all(marker.named for marker, _ in known):
            texts[-1] = texts[-1][: _end_of_paragraph(texts[-1], 1)]
            entries = [(item, text) for (_, item), text in zip(markers, texts, strict=True) if item is not None]
            steps = len(known) > 1 or known[0][0].place is not None
            if steps and not (all(_is_short(text) for _, text in entries) or self._fit(entries)):
                return
        for marker, item in markers:
            yield _Place(marker.start, marker.end, item, 1)

    def _item_of(self, marker: Marker) -> int | None:
        if marker.place is None:
            item = self._labels.get(marker.label)
            # in front of paragraphs that have no labels, "1)" may be the step of a solution
            return item if marker.named or self._places == list(range(len(self._texts))) else None
        return self._places[marker.place] if -1 <= marker.place < len(self._places) and self._places else None

    def _fit(self, entries: Sequence[tuple[int, str]]) -> bool:
        """Return whether entries of a list speak of the items whose labels they have: some do, and none more of another
        one."""
        fitting = 0
        for item, text in entries:
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


def _without_thanks(text: str) -> str:
    """Return the last item of a list without the lines behind it that pose nothing and hold no mathematics."""
    lines = text.split("\n")
    while len(lines) > 1 and not _MATHEMATICS.search(lines[-1]):
        if poses_something(lines[-1]) and not _TALK.search(lines[-1]):
            break
        lines.pop()
    return "\n".join(lines)


def _lists(text: str) -> bool:
    """Return whether an item lists problems of its own."""
    labels, _ = in_post(text)
    ends = [marker.start for marker in labels[1:]] + [len(text)]
    return sum(poses_something(text[m.end : end]) for m, end in zip(labels, ends, strict=True)) > 1 if labels else False


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
