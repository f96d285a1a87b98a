"""Settings of the sandbox service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.sandbox import Limits
from nemo_openmath.sandbox.local import DEFAULT_PACKAGES

MOST = Limits(600.0, 600.0, 16_384, 1_000_000, 0, 256, 1024, 4096)
"""The largest limits that a client may ask for, where the service does not say others."""

TOKEN_ENV = "OPENMATH_SANDBOX_TOKEN"


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of the sandbox service."""

    host: str = "127.0.0.1"
    port: int = 8700
    """0 takes a free one."""
    socket: Path | None = None
    """Path of a unix socket, to which its owner alone may connect. Then there is no port."""
    token_env: str = TOKEN_ENV
    """Name of the environment variable with the bearer token. That of the default may be missing on loopback and on a
    unix socket."""
    workers: int | None = None
    """Executions at the same time; None: the processors."""
    queue: int = 1024
    """How many more executions may wait."""
    sessions: int = 1024
    """Live sessions at most."""
    idle_s: float = 600.0
    """Seconds after which an unused session ends."""
    drain_s: float = 30.0
    """Seconds for what runs at SIGTERM."""
    packages: Sequence[str] = DEFAULT_PACKAGES
    """Imported beforehand, and besides the standard library the only ones there are."""
    unsafe: bool = False
    """Whether to run even where a required wall is missing. Every result then says so."""
    most: Limits = MOST
    """The largest limits that a client may ask for."""

    def __post_init__(self) -> None:
        for name in ("workers", "sessions", "idle_s"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"{name}={value}", remedy="use a positive number")
        for name in ("queue", "drain_s"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}", remedy="use 0 or more")
