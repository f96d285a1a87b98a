"""The solver over HTTP.

    POST /solve     {problem, seconds?, id?} -> {id, answer, votes, finished, reason, seconds, allowed, bank, ...}
                    with Accept: text/event-stream the events waiting, begun, solution_begun, solution_ended, decision,
                    and answer or error at the end
    GET  /          a live page
    GET  /state     what it shows
    GET  /healthz

One question is solved at a time, in order. A client that goes away gives its question up, in the queue or while it is
solved. There is no authentication: whoever reaches the port may ask.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from aiohttp import web

from nemo_openmath.competition.serving.opening import SolveServiceSettings, open_service
from nemo_openmath.competition.serving.page import CSS, HTML, JS, POLICY
from nemo_openmath.competition.serving.service import QueueFull, SolveService
from nemo_openmath.core.listening import HostNames, HttpServer, shown_host

log = logging.getLogger(__name__)

MOST_CHARS = 100_000  # of a problem
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class BadQuestion(ValueError):
    """What was posted is no question."""


def read_question(data: bytes) -> dict[str, Any]:
    """Return {problem, seconds, question} of a body. Raises BadQuestion: a field that is not known is refused."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadQuestion(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadQuestion("the body is no object; post {problem, seconds, id}")
    if unknown := sorted(set(body) - {"problem", "seconds", "id"}):
        raise BadQuestion(f"{unknown[0]!r} is not known; post problem, and where wanted seconds and id")
    problem, seconds, question = body.get("problem"), body.get("seconds"), body.get("id", "")
    if not isinstance(problem, str) or not problem.strip() or len(problem) > MOST_CHARS:
        raise BadQuestion(f"problem: give a text of 1 to {MOST_CHARS:,} characters")
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and math.isfinite(seconds) and seconds > 0):
        raise BadQuestion("seconds: give a number above 0, or leave it out")
    if not isinstance(question, str | int) or len(str(question)) > 200:
        raise BadQuestion("id: give a text of at most 200 characters")
    return {"problem": problem, "seconds": seconds, "question": str(question)}


class SolveServer(HttpServer):
    """A service behind HTTP: ``async with SolveServer(service) as server: .. server.url``. Port 0 takes a free one.

    ``allowed``: names of this server beside those of the machine.
    """

    def __init__(self, service: SolveService, *, host: str = "127.0.0.1", port: int = 0, allowed: Sequence[str] = ()):
        super().__init__(host, port)
        self.service = service
        self._names = HostNames.of(host, allowed)

    @property
    def url(self) -> str:
        return f"http://{shown_host(self.host)}:{self.port}"

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 20, middlewares=[self._guard])
        app.router.add_post("/solve", self._solve)
        app.router.add_get("/state", self._state)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/", _page(HTML, "text/html"))
        app.router.add_get("/page.js", _page(JS, "text/javascript"))
        app.router.add_get("/page.css", _page(CSS, "text/css"))
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse requests under a foreign name."""
        if not self._names.allow(request.host):
            return _json({"error": self._names.refusal(request.host).strip()}, 421)
        return await handler(request)

    async def _state(self, _: web.Request) -> web.Response:
        return _json(self.service.state())

    async def _health(self, _: web.Request) -> web.Response:
        alive = bool(getattr(self.service.solver.means.engine, "alive", True))
        return _json({"status": "ok" if alive else "engine stopped"}, 200 if alive else 503)

    async def _solve(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":  # a page of another site cannot send this without asking first
            return _json({"error": "post it as Content-Type: application/json"}, 415)
        try:
            asked = read_question(await request.read())
        except BadQuestion as error:
            return _json({"error": str(error)}, 400)
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await self._stream(request, asked)
        try:
            return _json(await self.service.solve(**asked))
        except QueueFull as error:
            return _json({"error": f"{error}; ask again later"}, 503)
        except Exception as error:
            log.exception("a question was lost")
            return _json({"error": f"the solver failed: {error}"}, 500)

    async def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        events: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        work = asyncio.ensure_future(
            self.service.solve(**asked, on_message=lambda name, body: events.put_nowait((name, body)))
        )
        work.add_done_callback(lambda _: events.put_nowait(None))
        response = web.StreamResponse(headers=_HEADERS | {"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            while (event := await events.get()) is not None:
                await response.write(_event(*event))
            await response.write(_last(work))
            await response.write_eof()
        except ConnectionError:
            log.info("a client went away")
        finally:
            work.cancel()
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()
        return response


async def serve(settings: SolveServiceSettings, host: str, port: int, allowed: Sequence[str] = ()) -> None:
    """Open a service and serve it until this is cancelled."""
    async with open_service(settings) as service, SolveServer(service, host=host, port=port, allowed=allowed) as server:
        print(f"serving at {server.url}; Ctrl-C ends it", flush=True)
        await asyncio.Event().wait()


def _last(work: asyncio.Future[dict[str, Any]]) -> bytes:
    error = work.exception()
    if error is None:
        return _event("answer", work.result())
    return _event("error", {"error": str(error) if isinstance(error, QueueFull) else f"the solver failed: {error}"})


def _event(name: str, body: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(body)}\n\n".encode()


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=_HEADERS, content_type="application/json")


def _page(text: str, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def give(_: web.Request) -> web.Response:
        return web.Response(text=text, headers=_HEADERS, content_type=kind)

    return give
