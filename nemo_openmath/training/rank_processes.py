"""The ranks of one machine as processes: their output, their deaths, and the signals that are passed on to them."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nemo_openmath.core.errors import ExitCode, Hung, MachineFailure, OpenMathError, Preempted, UserError
from nemo_openmath.training.failures import LOST_PEER

KILL_AFTER_SECONDS = 5.0  # between the first rank's death and the killing of the others
PREEMPTION_SECONDS = 600.0  # for saving after SIGTERM before ranks are killed
log = logging.getLogger(__name__)


class RankFailed(OpenMathError):
    """A rank died. The message is one line and ends with the last line that the rank wrote to its standard error;
    ``stderr`` has all of them."""

    def __init__(self, rank: int, code: int, stderr: str):
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = stderr.splitlines()[-1].strip() if stderr else _SILENT.get(code, "it said nothing")
        super().__init__(f"rank {rank} died ({how}): {last}")
        self.rank, self.code, self.stderr = rank, code, stderr


_SILENT = {
    -signal.SIGKILL: "killed from outside; often the machine was out of memory (see dmesg)",
    -signal.SIGBUS: "a file in use was cut, or /dev/shm is full",
}


class RankProcess:
    """A rank's process, and the last lines that it wrote to its standard error. They are read as they come and held in
    memory, for a full disk is a thing that ranks die of."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process
        self._lines: deque[str] = deque(maxlen=400)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self._lines.append(line)

    @property
    def code(self) -> int | None:
        """Return the exit code; None while the process runs."""
        return self.process.poll()

    def stderr(self) -> str:
        """Return all that is known, once the rank has ended; a child of it may still hold the pipe."""
        self._reader.join(2.0)
        return "".join(list(self._lines))[-20_000:].strip()

    def last_line(self) -> str:
        """Return the last line of :meth:`stderr`, without the rank's name; empty where there is none."""
        lines = self.stderr().splitlines()
        return re.sub(r"^rank \d+: ", "", lines[-1]) if lines else ""


def watch(ranks: Sequence[RankProcess], on_line: Callable[[str], None]) -> None:
    """Wait until all ranks have ended well; ``on_line`` gets rank 0's lines. Raises what the first failing rank meant:
    see :func:`nemo_openmath.training.launch.launch`."""
    lines = threading.Thread(target=_forward_lines, args=(ranks[0].process, on_line), daemon=True)
    lines.start()
    with _SignalsToRanks(ranks) as signals:
        while not any(rank.code not in (None, 0) for rank in ranks):
            if all(rank.code == 0 for rank in ranks):
                lines.join(KILL_AFTER_SECONDS)
                return
            if signals.asked_at is not None and time.monotonic() - signals.asked_at > PREEMPTION_SECONDS:
                raise RankFailed(0, -signal.SIGKILL, f"not saved within {PREEMPTION_SECONDS:.0f} s of the signal")
            time.sleep(0.05)
        deadline = time.monotonic() + KILL_AFTER_SECONDS  # the others may be about to say the real cause
        while time.monotonic() < deadline and any(rank.code is None for rank in ranks):
            time.sleep(0.05)
    lines.join(0.5)
    _raise_stop(ranks, signals, on_line)
    _raise_failure(ranks)


_ASKED_TO = (None, 0, ExitCode.PREEMPTED, ExitCode.INTERRUPTED, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGINT)


def _raise_stop(ranks: Sequence[RankProcess], signals: _SignalsToRanks, on_line: Callable[[str], None]) -> None:
    """Raise KeyboardInterrupt or Preempted where the ranks ended because they were asked to, by a signal."""
    if signals.asked_at is None or not all(rank.code in _ASKED_TO for rank in ranks):
        return
    if signals.interrupted:
        saved = [line for rank in ranks if (line := rank.last_line()).endswith("to go on")]
        on_line(saved[0] if saved else "asked to stop before the first step")
        raise KeyboardInterrupt
    if not any(rank.code == ExitCode.PREEMPTED for rank in ranks):
        raise Preempted("asked to stop before the first step; run the same command again")


def _raise_failure(ranks: Sequence[RankProcess]) -> None:
    """Raise what the failing ranks mean; a peer's lost connection never hides the first cause."""
    failed = [(number, rank) for number, rank in enumerate(ranks) if rank.code not in (None, 0)]
    for _, rank in failed:
        if rank.code == ExitCode.USER_ERROR:
            raise UserError(rank.last_line() or "refused")
    hung = [(number, rank) for number, rank in failed if rank.code == ExitCode.HUNG]
    if hung:  # what the others did follows from it
        raise Hung(next((line for _, rank in hung if "suspected" in (line := rank.last_line())), _hung_alone(*hung[0])))
    if failed and all(rank.code == ExitCode.PREEMPTED for _, rank in failed):
        raise Preempted(failed[0][1].last_line())
    causes = [pair for pair in failed if not any(text in pair[1].stderr() for text in LOST_PEER)]
    number, rank = (causes or failed)[0]
    assert rank.code is not None
    text = rank.stderr()
    if text and text.splitlines()[-1].startswith(f"rank {number}: "):
        kind = MachineFailure if rank.code == ExitCode.MACHINE else OpenMathError
        raise kind(rank.last_line())  # it knew what was wrong
    raise RankFailed(number, rank.code, text)


def _hung_alone(number: int, rank: RankProcess) -> str:
    """What is known of a rank that a timer ended: its watch could not run either."""
    last = rank.last_line()
    return last if last.startswith("hung") else f"rank {number} hung, and was ended by its timer; its last line: {last}"


def _forward_lines(process: subprocess.Popen[str], on_line: Callable[[str], None]) -> None:
    for line in process.stdout or ():
        on_line(line.rstrip("\n"))


class _SignalsToRanks:
    """Passes SIGTERM and SIGUSR1 of this process on to all ranks, and remembers when the first came. Ctrl-C goes there
    as SIGTERM: the ranks save and leave; a second one ends all at once. Does nothing outside the main thread."""

    def __init__(self, ranks: Sequence[RankProcess]):
        self.ranks, self.interrupted = ranks, False
        self.asked_at: float | None = None  # monotonic seconds
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _SignalsToRanks:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._pass_on)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, _number: int, _frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        log.warning("stopping: the ranks save after this step; Ctrl-C again ends at once")
        self._pass_on(signal.SIGTERM, None)

    def _pass_on(self, number: int, _frame: Any) -> None:
        self.asked_at = self.asked_at or time.monotonic()
        for rank in self.ranks:
            if rank.code is None:
                rank.process.send_signal(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def kill(ranks: Sequence[RankProcess]) -> None:
    """Kill the ranks that still run, and wait for all."""
    for rank in ranks:
        if rank.code is None:
            rank.process.kill()
    for rank in ranks:
        rank.process.wait()
