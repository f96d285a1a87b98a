"""Trees of guesses, and the compiled functions that make them, learn from them and choose among them (guess.c)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.embedded.kernels import GUESSES, compiled_library
from nemo_openmath.inference.embedded.rows import RowTable

NODE_BYTES = 17  # of the room that choose() takes for a guess
_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _Texts(ctypes.Structure):
    """``Texts`` of guess.c."""

    _fields_ = [("ids", _P), ("capacity", _I), ("length", _P), ("full_length", _P), ("room", _I)]


class CTrees(ctypes.Structure):
    """``Trees`` of guess.c."""

    _fields_ = [(name, _P) for name in ("count", "tokens", "parents", "kinds")]


class CGuessing(ctypes.Structure):
    """``Guessing`` of turns.c. ``keep``: what it points to."""

    _fields_ = [
        *((n, _P) for n in ("texts", "log", "chances", "proposed", "chosen", "nodes", "classes", "drafter")),
        *((n, _I) for n in ("length", "width", "sure")),
        *((n, _P) for n in ("hidden", "room", "guesses", "beams", "scores")),
    ]
    keep: tuple[object, ...] = ()


class Functions:
    """The functions of guess.c, and its constants. They take arrays as addresses."""

    def __init__(self, library: ctypes.CDLL):
        def function(name: str, result: type | None, *arguments: type) -> Callable[..., int]:
            f = getattr(library, name)
            f.argtypes, f.restype = arguments, result
            return f

        self.ahead = function("ahead", None, _P, _P, _I, _I, _P)
        self.forget = function("forget", None, _P)
        self.add_text = function("add_text", _I, _P, _I, _I, _P, _I)
        self.look_up = function("look_up", None, _P, _P, _P, _I, _P, _P)
        self.join = function("join", None, _P, _P, _P, _I, _I, _I, _P, _P, _I)
        self.choose = function("choose", _I, _P, _P, _P, _I, _P, _P, _D, _P, _P, _P)
        constant = function("guess_constant", _I, _I)
        self.nodes, self.lengths, self.shares = map(constant, range(3))


@cache
def functions() -> Functions:
    """Return the functions. Raises UserError where there is no C compiler."""
    library = compiled_library(GUESSES)
    if library is None:
        raise UserError(
            "tokens cannot be guessed: guess.c could not be compiled",
            remedy="install a C compiler (gcc or clang), or choose the drafter none",
        )
    return Functions(library)


class Trees:
    """Trees of guesses without their roots, one for each row of a turn at most.

    - ``count`` [trees]: guesses of each.
    - ``tokens``, ``parents``, ``kinds`` [trees, nodes]: of each guess its token; an earlier guess, or -1 where it
      follows the newest token; and its class. Guesses of a class are right equally often, where what is before them
      was right.
    """

    def __init__(self, trees: int):
        nodes = functions().nodes
        self.count = np.zeros(trees, np.int64)
        self.tokens, self.parents, self.kinds = (np.zeros((trees, nodes), np.int64) for _ in range(3))
        self.structure = CTrees(*(a.ctypes.data for a in (self.count, self.tokens, self.parents, self.kinds)))
        self.address = ctypes.addressof(self.structure)

    def put(self, i: int, tokens: Sequence[int], parents: Sequence[int], kinds: Sequence[int]) -> None:
        """Make tree ``i`` one of these guesses; those beyond what a tree can hold are left out."""
        n = self.count[i] = min(len(tokens), self.tokens.shape[1])
        self.tokens[i, :n], self.parents[i, :n], self.kinds[i, :n] = tokens[:n], parents[:n], kinds[:n]

    def of(self, i: int) -> tuple[list[int], list[int], list[int]]:
        """Return the tokens, parents and classes of tree ``i``."""
        n = self.count[i]
        return self.tokens[i, :n].tolist(), self.parents[i, :n].tolist(), self.kinds[i, :n].tolist()


class TextColumns:
    """``Texts`` of guess.c: the columns of ``table`` that say what the rows' texts are. ``room``: positions that a row
    has in the decoder."""

    def __init__(self, table: RowTable, room: int):
        assert table.ids.dtype == np.int32
        self._keep = table.ids, table.length, table.full_length
        self._structure = _Texts(
            table.ids.ctypes.data, table.ids.shape[1], table.length.ctypes.data, table.full_length.ctypes.data, room
        )
        self.address = ctypes.addressof(self._structure)
