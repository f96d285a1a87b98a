"""Waiting under a deadline: seconds never run backwards, and what ignores its cancellation holds nobody up."""

from __future__ import annotations

import asyncio

import pytest

from nemo_openmath.competition.waiting import Leftovers, Stopwatch
from tests.support.virtual_time import VirtualClock, in_virtual_time


def test_seconds_never_run_backwards() -> None:
    async def main() -> None:
        clock = VirtualClock()
        time, seconds = Stopwatch(clock), list[float]()
        for step in (2.0, -3.0, 0.5, 300.0, -1.0):
            clock.offset += step
            seconds.append(time.now())
        assert seconds == [2.0, 2.0, 2.0, 299.5, 299.5]

    in_virtual_time(main())


async def deaf(times: int, until: asyncio.Event) -> None:
    """Wait for an event, and ignore the first so many cancellations."""
    for _ in range(times):
        try:
            await until.wait()
            return
        except asyncio.CancelledError:
            pass
    await until.wait()


def test_what_is_left_behind_is_cancelled_once_more_and_waited_for_in_bounds() -> None:
    async def main() -> None:
        clock, event, leftovers = VirtualClock(), asyncio.Event(), Leftovers()
        tasks = [asyncio.ensure_future(deaf(times, event)) for times in (0, 1, 9)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await Stopwatch(clock).all(tasks, 0.0)
        assert [task.done() for task in tasks] == [True, False, False], "what ends at once has ended, though it is late"
        leftovers.add(tasks)
        assert (len(leftovers), leftovers.total) == (2, 2)
        began = clock.now()
        assert await leftovers.close(clock, 5.0) == 1
        assert clock.now() - began == pytest.approx(5.0, abs=1e-3)
        event.set()
        await asyncio.wait(tasks)
        assert len(leftovers) == 0

    in_virtual_time(main())
