"""Ports to listen on, and names to be asked by."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from nemo_openmath.core import listening
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.listening import HostNames, HttpServer, free_port, shown_host


def test_a_free_port_is_none_that_a_connection_may_be_given() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {free_port("127.0.0.1") for _ in range(20)}
    assert len(ports) > 10
    assert not any(first <= port <= last for port in ports)
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_a_server_is_asked_by_its_own_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening.socket, "gethostname", lambda: "Login-Node")
    monkeypatch.setattr(listening.socket, "getfqdn", lambda: "login-node.cluster.example")
    everywhere = HostNames.of("0.0.0.0", ["openmath.example.org"])
    for own in (
        *("login-node:8080", "LOGIN-NODE", "login-node.cluster.example:8080", "login-node.cluster.example."),
        *("localhost:1", "10.0.0.7:8080", "[::1]:8080", "[fe80::1]", "openmath.example.org:443"),
    ):
        assert everywhere.allow(own), own
    for foreign in (
        "evil.example",
        "evil.example:8080",
        "login-node.evil.example",
        "xlogin-node",
        "",
        "10.0.0.7.evil.example",
    ):
        assert not everywhere.allow(foreign), foreign
    assert "--allow-host evil.example" in everywhere.refusal("evil.example:8080")
    assert "<" not in everywhere.refusal("<script>")
    alone = HostNames.of("127.0.0.1")
    assert alone.allow("localhost:8080")
    assert not alone.allow("login-node:8080")
    for wrong in ("http://login-node", "login-node:8080", "*", "", "-x"):
        with pytest.raises(UserError, match="--allow-host"):
            HostNames.of("0.0.0.0", [wrong])
    assert [shown_host(host) for host in ("0.0.0.0", "::", "::1", "127.0.0.1")] == [
        *("Login-Node", "Login-Node", "[::1]", "127.0.0.1"),
    ]


class Greeter(HttpServer):
    def __init__(self, port: int = 0):
        super().__init__("127.0.0.1", port)
        self.closed = 0

    def app(self) -> web.Application:
        async def greet(_: web.Request) -> web.Response:
            return web.Response(text="hello")

        async def note(_: web.Application) -> None:
            self.closed += 1

        app = web.Application()
        app.router.add_get("/", greet)
        app.on_cleanup.append(note)
        return app


async def test_a_server_listens_between_start_and_close_and_leaves_nothing_where_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Greeter() as server, ClientSession() as client:
        async with client.get(f"http://127.0.0.1:{server.port}/") as answer:
            assert await answer.text() == "hello"
        with pytest.raises(UserError, match=f"port {server.port} of 127.0.0.1 is in use"):
            await Greeter(server.port).start()
        late = Greeter(server.port)
        monkeypatch.setattr(listening, "check_address", lambda *_: None)  # somebody takes the port after the look
        with pytest.raises(OSError, match="in use"):
            await late.start()
        assert late.closed == 1
    await server.close()
    assert server.closed == 1
