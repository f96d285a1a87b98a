"""What goes over the wire: the JSON bodies of requests and answers. Results are `protocol.Execution` as it is."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from nemo_openmath.core.sandbox import Limits

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@checked(config=_CONFIG, frozen=True)
class NewSession:
    """``limits``: the session's defaults; those left out are the sandbox's."""

    limits: Limits | None = None


@checked(config=_CONFIG, frozen=True)
class NewExecution:
    """``number``: grows from block to block of a session. The same number again returns the first result."""

    number: int
    code: str
    limits: Limits | None = None


@checked(config=_CONFIG, frozen=True)
class NewReset:
    """``number``: from the same count as the session's executions."""

    number: int


@dataclass(frozen=True)
class SessionState:
    """A session and its default limits."""

    session: str
    limits: Limits


@dataclass(frozen=True)
class Description:
    """``most``: the largest limits a client may ask for. ``walls``: layers around the sessions. ``unsafe``: a required
    wall is missing, by request of whoever started the service."""

    version: str
    walls: tuple[str, ...]
    unsafe: bool
    workers: int
    sessions: int
    most: Limits


@dataclass(frozen=True)
class Health:
    """``status``: ok, draining or unhealthy (the zygote is being replaced)."""

    status: str
    sessions: int
    executions: int


@dataclass(frozen=True)
class Failure:
    """``reason``: a word for programs. ``retry_after_s``: set where the same request may succeed later."""

    error: str
    reason: str
    retry_after_s: float | None = None
