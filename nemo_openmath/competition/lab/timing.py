"""When solutions that run side by side end: as they were made, or at the speed of another machine.

Both machines have one interface: ``begin`` solutions, ``advance`` to the next end. Neither has a thread, a queue of
requests or a clock; time is a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from nemo_openmath.competition.lab.rollouts import StoredSolution

Ends = list[tuple[int, StoredSolution]]


class Machine(Protocol):
    """Solutions that run side by side."""

    running: list[int]
    """Samples that run."""

    def begin(self, sample: int, solution: StoredSolution) -> None:
        """Begin a solution now."""
        ...

    def advance(self, until: float) -> tuple[float, Ends]:
        """Go on to the next end of a solution, at most to ``until``. Return the time, and what ended then."""
        ...

    def written(self, sample: int) -> float:
        """Return the tokens that a running solution has written."""
        ...


class AsMade:
    """Each solution takes the time that it took when it was made."""

    def __init__(self) -> None:
        self.running: list[int] = []
        self._now = 0.0
        self._began: dict[int, tuple[float, StoredSolution]] = {}
        self._ends: list[tuple[float, int]] = []

    def begin(self, sample: int, solution: StoredSolution) -> None:
        self.running.append(sample)
        self._began[sample] = (self._now, solution)
        heappush(self._ends, (inf if solution.endless else self._now + solution.points[-1][0], sample))

    def advance(self, until: float) -> tuple[float, Ends]:
        ends, ended = self._ends, []
        self._now = min(ends[0][0], until) if ends else until
        while ends and ends[0][0] <= self._now:
            _, sample = heappop(ends)
            self.running.remove(sample)
            ended.append((sample, self._began[sample][1]))
        return self._now, ended

    def written(self, sample: int) -> float:
        began, solution = self._began[sample]
        return solution.written(self._now - began)


class Shared:
    """All solutions share an engine: each is written as fast as the number of those that are being written allows.

    ``rates[n]`` is in tokens a second of each of n. While its code runs, a solution is not written. Code takes the time
    that it took when it was made; prompts and outputs of code are read in no time.

    All that are being written advance by the same tokens. So one number, the tokens that a solution had written which
    was there all the time, says for all when they end: each is due at a value of that number.
    """

    def __init__(self, rates: Sequence[float]):
        self.running: list[int] = []
        self._rates = rates
        self._now = self._tokens = 0.0
        self._due: list[tuple[float, int]] = []
        self._code: list[tuple[float, int]] = []
        self._state: dict[int, _Progress] = {}

    def begin(self, sample: int, solution: StoredSolution) -> None:
        self.running.append(sample)
        state = self._state[sample] = _Progress(solution)
        heappush(self._due, (state.next_part(self._tokens), sample))

    def advance(self, until: float) -> tuple[float, Ends]:
        ended: Ends = []
        due, code = self._due, self._code
        while not ended and self._now < until:
            rate = self._rates[len(due)] if due else 0.0
            end = self._now + max(0.0, due[0][0] - self._tokens) / rate if due else inf
            at = min(end, code[0][0] if code else inf, until)
            self._tokens += (at - self._now) * rate
            self._now = at
            if at >= end:
                self._tokens = max(self._tokens, due[0][0])
            while due and due[0][0] <= self._tokens:
                self._end_part(heappop(due)[1], ended)
            while code and code[0][0] <= at:
                sample = heappop(code)[1]
                heappush(due, (self._state[sample].next_part(self._tokens), sample))
        return self._now, ended

    def _end_part(self, sample: int, ended: Ends) -> None:
        """A solution calls code, or ends."""
        state = self._state[sample]
        if (seconds := state.end_part()) is not None:
            heappush(self._code, (self._now + seconds, sample))
            return
        self.running.remove(sample)
        ended.append((sample, state.solution))

    def written(self, sample: int) -> float:
        state = self._state[sample]
        if state.waits:
            return state.tokens
        return state.tokens + self._tokens - state.since


class _Progress:
    """A solution, and how far it is written: parts with code between them."""

    __slots__ = ("_code", "_part", "since", "solution", "tokens", "waits")

    def __init__(self, solution: StoredSolution):
        self.solution = solution
        self.tokens = 0.0
        """Of the parts that are written."""
        self.since = 0.0
        """The machine's tokens when the part began that is being written."""
        self.waits = False
        """Whether its code runs."""
        self._part = 0.0
        self._code = solution.code()[::-1] if len(solution.points) > 1 else []

    def next_part(self, since: float) -> float:
        """Begin the next part at so many tokens of the machine, and return at how many it is due."""
        end = self._code[-1][0] if self._code else inf if self.solution.endless else self.solution.tokens
        self._part, self.since, self.waits = end - self.tokens, since, False
        return since + self._part

    def end_part(self) -> float | None:
        """Return the seconds of code behind the part that ends; None at the end of the solution."""
        self.tokens += self._part
        if not self._code:
            return None
        self.waits = True
        return self._code.pop()[1]
