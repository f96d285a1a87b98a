"""The sandbox in this process: an asyncio client, one zygote, one walled-in process per session.

async with LocalSandbox() as sandbox:
    async with await sandbox.session() as session:
        result = await session.execute("import sympy; sympy.factorint(91)")
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nemo_openmath.core import activity
from nemo_openmath.core.errors import UserError, refuse_device
from nemo_openmath.core.sandbox import Execution, Limits, SandboxError, Status
from nemo_openmath.sandbox import channel
from nemo_openmath.sandbox.process import SessionProcess
from nemo_openmath.sandbox.supervisor import ZygoteProcess
from nemo_openmath.sandbox.walls import Shape

DEFAULT_PACKAGES = ("numpy", "scipy", "sympy", "mpmath", "networkx")
# What the kernel's calls can still take, far beyond what makes sense.
_MOST = {
    "wall_s": 10**6,
    "cpu_s": 10**6,
    "memory_mb": 1 << 24,
    "output_chars": 10**8,
    "threads": 1 << 16,
    "open_files": 1 << 20,
    "file_mb": 1 << 24,
}
_LOST = "the session was restarted: variables, imports and files of earlier blocks are lost"


class LocalSandbox:
    """A sandbox on this machine (Linux, x86_64 or aarch64; no privilege needed).

    - ``limits``: of sessions that name none.
    - ``workers``: executions that run at the same time (default: the processors this process may use), so that a
      wall-clock limit means the same under load. The others wait their turn.
    - ``sessions``: live sessions; `session` waits beyond.
    - ``spares``: sessions of the default limits kept forked in advance.
    - ``seed``: of `random`, numpy, sympy and the hash; None for entropy.
    - ``packages``: imported beforehand, and besides the standard library the only ones there are.
    - ``namespaces``: an extra layer, used where the system allows.
    - ``unsafe``: run even where a required wall is missing, and say so in every result.

    Raises UserError at the start where a wall is missing and ``unsafe`` was not given.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        workers: int | None = None,
        sessions: int = 1024,
        spares: int = 4,
        seed: int | None = 0,
        packages: Sequence[str] = DEFAULT_PACKAGES,
        namespaces: bool = True,
        unsafe: bool = False,
    ) -> None:
        if seed is not None and not 0 <= seed < 2**32:
            raise UserError(f"sandbox seed {seed}", remedy="use a number from 0 to 4294967295, or None")
        for name, value, least in (("workers", workers, 1), ("sessions", sessions, 1), ("spares", spares, 0)):
            if value is not None and value < least:
                raise UserError(f"sandbox {name} {value}", remedy=f"use {least} or more")
        self.limits = limits or Limits()
        self._unsafe, self._namespaces = unsafe, namespaces
        self._spare_count = spares
        self._packages, self._seed = tuple(packages), seed
        self._running = asyncio.Semaphore(workers or len(os.sched_getaffinity(0)))
        self._places = asyncio.Semaphore(sessions)
        self._zygote: ZygoteProcess | None = None
        self._starting = asyncio.Lock()
        self._spares: deque[SessionProcess] = deque()
        self._refilling: asyncio.Task[None] | None = None
        self._sessions: set[LocalSession] = set()
        self._closed = False
        self.starts = 0  # of zygotes, so far

    async def start(self) -> None:
        """Start the zygote and the spare sessions now (a second or two) instead of at the first session."""
        await self._ready_zygote()
        await self._refill()

    async def session(self, limits: Limits | None = None) -> LocalSession:
        """Open a session. Raises UserError for limits that cannot be given, SandboxError where the machine cannot."""
        limits = limits or self.limits
        shape = shape_of(limits)
        await self._places.acquire()
        try:
            process = await self.process(shape)
        except BaseException:
            self._places.release()
            raise
        session = LocalSession(self, limits, process)
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        """End every session, the spares and the zygote. A second call does nothing."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        async with self._starting:
            if self._zygote is not None:
                for process in self._spares:
                    process.kill()
                await self._zygote.close()
            for process in self._spares:
                process.release()
            self._spares.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # for LocalSession

    async def process(self, shape: Shape) -> SessionProcess:
        """Return a fresh process, from the spares where one fits."""
        while self._spares and shape == shape_of(self.limits):
            process = self._spares.popleft()
            self._start_refilling()
            if process.alive:
                return process
            process.release()
        return await (await self._ready_zygote()).make(shape)

    @property
    def running(self) -> asyncio.Semaphore:
        """The semaphore that each execution holds."""
        return self._running

    @property
    def alive(self) -> bool:
        """Whether a zygote stands. A dead one is replaced by `start` and by the next session."""
        return self._zygote is not None and self._zygote.alive

    @property
    def layers(self) -> tuple[str, ...]:
        """The walls that stand around the sessions, once started."""
        return self._zygote.layers if self._zygote is not None else ()

    @property
    def missing_walls(self) -> bool:
        """Whether a required wall is missing, by request."""
        return self._zygote is not None and bool(self._zygote.missing)

    def forget(self, session: LocalSession) -> None:
        """Note that a session was closed: its place is free."""
        if session in self._sessions:
            self._sessions.discard(session)
            self._places.release()

    async def _ready_zygote(self) -> ZygoteProcess:
        async with self._starting:
            if self._closed:
                raise SandboxError("the sandbox is closed", retryable=False)
            if self._zygote is None or not self._zygote.alive:
                if self._zygote is not None:
                    await self._zygote.close()
                self._zygote = await ZygoteProcess.start(self._packages, self._seed, self._unsafe, self._namespaces)
                self.starts += 1
            return self._zygote

    def _start_refilling(self) -> None:
        if not self._closed and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.create_task(self._refill_quietly())

    async def _refill_quietly(self) -> None:
        try:
            await self._refill()
        except (SandboxError, UserError):
            return  # the next session makes its own process, and reports what is wrong

    async def _refill(self) -> None:
        shape = shape_of(self.limits)
        while len(self._spares) < self._spare_count and not self._closed:
            self._spares.append(await (await self._ready_zygote()).make(shape, spare=True))


class LocalSession:
    """One interpreter of a `LocalSandbox`. After a kill it goes on with a fresh process and says so."""

    def __init__(self, sandbox: LocalSandbox, limits: Limits, process: SessionProcess) -> None:
        self._sandbox, self.limits = sandbox, limits
        self._process: SessionProcess | None = process
        self._busy = self._closed = False

    async def execute(self, code: str, limits: Limits | None = None) -> Execution:
        """Run a block; see `core.sandbox.Session.execute`. Of ``limits``, those of an execution are used."""
        limits = limits or self.limits
        data = code.encode("utf-8", "replace")
        check_execution(limits, self.limits)
        if self._closed or self._busy:
            raise SandboxError("the session is closed" if self._closed else "the session is busy", retryable=False)
        if len(data) > channel.MAX_CODE_BYTES:
            return refusal_of_length(len(data), unsafe=self._sandbox.missing_walls)
        self._busy = True
        try:
            async with self._sandbox.running:
                return await self._execute(data, limits)
        finally:
            self._busy = False
            activity.happened()

    async def reset(self) -> None:
        """Forget all variables and files."""
        await self._discard()

    async def close(self) -> None:
        """Kill the process and remove its folder. A second call does nothing."""
        self._closed = True
        try:
            await self._discard()
        finally:
            self._sandbox.forget(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _execute(self, code: bytes, limits: Limits) -> Execution:
        lost = self._process is not None and not self._process.alive  # it died between two blocks
        if lost:
            await self._discard()
        if self._process is None:
            self._process = await self._sandbox.process(shape_of(self.limits))
        process = self._process
        ending, duration = await process.run(code, limits)
        note = f"[{_LOST}]\n" if lost else ""
        if ending.outcome is None:
            lost = True
            reason = ending.reason or await process.cause_of_death()
            kind = {Status.TIMEOUT: "TimeoutError: "}.get(ending.status, "The session was killed: ")
            note = f"{kind}{reason}; {_LOST}\n"
        stdout, stderr, cut = process.output(limits.output_chars)
        if ending.outcome is None:
            await self._discard()
        if note and stderr and not stderr.endswith("\n"):
            stderr += "\n"
        unsafe = self._sandbox.missing_walls
        return Execution(ending.status, stdout, stderr + note, duration, cut, lost, unsafe)

    async def _discard(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        try:
            await asyncio.shield(process.gone)
        finally:
            process.release()


def exec_file(path: str | Path, limits: Limits | None = None, *, unsafe: bool = False) -> Execution:
    """Run one program in a session of its own and wait for it. Raises UserError for a file that cannot be read."""
    try:
        refuse_device(Path(path))
        code = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the program ({why})", file=path, remedy="give a UTF-8 Python file") from error

    async def run() -> Execution:
        async with LocalSandbox(limits=limits, spares=1, unsafe=unsafe) as sandbox, await sandbox.session() as session:
            return await session.execute(code)

    return asyncio.run(run())


def refusal_of_length(size: int, *, unsafe: bool = False) -> Execution:
    """Return the result of code that is too long to run; ``size`` in bytes."""
    refusal = f"ValueError: the code has {size} bytes, more than {channel.MAX_CODE_BYTES}\n"
    return Execution(Status.ERROR, "", refusal, 0.0, unsafe=unsafe)


def shape_of(limits: Limits) -> Shape:
    """Return what of the limits is fixed for a session's life. Raises UserError."""
    if limits.processes:
        raise UserError(f"limits.processes={limits.processes}", remedy="sessions cannot start processes; use 0")
    for name, most in _MOST.items():
        if not 0 < getattr(limits, name) <= most:  # nor is nan
            raise UserError(f"limits.{name}={getattr(limits, name)}", remedy=f"use a positive number up to {most}")
    if limits.open_files < 8:
        raise UserError(f"limits.open_files={limits.open_files}", remedy="use 8 or more")
    capacity = limits.output_chars * channel.BYTES_PER_CHARACTER
    return Shape(limits.memory_mb, limits.open_files, limits.file_mb, capacity)


def check_execution(limits: Limits, session: Limits) -> None:
    """Raise UserError where an execution asks for what its session cannot give."""
    shape_of(limits)
    if limits.output_chars > session.output_chars:
        raise UserError(
            f"output_chars={limits.output_chars} in a session made for {session.output_chars}",
            remedy="give the session's limits the largest output_chars",
        )
