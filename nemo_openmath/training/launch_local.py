"""Starts the ranks of a training on one machine and watches them: ``run_local(2, "job.yaml")``.

One rank's death takes all down, with that rank's traceback; so does the parent's. SIGTERM and SIGUSR1 are passed on,
so a preempted job saves and exits with ``ExitCode.PREEMPTED``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nemo_openmath.errors import ExitCode, OpenMathError, Preempted, UserError
from nemo_openmath.pipeline.processes import killed_with_parent
from nemo_openmath.training.run import check_job, read_job

KILL_AFTER_SECONDS = 5.0  # between the first rank's death and the killing of the others
# Huge pages for what runtime.keep_freed_memory keeps; glibc reads it before a program starts, so that under another
# launcher it is the user's to set.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PREEMPTION_SECONDS = 600.0  # for saving after SIGTERM before ranks are killed


class RankFailed(OpenMathError):
    """A rank died; the message ends with what it wrote last."""

    def __init__(self, rank: int, code: int, said: str):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        super().__init__(f"rank {rank} died ({how}); it said:\n{said}")
        self.rank, self.code = rank, code


def run_local(
    processes: int,
    job: str | Path,
    *,
    overrides: Sequence[str] = (),
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> None:
    """Run a training job (:class:`nemo_openmath.training.config.Job` file) in ``processes`` ranks; returns when done.

    ``on_line`` gets rank 0's progress lines. Raises what the first failing rank meant: :class:`UserError`,
    :class:`Preempted`, or :class:`RankFailed` with its traceback.
    """
    if processes < 1:
        raise UserError(f"{processes} processes", remedy="start 1 or more")
    check_job(read_job(job, list(overrides)), processes)
    command = [sys.executable, "-m", "nemo_openmath.training.run", str(job), *overrides]
    spawn(processes, command, threads=threads, environment=environment, on_line=on_line)


def spawn(
    processes: int,
    command: Sequence[str],
    *,
    threads: int = 1,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
) -> None:
    """Run ``command`` once per rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; see :func:`run_local`."""
    base = {**HUGE_PAGES, **os.environ, **(environment or {})}
    base |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(threads)}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "PYTHONUNBUFFERED": "1"}
    base.setdefault("GLOO_SOCKET_IFNAME", "lo")
    base.setdefault("MKL_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="openmath-ranks-") as scratch:
        errors = [Path(scratch) / f"rank-{rank}.stderr" for rank in range(processes)]
        ranks: list[subprocess.Popen[str]] = []
        try:
            for rank, error in enumerate(errors):
                with error.open("w") as file:
                    ranks.append(
                        subprocess.Popen(
                            command,
                            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                            stderr=file,
                            text=True,
                            preexec_fn=killed_with_parent(),
                        )
                    )
            _watch(ranks, errors, on_line)
        finally:
            _kill(ranks)


def _watch(ranks: list[subprocess.Popen[str]], errors: list[Path], on_line: Callable[[str], None]) -> None:
    reader = threading.Thread(target=_forward_lines, args=(ranks[0].stdout, on_line), daemon=True)
    reader.start()
    with _pass_on_signals(ranks) as asked:
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
    asked_to = (None, 0, ExitCode.PREEMPTED, -signal.SIGTERM, -signal.SIGUSR1)
    if asked and all(code in asked_to for code in codes) and ExitCode.PREEMPTED not in codes:
        raise Preempted("asked to stop before the first step; run the same command again")
    _raise(codes, errors)


def _raise(codes: Sequence[int | None], errors: Sequence[Path]) -> None:
    """Raise what the failing ranks mean; a peer's lost connection never hides the first cause."""

    def said(rank: int) -> str:
        return errors[rank].read_text(errors="replace")[-20_000:].strip()

    failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0)]
    for rank, code in failed:
        if code == ExitCode.USER_ERROR:
            raise UserError(said(rank).splitlines()[-1].removeprefix(f"rank {rank}: ") if said(rank) else "refused")
    if failed and all(code == ExitCode.PREEMPTED for _, code in failed):
        raise Preempted(said(failed[0][0]).splitlines()[-1].removeprefix(f"rank {failed[0][0]}: "))
    connection_lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    causes = [pair for pair in failed if not any(text in said(pair[0]) for text in connection_lost)]
    rank, code = (causes or failed)[0]
    assert code is not None
    raise RankFailed(rank, code, said(rank))


def _forward_lines(stream: IO[str] | None, on_line: Callable[[str], None]) -> None:
    if stream is not None:
        for line in stream:
            on_line(line.rstrip("\n"))


class _pass_on_signals:
    """SIGTERM and SIGUSR1 of this process go to all ranks; records when the first came. Main thread only."""

    def __init__(self, ranks: Sequence[subprocess.Popen[str]]):
        self.ranks, self.asked = ranks, list[float]()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> list[float]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self.before[number] = signal.signal(number, self._pass_on)
        return self.asked

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
