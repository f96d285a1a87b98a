"""Runs blocks as a notebook would: variables stay, the last expression's value is shown, tracebacks name user code.

This module runs inside the walls, in the same process as the code it runs; nothing here is trusted by the client.
"""

from __future__ import annotations

import ast
import ctypes
import io
import linecache
import re
import signal
import struct
import sys
import traceback
from collections.abc import Iterator
from mmap import mmap
from types import FrameType, ModuleType, TracebackType
from typing import Any, TextIO, cast

from nemo_openmath.sandbox import channel
from nemo_openmath.sandbox.libc import syscall
from nemo_openmath.sandbox.seccomp import Architecture

_TRACEBACK_HEAD, _TRACEBACK_TAIL = 10, 20  # user frames shown of a deep recursion
_REPEAT_S = 0.1  # a block that swallowed the interrupt gets it again until the client kills it
_TIMER_CREATE = {"x86_64": 222, "aarch64": 107}
_TIMER_SETTIME = {"x86_64": 223, "aarch64": 110}
_CLOCK_MONOTONIC, _CLOCK_PROCESS_CPUTIME_ID = 1, 2

# blank lines and comments, then a statement that is indented
_INDENTED = re.compile(r"(?:[ \t\f]*(?:#[^\r\n]*)?(?:\r\n?|\n))*[ \t]+[^\s#]")


class Interrupted(BaseException):
    """Raised in the user's code when its time is over. It is not an Exception, so that `except Exception` lets it
    pass."""

    def __init__(self, outcome: int, message: str):
        super().__init__(message)
        self.outcome = outcome


class Timers:
    """A wall-clock and a CPU timer of the process, apart from `alarm` and `setitimer`, which stay the code's own."""

    def __init__(self, arch: Architecture) -> None:
        self._settime = _TIMER_SETTIME[arch.name]
        self._armed = False
        self._limits = (0.0, 0.0)
        self._ids: list[int] = []
        self._signals = (signal.SIGRTMAX - 1, signal.SIGRTMAX - 2)
        for clock, number in zip((_CLOCK_MONOTONIC, _CLOCK_PROCESS_CPUTIME_ID), self._signals, strict=True):
            event = struct.pack("=QiI48x", 0, number, 0)  # SIGEV_SIGNAL
            identifier = ctypes.c_int()
            syscall(_TIMER_CREATE[arch.name], clock, event, ctypes.byref(identifier))
            self._ids.append(identifier.value)

    def arm(self, wall_s: float, cpu_s: float) -> None:
        """Raise `Interrupted` when either time is over, from now on."""
        self._limits = (wall_s, cpu_s)
        for number in self._signals:
            signal.signal(number, self._interrupt)
        self._armed = True
        self._set(wall_s, cpu_s)

    def disarm(self) -> None:
        """Raise no interrupt any more, even if one is on its way."""
        self._armed = False
        self._set(0, 0)

    def _set(self, *seconds: float) -> None:
        for identifier, value in zip(self._ids, seconds, strict=True):
            whole, fraction = divmod(round(value * 1e9), 1_000_000_000)
            syscall(
                self._settime, identifier, 0, struct.pack("=QQQQ", 0, round(_REPEAT_S * 1e9), whole, fraction), None
            )

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._armed:
            return
        if number == self._signals[0]:
            raise Interrupted(channel.OUT_OF_TIME, f"the code ran longer than {self._limits[0]:g} s")
        raise Interrupted(channel.OUT_OF_CPU, f"the code used more than {self._limits[1]:g} s of CPU")


class SharedOutput(io.RawIOBase):
    """The bytes of one stream, kept up to ``room``; what is more is counted and dropped."""

    def __init__(self, memory: mmap, stream: int, capacity: int) -> None:
        self._memory, self._counter = memory, 8 * stream
        self._start = channel.HEADER.size + stream * capacity
        self._capacity = self._room = capacity
        self._written = 0

    def begin(self, room: int) -> None:
        """Start a new block: empty, with ``room`` bytes."""
        self._room, self._written = min(room, self._capacity), 0
        struct.pack_into("<Q", self._memory, self._counter, 0)  # a thread of the last block may have written since

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: `sys.stdout.close()` ends one wrapper, not the session's output."""

    def write(self, data: Any, /) -> int:
        length = len(data)
        stored = min(length, self._room - self._written)
        if stored > 0:
            start = self._start + self._written
            self._memory[start : start + stored] = bytes(data[:stored])
        self._written += length
        struct.pack_into("<Q", self._memory, self._counter, self._written)
        return length


