"""Starts the ranks of a training on one machine and watches them: ``launch(2, "job.yaml")``.

One rank's death takes all down, with that rank's traceback; so does the parent's. SIGTERM and SIGUSR1 are passed on,
so a preempted job saves and exits with ``ExitCode.PREEMPTED``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nemo_openmath.core.errors import ExitCode, OpenMathError, Preempted, UserError
from nemo_openmath.core.listening import free_port
from nemo_openmath.core.processes import killed_with_parent
from nemo_openmath.training.worker import check_job, read_job

KILL_AFTER_SECONDS = 5.0  # between the first rank's death and the killing of the others
# Huge pages for what runtime.keep_freed_memory keeps; glibc reads it before a program starts, so that under another
# launcher it is the user's to set.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PREEMPTION_SECONDS = 600.0  # for saving after SIGTERM before ranks are killed


class RankFailed(OpenMathError):
    """A rank died. The message is one line and ends with the last one that it wrote; ``said``: all of them."""

    def __init__(self, rank: int, code: int, said: str):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = said.splitlines()[-1].strip() if said else _SILENT.get(code, "it said nothing")
        super().__init__(f"rank {rank} died ({how}): {last}")
        self.rank, self.code, self.said = rank, code, said


_SILENT = {
    -signal.SIGKILL: "killed from outside; often the machine was out of memory (see dmesg)",
    -signal.SIGBUS: "a file in use was cut, or /dev/shm is full",
}


def launch(
    processes: int,
    job: str | Path,
    *,
    overrides: Sequence[str] = (),
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> None:
    """Run the training of a job's file (a :class:`TrainingJob`) in ``processes`` ranks; returns when done.

    ``on_line`` gets rank 0's progress lines. Raises what the first failing rank meant: :class:`UserError`,
    :class:`Preempted`, or :class:`RankFailed` with its traceback; KeyboardInterrupt after Ctrl-C, once all is saved.
    """
    if processes < 1:
        raise UserError(f"{processes} processes", remedy="start 1 or more")
    check_job(read_job(job, list(overrides)), processes)
    command = [sys.executable, "-m", "nemo_openmath.training.worker", str(job), *overrides]
    spawn(processes, command, threads=threads, environment=environment, on_line=on_line)


def spawn(
    processes: int,
    command: Sequence[str],
    *,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> None:
    """Run ``command`` once per rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; see :func:`launch`."""
    base = {**HUGE_PAGES, **os.environ, **(environment or {})}
    base |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(threads)}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "PYTHONUNBUFFERED": "1"}
    base.setdefault("GLOO_SOCKET_IFNAME", "lo")
    base.setdefault("MKL_NUM_THREADS", str(threads))
    ranks: list[subprocess.Popen[str]] = []
    errors: list[_Said] = []
    try:
        for rank in range(processes):
            process = subprocess.Popen(
                command,
                env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                preexec_fn=killed_with_parent(),
            )
            ranks.append(process)
            errors.append(_Said(process.stderr))
        _watch(ranks, errors, on_line)
    finally:
        _kill(ranks)


class _Said:
    """The last lines that a rank wrote to its standard error, read as it writes: in memory, for a full disk is a thing
    that ranks die of."""

    def __init__(self, stream: IO[str] | None):
        self._lines: deque[str] = deque(maxlen=400)
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str] | None) -> None:
        for line in stream or ():
            self._lines.append(line)

    def text(self) -> str:
        """All that is known, once the rank has ended; a child of it may still hold the pipe."""
        self._thread.join(2.0)
        return "".join(list(self._lines))[-20_000:].strip()


def _last(said: str) -> str:
    return re.sub(r"^rank \d+: ", "", said.splitlines()[-1])


def _watch(ranks: list[subprocess.Popen[str]], errors: list[_Said], on_line: Callable[[str], None]) -> None:
    reader = threading.Thread(target=_forward_lines, args=(ranks[0].stdout, on_line), daemon=True)
    reader.start()
    with _pass_on_signals(ranks) as signals:
        asked = signals.asked
        while True:
            codes = [process.poll() for process in ranks]
            if all(code == 0 for code in codes):
                reader.join(KILL_AFTER_SECONDS)
                return
            if any(code not in (None, 0) for code in codes):
                break
            if asked and time.monotonic() - asked[0] > PREEMPTION_SECONDS:
                raise RankFailed(0, -signal.SIGKILL, f"not saved within {PREEMPTION_SECONDS:.0f} s of the signal")
            time.sleep(0.05)
        deadline = time.monotonic() + KILL_AFTER_SECONDS  # the others may be about to say the real cause
        while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
            time.sleep(0.05)
    reader.join(0.5)
    codes = [process.poll() for process in ranks]
    asked_to = (None, 0, ExitCode.PREEMPTED, ExitCode.INTERRUPTED, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGINT)
    if signals.interrupted and all(code in asked_to for code in codes):
        saved = [line for error in errors if (line := error.text()).endswith("to go on")]
        on_line(_last(saved[0]) if saved else "asked to stop before the first step")
        raise KeyboardInterrupt
    if asked and all(code in asked_to for code in codes) and ExitCode.PREEMPTED not in codes:
        raise Preempted("asked to stop before the first step; run the same command again")
    _raise(codes, errors)


def _raise(codes: Sequence[int | None], errors: Sequence[_Said]) -> None:
    """Raise what the failing ranks mean; a peer's lost connection never hides the first cause."""

    def said(rank: int) -> str:
        return errors[rank].text()

    failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0)]
    for rank, code in failed:
        if code == ExitCode.USER_ERROR:
            raise UserError(_last(said(rank)) if said(rank) else "refused")
    if failed and all(code == ExitCode.PREEMPTED for _, code in failed):
        raise Preempted(_last(said(failed[0][0])))
    connection_lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    causes = [pair for pair in failed if not any(text in said(pair[0]) for text in connection_lost)]
    rank, code = (causes or failed)[0]
    assert code is not None
    if (text := said(rank)) and text.splitlines()[-1].startswith(f"rank {rank}: "):
        raise OpenMathError(_last(text))  # it knew what was wrong
    raise RankFailed(rank, code, said(rank))


def _forward_lines(stream: IO[str] | None, on_line: Callable[[str], None]) -> None:
    if stream is not None:
        for line in stream:
            on_line(line.rstrip("\n"))


class _pass_on_signals:
    """SIGTERM and SIGUSR1 of this process go to all ranks; records when the first came. Ctrl-C goes there as SIGTERM:
    the ranks save and leave; a second one ends all at once. Main thread only."""

    def __init__(self, ranks: Sequence[subprocess.Popen[str]]):
        self.ranks, self.asked, self.interrupted = ranks, list[float](), False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _pass_on_signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self.before[number] = signal.signal(number, self._pass_on)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, _number: int, _frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print("stopping: the ranks save after this step; Ctrl-C again ends at once", file=sys.stderr, flush=True)
        self._pass_on(signal.SIGTERM, None)

    def _pass_on(self, number: int, _frame: Any) -> None:
        self.asked.append(time.monotonic())
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _kill(ranks: Sequence[subprocess.Popen[str]]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.kill()
    for process in ranks:
        process.wait()
