"""How many guesses a turn verifies: as many as make the most tokens a second, often none.

Two things are learned while the engine runs:

- what a pass over n tokens takes (:class:`PassCost`), measured turn by turn
- how often a guess of each class is right (:class:`Chances`), by what the texts became, verified or not

A guess is reached when all before it were right, so its chance is a product, and a turn of R rows makes R tokens and
the sum of the chances of its guesses. Of all guesses the likeliest n are taken for which this is the most a second.
Where that is none for a while, nothing is guessed for a while, so that looking costs nothing either.

The pace decides what is computed, never what comes out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from nemo_openmath.inference.embedded.proposers import Proposal

MOST = 96  # tokens of a pass with guesses
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # tokens of a pass of which the cost is known
PER_TOKEN = 0.05  # of a pass, before anything was measured: what one more token adds. Too little: dear sizes are tried
FAST, SLOW = 0.2, 0.05  # weights of a new measurement: in the level of all costs, in that of one size
WIDEST = 2.0  # factor by which a single measurement counts, at most: the machine may have been elsewhere
MEMORY = 200.0  # guesses of a class that are remembered
PATIENCE, SLEEP = 8, 32  # turns without a gain before looking more rarely; turns between looks, at most


class PassCost:
    """Seconds of a pass by its number of tokens, with guesses among them or without.

    They are a level that follows quickly, as texts grow, times a share for each size, which is the machine's and the
    model's own and follows slowly.
    """

    def __init__(self) -> None:
        self.level = 0.0  # seconds; 0: nothing was measured
        self._shares = {guessed: [1 + PER_TOKEN * (size - 1) for size in SIZES] for guessed in (False, True)}

    def __call__(self, tokens: int, guessed: bool) -> float:
        """Return the seconds of a pass, in units of the level."""
        (i, weight), shares = _between(tokens), self._shares[guessed]
        return (1 - weight) * shares[i] + weight * shares[i + 1]

    def measured(self, tokens: int, guessed: bool, seconds: float) -> None:
        """Learn from a pass."""
        expected = self(tokens, guessed)
        if self.level == 0:
            self.level = seconds / expected
        if tokens > SIZES[-1] or seconds <= 0:
            return
        error = min(WIDEST, max(1 / WIDEST, seconds / (self.level * expected)))
        self.level *= error**FAST
        (i, weight), shares = _between(tokens), self._shares[guessed]
        shares[i] *= error ** (SLOW * (1 - weight))
        shares[i + 1] *= error ** (SLOW * weight)


def _between(tokens: int) -> tuple[int, float]:
    """The size below, and how far the number of tokens is on the way to the next one; beyond the last, farther."""
    i = min(bisect_right(SIZES, tokens), len(SIZES) - 1) - 1
    return i, (tokens - SIZES[i]) / (SIZES[i + 1] - SIZES[i])


class Chances:
    """How often a guess of each class is right, where what is before it was. ``expected``: as known beforehand, which
    counts as much as two guesses."""

    def __init__(self, expected: Sequence[float]):
        self._right = [2 * share for share in expected]
        self._tried = [2.0] * len(expected)

    def __getitem__(self, kind: int) -> float:
        return self._right[kind] / self._tried[kind]

    def saw(self, kind: int, right: bool) -> None:
        """Learn from one guess."""
        self._right[kind] += right
        self._tried[kind] += 1
        if self._tried[kind] > MEMORY:
            self._right[kind] /= 2
            self._tried[kind] /= 2


class Pace:
    """Chooses the guesses of a turn."""

    def __init__(self, expected: Sequence[float]):
        self.cost, self.chances = PassCost(), Chances(expected)
        self._idle = 0  # looks in a row without a gain
        self._rest = 0  # turns until the next look
        self._rows = 0  # of the last look

    def looks(self, rows: int) -> bool:
        """Tell whether a turn of ``rows`` rows is to have guesses at all."""
        if rows < self._rows:
            self._idle = self._rest = 0  # fewer rows: each of them may pay
        self._rows = rows
        if self._rest:
            self._rest -= 1
            return False
        return rows < MOST

    def choose(self, rows: int, proposals: Sequence[Proposal | None], drafting: float = 0.0) -> list[list[int]]:
        """Return the guesses to verify of each proposal, in their order and with all that are before them.

        ``rows``: of the turn. ``drafting``: seconds that the guesses took. They are spent, but where the gain does not
        cover them the next look is later.
        """
        nodes = []  # (chance, proposal, guess)
        for i, proposal in enumerate(proposals):
            if proposal is not None:
                reached: list[float] = []
                for guess, (parent, kind) in enumerate(zip(proposal.parents, proposal.classes, strict=True)):
                    reached.append((1.0 if parent < 0 else reached[parent]) * self.chances[kind])
                    nodes.append((reached[-1], i, guess))
        nodes.sort(key=lambda node: -node[0])  # stable: a guess stays behind what is before it
        plain = rows / self.cost(rows, guessed=False)
        spent = drafting / self.cost.level if self.cost.level else 0.0
        tokens, best, count, gain = float(rows), plain, 0, 0.0
        for n, (chance, _, _) in enumerate(nodes[: MOST - rows], 1):
            tokens += chance
            seconds = self.cost(rows + n, guessed=True)
            if tokens / seconds > best:
                best, count, gain = tokens / seconds, n, tokens / (seconds + spent)
        self._note(gain > plain)
        chosen: list[list[int]] = [[] for _ in proposals]
        for _, i, guess in nodes[:count]:
            chosen[i].append(guess)
        return [sorted(guesses) for guesses in chosen]

    def _note(self, gains: bool) -> None:
        self._idle = 0 if gains else self._idle + 1
        if self._idle > PATIENCE:
            self._rest = min(SLEEP, 2 ** (self._idle - PATIENCE))
