"""HTTP servers on a port of loopback, for tests of what talks to one."""

from __future__ import annotations

from typing import Self

from aiohttp import web


class LoopbackServer:
    """Serves ``routes`` at ``url`` while ``async with`` lasts, or from ``start`` to ``die``.

    ``port``: 0 takes a free one. ``cancel_handlers``: what answers a client that hangs up is cancelled."""

    def __init__(self, *routes: web.RouteDef, port: int = 0, cancel_handlers: bool = False):
        self._routes, self.port, self._cancel_handlers = routes, port, cancel_handlers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> Self:
        application = web.Application()
        application.add_routes(self._routes)
        self._runner = web.AppRunner(application, shutdown_timeout=0.05, handler_cancellation=self._cancel_handlers)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def die(self) -> None:
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.die()
