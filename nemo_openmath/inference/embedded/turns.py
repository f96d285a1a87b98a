"""Several turns of the running rows in one compiled call (turns.c).

A turn of few rows of a small model takes a tenth of a millisecond, less than what the interpreter does around it. So
the turns are done there until one of them may have ended a request, for :data:`LIMIT` seconds at most: a request that
comes, and one that is cancelled, waits no longer than that. What comes out is what turn after turn gives.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from nemo_openmath.inference.embedded.compiled import LARGE_BYTES, CompiledDecoder
from nemo_openmath.inference.embedded.decoder import Decoder
from nemo_openmath.inference.embedded.drafting import Drafting, TurnPlan
from nemo_openmath.inference.embedded.guesses import CGuessing
from nemo_openmath.inference.embedded.pace import MOST, PLAIN
from nemo_openmath.inference.embedded.rows import RowTable

LIMIT = 0.01  # seconds of the processor
MOST_TURNS = 64
NOTHING = TurnPlan(0, MOST_TURNS)
ALONE = 4  # rows of a small model that one thread computes as fast as several, which would have to meet in each layer

_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_FIELDS = [("tokens", _I), ("guessed", _I), ("looked", _I), ("look", _D), ("pass", _D), ("made", _D), ("took", _D)]
TURN = np.dtype(_FIELDS)
"""``Turn`` of turns.c."""


class _Rows(ctypes.Structure):
    """``Rows`` of turns.c."""

    _fields_ = [
        ("ids", _P),
        ("capacity", _I),
        *((name, _P) for name in ("length", "full_length", "prompt_length", "stop_set", "top_k")),
        *((name, _P) for name in ("temperature", "top_p", "min_p", "uniforms", "wants_logprobs", "logprobs", "states")),
    ]


class Done(NamedTuple):
    """What some turns came to."""

    turns: np.ndarray
    """Of each turn what :data:`TURN` names."""
    right: np.ndarray
    """Guesses that were right, by their depth."""
    before: np.ndarray
    """Of each row: its length before the last turn, if a token of that may end the request, else its length."""


class Turns:
    """Does turns of a batch's rows. Use :func:`compiled_turns`."""

    def __init__(
        self, decoder: CompiledDecoder, table: RowTable, drafting: Drafting | None, guessing: CGuessing | None
    ):
        self._decoder, self._table, self._drafting = decoder, table, drafting
        rows, nodes = len(table.length), decoder.kernels.most_guesses
        self._most_rows = decoder.kernels.most_tokens
        self._room = max(min(rows, self._most_rows), 0 if drafting is None else MOST)
        names = [field[0] for field in _Rows._fields_ if field[0] != "capacity"]
        columns = {name: getattr(table, name).ctypes.data for name in names}
        structure = _Rows(capacity=table.ids.shape[1], **columns)
        tails, states = (
            np.empty(self._room * nodes, np.int64),
            np.empty((self._room, table.states.shape[1]), np.float32),
        )
        self._log, self._right = np.zeros(MOST_TURNS, TURN), np.zeros(nodes, np.int64)
        self._before = np.zeros(rows, np.int64)
        # these addresses stay; what they are of is kept
        self._keep = structure, guessing, tails, states
        self._structures = ctypes.addressof(structure), None if guessing is None else ctypes.addressof(guessing)
        self._buffers = tails.ctypes.data, states.ctypes.data if states.size else None
        self._results = self._log.ctypes.data, self._right.ctypes.data, self._before.ctypes.data

    def take(self, rows: int) -> bool:
        """Tell whether turns of so many rows are for these functions: those of large models and of many rows are where
        several threads share the work."""
        decoder = self._decoder
        alone = decoder.kernels.threads == 1 or (rows <= ALONE and decoder.weight_bytes() < LARGE_BYTES)
        return alone and rows <= self._most_rows

    def run(self, rows: np.ndarray, could_end: np.ndarray, most: int) -> Done:
        """Do at most ``most`` turns of ``rows``, and at least one. The last one is the first in which a token came that
        may end a request, or in which a row is full. ``could_end`` bool [stop sets, vocab]: such tokens."""
        n, drafting = len(rows), self._drafting
        plan = NOTHING if drafting is None else drafting.plan(n)
        self._right[:] = 0
        done = self._decoder.turns(
            rows,
            self._room,
            *self._buffers,
            (
                *self._structures,
                could_end.ctypes.data,
                rows.ctypes.data,
                n,
                plan.level,
                plan.phase,
                PLAIN,
                plan.ahead,
                None if plan.seconds is None else plan.seconds.ctypes.data,
                plan.token,
                min(most, plan.turns),
                LIMIT,
                *self._results,
            ),
        )
        self._decoder.wrote(rows, self._table.length[rows] + len(self._right))
        turned = self._log[:done]
        if drafting is not None:
            drafting.turned(plan, turned)
        return Done(turned, self._right, self._before[:n])


def compiled_turns(decoder: Decoder, table: RowTable, drafting: Drafting | None) -> Turns | None:
    """Return what does several turns at once; None where the decoder or what guesses is not compiled."""
    if not isinstance(decoder, CompiledDecoder):
        return None
    guessing = None if drafting is None else drafting.compiled(decoder.kernels.most_tokens)
    if drafting is not None and guessing is None:
        return None
    return Turns(decoder, table, drafting, guessing)
