"""Addresses to listen on, checked before anything slow begins, the names by which a server is asked, and a server."""

from __future__ import annotations

import errno
import ipaddress
import random
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nemo_openmath.core.errors import UserError

if TYPE_CHECKING:  # addresses are checked by commands that serve nothing over HTTP
    from aiohttp import web


def check_address(host: str, port: int) -> None:
    """Raise UserError, with the reason, where no server could listen on ``host`` and ``port`` (0: any free one)."""
    if not 0 <= port <= 65535:
        raise UserError(f"port {port} is out of range", remedy="choose one from 1 to 65535, or 0 for a free one")
    try:
        family, kind, address = _resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host {host!r} is not known ({error})", remedy="use 127.0.0.1, or 0.0.0.0 for all") from error
    with socket.socket(family, kind) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(address)
            s.listen(1)
        except OSError as error:
            raise _refusal(error, host, port) from error


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, socket.SocketKind, Any]:
    """Return (family, kind, address) of a socket that listens there; an empty host means all addresses."""
    entries = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = entries[0]
    return family, kind, address


def _refusal(error: OSError, host: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"port {port} of {host} is in use by another program", remedy="choose another, or 0: a free one"
        )
    if error.errno == errno.EACCES:
        return UserError(f"port {port} may not be used by this user", remedy="choose one above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"{host} is no address of this machine", remedy="use 127.0.0.1, or 0.0.0.0 for all it has")
    return UserError(f"cannot listen on {host}:{port} ({error.strerror})", remedy="choose another")


def free_port(host: str) -> int:
    """Return a port of ``host`` that is free at the moment, and likely to stay so until somebody listens on it.

    It lies below the ports that the system gives to outgoing connections: one of those may be taken at any moment, and
    a process that loads torch needs seconds before it listens.
    """
    below = _first_port_of_connections()
    for port in [random.SystemRandom().randrange(max(1024, below - 16384), below) for _ in range(64)]:
        try:
            check_address(host, port)
        except UserError:
            continue
        return port
    family, kind, address = _resolve(host, 0)
    with socket.socket(family, kind) as s:
        s.bind(address)
        return int(s.getsockname()[1])


def _first_port_of_connections() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768
    return first if first > 2048 else 32768


EVERYWHERE = ("", "0.0.0.0", "::")  # hosts that stand for all addresses of a machine
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class HostNames:
    """The names by which a server may be asked: any address, ``localhost``, the machine's own names, and those that its
    user allows.

    A page of the web can make a name of its own point to this machine ("DNS rebinding"), and a browser would let it
    read what this server says. It cannot make the browser ask under an address, or under a name that is not its own.
    """

    names: frozenset[str]

    @classmethod
    def of(cls, host: str, allowed: Sequence[str] = ()) -> HostNames:
        """Return the names of a server that listens on ``host``. Raises UserError where one that is ``allowed`` is no
        name of a host."""
        for name in allowed:
            if not _NAME.fullmatch(name):
                remedy = "write the name alone, without http:// and port, such as login-node.example.org"
                raise UserError(f"--allow-host {name!r} is no name of a host", remedy=remedy)
        names = {"localhost", host, *allowed}
        if not _is_loopback(host):  # asking for the full name may take a while, and nobody else comes by it
            names |= machine_names()
        return cls(frozenset(name.lower().rstrip(".") for name in names if name))

    def allow(self, header: str) -> bool:
        """Return whether a request with this ``Host`` header may be answered."""
        name = header if header.endswith("]") else header.rsplit(":", 1)[0]
        name = name.strip("[]").lower().rstrip(".")
        return name in self.names or _is_address(name)

    def refusal(self, header: str) -> str:
        """Return what is said to a request under a foreign name."""
        name = header.rsplit(":", 1)[0]
        known = _NAME.fullmatch(name) is not None
        remedy = f"; if it is yours, start it with --allow-host {name}" if known else ""
        return f"this server does not go by that name{remedy}\n"


def machine_names() -> set[str]:
    """Return the names of this machine: as it calls itself, the full name, and the first word of either."""
    names = {socket.gethostname(), socket.getfqdn()}
    return names | {name.partition(".")[0] for name in names if not _is_address(name)}


def shown_host(host: str) -> str:
    """Return what stands for a host in an address that others open: the machine's name where it is all addresses."""
    if host in EVERYWHERE:
        return socket.gethostname()
    return in_url(host)


def in_url(host: str) -> str:
    """Return a host as URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class HttpServer(ABC):
    """A server of the application that a subclass makes: it listens while ``async with`` lasts, or from ``start`` to
    ``close``.

    ``port``: 0 takes a free one; it is the one that was taken from ``start`` on.
    """

    cancels_handlers = True
    """Whether what answers a client that goes away is cancelled."""

    def __init__(self, host: str, port: int):
        self.host, self.port = host, port
        self._runner: web.AppRunner | None = None

    @abstractmethod
    def app(self) -> web.Application:
        """Return the application alone, for those who run it in a server of their own, with handler cancellation as
        here."""

    async def start(self) -> Self:
        """Listen. Raises UserError where that cannot be."""
        from aiohttp import web

        check_address(self.host, self.port)
        self._runner = web.AppRunner(
            self.app(), handler_cancellation=self.cancels_handlers, access_log=None, shutdown_timeout=1.0
        )
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, self.host, self.port).start()
        except BaseException:
            await self.close()
            raise
        self.port = self._runner.addresses[0][1]
        return self

    async def close(self) -> None:
        """Stop serving. A second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
