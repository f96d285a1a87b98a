"""Addresses to listen on, checked before anything slow begins."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError


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
