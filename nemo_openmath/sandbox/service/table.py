"""The sessions of a service: made, used, counted and ended, whatever protocol asks for it.

Executions and resets of a session are numbered by its client, upwards. A number runs once: asked for again it gives
the result it gave (or the one that is under way), and once that is forgotten it is refused. So a client may repeat
any request whose answer it did not get.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nemo_openmath.core.clock import Clock
from nemo_openmath.core.sandbox import Execution, Limits, SandboxError
from nemo_openmath.sandbox.local import LocalSandbox, LocalSession
from nemo_openmath.sandbox.service.metrics import Metrics, log

T = TypeVar("T")
RESULTS_KEPT = 2  # of a session; its client needs the last one
RESULT_S = 300.0  # for how long


class Refusal(Exception):
    """Raised for a request that is not served."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


@dataclass(eq=False)
class _Held:
    opening: asyncio.Task[LocalSession]
    asked: Limits | None
    used: float  # when, on the table's clock
    last: int = 0  # the highest number used
    operations: dict[int, asyncio.Task[Any]] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        return not self.opening.done() or any(not task.done() for task in self.operations.values())


class SessionTable:
    """The sessions of the service by name.

    ``workers`` executions run, ``queue`` more wait, and what is more is refused with the time to come back at. A
    session unused for ``idle_s`` on ``clock`` ends at the next `sweep`.
    """

    def __init__(
        self,
        sandbox: LocalSandbox,
        metrics: Metrics,
        *,
        workers: int,
        queue: int,
        sessions: int,
        idle_s: float,
        clock: Clock,
    ) -> None:
        self._sandbox, self._metrics, self._clock = sandbox, metrics, clock
        self._workers, self._queue, self._most, self._idle_s = workers, queue, sessions, idle_s
        self._held: dict[str, _Held] = {}
        self._executions = 0  # running or waiting
        self._mean_s = 0.01  # of recent executions: what a place in the queue costs
        self.draining = False

    @property
    def sessions(self) -> int:
        return len(self._held)

    @property
    def executions(self) -> int:
        """Executions that run or wait."""
        return self._executions

    async def open(self, name: str, limits: Limits | None) -> Limits:
        """Open the session ``name`` where it is not there; return its default limits."""
        held = self._held.get(name)
        if held is None:
            self._check_draining()
            if len(self._held) >= self._most:
                raise Refusal(429, "sessions", f"all {self._most} sessions are taken", 1.0)
            opening = asyncio.create_task(self._sandbox.session(limits))
            held = self._held[name] = _Held(opening, limits, self._clock.now())
            self._metrics.count("sessions_total")
        elif held.asked != limits:
            raise Refusal(409, "limits", "the session exists with other limits")
        await asyncio.wait([held.opening])
        if held.opening.exception() is not None and self._held.get(name) is held:
            del self._held[name]
        return held.opening.result().limits

    async def execute(self, name: str, number: int, code: str, limits: Limits | None) -> Execution:
        """Run a block, once."""

        async def work(session: LocalSession) -> Execution:
            result = await session.execute(code, limits)
            self._mean_s += 0.05 * (result.duration_s - self._mean_s)
            self._metrics.count("executions_total", status=result.status)
            self._metrics.observe(result.duration_s)
            log("execution", session=name, number=number, status=result.status, duration_s=round(result.duration_s, 6))
            return result

        result = await self._once(name, number, work)
        if result is None:
            raise Refusal(409, "number", f"number {number} was a reset")
        return result

    async def reset(self, name: str, number: int) -> None:
        """Forget all variables and files, once."""
        await self._once(name, number, LocalSession.reset)

    async def cancel(self, name: str, number: int) -> None:
        """Kill what runs under this number. If it has not come yet, it is refused when it comes."""
        held = self._find(name)
        task = held.operations.get(number)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        held.last = max(held.last, number)

    async def close(self, name: str, why: str = "closed") -> None:
        """End the session. Nothing happens if it is not there."""
        held = self._held.pop(name, None)
        if held is None:
            return
        for task in held.operations.values():
            task.cancel()
        await asyncio.wait([held.opening, *held.operations.values()])
        if held.opening.exception() is None:
            await held.opening.result().close()
        self._metrics.count("sessions_ended_total", why=why)
        log("session ended", session=name, why=why)

    async def sweep(self) -> None:
        """End the sessions that nobody used for a while, and forget old results."""
        now = self._clock.now()
        for name, held in list(self._held.items()):
            idle_s = 0.0 if held.busy else now - held.used
            if idle_s > RESULT_S:
                held.operations.clear()
            if idle_s > self._idle_s:
                await self.close(name, "expired")

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, and wait for what was taken. Return False if some did not end in time."""
        self.draining = True
        running = [t for held in self._held.values() for t in held.operations.values() if not t.done()]
        return not running or not (await asyncio.wait(running, timeout=seconds))[1]

    async def end(self) -> None:
        """End every session."""
        self.draining = True
        await asyncio.gather(*(self.close(name, "drained") for name in list(self._held)))

    def _find(self, name: str) -> _Held:
        if name not in self._held:
            raise Refusal(404, "session", "no such session: it was closed, it expired, or the service was restarted")
        return self._held[name]

    def _check_draining(self) -> None:
        if self.draining:
            raise Refusal(503, "draining", "the service is going down", 1.0)

    async def _once(self, name: str, number: int, work: Callable[[LocalSession], Awaitable[T]]) -> T:
        held = self._find(name)
        held.used = self._clock.now()
        if number not in held.operations:
            self._admit(held, number)
            held.last = number
            held.operations[number] = task = asyncio.create_task(self._run(held, work))
            task.add_done_callback(lambda _: self._ended(held))
            for old in [n for n in held.operations if n != number][: 1 - RESULTS_KEPT or None]:
                del held.operations[old]
        task = held.operations[number]
        await asyncio.wait([task])  # a client that goes away ends its wait, not the execution
        if task.cancelled():
            raise Refusal(409, "cancelled", "the execution was cancelled")
        error = task.exception()
        if isinstance(error, SandboxError) and error.retryable and held.operations.get(number) is task:
            del held.operations[number]  # it did not run: the number is free again
            held.last = number - 1
        return task.result()

    def _admit(self, held: _Held, number: int) -> None:
        if number <= held.last:
            raise Refusal(410, "number", f"number {number} was used, and its result is no longer kept")
        if any(not task.done() for task in held.operations.values()):
            raise Refusal(409, "busy", "the session is busy")
        self._check_draining()
        if self._executions >= self._workers + self._queue:
            wait_s = max(0.05, self._mean_s * self._queue / self._workers / 2)
            raise Refusal(429, "queue", f"{self._executions} executions are running or waiting", wait_s)
        self._executions += 1

    async def _run(self, held: _Held, work: Callable[[LocalSession], Awaitable[T]]) -> T:
        return await work(await asyncio.shield(held.opening))

    def _ended(self, held: _Held) -> None:
        self._executions -= 1
        held.used = self._clock.now()
