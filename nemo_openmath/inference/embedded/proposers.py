"""The interface of what guesses the next tokens of rows.

Guesses are free to be wrong: every token is drawn by the model itself (drawing.py), so they change the speed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nemo_openmath.inference.embedded.guesses import CGuessing, Trees
from nemo_openmath.inference.embedded.rows import RowTable


class Proposer(Protocol):
    """Guesses for the rows of a batch. Rows are those of the batch's table, which holds their tokens."""

    expected: np.ndarray
    """float64. Of each class of guesses: how often one is right, as far as that is known beforehand. What is learned is
    written here (pace.Chances)."""
    levels: int
    """Ways to make guesses: the cheapest is 1."""

    def begin(self, row: int) -> None:
        """Forget what the row was: it has a new request."""
        ...

    def move(self, source: int, target: int) -> None:
        """Row ``source`` is ``target`` from now on."""
        ...

    def propose(self, rows: np.ndarray, most: np.ndarray, level: int, into: Trees) -> None:
        """Make tree i of ``into`` the guesses for ``rows[i]``, made in the way ``level``: at most ``most[i]`` tokens
        ahead, of which there may be none. Both are int64."""
        ...

    def compiled(self, rows: int) -> CGuessing | None:
        """Return what makes the same guesses in turns.c, for at most ``rows`` rows; None where nothing does."""
        ...


@dataclass(frozen=True, slots=True)
class DraftSource:
    """What an engine guesses with.

    ``make``: of the batch's rows, and the positions that a row has in the decoder. ``hidden``: width of the model's
    states where it needs them, else 0. ``paced``: whether only those guesses are verified that make decoding faster;
    else all are.
    """

    name: str
    make: Callable[[RowTable, int], Proposer]
    hidden: int = 0
    paced: bool = True
