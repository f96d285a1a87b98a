"""A stage of units that hangs ends the process, and leaves its stacks behind.

It hangs where units are in flight and nothing happens: no unit is read or ends, no token or answer comes from an engine
or a sandbox (:mod:`nemo_openmath.core.activity`), and the main thread, in which the event loop runs, does not compute.
What is covered so is an embedded engine or a sandbox that does not answer, a lock that nobody lets go of, a read from a
file system that is gone. An endless computation is not.

A process that is stopped as a whole cannot end itself. Meanwhile ``.heartbeat/SHARD-of-SHARDS`` is touched every few
seconds: a job of Slurm is killed by its script where that stays away (launch/templates/functions.sh).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from nemo_openmath.core import activity
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.stage.context import StageContext
from nemo_openmath.core.watchdog import Watchdog, stamp, write_stacks

LEAST_S = 3600.0  # the limit where the recipe states none, at least
_BUSY = 0.1  # a main thread that computes for a greater share of the time is at work
_TICKS = os.sysconf("SC_CLK_TCK")


class UnitWatch:
    """Watches a stage within a ``with``; ``stated_s`` is the recipe's ``hang_seconds``."""

    def __init__(self, context: StageContext, stated_s: float | None):
        self._name, self._stated_s = context.name, stated_s
        job = f"{context.shard:05d}-of-{context.shards:05d}"
        self._path = context.output / "stacks" / f"{job}-{stamp()}.txt"
        self._heartbeat = context.output / ".heartbeat" / job
        self._loop = asyncio.get_running_loop()
        self._seen, self._computed, self._looked = activity.last(), _main_thread_seconds(), time.monotonic()
        self._watchdog = Watchdog(self._hung, self._look)

    def __enter__(self) -> UnitWatch:
        activity.happened()
        with contextlib.suppress(OSError):  # a full disk is no hang
            self._heartbeat.parent.mkdir(parents=True, exist_ok=True)
        self._watchdog.start(self.limit_s())
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.stop()
        with contextlib.suppress(OSError):
            self._heartbeat.unlink()

    def limit_s(self) -> float:
        """Return the seconds of silence after which the stage has hung: those that are stated, or an hour; and never
        less than a request may take, where nothing is stated twice that."""
        silence_s = activity.longest_silence_s()
        if self._stated_s is None:
            return max(LEAST_S, 2 * silence_s + 60)
        return max(self._stated_s, silence_s + 60) if silence_s else self._stated_s

    def _look(self) -> None:
        now, computed, seen = time.monotonic(), _main_thread_seconds(), activity.last()
        busy = computed - self._computed > _BUSY * (now - self._looked)
        if busy or seen != self._seen:
            self._watchdog.beat(self.limit_s())
        self._computed, self._looked, self._seen = computed, now, seen
        with contextlib.suppress(OSError):
            self._heartbeat.touch()

    def _hung(self, idle_s: float) -> None:
        what = f"{self._name}: no unit, token or answer for {idle_s:.0f} s (limit {self.limit_s():.0f} s)"
        where = write_stacks(self._path, what, self._write_tasks)
        print(f"openmath: {what}; stacks: {where}; run the same command again", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(ExitCode.HUNG)

    def _write_tasks(self, file: TextIO) -> None:
        """Write where the tasks of the event loop wait, those at the same place together."""
        places: Counter[str] = Counter()
        for _ in range(3):
            try:
                tasks = asyncio.all_tasks(self._loop)
                break
            except RuntimeError:  # the set changed meanwhile
                continue
        else:
            return
        for task in tasks:
            frames = (f"  {path}:{line}, in {name}\n" for path, line, name in reversed(_frames(task)))
            places["".join(frames) or f"  {task.get_coro()}\n"] += 1
        file.write("\ntasks of the event loop, those at the same place together, what they wait for first\n")
        for place, count in places.most_common():
            file.write(f"{count} x\n{place}")


def _frames(task: asyncio.Task[Any]) -> list[tuple[str, int, str]]:
    """Return (file, line, function) of the coroutines of a task, from the outermost to the one that waits."""
    frames, coroutine = [], task.get_coro()
    while coroutine is not None and (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        coroutine = coroutine.cr_await  # type: ignore[union-attr]
    return frames


def _main_thread_seconds() -> float:
    """Return the processor time of the main thread; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/self/task/{os.getpid()}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
