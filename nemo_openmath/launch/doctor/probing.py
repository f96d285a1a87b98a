"""Probes run side by side, each in a process of its own: one that hangs or crashes takes nothing else with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import orjson

from nemo_openmath.core.processes import killed_with
from nemo_openmath.launch.doctor.finding import Colour, Finding
from nemo_openmath.launch.doctor.system import System


@dataclass(frozen=True, slots=True)
class Probe:
    """Looks at one thing. ``remedy``: what to do where it hangs or crashes."""

    group: str
    name: str
    look: Callable[[System], Iterable[Finding]]
    limit_s: float = 8.0
    remedy: str = "look at what it names by hand"


def run_probes(probes: Sequence[Probe], system: System) -> list[Finding]:
    """Run all probes and return their findings in the order of the probes.

    A probe that takes longer than its limit is red, and so is one that crashes. No probe is waited for longer: one that
    is stuck in the kernel, such as on a file system that is gone, is left behind.
    """
    running = [_Running(probe, system) for probe in probes]
    with selectors.DefaultSelector() as selector:
        for process in running:
            selector.register(process.pipe, selectors.EVENT_READ, process)
        while selector.get_map():
            nearest = min(key.data.deadline for key in selector.get_map().values())
            for key, _ in selector.select(max(0.0, nearest - time.monotonic())):
                if not key.data.read():
                    selector.unregister(key.fileobj)
            for key in list(selector.get_map().values()):
                if time.monotonic() >= key.data.deadline:
                    key.data.kill()
                    selector.unregister(key.fileobj)
    return [finding for process in running for finding in process.findings()]


class _Running:
    """The process of a probe."""

    def __init__(self, probe: Probe, system: System):
        self.probe, self.deadline = probe, time.monotonic() + probe.limit_s
        self._data, self._late = b"", False
        self.pipe, end = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _look(probe, system, end, parent)
        os.close(end)

    def read(self) -> bool:
        """Read what is there; False at the end."""
        data = os.read(self.pipe, 1 << 16)
        self._data += data
        return bool(data)

    def kill(self) -> None:
        """Kill the process and what it has started."""
        self._late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def findings(self) -> list[Finding]:
        """Return what the probe has found, or how it ended."""
        os.close(self.pipe)
        if self._late:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, os.WNOHANG)
            return [self._red(f"no answer within {self.probe.limit_s:g} s")]
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            return [self._red(f"the probe was ended by {signal.Signals(os.WTERMSIG(status)).name}")]
        try:
            answer = orjson.loads(self._data)
        except ValueError:
            return [self._red("the probe ended without an answer")]
        if isinstance(answer, dict):
            return [self._red(answer["error"])]
        return [Finding(**{**row, "colour": Colour(row["colour"])}) for row in answer]

    def _red(self, text: str) -> Finding:
        return Finding(self.probe.group, self.probe.name, Colour.RED, text, self.probe.remedy)


def _look(probe: Probe, system: System, pipe: int, parent: int) -> None:
    """Be the process of a probe."""
    try:
        os.setsid()
        killed_with(parent)
        pipe = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 3)  # who was started without standard input has a pipe 0
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # what libraries print there is no part of the report
            os.dup2(null, descriptor)
        answer: object = [asdict(finding) for finding in probe.look(system)]
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    try:
        with os.fdopen(pipe, "wb") as file:
            file.write(orjson.dumps(answer))
    finally:
        os._exit(0)
