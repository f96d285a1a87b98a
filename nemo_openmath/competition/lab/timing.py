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

Ends = list[tuple[float, int, StoredSolution]]
"""(time, sample, solution) of those that ended."""


class Machine(Protocol):
    """Solutions that run side by side."""

    running: list[int]
    """Samples that run."""

    def begin(self, sample: int, solution: StoredSolution) -> None:
        """Begin a solution now."""
        ...

    def advance(self, until: float, least: int = 1) -> tuple[float, Ends]:
        """Go on until so many solutions have ended, at most to ``until``. Return the time, and what ended. Those that
        end at one moment end together."""
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

    def advance(self, until: float, least: int = 1) -> tuple[float, Ends]:
        ends, ended = self._ends, Ends()
        while len(ended) < least and self._now < until:
            self._now = min(ends[0][0], until) if ends else until
            while ends and ends[0][0] <= self._now:
                _, sample = heappop(ends)
                self.running.remove(sample)
                ended.append((self._now, sample, self._began[sample][1]))
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
        self._solutions: dict[int, StoredSolution] = {}
        self._since: dict[int, float] = {}  # the machine's tokens when the part began that is being written
        self._parts: dict[int, _Parts] = {}  # of solutions with code

    def begin(self, sample: int, solution: StoredSolution) -> None:
        self.running.append(sample)
        self._solutions[sample] = solution
        if len(solution.points) > 1:
            self._parts[sample] = _Parts(solution)
            self._write(sample)
        else:
            self._since[sample] = since = self._tokens
            heappush(self._due, (since + solution.length, sample))

    def _write(self, sample: int) -> None:
        """Begin to write the next part of a solution with code."""
        self._since[sample] = since = self._tokens
        heappush(self._due, (since + self._parts[sample].next_part(), sample))

    def advance(self, until: float, least: int = 1) -> tuple[float, Ends]:
        ended: Ends = []
        due, code, rates = self._due, self._code, self._rates
        now, tokens = self._now, self._tokens
        while len(ended) < least and now < until:
            at, end = until if not code or until < code[0][0] else code[0][0], inf
            if due:
                first, rate = due[0][0], rates[len(due)]
                end = now + (first - tokens) / rate if first > tokens else now
                if end <= at:
                    at = end
                tokens += (at - now) * rate
                if end <= at and tokens < first:
                    tokens = first
            now = self._now = at
            self._tokens = tokens
            while due and due[0][0] <= tokens:
                self._end_part(heappop(due)[1], ended)
            while code and code[0][0] <= at:
                self._write(heappop(code)[1])
        return now, ended

    def _end_part(self, sample: int, ended: Ends) -> None:
        """A solution calls code, or ends."""
        parts = self._parts.get(sample)
        if parts is not None and (seconds := parts.end_part()) is not None:
            heappush(self._code, (self._now + seconds, sample))
            return
        self.running.remove(sample)
        ended.append((self._now, sample, self._solutions[sample]))

    def written(self, sample: int) -> float:
        parts = self._parts.get(sample)
        if parts is None:
            return self._tokens - self._since[sample]
        return parts.tokens if parts.waits else parts.tokens + self._tokens - self._since[sample]


class _Parts:
    """The parts of a solution with code between them, and how many are written."""

    __slots__ = ("_code", "_length", "_part", "tokens", "waits")

    def __init__(self, solution: StoredSolution):
        self.tokens = 0.0
        """Of the parts that are written."""
        self.waits = False
        """Whether its code runs."""
        self._part, self._length = 0.0, solution.length
        self._code = solution.code()[::-1]

    def next_part(self) -> float:
        """Begin the next part, and return its tokens."""
        end = self._code[-1][0] if self._code else self._length
        self._part, self.waits = end - self.tokens, False
        return self._part

    def end_part(self) -> float | None:
        """Return the seconds of code behind the part that ends; None at the end of the solution."""
        self.tokens += self._part
        if not self._code:
            return None
        self.waits = True
        return self._code.pop()[1]
