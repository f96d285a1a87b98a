"""A thread that ends the process when nothing advances.

The watch is a thread of Python: it runs while other threads compute, or wait for a device, a file or another process.
Where no thread of Python can run (a mapped file on a file system that is gone, a library that does not let go of the
interpreter), or where the watch itself waits for a dead disk, a timer of the kernel ends the process after
``BACKSTOP`` times the limit; just before, Python's faulthandler writes the stacks to standard error. Neither needs the
interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from nemo_openmath.core.errors import ExitCode

TICK_S = 10.0  # between two looks of the watch, at most
BACKSTOP, BACKSTOP_S = 1.5, 60.0  # the timer of the kernel: so many times the limit, and so many seconds later
_STOPPED_S = 5.0  # a look that comes so much too late means that the process itself was stopped


class Watchdog:
    """Watches one piece of work after another, each with a limit of its own.

    ``hung`` is called in the watch's thread, with the seconds since the last :meth:`beat`, when they exceed its limit;
    it ends the process. ``tick`` is called at every look. A process that was stopped (SIGSTOP, a suspended job) gets
    the time back.
    """

    def __init__(self, hung: Callable[[float], None], tick: Callable[[], None] = lambda: None):
        self._hung, self._tick = hung, tick
        self._since, self._limit_s, self._armed = time.monotonic(), math.inf, -math.inf
        self._timer, self._wake, self._ended = _ExitTimer(), threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, limit_s: float) -> None:
        """Begin to watch, with a first :meth:`beat`."""
        self.beat(limit_s)
        self._thread.start()

    def beat(self, limit_s: float) -> None:
        """Say that the work advances, and that the next such call comes within ``limit_s`` seconds. It costs a
        microsecond."""
        before, self._since, self._limit_s = self._limit_s, time.monotonic(), limit_s
        if limit_s < before:
            self._wake.set()  # it looks more often from now on
        if limit_s != before or self._since - self._armed > min(TICK_S, limit_s / 10):
            self._armed = self._since
            self._timer.set(limit_s * BACKSTOP + BACKSTOP_S)

    def stop(self) -> None:
        """End the watch."""
        self._ended = True
        self._wake.set()
        self._timer.remove()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)  # it may be waiting for a dead disk
        faulthandler.cancel_dump_traceback_later()

    def tick_s(self) -> float:
        """Return the seconds between two looks."""
        return max(0.01, min(TICK_S, self._limit_s / 10))

    def _watch(self) -> None:
        while True:
            before, tick_s = time.monotonic(), self.tick_s()
            self._wake.wait(tick_s)
            self._wake.clear()
            if self._ended:
                return
            late = time.monotonic() - before - tick_s
            if late > _STOPPED_S + tick_s:
                self._since += late
            self._tick()
            since, limit_s = self._since, self._limit_s
            idle = time.monotonic() - since
            if math.isfinite(limit_s):
                left = max(0.0, limit_s - idle)
                with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error
                    faulthandler.dump_traceback_later(left + (BACKSTOP - 1) * limit_s + BACKSTOP_S / 2, file=sys.stderr)
            if idle > limit_s and since == self._since:
                self._hung(idle)


def write_stacks(path: Path, heading: str, more: Callable[[TextIO], None] = lambda _: None) -> str:
    """Write the stacks of all threads to ``path``, and return where they are: there, or on standard error where the
    disk is full. ``heading`` is the file's first line, ``more`` adds to it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            _stacks(file, heading, more)
        return str(path)
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            _stacks(sys.stderr, heading, more)
        return f"on standard error, for {path} could not be written ({error.strerror})"


def stamp() -> str:
    """Return the time for a file's name, in UTC."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S")


def _stacks(file: TextIO, heading: str, more: Callable[[TextIO], None]) -> None:
    file.write(f"{heading}\n\nthreads, as the kernel sees them (D: waits for a device or a file system)\n")
    file.writelines(f"{line}\n" for line in _kernel_threads())
    file.write("\nstacks, the last call first\n")
    file.flush()
    faulthandler.dump_traceback(file=file, all_threads=True)
    more(file)
    file.flush()


def _kernel_threads() -> list[str]:
    """Return lines of threads that are at the same: how many, state, where they wait in the kernel, name."""
    threads: Counter[str] = Counter()
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError, IndexError):
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            waits = ""
            with contextlib.suppress(OSError):
                waits = (task / "wchan").read_text().strip("0\n")
            threads[f"{rest.split()[0]}  {waits or '-'}  {name}"] += 1
    return [f"{count:4}  {what}" for what, count in sorted(threads.items())]


class _Sigevent(ctypes.Structure):
    """``struct sigevent`` of Linux with 64 bits, as far as SIGEV_THREAD needs it."""

    _fields_ = (
        ("value", ctypes.c_int64),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_byte * 32),
    )


class _Itimerspec(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "seconds", "nanoseconds"))


class _ExitTimer:
    """A timer of the kernel whose thread calls ``_exit(ExitCode.HUNG)``, without Python. Where the system has no such
    timers, nothing happens."""

    def __init__(self) -> None:
        self._id, self._libc = ctypes.c_void_p(), None
        if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
            return
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None, use_errno=True)
            function = ctypes.cast(libc._exit, ctypes.c_void_p).value
            event = _Sigevent(int(ExitCode.HUNG), 0, 2, function, None)  # 2: SIGEV_THREAD
            if libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._id)) == 0:
                self._libc = libc

    def set(self, seconds: float) -> None:
        """End the process in so many seconds from now, unless this is called again."""
        if self._libc is None:
            return
        spec = _Itimerspec(0, 0, int(seconds), int(seconds % 1 * 1e9))
        self._libc.timer_settime(self._id, 0, ctypes.byref(spec), None)

    def remove(self) -> None:
        """End the timer."""
        libc, self._libc = self._libc, None
        if libc is not None:
            libc.timer_delete(self._id)
