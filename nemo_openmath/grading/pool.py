"""Grading with hard limits: a pool of warm worker processes that abuse cannot harm.

Plain numbers and identical strings are answered in the calling process; every other pair goes to a worker. A pair
that uses up its time or memory becomes a TIMEOUT verdict; its worker, if it had to be killed, is replaced, and the
pairs behind it are graded by the replacement. So the verdict of a pair depends on the pair alone, not on its
neighbours. Results are cached by the pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pickle
import queue
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import nemo_openmath
from nemo_openmath.core import activity
from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.grader import Grade, Majority, Verdict
from nemo_openmath.grading import plain
from nemo_openmath.grading.majority import MAX_COMPARISONS, Ballot
from nemo_openmath.grading.worker import HEADER, OUT_OF_MEMORY, OUT_OF_TIME, frame

Pair = tuple[str | None, str | None]

PROGRAM = "from nemo_openmath.grading.worker import main; main()"
CHUNK = 64  # pairs a worker gets at once: amortizes the round trip, keeps workers evenly loaded
STARTUP_LIMIT = 60.0  # seconds for a fresh interpreter to import the grader on a busy machine
WALL_FACTOR = 5  # wall clock a pair may take in time limits: a busy machine is slow, a hung worker silent
MAX_IDLE_DEATHS = 9  # of a worker before it is given its first pair, one after another
CACHE_SIZE = 100_000  # pairs
CACHED_LENGTH = 2_000  # characters of a pair; longer ones are not kept


class _Worker:
    """One process and the pipe to it. Used by one thread at a time."""

    def __init__(self, time_limit: float, memory_mb: int):
        self.time_limit = time_limit
        self.command = [sys.executable, "-c", PROGRAM, str(time_limit), str(memory_mb)]
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        root = str(Path(nemo_openmath.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self.stdin = cast(BinaryIO, self.process.stdin)
        self.stdout = cast(BinaryIO, self.process.stdout)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.stdout, selectors.EVENT_READ)
        os.set_blocking(self.stdin.fileno(), False)
        self.writable = selectors.DefaultSelector()
        self.writable.register(self.stdin, selectors.EVENT_WRITE)
        self.buffer = bytearray()
        self.ready = False

    def _read(self, limit: float) -> Any:
        """Return the next reply. Raises TimeoutError after ``limit`` seconds, EOFError when the process is gone."""
        deadline = time.monotonic() + limit
        while True:
            if len(self.buffer) >= HEADER.size:
                end = HEADER.size + HEADER.unpack_from(self.buffer)[0]
                if len(self.buffer) >= end:
                    payload = bytes(self.buffer[HEADER.size : end])
                    del self.buffer[:end]
                    return pickle.loads(payload)
            if not self.selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            if not (data := os.read(self.stdout.fileno(), 1 << 16)):
                raise EOFError
            self.buffer += data

    def _write(self, data: bytes) -> None:
        """Hand a job over. Raises TimeoutError where the process does not take it: it may be stopped or swapped out."""
        deadline = time.monotonic() + STARTUP_LIMIT
        unsent = memoryview(data)
        while unsent:
            if not self.writable.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            unsent = unsent[os.write(self.stdin.fileno(), unsent) :]

    def grade(self, pairs: Sequence[Pair], take_modulo: int | None) -> list[Grade]:
        """Return the grades of pairs. A pair over which the process dies or hangs is a TIMEOUT; the process is
        replaced."""
        grades: list[Grade] = []
        idle_deaths = 0
        suspect = -1  # index of the pair over which a worker died once already
        while len(grades) < len(pairs):
            asked = False
            try:
                if not self.ready:
                    self._read(STARTUP_LIMIT)
                    self.ready = True
                self._write(frame((take_modulo, pairs[len(grades) :])))
                asked, idle_deaths = True, 0
                while len(grades) < len(pairs):
                    verdict, reason = self._read(self.time_limit * WALL_FACTOR)
                    grades.append(Grade(Verdict(verdict), reason))
            except TimeoutError:
                if asked:
                    grades.append(OUT_OF_TIME)
                else:
                    idle_deaths += 1
                self._restart()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                code = self.process.wait()
                if not asked:
                    idle_deaths += 1
                elif code == -signal.SIGVTALRM:  # its own alarm, in the middle of a C call
                    grades.append(OUT_OF_TIME)
                elif suspect == len(grades):  # twice over this pair: for memory, in C code
                    grades.append(OUT_OF_MEMORY)
                else:  # perhaps killed by somebody for no fault of the pair
                    suspect = len(grades)
                self._restart()
            if idle_deaths > MAX_IDLE_DEATHS:
                raise OpenMathError(f"grading workers die before their first pair: {' '.join(self.command)}")
        return grades

    def _restart(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        """Kill the process and close its pipes."""
        self.process.kill()
        self.process.wait()
        self.selector.close()
        self.writable.close()
        self.stdin.close()
        self.stdout.close()


class GradingPool:
    """Worker processes that compare answers within hard limits.

    Each pair has ``time_limit`` seconds of processor time and ``memory_mb`` MiB. A worker that says nothing for five
    time limits of wall clock is killed. ``take_modulo``: integers are compared modulo this number (contests whose
    answers are).

    Safe to use from many threads and from many tasks of an event loop at once; the loop is never blocked by a
    comparison.
    """

    def __init__(
        self, workers: int = 1, time_limit: float = 1.0, memory_mb: int = 1024, *, take_modulo: int | None = None
    ):
        for name, value, fits, range_ in (
            ("workers", workers, workers >= 1, "1 or more"),
            ("time limit", time_limit, 0 < time_limit < math.inf, "a number of seconds above 0"),
            ("memory", memory_mb, memory_mb >= 256, "256 MiB or more"),
            ("modulus", take_modulo, take_modulo is None or take_modulo >= 1, "1 or more"),
        ):
            if not fits:
                raise UserError(f"grading: {name} is {value}", remedy=f"choose {range_}")
        self.take_modulo = take_modulo
        self._workers = [_Worker(time_limit, memory_mb) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(len(self._workers), thread_name_prefix="grading")
        self._cache: dict[Pair, Grade] = {}

    @property
    def restarts(self) -> int:
        """How many workers were killed and replaced."""
        return sum(worker.starts - 1 for worker in self._workers)

    async def grade(self, predicted: str | None, expected: str | None) -> Grade:
        """Return the grade of one pair."""
        if (known := self._known((predicted, expected))) is not None:
            return known
        return (await asyncio.wrap_future(self._submit([(predicted, expected)])))[0]

    def compare(self, predicted: str | None, expected: str | None) -> Grade:
        """Return the grade of one pair, for callers without an event loop."""
        return self.grade_batch([(predicted, expected)])[0]

    async def majority(self, answers: Iterable[str | None], *, max_comparisons: int = MAX_COMPARISONS) -> Majority:
        """Count votes by the rules of grading/majority.py, compared in the workers."""
        ballot = self._ballot(answers, max_comparisons)
        return ballot.count(await self.grade_many(ballot.pairs))

    def majority_now(self, answers: Iterable[str | None], *, max_comparisons: int = MAX_COMPARISONS) -> Majority:
        """Count votes like ``majority``, for callers without an event loop."""
        ballot = self._ballot(answers, max_comparisons)
        return ballot.count(self.grade_batch(ballot.pairs))

    def _ballot(self, answers: Iterable[str | None], max_comparisons: int) -> Ballot:
        return Ballot(answers, by_value=self.take_modulo is None, max_comparisons=max_comparisons)

    async def grade_many(self, pairs: Iterable[Pair]) -> list[Grade]:
        """Return the grades of many pairs, in their order."""
        pairs = list(pairs)
        large = len(pairs) > 8 * CHUNK  # looking them all up would hold up the loop
        grades, jobs = await asyncio.to_thread(self._plan, pairs) if large else self._plan(pairs)
        for chunk, future in jobs:
            graded = await asyncio.wrap_future(future)
            grades.update(zip(chunk, graded, strict=True))
        return [grades[pair] for pair in pairs]

    def grade_batch(self, pairs: Iterable[Pair]) -> list[Grade]:
        """Return the grades of many pairs, for callers without an event loop."""
        pairs = list(pairs)
        grades, jobs = self._plan(pairs)
        for chunk, future in jobs:
            grades.update(zip(chunk, future.result(), strict=True))
        return [grades[pair] for pair in pairs]

    def _known(self, pair: Pair) -> Grade | None:
        if self.take_modulo is None and (decided := plain.decide(*pair)) is not None:
            return decided
        return self._cache.get(pair)

    def _plan(self, pairs: list[Pair]) -> tuple[dict[Pair, Grade], list[tuple[list[Pair], Future[list[Grade]]]]]:
        """Return the grades that are known, and jobs for the other pairs: each distinct pair goes to a worker once."""
        grades: dict[Pair, Grade] = {}
        slow: dict[Pair, None] = {}
        for pair in pairs:
            if pair in grades or pair in slow:
                continue
            if (known := self._known(pair)) is not None:
                grades[pair] = known
            else:
                slow[pair] = None
        unknown = list(slow)
        size = max(1, min(CHUNK, -(-len(unknown) // len(self._workers))))
        chunks = [unknown[i : i + size] for i in range(0, len(unknown), size)]
        return grades, [(chunk, self._submit(chunk)) for chunk in chunks]

    def _submit(self, chunk: list[Pair]) -> Future[list[Grade]]:
        return self._threads.submit(self._run, chunk)

    def _run(self, chunk: list[Pair]) -> list[Grade]:
        worker = self._idle.get()
        try:
            grades = worker.grade(chunk, self.take_modulo)
        finally:
            self._idle.put(worker)
            activity.happened()
        for pair, grade in zip(chunk, grades, strict=True):
            if sum(len(answer) for answer in pair if answer) <= CACHED_LENGTH:
                if len(self._cache) >= CACHE_SIZE:
                    with contextlib.suppress(StopIteration, KeyError, RuntimeError):
                        del self._cache[next(iter(self._cache))]  # the oldest
                self._cache[pair] = grade
        return grades

    def close(self) -> None:
        """Wait for running comparisons (each within its limit) and end the workers."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> GradingPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