class Interpreter:
    """The state of a session: one ``__main__`` module."""

    def __init__(self, memory: mmap, capacity: int, timers: Timers) -> None:
        self._timers = timers
        # Kept for the session: a logging handler of an earlier block goes on writing to the stream it was made with.
        self._streams = [SharedOutput(memory, stream, capacity) for stream in (0, 1)]
        self._blocks = 0
        main = ModuleType("__main__")
        main.__dict__["__builtins__"] = sys.modules["builtins"]
        sys.modules["__main__"] = main
        self._namespace = main.__dict__
        sys.set_int_max_str_digits(0)  # integers of any length are written; time and memory are what bounds them

    def execute(self, code: str, wall_s: float, cpu_s: float, room: int) -> int:
        """Run one block. Its output is in shared memory when this returns one of `channel`'s outcomes."""
        self._blocks += 1
        for stream in self._streams:
            stream.begin(room)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(cast(Any, stream), encoding="utf-8", errors="backslashreplace", write_through=True)
            for stream in self._streams
        )
        err = sys.stderr
        try:
            try:
                self._timers.arm(wall_s, cpu_s)
                return self._run(code, f"<block {self._blocks}>", err)
            finally:
                self._timers.disarm()
                for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                    signal.setitimer(timer, 0)  # an alarm of the block's own must not hit the next one
        except Interrupted as late:  # it hit while a traceback was being written
            err.write(f"TimeoutError: {late}\n")
            return late.outcome
        except BaseException as error:  # out of the code's own signal handler, at the last moment
            err.write(f"{type(error).__name__}\n")
            return channel.RAISED

    def _run(self, code: str, filename: str, err: TextIO) -> int:
        linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        try:
            body, last = _compile(code, filename)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            err.write(format_error(error))
            return channel.RAISED
        try:
            exec(body, self._namespace)
            if last is not None and (value := eval(last, self._namespace)) is not None:
                print(repr(value))
        except Interrupted as error:
            self._timers.disarm()
            error.__cause__ = error.__context__ = None  # formatting it must run no code of the user's
            err.write(format_error(error))
            return error.outcome
        except MemoryError as error:
            err.write(format_error(error))
            return channel.OUT_OF_MEMORY
        except SystemExit as error:  # in a notebook, exit() ends the block, not the session
            if error.code in (None, 0):
                return channel.FINISHED
            err.write(format_error(error))
            return channel.RAISED
        except BaseException as error:
            err.write(format_error(error))
            return channel.RAISED
        return channel.FINISHED


def _parse(code: str, filename: str) -> ast.Module:
    """Return the statements of a block. One that is indented as a whole runs, as in a notebook; strings stay
    unchanged."""
    if not _INDENTED.match(code):
        return ast.parse(code, filename)
    try:
        tree = ast.parse(f"with _:\n{code}", filename)  # nothing of a user's can go on with a `with`
    except SyntaxError as error:
        error.lineno, error.end_lineno = _before(error.lineno), _before(error.end_lineno)
        error.msg = re.sub(r"(?<= on line )\d+", lambda found: str(int(found[0]) - 1), error.msg)
        raise
    whole, *rest = tree.body
    tree.body = [*cast(ast.With, whole).body, *rest]
    ast.increment_lineno(tree, -1)
    return tree


def _before(line: int | None) -> int | None:
    return None if line is None else max(1, line - 1)


def _compile(code: str, filename: str) -> tuple[Any, Any]:
    tree = _parse(code, filename)
    last = None
    # As in a notebook, a final semicolon hides the value.
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
        expression = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        last = compile(expression, filename, "eval", dont_inherit=True)
    return compile(tree, filename, "exec", dont_inherit=True), last


def format_error(error: BaseException) -> str:
    """Return the traceback as Python prints it, with the user's own frames only."""
    try:
        shown = _shorten(error, traceback.TracebackException(type(error), error, None, compact=True), 0)
        return "".join(shown.format())
    except Interrupted:
        raise
    except BaseException:  # an exception whose __str__ raises, or no memory left to format it
        return f"{type(error).__name__}\n"


def _shorten(error: BaseException, shown: traceback.TracebackException, depth: int) -> traceback.TracebackException:
    frames = list(_user_frames(error.__traceback__))
    if len(frames) > _TRACEBACK_HEAD + _TRACEBACK_TAIL:
        frames = frames[:_TRACEBACK_HEAD] + frames[-_TRACEBACK_TAIL:]
    shown.stack = traceback.StackSummary.extract(iter(frames), lookup_lines=True)
    if isinstance(error, Interrupted):
        shown.exc_type = TimeoutError
    for name in ("__cause__", "__context__"):
        inner, inner_shown = getattr(error, name), getattr(shown, name)
        if inner is not None and inner_shown is not None:
            if depth < 3:
                _shorten(inner, inner_shown, depth + 1)
            else:
                setattr(shown, name, None)
    return shown


def _user_frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    for frame, line in traceback.walk_tb(trace):
        if frame.f_code.co_filename.startswith("<block "):
            yield frame, line
