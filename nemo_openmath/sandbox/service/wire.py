"""What goes over the wire: the JSON bodies of requests and answers. Results are `protocol.Execution` as it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import orjson

from nemo_openmath.core.build import Builder, Origin
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.sandbox import Limits

T = TypeVar("T")


def parse(kind: type[T], body: bytes, *, ignore_unknown: bool = False) -> T:
    """Return the dataclass ``kind`` that a JSON body describes.

    ``ignore_unknown`` leaves out fields that ``kind`` does not have, as a newer service may send them. Raises UserError
    that names the field.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UserError(f"body: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError("body: expected a JSON object")
    if ignore_unknown:
        names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        value = {name: entry for name, entry in value.items() if name in names}
    origin = Origin("body")
    return Builder(lambda key: origin).build(kind, value)


@dataclass(frozen=True)
class NewSession:
    """A request for a session. ``limits``: its defaults; those left out are the sandbox's."""

    limits: Limits | None = None


@dataclass(frozen=True)
class NewExecution:
    """A request to run a block of code."""

    number: int
    """Grows from block to block of a session. The same number again returns the first result."""
    code: str
    limits: Limits | None = None


@dataclass(frozen=True)
class NewReset:
    """A request to forget all variables and files. ``number``: from the same count as the session's executions."""

    number: int


@dataclass(frozen=True)
class SessionState:
    """A session and its default limits."""

    session: str
    limits: Limits


@dataclass(frozen=True)
class Description:
    """What the service is and grants."""

    version: str
    walls: tuple[str, ...]
    """Layers around the sessions."""
    unsafe: bool
    """Whether a required wall is missing, by request of whoever started the service."""
    workers: int
    sessions: int
    most: Limits
    """The largest limits that a client may ask for."""


@dataclass(frozen=True)
class Health:
    """How the service is."""

    status: str
    """ok, draining, or unhealthy (the zygote is being replaced)."""
    sessions: int
    executions: int


@dataclass(frozen=True)
class Failure:
    """Why a request failed."""

    error: str
    reason: str
    """A word for programs."""
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed; None where that is in vain."""
