"""How many guesses a turn verifies: as many as make the most tokens a second, often none.

Two things are learned while the engine runs:

- what a pass over n tokens takes (:class:`PassCost`), measured turn by turn
- how often a guess of each class is right (:class:`Chances`), by what the texts became, verified or not

A guess is reached when all before it were right, so its chance is a product, and a turn of R rows makes R tokens and
the sum of the chances of its guesses. Of all guesses the likeliest n are taken for which this is the most a second.
Where looking for guesses has taken more than it saved, it rests for a while, so that it costs next to nothing. So it is
with each way to look (:class:`Look`): the dearer one, which asks a drafter as well, rests where it makes fewer tokens a
second than the cheaper one.

The pace decides what is computed, never what comes out.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from nemo_openmath.inference.embedded.guesses import NODE_BYTES, CTrees, TextColumns, Trees, functions

MOST = 96  # tokens of a pass with guesses
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # tokens of a pass of which the cost is known
_TOKENS = np.arange(SIZES[-1] + 1)
PER_TOKEN = 0.08  # of a pass, before anything was measured: what one more token adds
ASSUMED = 1 + PER_TOKEN * (np.array(SIZES) - 1.0)
FAST, SLOW = 0.2, 0.05  # weights of a new measurement: in the level of all costs, in the share of one size at last
FIRST = 3  # passes of a size that say nothing of the level
WIDEST = 1.5  # factor by which a single measurement counts, at most: the machine may have been elsewhere
MEMORY = 150.0  # guesses of a class that are remembered, about
PLAIN = 32  # of so many turns one is plain, whatever guesses are worth: they are compared with it
LEARNING = 200  # turns whose passes are all measured; then every so many
PLAIN_MEASURED, GUESSED_MEASURED = 8, 3
FAIR = 12  # turns in which each way to look is tried before it may rest
WORTH = 1.05  # speed from which on looking is worth it, in units of plain decoding's
FEW, HOPE = 3, (0.5, 0.8)  # turns of these, and the share of the best speed below which it rests before or after them
LOOK, SLEEP = 0.2, 127  # weight of a look in what looking is worth; turns of a rest, at most
AGAIN = 2  # turns of a way to look that has rested, before it may rest again


class PassCost:
    """Seconds of a pass by its number of tokens, with guesses among them or without.

    They are a level that follows quickly, as texts grow, times a share for each size, which is the machine's and the
    model's own and follows slowly. Passes without guesses alone move the level: what guesses are compared with must not
    follow them.
    """

    def __init__(self) -> None:
        self.level = 0.0  # seconds; 0: nothing was measured
        self._shares = {guessed: ASSUMED.copy() for guessed in (False, True)}
        self._seen = {guessed: np.zeros(len(SIZES)) for guessed in (False, True)}  # passes of about each size
        self._tables: dict[bool, np.ndarray] = {}  # what follows from these

    def __call__(self, tokens: int, guessed: bool) -> float:
        """Return the seconds of a pass, in units of the level."""
        table = self.table(guessed)
        last = len(table) - 1
        return float(table[tokens] if tokens <= last else table[last] * tokens / last)

    def table(self, guessed: bool) -> np.ndarray:
        """Return the seconds of passes of 0, 1, .. tokens, in units of the level."""
        if (table := self._tables.get(guessed)) is None:
            table = self._tables[guessed] = np.interp(_TOKENS, SIZES, self._line(guessed))
        return table

    def measured(self, tokens: int, guessed: bool, seconds: float) -> None:
        """Learn from a pass."""
        expected = self(tokens, guessed)
        if self.level == 0:
            self.level = seconds / expected
        if tokens > SIZES[-1] or seconds <= 0:
            return
        error = min(WIDEST, max(1 / WIDEST, seconds / (self.level * expected)))
        (i, weight), shares, seen = _between(tokens), self._shares[guessed], self._seen[guessed]
        line = self._line(guessed)
        for size, part in ((i, 1 - weight), (i + 1, weight)):
            if part > 0:
                if not seen[size]:
                    shares[size] = line[size]
                shares[size] *= error ** (part * max(SLOW, 1 / (2 + seen[size])))
                seen[size] += part
        self._tables.clear()
        if not guessed and seen[i] > FIRST:  # what is new to a size is not news of all
            self.level *= error**FAST

    def _line(self, guessed: bool) -> np.ndarray:
        """The share of each size. One that was not measured lies between those that were, or is in the proportion that
        is assumed to the nearest one; a pass with guesses is taken for one without as long as it was not. More tokens
        never take less: a single slow pass of a few does not speak against them for ever."""
        known, shares = self._seen[guessed] > 0, self._shares[guessed]
        if guessed:
            plain = self._seen[False] > 0
            shares, known = np.where(known, shares, self._shares[False]), known | plain
        if not known.any():
            return ASSUMED
        places = np.flatnonzero(known)
        values = np.minimum.accumulate(shares[places][::-1])[::-1]
        line = np.interp(SIZES, np.array(SIZES)[places], values)
        first, last = places[0], places[-1]
        line[:first] = ASSUMED[:first] * (values[0] / ASSUMED[first])
        line[last:] = ASSUMED[last:] * (values[-1] / ASSUMED[last])
        return np.maximum.accumulate(line)


def _between(tokens: int) -> tuple[int, float]:
    """The size below, and how far the number of tokens is on the way to the next one; beyond the last, farther."""
    i = min(bisect_right(SIZES, tokens), len(SIZES) - 1) - 1
    return i, (tokens - SIZES[i]) / (SIZES[i + 1] - SIZES[i])


class _CChances(ctypes.Structure):
    """``Chances`` of guess.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("share", "tried")),
        ("memory", ctypes.c_double),
        ("watched", CTrees),
        ("start", ctypes.c_void_p),
        ("most", ctypes.c_int64),
    ]


