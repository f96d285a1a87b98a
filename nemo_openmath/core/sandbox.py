"""Contract of the sandbox: sessions that run a model's Python and give it nothing else.

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
    """Bounds of one execution (``wall_s``, ``cpu_s``, ``output_chars``) and of its session (the rest)."""

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_mb: int = 1024
    output_chars: int = 20_000
    processes: int = 0  # child processes; threads are bounded separately
    threads: int = 16
    open_files: int = 64
    file_mb: int = 64


@dataclass(frozen=True, slots=True)
class Execution:
    """Result of one block. ``stdout`` holds prints and, as in a notebook, the value of the last expression;
    ``stderr`` the traceback, shortened to the user's code. ``truncated``: output was cut, with a visible note.
    ``state_lost``: variables of earlier blocks are gone. ``unsafe``: ran without a required wall, by request."""

    status: Status
    stdout: str
    stderr: str
    duration_s: float
    truncated: bool = False
    state_lost: bool = False
    unsafe: bool = False

    @property
    def output(self) -> str:
        """What the model sees: stdout, then stderr."""
        if self.stdout and self.stderr and not self.stdout.endswith("\n"):
            return f"{self.stdout}\n{self.stderr}"
        return self.stdout + self.stderr


class Session(Protocol):
    """One interpreter. Not for concurrent use: one execution at a time."""

    async def execute(self, code: str, limits: Limits | None = None) -> Execution:
        """Run a block. Cancelling the awaiting task kills what runs. Raises SandboxError only when the sandbox
        itself failed; whatever the code does is a result."""
        ...

    async def reset(self) -> None:
        """Forget all variables and files."""
        ...

    async def close(self) -> None:
        """Kill the session and remove its folder. Idempotent."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Sandbox(Protocol):
    """Makes sessions; shared by all rollouts of a process."""

    async def session(self, limits: Limits | None = None) -> Session:
        """A new session with these default limits. Waits for a free place when the sandbox is full."""
        ...

    async def close(self) -> None:
        """End every session and worker."""
        ...


class SandboxError(RetryableError):
    """The sandbox failed, not the code in it."""
