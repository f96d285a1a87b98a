"""Waiting under a deadline: whatever hangs, the waiter goes on in time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from nemo_openmath.core.clock import Clock

_TURNS = 20  # of the event loop, in which a task that is cancelled ends where nothing holds it


class Stopwatch:
    """Seconds since it was made, on a clock that may jump: they never run backwards."""

    def __init__(self, clock: Clock):
        self._clock, self.began, self._latest = clock, clock.now(), 0.0

    def now(self) -> float:
        """Return the seconds so far."""
        self._latest = max(self._latest, self._clock.now() - self.began)
        return self._latest

    async def any(self, tasks: Collection[asyncio.Future[Any]], until: float) -> None:
        """Return when one of the tasks has ended, and at ``until`` at the latest."""
        alarm = asyncio.ensure_future(self._clock.sleep(max(0.0, until - self.now())))
        try:
            await asyncio.wait({alarm, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
            await asyncio.wait({alarm})

    async def all(self, tasks: Collection[asyncio.Future[Any]], until: float) -> None:
        """Return when all tasks have ended, and at ``until`` at the latest. What ends at once ends, however late it
        is."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        while (running := [task for task in tasks if not task.done()]) and self.now() < until:
            await self.any(running, until)


class Leftovers:
    """Tasks that did not end in time when they were cancelled. Nobody waits for them until all is over."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()
        self.total = 0
        """All that there ever were."""

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, tasks: Collection[asyncio.Future[Any]]) -> None:
        """Keep those of the tasks that still run."""
        for task in tasks:
            if task.done():
                _heard(task)
            else:
                self.total += 1
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    async def close(self, clock: Clock, seconds: float) -> int:
        """Cancel once more what still runs, wait for it at most so long, and return how many run on."""
        for task in tuple(self._tasks):
            task.cancel()
        await Stopwatch(clock).all(tuple(self._tasks), seconds)
        return len(self._tasks)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        _heard(task)


def _heard(task: asyncio.Future[Any]) -> None:
    """Take a task's error, which interests nobody any more: else asyncio complains of it."""
    if not task.cancelled():
        task.exception()
