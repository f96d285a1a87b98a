"""The interface of what guesses the next tokens of rows.

Guesses are free to be wrong: every token is drawn by the model itself (drawing.py), so they change the speed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemo_openmath.inference.embedded.rows import RowTable


@dataclass(frozen=True, slots=True)
class Proposal:
    """Guesses of what follows a row's newest token: a tree without its root."""

    tokens: list[int]
    parents: list[int]
    """Of each guess: an earlier guess, or -1 where it follows the newest token."""
    classes: list[int]
    """Of each guess: its class. Guesses of a class are right equally often, where what is before them was right."""
    is_chain: bool = False
    """Each guess follows the one before it."""

    @classmethod
    def chain(cls, tokens: list[int], classes: list[int]) -> Proposal:
        """Return guesses that follow each other."""
        return cls(tokens, list(range(-1, len(tokens) - 1)), classes, is_chain=True)


class Proposer(Protocol):
    """Guesses for the rows of a batch. Rows are those of the batch's table, which holds their tokens."""

    expected: Sequence[float]
    """Of each class of guesses: how often one is right, as far as that is known beforehand."""
    levels: int
    """Ways to make guesses: the cheapest is 1."""

    def begin(self, row: int) -> None:
        """Forget what the row was: it has a new request."""
        ...

    def move(self, source: int, target: int) -> None:
        """Row ``source`` is ``target`` from now on."""
        ...

    def propose(self, rows: Sequence[int], most: Sequence[int], level: int) -> list[Proposal | None]:
        """Return guesses for each of ``rows``, at most ``most`` tokens ahead, made in the way ``level``; None where
        there are none."""
        ...


@dataclass(frozen=True, slots=True)
class DraftSource:
    """What an engine guesses with.

    ``hidden``: width of the model's states where it needs them, else 0. ``paced``: whether only those guesses are
    verified that make decoding faster; else all are.
    """

    name: str
    make: Callable[[RowTable], Proposer]
    hidden: int = 0
    paced: bool = True