class Chances:
    """How often a guess of each class is right, where what is before it was. ``expected`` float64: as known beforehand,
    which counts as much as two guesses; what is learned is written there. Of each of ``rows`` rows one turn's guesses
    are held against what the text becomes, verified or not."""

    def __init__(self, expected: np.ndarray, rows: int):
        assert expected.dtype == np.float64
        self.share = expected  # of each class
        self._tried = np.full(len(expected), 2.0)
        self._watched, self._start = Trees(rows), np.zeros(rows, np.int64)
        self._structure = _CChances(
            self.share.ctypes.data,
            self._tried.ctypes.data,
            MEMORY,
            self._watched.structure,
            self._start.ctypes.data,
            MOST,
        )
        self.address = ctypes.addressof(self._structure)

    def begin(self, row: int) -> None:
        """Forget the guesses of a row, which has another text."""
        self._watched.count[row] = 0

    def move(self, source: int, target: int) -> None:
        """Row ``source`` is ``target`` from now on."""
        self._watched.put(target, *self._watched.of(source))
        self._start[target] = self._start[source]
        self.begin(source)


@dataclass(slots=True)
class Look:
    """A way to look for guesses, and what its turns were worth of late."""

    made: float = 0.0  # by a turn, in units of what plain decoding takes for it
    took: float = 0.0  # by a turn, with the look, in the same units; 0: never tried
    tried: int = 0  # turns
    trial: int = FAIR  # turns until it may rest
    rest: int = 0  # turns until the next one
    pause: int = 0  # turns between the last two

    @property
    def speed(self) -> float:
        """Tokens a second, in units of plain decoding's."""
        return self.made / self.took if self.tried >= FAIR else 0.0

    def rested(self, fastest: float) -> None:
        """Decide when the next turn is. ``fastest``: speed of all ways, and what looking is to reach."""
        self.trial -= 1
        hope = HOPE[self.tried >= FEW]
        if self.trial > 0 and self.made > hope * fastest * self.took:  # a single turn says little, but not nothing
            return
        self.pause = min(SLEEP, 2 * self.pause + 1) if self.speed < fastest else 0
        self.rest, self.trial = self.pause, AGAIN

    def turned(self, made: float, took: float) -> None:
        """Learn from a turn."""
        self.tried += 1
        weight = max(LOOK, 1 / self.tried)
        self.made += weight * (made - self.made)
        self.took += weight * (took - self.took)


