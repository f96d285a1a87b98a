"""The protocol of the sandbox: sessions that run a model's Python and give it nothing else.

Never a privilege, never the network, never a file of the host. A session keeps its variables from block to block.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from nemo_openmath.core.errors import RetryableError


class Status(StrEnum):
    """How one execution ended."""

    COMPLETED = "completed"
    ERROR = "error"  # the code raised
    TIMEOUT = "timeout"
    MEMORY = "memory"
    KILLED = "killed"  # the session's process died (by its own hand, or a forbidden system call)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one execution (``wall_s``, ``cpu_s``, ``output_chars``) and of its session (the others)."""

    wall_s: float = 10.0
    """Seconds of wall time."""
    cpu_s: float = 10.0
    """Seconds of processor time."""
    memory_mb: int = 1024
    """Memory in MiB."""
    output_chars: int = 20_000
    """Characters of output that are kept."""
    processes: int = 0
    """Child processes. Threads are bounded separately."""
    threads: int = 16
    open_files: int = 64
    file_mb: int = 64
    """Size of a written file in MiB."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What one block of code left."""

    status: Status
    stdout: str
    """What was printed and, as in a notebook, the value of the last expression."""
    stderr: str
    """The traceback, shortened to the user's code."""
    duration_s: float
    truncated: bool = False
    """Whether output was cut, with a visible note."""
    state_lost: bool = False
    """Whether the variables of earlier blocks are gone."""
    unsafe: bool = False
    """Whether the code ran without a required wall, by request."""

    @property
    def output(self) -> str:
        """What the model sees: stdout, then stderr."""
        if self.stdout and self.stderr and not self.stdout.endswith("\n"):
            return f"{self.stdout}\n{self.stderr}"
        return self.stdout + self.stderr


class Session(Protocol):
    """One interpreter. It runs one execution at a time."""

    async def execute(self, code: str, limits: Limits | None = None) -> Execution:
        """Run a block. Cancelling the awaiting task kills what runs.

        Raises SandboxError only where the sandbox itself failed: whatever the code does is a result.
        """
        ...

    async def reset(self) -> None:
        """Forget all variables and files."""
        ...

    async def close(self) -> None:
        """Kill the session and remove its folder. A second call does nothing."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Sandbox(Protocol):
    """Opens sessions. All rollouts of a process share it."""

    async def session(self, limits: Limits | None = None) -> Session:
        """Open a session with these default limits. Waits for a free place where the sandbox is full."""
        ...

    async def close(self) -> None:
        """End every session and worker."""
        ...


class SandboxError(RetryableError):
    """Raised where the sandbox failed, not the code in it."""
