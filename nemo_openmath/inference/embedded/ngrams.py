"""Guesses by looking up: the last tokens of a text stood somewhere before, and so may stand again what followed them.

Solutions of problems repeat themselves, and each other: expressions, numbers of the statement, code that is written
again, samples of one problem. It is looked for in the text itself and in all texts that the engine had before, or has
beside it. The longest match counts, of equal ones the most recent, the own text's first. Nothing is trained.

A token costs the same wherever it stands: a table leads from a pair of tokens to the last place behind such a pair, and
each place to the one before it, as in LZ77.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from nemo_openmath.inference.embedded.proposers import Proposal
from nemo_openmath.inference.embedded.rows import RowTable

PAIR = 2  # tokens that the tables know
LONGEST = 16  # tokens that are compared
PLACES = 8  # that are looked at, in each text
TEXTS = 4  # that are looked into, besides the own one
AHEAD = 16  # tokens that are guessed
MOST_TOKENS = 1 << 20  # of all texts that are kept
TOKEN_BYTES = 200  # that each of them takes

KINDS = LONGEST + AHEAD  # classes of guesses in the own text, and as many in others


Place: TypeAlias = "tuple[IndexedText, int]"
"""A text, and a place in it."""


class IndexedText:
    """A text's tokens, and where its pairs and tokens are."""

    def __init__(self, library: Library):
        self.ids: list[int] = []
        self.earlier: list[int] = []  # of each place: the one before it behind the same pair, or -1
        self._behind: dict[tuple[int, int], int] = {}  # of each pair: the last place behind one
        self._after: dict[int, int] = {}  # of each token: the last place behind one
        self._elsewhere: dict[tuple[int, int], Place] = {}  # of each pair: the last place in another text, before
        self._library = library

    def add(self, ids: Sequence[int]) -> None:
        """Add tokens at the end."""
        mine, behind, shared = self.ids, self._behind, self._library.places
        for token in ids:
            place = len(mine)
            if place:
                self._after[mine[-1]] = place
            if place < PAIR:
                self.earlier.append(-1)
            else:
                pair = mine[-2], mine[-1]
                self.earlier.append(behind.get(pair, -1))
                behind[pair] = place
                last = shared.get(pair)
                if last is not None and last[0] is not self:
                    self._elsewhere[pair] = last
                shared[pair] = self, place
            mine.append(token)
        self._library.added(len(ids))

    def match(self) -> tuple[IndexedText, int, int]:
        """Return a text, the place in it behind the longest match of this text's end, and the match's length; length 0:
        there is none."""
        ids = self.ids
        if not ids:
            return self, -1, 0
        source, place, length = self, -1, 0
        if len(ids) >= PAIR:
            pair = ids[-2], ids[-1]
            place, length = self.longest(ids, self._behind.get(pair, -1))
            other = self._library.places.get(pair)
            for _ in range(TEXTS):
                if other is None:
                    break
                if other[0] is not self:
                    elsewhere, common = other[0].longest(ids, other[1])
                    if common > length:
                        source, place, length = other[0], elsewhere, common
                other = other[0]._elsewhere.get(pair)
        if not length and (place := self._after.get(ids[-1], -1)) >= 0:
            length = 1
        return source, place, length

    def longest(self, ids: list[int], place: int) -> tuple[int, int]:
        """Return of ``place`` and those before it behind the same pair the one behind the longest match of the end of
        ``ids``, and that match's length; (-1, 0) where ``place`` is none."""
        mine, best, length = self.ids, -1, 0
        for _ in range(PLACES):
            if place < 0:
                break
            same, limit = PAIR, min(LONGEST, place, len(ids))
            while same < limit and mine[place - 1 - same] == ids[-1 - same]:
                same += 1
            if same > length:
                best, length = place, same
                if same == LONGEST:
                    break
            place = self.earlier[place]
        return best, length


class Library:
    """All texts of an engine. Where they grow too many, they are forgotten together."""

    def __init__(self, most_tokens: int = MOST_TOKENS):
        self.places: dict[tuple[int, int], Place] = {}  # of each pair: the last place behind one
        self._most, self._tokens = most_tokens, 0

    def added(self, tokens: int) -> None:
        """Note that texts have grown."""
        self._tokens += tokens
        if self._tokens > self._most:
            self.places.clear()
            self._tokens = 0


class NgramProposer:
    """A :class:`~nemo_openmath.inference.embedded.proposers.Proposer` without a model. The class of a guess is the
    number of tokens before it that match, and whether they do so in its own text. ``texts``: token ids of texts that it
    looks into beside those of the engine."""

    levels = 1
    expected: Sequence[float] = 2 * tuple(min(0.9, 0.2 + 0.05 * length) for length in range(KINDS))

    def __init__(self, table: RowTable, texts: Iterable[np.ndarray] = ()):
        self._table, self._library = table, Library()
        for ids in texts:
            IndexedText(self._library).add(ids.tolist())
        self._texts = [IndexedText(self._library) for _ in range(len(table.length))]

    def begin(self, row: int) -> None:
        self._texts[row] = IndexedText(self._library)
        self._read(row)

    def move(self, source: int, target: int) -> None:
        self._texts[target], self._texts[source] = self._texts[source], IndexedText(self._library)

    def _read(self, row: int) -> IndexedText:
        """Return the text of a row, with what was written since."""
        text = self._texts[row]
        text.add(self._table.ids[row, len(text.ids) : self._table.length[row]].tolist())
        return text

    def propose(self, rows: Sequence[int], most: Sequence[int], level: int = 1) -> list[Proposal | None]:
        return [self._of(row, min(AHEAD, n)) for row, n in zip(rows, most, strict=True)]

    def _of(self, row: int, most: int) -> Proposal | None:
        text = self._read(row)
        source, place, length = text.match()
        if not length or most < 1:
            return None
        tokens = source.ids[place : place + most]
        if source is text:
            while len(tokens) < most:  # behind its end it goes on with what was guessed: it turns in a circle
                tokens += tokens[: most - len(tokens)]
        first = length + (0 if source is text else KINDS)
        return Proposal.chain(tokens, list(range(first, first + len(tokens))))


def match_length(proposal: Proposal) -> int:
    """Return the tokens that match before the guesses of a :class:`NgramProposer`."""
    return proposal.classes[0] % KINDS
