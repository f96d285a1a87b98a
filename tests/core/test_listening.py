"""Ports to listen on."""

from __future__ import annotations

import socket
from pathlib import Path

from nemo_openmath.core.listening import free_port


def test_a_free_port_is_none_that_a_connection_may_be_given() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {free_port("127.0.0.1") for _ in range(20)}
    assert len(ports) > 10
    assert not any(first <= port <= last for port in ports)
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
