"""Asking again: which failures of a server another attempt may not have, how long is waited in between, and when a
request is given up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from nemo_openmath.core import activity
from nemo_openmath.core.engine import EngineError
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.inference.http.server_pool import Endpoint, ServerPool

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a request is tried.

    The delay after each failure is drawn between half and whole of a value that doubles from ``first_s`` to ``most_s``.
    A server's Retry-After is obeyed instead.
    """

    attempts: int = 5
    """Failures of servers (5xx, disconnect, time-out, damaged answer) after which the request is given up."""
    first_s: float = 0.25
    """Seconds of the first delay."""
    most_s: float = 30.0
    """Seconds of the longest delay."""
    patience_s: float = 600.0
    """Seconds for which servers may be busy (429) or away (connection refused). The time that a server works on the
    request does not count."""

    def delay(self, failure: int) -> float:
        """Return the seconds to wait after failure number ``failure``, counted from 0."""
        return min(self.most_s, self.first_s * 2.0 ** min(failure, 30)) * random.uniform(0.5, 1.0)


class AttemptFailed(Exception):
    """An attempt failed in a way that another attempt may not.

    ``counts``: it is one of :attr:`RetryPolicy.attempts`; else the server is busy or away. ``blames``: the server's
    health suffers. ``after_s``: seconds that the server asks to wait.
    """

    def __init__(self, message: str, *, counts: bool = True, blames: bool = True, after_s: float | None = None):
        super().__init__(message)
        self.counts, self.blames, self.after_s = counts, blames, after_s


@dataclass(slots=True)
class _History:
    """What became of the attempts of one request so far."""

    failures: int = 0  # that count
    waits: int = 0  # failures that do not count
    waited_s: float = 0.0  # of the policy's patience
    url: str = "no server"  # of the last attempt
    cause: AttemptFailed | None = None
    away: str = ""
    avoid: tuple[Endpoint, ...] = ()

    @property
    def problem(self) -> str:
        return self.away or str(self.cause)

    def add(self, failure: AttemptFailed, server: Endpoint, seconds: float) -> None:
        self.cause, self.avoid, self.away = failure, (server,), ""
        self.failures += failure.counts
        if not failure.counts:
            self.waits += 1
            self.waited_s += seconds


class Retrying:
    """Runs attempts on the servers of a pool until one succeeds or the policy gives the request up."""

    def __init__(self, pool: ServerPool, policy: RetryPolicy, waiting: Waiting):
        self._pool, self._policy, self._waiting = pool, policy, waiting
        self._closed = False

    def close(self) -> None:
        """End every request at its next attempt."""
        self._closed = True

    async def run(self, attempt: Callable[[Endpoint], Awaitable[T]], conversation: str | None) -> T:
        """Return what ``attempt`` returns for the first server with which it does not raise AttemptFailed.

        Raises EngineError, with the last server and its failure, where the policy allows no more attempts.
        """
        history = _History()
        while not self._closed:
            server, asked = self._pool.pick(conversation, history.avoid), None
            if server is None:
                delay, history.away = self._pool.seconds_until_open(), self._pool.away
            else:
                history.url, began = server.url, time.monotonic()
                try:
                    with self._pool.using(server):
                        result = await attempt(server)
                    server.succeeded()
                    self._waiting.over(server.url)
                    return result
                except AttemptFailed as failure:
                    history.add(failure, server, time.monotonic() - began)
                    if failure.blames:
                        server.failed(str(failure))
                    asked = failure.after_s
                    delay = asked or self._policy.delay(history.failures + history.waits - 1)
            await self._pause(history, delay, asked=bool(asked))
        raise EngineError("the engine is closed", retryable=False)

    async def _pause(self, history: _History, delay: float, *, asked: bool) -> None:
        """Wait before the next attempt. Raises EngineError where there must be none."""
        patience_s = self._policy.patience_s
        if not asked and (left_s := patience_s - history.waited_s) > self._policy.first_s:
            delay = min(delay, left_s)  # the last attempt comes when the time is over
        late = history.waited_s + delay > patience_s
        if history.failures >= self._policy.attempts or late:
            after = f"{patience_s:g} s" if late else f"{history.failures} failed attempts"
            message = f"{history.url}: {history.problem} (after {after})"
            raise EngineError(message, retryable=True) from history.cause
        history.waited_s += delay
        ends_at = time.monotonic() + delay
        self._mention(history, history.waited_s - delay)
        while not self._closed and (left_s := ends_at - time.monotonic()) > 0:  # of any event loop
            await asyncio.sleep(min(left_s, 1.0))
            activity.happened()  # this wait has its own limit
            self._mention(history, history.waited_s - max(0.0, ends_at - time.monotonic()))

    def _mention(self, history: _History, waited_s: float) -> None:
        url = history.url if history.cause is not None else "a server"
        what = f"{url} ({history.problem})"
        self._waiting.still(what, self._policy.patience_s, "patience_s", waited_s=waited_s)
