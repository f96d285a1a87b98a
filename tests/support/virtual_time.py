"""An event loop whose time is simulated: it goes on to the next timer as soon as nothing else is to be done."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class NothingWillHappen(RuntimeError):
    """All tasks wait, and there is no timer for which the loop could go on."""


class _Selector(selectors.SelectSelector):
    """Never waits: it tells the loop's time to go on instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise NothingWillHappen
        if not ready and timeout is not None and timeout > 0:
            self.loop.seconds += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in simulated time. Threads and processes are not waited for."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.seconds = 1000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.seconds

    def jump(self, seconds: float) -> None:
        """Let the time jump ahead, as that of a machine that slept: timers in between come late."""
        self.seconds += seconds


class VirtualClock:
    """The clock of the loop. ``offset`` sets it back or ahead of the loop's time, at once."""

    offset = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.offset

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 1e-6))  # what a float cannot add would be no step


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time. Raises AssertionError where tasks are left when it has ended."""

    async def checked() -> T:
        try:
            return await main
        finally:
            for _ in range(50):
                await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"{len(left)} tasks still run: {left}"

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(checked())
