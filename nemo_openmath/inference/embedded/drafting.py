"""Guesses for the rows of a turn, as trees that the decoder verifies, and what is learned from how they went."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nemo_openmath.inference.embedded.decoder import DraftTree
from nemo_openmath.inference.embedded.guesses import NODE_BYTES, CGuessing, TextColumns, Trees, functions
from nemo_openmath.inference.embedded.pace import Chances, Pace, choose
from nemo_openmath.inference.embedded.proposers import DraftSource
from nemo_openmath.inference.embedded.rows import RowTable

BETWEEN = 1e-4  # seconds between calls for several turns
MOST_AHEAD, LEAST_AHEAD = 32, 2  # tokens that are guessed, of all rows together; of each


class TurnPlan(NamedTuple):
    """How some turns look for guesses."""

    level: int
    """The way to look, from 1 on; 0: they do not."""
    turns: int
    """Turns for which that holds, at most."""
    phase: int = 0
    """How many turns after a plain one the first one is."""
    ahead: int = 0
    """Tokens that are guessed of a row."""
    seconds: np.ndarray | None = None
    """Of passes of 0, 1, .. tokens with guesses (:meth:`Pace.costs`)."""
    token: float = 1.0
    """Seconds of one token of a plain pass."""


class Drafting:
    """Makes the trees of a turn. ``room``: positions that a row has in the decoder.

    ``clock``: seconds. By default they are the processor's in this thread, so that what other processes take of the
    machine decides nothing; where another device computes, they have to be the wall's.
    """

    def __init__(self, source: DraftSource, table: RowTable, room: int, clock: Callable[[], float] = time.thread_time):
        self._proposer = source.make(table, room)
        rows = len(table.length)
        self._c, self._chances = functions(), Chances(self._proposer.expected, rows)
        self.pace = Pace(self._chances, self._proposer.levels) if source.paced else None
        self._texts, self._clock = TextColumns(table, room), clock
        self._proposed, self._chosen, self._most = Trees(rows), Trees(rows), np.zeros(rows, np.int64)
        self._table = table
        self._began: float | None = None  # the pass, where it was looked for guesses before

    def begin(self, row: int) -> None:
        """Note that a row has a new request."""
        self._chances.begin(row)
        self._proposer.begin(row)

    def move(self, source: int, target: int) -> None:
        """Note that row ``source`` is ``target`` now."""
        self._chances.move(source, target)
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

    def compiled(self, rows: int) -> CGuessing | None:
        """Return what turns.c guesses with, for at most ``rows`` rows; None where that is not compiled."""
        if self.pace is None or (made := self._proposer.compiled(rows)) is None:
            return None
        nodes = self._proposed.tokens.shape[1]
        self._nodes = np.empty(rows * nodes * NODE_BYTES, np.uint8)
        made.texts, made.chances = self._texts.address, self._chances.address
        made.proposed, made.chosen, made.nodes = self._proposed.address, self._chosen.address, self._nodes.ctypes.data
        return made

    def plan(self, rows: int) -> TurnPlan:
        """Return how the next turns of ``rows`` rows are to look for guesses."""
        pace = self.pace
        assert pace is not None
        level = pace.way(rows)
        if not level:
            return TurnPlan(0, pace.holds(0))
        return TurnPlan(level, pace.holds(level), pace.since_plain(), self._ahead(rows), *pace.costs(rows))

    def turned(self, plan: TurnPlan, turns: np.ndarray) -> None:
        """Learn from turns (turns.py), of which those with guesses count together, and passes of a size. Where a token
        ended them before the plan did, as it does the sooner the more tokens a turn makes, they are charged for what is
        done between calls."""
        pace, n = self.pace, len(turns)
        assert pace is not None
        pace.passed(n)
        if not plan.level and not pace.measures(guessed=False):
            return
        looked = 0
        made = cost = seconds = 0.0
        passes: dict[tuple[int, bool], list[float]] = {}
        for tokens, guessed, has_looked, look, took, makes, costs in turns.tolist():
            passes.setdefault((tokens, guessed > 0), []).append(took)
            if has_looked:
                looked, made, cost, seconds = looked + 1, made + makes, cost + costs, seconds + look
        if looked:
            pace.worth(made / looked, cost / looked)
            pace.looked(seconds / looked + (BETWEEN / n if n < plan.turns else 0.0))
        for (tokens, has_guesses), each in passes.items():
            if pace.measures(has_guesses):
                pace.cost.measured(tokens, has_guesses, sum(each) / len(each))

    @staticmethod
    def _ahead(rows: int) -> int:
        return max(LEAST_AHEAD, MOST_AHEAD // rows)

    def _look(self, rows: np.ndarray, level: int) -> list[DraftTree]:
        n, texts, chosen = len(rows), self._texts, self._chosen
        self._c.ahead(texts.address, rows.ctypes.data, n, self._ahead(n), self._most.ctypes.data)
        self._proposer.propose(rows, self._most[:n], level, self._proposed)
        if self.pace is None:
            guesses = choose(texts, self._chances, rows, self._proposed, chosen)
        else:
            guesses = self.pace.choose(texts, rows, self._proposed, chosen)
        if not guesses:
            return []
        lengths, nodes = self._table.length[rows].tolist(), chosen.count[:n].tolist()
        return [
            self._tree(i, row, *of_row)
            for i, (row, *of_row) in enumerate(zip(rows.tolist(), lengths, nodes, strict=True))
        ]

    def _tree(self, i: int, row: int, length: int, nodes: int) -> DraftTree:
        tokens, parents, depth = (a[i, :nodes] for a in (self._chosen.tokens, self._chosen.parents, self._chosen.kinds))
        return DraftTree(row, length - 1, tokens, None if depth[-1] == nodes - 1 else parents, depth)
