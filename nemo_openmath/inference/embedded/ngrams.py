"""Guesses by looking up: the last tokens of a text stood somewhere before, and so may stand again what followed them.

Solutions of problems repeat themselves, and each other: expressions, numbers of the statement, code that is written
again, samples of one problem. It is looked for in the text itself and in all texts that the engine had before, or has
beside it. What followed in several places makes a tree; a guess is the likelier the longer the match is and the more
places say so, those of the own text and of long matches above all. Nothing is trained.

A token costs the same wherever it stands: a table leads from a pair of tokens to the last place behind such a pair, and
each place to the one before it, as in LZ77. The search is compiled (guess.c).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np

from nemo_openmath.inference.embedded.guesses import CGuessing, TextColumns, Trees, functions
from nemo_openmath.inference.embedded.rows import RowTable

MOST_TOKENS = 1 << 20  # of all texts that are kept
TOKEN_BYTES = 40  # that each of them takes
LENGTHS = (1, 2, 3, 4, 5, 7, 10, 16)  # of matches, from which on each class is, in tokens
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # of the places that say so, about, in each class

_P, _I = ctypes.c_void_p, ctypes.c_int64


class _Log(ctypes.Structure):
    """``Log`` of guess.c."""

    _fields_ = [
        *((name, _I) for name in ("used", "most", "vocab")),
        *((name, _P) for name in ("token", "before", "after", "text", "pair", "single")),
        ("buckets", _I),
        *((name, _P) for name in ("newest_pair", "newest_single", "newest", "known", "number")),
        ("rows", _I),
        ("share", _P),
    ]


class NgramProposer:
    """A :class:`~nemo_openmath.inference.embedded.proposers.Proposer` without a model. The class of a guess is the
    number of tokens before it that match at the best place, the share of the places that say so, and whether the best
    one is in its own text. ``texts``: token ids of texts that it looks into beside those of the engine. Texts are
    forgotten together where they have more than ``most_tokens``.
    """

    levels = 1

    def __init__(
        self,
        table: RowTable,
        vocab: int,
        room: int,
        texts: Iterable[np.ndarray] = (),
        most_tokens: int = MOST_TOKENS,
    ):
        self._c = functions()
        middles = np.minimum(0.95, 0.4 + 0.07 * np.array(LENGTHS))
        assert (len(LENGTHS), len(SHARES)) == (self._c.lengths, self._c.shares)
        self.expected = np.repeat(np.outer(middles, SHARES).ravel(), 2)
        self.sure = len(self.expected) - 2 * len(SHARES)
        """The first class of guesses behind the longest matches that are told apart."""
        rows = len(table.length)
        buckets = 1 << (2 * most_tokens - 1).bit_length()
        places = [np.empty(most_tokens, np.int32) for _ in range(6)]
        newest = [np.empty(n, np.int32) for n in (buckets, vocab)]
        self._newest, self._known, self._number = (np.zeros(rows, np.int64) for _ in range(3))
        self._texts, self._keep = TextColumns(table, room), (places, newest)
        addresses = [a.ctypes.data for a in places]
        self._log = _Log(
            0, most_tokens, vocab, *addresses, buckets, *(a.ctypes.data for a in newest),
            *(a.ctypes.data for a in (self._newest, self._known, self._number)), rows, self.expected.ctypes.data,
        )  # fmt: skip
        self._address = ctypes.addressof(self._log)
        self._c.forget(self._address)
        self._count = 0
        for row in range(rows):
            self.begin(row)
        for ids in texts:
            self._count += 1
            if len(ids) <= most_tokens - self._log.used:
                ids = np.ascontiguousarray(ids, np.int32)
                self._c.add_text(self._address, self._count, -1, ids.ctypes.data, len(ids))

    def begin(self, row: int) -> None:
        self._newest[row], self._known[row] = -1, 0
        self._count += 1
        self._number[row] = self._count

    def move(self, source: int, target: int) -> None:
        for column in (self._newest, self._known, self._number):
            column[target] = column[source]
        self.begin(source)

    def propose(self, rows: np.ndarray, most: np.ndarray, level: int, into: Trees) -> None:
        self._c.look_up(self._address, self._texts.address, rows.ctypes.data, len(rows), most.ctypes.data, into.address)

    def compiled(self, rows: int) -> CGuessing | None:
        return CGuessing(log=self._address)

    def learn_in(self, expected: np.ndarray) -> None:
        """Take ``expected``, whose first classes these are, for :attr:`expected`."""
        self.expected = expected[: len(self.expected)]
        self._log.share = expected.ctypes.data
