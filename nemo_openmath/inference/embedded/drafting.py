"""Guesses for the rows of a turn, as trees that the decoder verifies, and what is learned from how they went."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_openmath.inference.embedded.decoder import DraftTree
from nemo_openmath.inference.embedded.pace import Pace
from nemo_openmath.inference.embedded.proposers import DraftSource, Proposal
from nemo_openmath.inference.embedded.rows import RowTable

MOST_AHEAD, LEAST_AHEAD = 32, 2  # tokens that are guessed, of all rows together; of each


@dataclass(frozen=True, slots=True)
class _Watched:
    """Guesses whose outcome will be known when the text has grown, verified or not."""

    start: int
    """Tokens of the text before them."""
    proposal: Proposal


class Drafting:
    """Makes the trees of a turn. ``room``: positions that a row has in the decoder.

    ``clock``: seconds. By default they are the processor's in this thread, so that what other processes take of the
    machine decides nothing; where another device computes, they have to be the wall's.
    """

    def __init__(self, source: DraftSource, table: RowTable, room: int, clock: Callable[[], float] = time.thread_time):
        self._proposer = source.make(table)
        self.pace = Pace(self._proposer.expected, self._proposer.levels) if source.paced else None
        self._table, self._room, self._clock = table, room, clock
        self._began: float | None = None  # the pass, where it was looked for guesses before
        self._watched: list[_Watched | None] = [None] * len(table.length)

    def begin(self, row: int) -> None:
        """Note that a row has a new request."""
        self._watched[row] = None
        self._proposer.begin(row)

    def move(self, source: int, target: int) -> None:
        """Note that row ``source`` is ``target`` now."""
        self._watched[target], self._watched[source] = self._watched[source], None
        self._proposer.move(source, target)

    def took(self, tokens: int, guessed: bool) -> None:
        """Learn what the pass behind :meth:`trees` took, which computed ``tokens`` tokens. ``guessed``: whether guesses
        were among them."""
        if self.pace is not None and self._began is not None:
            self.pace.cost.measured(tokens, guessed, self._clock() - self._began)

    def trees(self, rows: np.ndarray) -> list[DraftTree]:
        """Return a tree for each of ``rows``, of which at least one has guesses; nothing where none is worth it."""
        if self.pace is None:
            return self._look(rows, self._proposer.levels)
        level = self.pace.looks(len(rows))
        if not level:
            self._began = self._clock() if self.pace.measures(guessed=False) else None
            return []
        began = self._clock()
        trees = self._look(rows, level)
        ended = self._clock()
        self.pace.looked(ended - began)
        self._began = ended if self.pace.measures(guessed=bool(trees)) else None
        return trees

    def _look(self, rows: np.ndarray, level: int) -> list[DraftTree]:
        listed, lengths = rows.tolist(), self._table.length[rows].tolist()
        ahead, room = max(LEAST_AHEAD, MOST_AHEAD // len(listed)), self._room
        # the last token of a request is drawn and not computed, and what follows it is not even drawn
        ends = self._table.full_length[rows].tolist()
        most = [min(ahead, end - 1 - length, room - length) for end, length in zip(ends, lengths, strict=True)]
        proposals = self._proposer.propose(listed, most, level)
        for row, start, proposal in zip(listed, lengths, proposals, strict=True):
            self._learn(row, start, proposal)
        if self.pace is None:
            chosen = [[] if p is None else list(range(len(p.tokens))) for p in proposals]
        else:
            chosen = self.pace.choose(len(listed), proposals)
        if not any(chosen):
            return []
        return [
            self._tree(row, start, proposal, guesses[: self._room - start])
            for row, start, proposal, guesses in zip(listed, lengths, proposals, chosen, strict=True)
        ]

    def _tree(self, row: int, length: int, proposal: Proposal | None, guesses: Sequence[int]) -> DraftTree:
        newest = int(self._table.ids[row, length - 1])
        if proposal is None or not guesses:
            return DraftTree(row, length - 1, np.array([newest]))
        if proposal.is_chain:
            return DraftTree(row, length - 1, np.array([newest, *proposal.tokens[: len(guesses)]]))
        tokens = np.array([newest, *(proposal.tokens[guess] for guess in guesses)])
        node = {-1: 0} | {guess: i for i, guess in enumerate(guesses, 1)}
        parents = [-1, *(node[proposal.parents[guess]] for guess in guesses)]
        chain = parents[-1] == len(guesses) - 1 and parents == list(range(-1, len(guesses)))
        return DraftTree(row, length - 1, tokens, None if chain else np.array(parents))

    def _learn(self, row: int, length: int, proposal: Proposal | None) -> None:
        """Learn from the row's guesses as far as the text has come, and watch new ones when their fate is known."""
        watched = self._watched[row]
        if watched is not None:
            text = self._table.ids[row, watched.start : length].tolist()
            if not self._outcome(watched.proposal, text):
                return
        self._watched[row] = None if proposal is None else _Watched(length, proposal)

    def _outcome(self, proposal: Proposal, text: list[int]) -> bool:
        """Tell whether all is known of the guesses whose place is in ``text``, and learn from it."""
        depth = [0] * len(proposal.tokens)
        right = [False] * len(proposal.tokens)
        seen: list[tuple[int, bool]] = []
        for guess, (token, parent, kind) in enumerate(
            zip(proposal.tokens, proposal.parents, proposal.classes, strict=True)
        ):
            if parent >= 0 and not right[parent]:
                if proposal.is_chain:
                    break
                continue
            depth[guess] = 0 if parent < 0 else depth[parent] + 1
            if depth[guess] >= len(text):
                return False
            right[guess] = token == text[depth[guess]]
            seen.append((kind, right[guess]))
        if self.pace is not None:
            for kind, was_right in seen:
                self.pace.chances.saw(kind, was_right)
        return True