def choose(
    texts: TextColumns,
    chances: Chances,
    rows: np.ndarray,
    trees: Trees,
    into: Trees,
    seconds: np.ndarray | None = None,
    a_token: float = 1.0,
    worth: np.ndarray | None = None,
) -> int:
    """Do what :meth:`Pace.choose` does, or, without ``seconds``, choose all guesses. ``seconds``: of passes of 0, 1, ..
    tokens. ``worth`` float64 [2]: gets the tokens of the turn in units of what one of them takes in plain decoding,
    ``a_token``, and the seconds of the pass."""
    room = np.empty(len(rows) * trees.tokens.shape[1] * NODE_BYTES, np.uint8)
    costs, worths = (None if a is None else a.ctypes.data for a in (seconds, worth))
    return functions().choose(
        chances.address, texts.address, rows.ctypes.data, len(rows), trees.address, costs, a_token, into.address,
        worths, room.ctypes.data,
    )  # fmt: skip


class Pace:
    """Chooses the guesses of a turn, and the turns that have any. ``levels``: ways to look, the cheapest first."""

    def __init__(self, chances: Chances, levels: int = 1):
        self.cost, self.chances = PassCost(), chances
        self._worth = np.zeros(2)
        self._looks = [Look() for _ in range(levels)]
        self._now = self._looks[0]
        self._turn = 0.0, 0.0  # what the choice of this turn makes, and takes
        self._rows = MOST  # for which the pauses are meant
        self._turns = 0

    def looks(self, rows: int) -> int:
        """Return how a turn of ``rows`` rows is to look for guesses, from 1 on; 0: not at all."""
        level = self.way(rows)
        self.passed(1)
        return 0 if self._turns % PLAIN == 0 else level

    def way(self, rows: int) -> int:
        """Return how the next turns of ``rows`` rows are to look, but for the plain ones, which are every ``PLAIN``."""
        if 2 * rows <= self._rows or rows > 2 * self._rows:  # with few rows a guess is worth more; begin anew
            self._looks, self._rows = [Look(rest=rows - 1, pause=rows - 1) for _ in self._looks], rows
        ready = [level for level, look in enumerate(self._looks, 1) if not look.rest]
        if not ready or rows >= MOST:
            return 0
        # what has rested is tried again, else the fastest is taken
        level = min(ready, key=lambda level: self._looks[level - 1].speed)
        self._now = self._looks[level - 1]
        return level

    def holds(self, level: int) -> int:
        """Return for how many turns what :meth:`way` has returned holds, at most."""
        trying = level and self._now.tried < FAIR
        return 1 if trying else min([PLAIN, *(look.rest for look in self._looks if look.rest)])

    def since_plain(self) -> int:
        """Return how many turns after a plain one the next turn is."""
        return (self._turns + 1) % PLAIN

    def passed(self, turns: int) -> None:
        """Note that turns were done."""
        self._turns += turns
        for look in self._looks:
            look.rest = max(0, look.rest - turns)

    def measures(self, guessed: bool) -> bool:
        """Whether to measure the pass of this turn: some of them, for that costs, too."""
        return self._turns < LEARNING or self._turns % (GUESSED_MEASURED if guessed else PLAIN_MEASURED) == 0

    def costs(self, rows: int) -> tuple[np.ndarray, float]:
        """Return the seconds of passes of 0, 1, .. tokens with guesses, and those of one token of a plain one."""
        return self.cost.table(True), self.cost(rows, guessed=False) / rows

    def choose(self, texts: TextColumns, rows: np.ndarray, trees: Trees, into: Trees) -> int:
        """Learn from the guesses of earlier turns, and choose of ``trees``, which are those of ``rows``, the guesses to
        verify: they come to ``into`` with their roots, the rows' newest tokens, as nodes 0. Return the number of all.
        """
        seconds, a_token = self.costs(len(rows))
        total = choose(texts, self.chances, rows, trees, into, seconds, a_token, self._worth)
        self._turn = float(self._worth[0]), float(self._worth[1])
        return total

    def worth(self, made: float, took: float) -> None:
        """Note what the choice of a turn makes, and what its pass takes, as :meth:`choose` does."""
        self._turn = made, took

    def looked(self, seconds: float) -> None:
        """Learn what it took to guess and to choose. They are spent, but where a look does not save as much, or another
        one saves more, its next one is later, and later again."""
        now = self._now
        if self.cost.level:
            made, took = self._turn
            now.turned(made, took + seconds / self.cost.level)
        now.rested(max(WORTH, *(look.speed for look in self._looks)))
