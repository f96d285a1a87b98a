"""One session's process, seen from the client: asks, waits, watches, kills."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from mmap import mmap

from nemo_openmath.core.sandbox import Limits, Status
from nemo_openmath.sandbox import channel, folders
from nemo_openmath.sandbox.walls import Shape

GRACE_S = 0.3  # between the interrupt inside the code and the kill from outside
TICK_S = 0.05  # how often a running process is measured
_SHARE = 10  # measuring one session's disk takes at most one part in so many of the client's time
_LONGEST_REPORT = 2000  # bytes
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution ended: with an outcome that the process told (alive), or dead, for a reason we know."""

    outcome: int | None
    status: Status
    reason: str = ""


_STATUS_OF_OUTCOME = {
    channel.FINISHED: Status.COMPLETED,
    channel.RAISED: Status.ERROR,
    channel.OUT_OF_TIME: Status.TIMEOUT,
    channel.OUT_OF_CPU: Status.TIMEOUT,
    channel.OUT_OF_MEMORY: Status.MEMORY,
}


class SessionProcess(asyncio.Protocol):
    """One session's process. Not for concurrent use. Between blocks the process is stopped (SIGSTOP), whatever threads
    it has."""

    def __init__(self, pidfd: int, memory: mmap, shape: Shape, folder: str) -> None:
        self.shape, self.folder = shape, folder
        self.gone: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.alive = True
        self._pidfd, self._memory = pidfd, memory
        self._pid = _pid_of(pidfd)
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._nonce = bytes(channel.NONCE_BYTES)  # of the first answer: the walls stand
        self._answer: asyncio.Future[Ending] | None = asyncio.get_running_loop().create_future()
        self._limits: Limits | None = None
        self._started = self._cpu_before = 0.0
        self._unmeasured = 0.0  # seconds that its files could grow since they were measured
        self._measure_at = 0.0  # not before
        self._most_entries = 0  # that a measurement has found
        self._all_is_counted = folders.counts_what_is_written(folder)
        self._idle: asyncio.TimerHandle | None = None
        self._stopped = False

    async def ready(self) -> Ending:
        """Wait until the walls stand."""
        assert self._answer is not None
        ending = await self._answer
        self._answer = None
        return ending

    async def run(self, code: bytes, limits: Limits) -> tuple[Ending, float]:
        """Execute one block; return (ending, seconds). The process is killed if the awaiting task is cancelled."""
        loop = asyncio.get_running_loop()
        self._nonce = os.urandom(channel.NONCE_BYTES)
        self._answer, self._limits = loop.create_future(), limits
        channel.HEADER.pack_into(self._memory, 0, 0, 0)
        if not self.alive or self._transport is None:
            return Ending(None, Status.KILLED, "the session's process had died"), 0.0
        self._cpu_before = cpu_seconds(self._pid)[0]
        if self._idle is not None:
            self._idle.cancel()
        if self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped = False
        self._started = time.monotonic()
        room = limits.output_chars * channel.BYTES_PER_CHARACTER
        request = channel.REQUEST.pack(self._nonce, limits.wall_s, limits.cpu_s, room, len(code))
        self._transport.write(request + code)
        watch = loop.call_later(min(TICK_S, limits.wall_s + GRACE_S), self._check)
        self._watch = watch
        try:
            ending = await self._answer
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            self._watch.cancel()
            self._answer = None
        duration = time.monotonic() - self._started
        self._unmeasured += duration
        if ending.outcome is not None and self._unmeasured > TICK_S / 2 and (excess := self._excess()):
            self.kill()
            ending = Ending(None, Status.KILLED, excess)
        if self.alive:
            self._idle = loop.call_later(TICK_S, self._stop)
        return ending, duration

    def output(self, characters: int) -> tuple[str, str, bool]:
        """Return (stdout, stderr, cut) of the last execution, also after a kill; empty once released."""
        if self._pidfd < 0:
            return "", "", False
        return channel.read_output(self._memory, self.shape.capacity, characters)

    async def cause_of_death(self) -> str:
        """Return what the kernel told the zygote, for a process that died by itself."""
        status = await asyncio.shield(self.gone)
        if status is None:
            return "the sandbox's zygote died"
        if status < 0:
            return f"its process died of {signal.Signals(-status).name}"
        return f"its process exited with code {status}"

    def kill(self) -> None:
        """Send SIGKILL; a second call does nothing. The process is alone in its tree: seccomp denies it children."""
        self.alive = False
        if self._idle is not None:
            self._idle.cancel()
        self._signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def release(self) -> None:
        """Free the descriptors, after `kill`."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
            self._memory.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._answer is None or self._answer.done():
            return self._end(Status.KILLED, "it wrote to the sandbox's own channel")
        if self._limits is None and any(self._buffer[: channel.NONCE_BYTES]) and len(self._buffer) <= _LONGEST_REPORT:
            return None  # no code ran yet: which wall could not be put up; `connection_lost` passes it on
        begun = self._buffer[: channel.NONCE_BYTES]
        if len(self._buffer) > channel.REPLY.size or not self._nonce.startswith(begun):
            return self._end(Status.KILLED, "it wrote to the sandbox's own channel")
        if len(self._buffer) < channel.REPLY.size:
            return None
        outcome = channel.REPLY.unpack(self._buffer)[1]
        if outcome not in _STATUS_OF_OUTCOME:
            return self._end(Status.KILLED, "it wrote to the sandbox's own channel")
        self._buffer = b""
        self._answer.set_result(Ending(outcome, _STATUS_OF_OUTCOME[outcome]))
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        message = self._buffer.decode("utf-8", "replace") if self._limits is None else ""
        self._end(Status.KILLED, message)

    # watching

    def _check(self) -> None:
        """Look, once a tick while code runs, at time, CPU, threads and disk, none of which the process can argue
        about."""
        limits = self._limits
        if limits is None or self._answer is None or self._answer.done():
            return None
        elapsed = time.monotonic() - self._started
        if elapsed >= limits.wall_s + GRACE_S:
            return self._end(Status.TIMEOUT, f"the code ran longer than {limits.wall_s:g} s")
        used, main_thread_ended = cpu_seconds(self._pid)
        if used - self._cpu_before >= limits.cpu_s + GRACE_S:
            return self._end(Status.TIMEOUT, f"the code used more than {limits.cpu_s:g} s of CPU")
        threads = threads_of(self._pid)
        if threads > limits.threads:
            return self._end(Status.KILLED, f"it had more than {limits.threads} threads")
        if main_thread_ended and threads > 1:  # nobody would answer, and what it holds cannot be seen any more
            return self._end(Status.KILLED, "its main thread ended")
        if time.monotonic() >= self._measure_at and (excess := self._excess()):
            return self._end(Status.KILLED, excess)
        remaining = limits.wall_s + GRACE_S - elapsed
        self._watch = asyncio.get_running_loop().call_later(min(TICK_S, remaining), self._check)
        return None

    def _stop(self) -> None:
        """Stop the process a tick after a block: nothing of the session runs, writes or burns CPU until the next
        one."""
        self._stopped = True
        self._unmeasured += TICK_S
        self._signal(signal.SIGSTOP)

    def _excess(self) -> str:
        """Return what is too much on disk; empty if nothing is."""
        start, most = time.thread_time(), self.shape.file_mb << 20
        size, entries = folders.usage(self.folder)
        written = folders.written(self._pid) if self._all_is_counted else None
        if size <= most and (written is None or written > most):
            size += folders.deleted_files_size(self._pid, most)
        self._unmeasured = 0.0
        # Files that multiply are looked at again at once: so at most 16 times in a session's life.
        multiply = entries > self._most_entries + folders.MAX_ENTRIES // 16
        self._most_entries = max(entries, self._most_entries)
        self._measure_at = time.monotonic() + (0.0 if multiply else _SHARE * (time.thread_time() - start))
        if entries > folders.MAX_ENTRIES:
            return f"it made more than {folders.MAX_ENTRIES} files and folders"
        if size > most:
            return f"its files took more than {self.shape.file_mb} MB"
        return ""

    def _end(self, status: Status, reason: str) -> None:
        self.kill()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Ending(None, status, reason))

    def _signal(self, number: int) -> None:
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return


def _pid_of(pidfd: int) -> int:
    """Return the process's number as this process sees it (the zygote may live in a pid namespace of its own)."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))


def cpu_seconds(pid: int) -> tuple[float, bool]:
    """Return user and system time of all threads so far, and whether the main thread has ended; 0 for a process that is
    gone."""
    try:
        stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # read before every block: half the price of open()
        try:
            fields = os.read(stat, 4096).rpartition(b")")[2].split()
        finally:
            os.close(stat)
    except OSError:
        return 0.0, False
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS, fields[0] == b"Z"


def threads_of(pid: int) -> int:
    """Return the number of threads of a process (the links of its task folder, less the two every folder has); 0 if it
    is gone."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    except OSError:
        return 0
