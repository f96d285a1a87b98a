"""The server of the browser: pages that are read only, for whoever has the address with its token.

- No page has a script, and the Content-Security-Policy of every answer allows none: a model's text is hostile.
- Without the token (in the address once, then in a cookie) nothing is shown: others use the machine, too.
- Requests under a foreign host name are refused, so that no page of the web can make its name point here.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlencode

from aiohttp import web

from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.listening import HostNames, HttpServer, shown_host
from nemo_openmath.evaluation.viewer.filters import RowFilter
from nemo_openmath.evaluation.viewer.index import SolutionIndex
from nemo_openmath.evaluation.viewer.pages import Pages, style

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ViewerServer(HttpServer):
    """The browser of an index: ``async with ViewerServer(index, title) as server: .. server.url``.

    - ``port``: 0 takes a free one.
    - ``token``: what an address must have; "" asks for none; None makes one.
    - ``allowed``: names of this server beside those of the machine.
    """

    cancels_handlers = False  # pages are made in threads

    def __init__(
        self,
        index: SolutionIndex,
        title: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        allowed: Sequence[str] = (),
    ):
        super().__init__(host, port)
        self.pages = Pages(index, title)
        self._names = HostNames.of(host, allowed)
        self.token = secrets.token_urlsafe(16) if token is None else token

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{shown_host(self.host)}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def app(self) -> web.Application:
        """Return the application alone."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._home)
        app.router.add_get("/solutions", self._solutions)
        app.router.add_get("/problems", self._problems)
        app.router.add_get("/solution", self._solution)
        app.router.add_get("/compare", self._compare)
        app.router.add_get("/style.css", self._style)
        return app

    # -- pages -----------------------------------------------------------------------------------------------------

    async def _home(self, _: web.Request) -> web.Response:
        return await _page(self.pages.home)

    async def _solutions(self, request: web.Request) -> web.Response:
        chosen = RowFilter.parse(request.query, self.pages.index)
        return await _page(self.pages.solutions, chosen, _page_number(request))

    async def _problems(self, request: web.Request) -> web.Response:
        chosen = RowFilter.parse(request.query, self.pages.index)
        return await _page(self.pages.problems, chosen, _page_number(request), request.query.get("first") != "easy")

    async def _solution(self, request: web.Request) -> web.Response:
        return await _page(self.pages.solution, request.query.get("id", ""), "all" in request.query)

    async def _compare(self, request: web.Request) -> web.Response:
        names = [request.query.get(name, "") for name in ("a", "b")]
        if not all(names):
            raise UserError("two solutions are compared", remedy="choose one of the column A and one of the column B")
        return await _page(self.pages.compare, *names, "all" in request.query)

    async def _style(self, _: web.Request) -> web.Response:
        return web.Response(text=style(), content_type="text/css")

    # -- around every request --------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await self._guarded(request, handler)
        response.headers.update(_HEADERS)
        return response

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._names.allow(request.host):
            return web.Response(status=421, text=self._names.refusal(request.host))
        if self.token and (refused := self._refusal(request)) is not None:
            return refused
        try:
            return await handler(request)
        except web.HTTPException as error:
            return self._error(error.status, error.reason)
        except UserError as error:
            return self._error(404, str(error))
        except (OpenMathError, OSError) as error:
            return self._error(500, str(error))
        except Exception as error:  # a page that fails must not end the browser
            log.exception("a page failed")
            return self._error(500, f"a defect: {type(error).__name__}: {error}")

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        """Return the answer to a request without the token, or to the first one with it: a cookie, and the address
        without the token; None where the request may go on."""
        cookie = f"openmath-view-{self.port}"
        if _same(request.cookies.get(cookie, ""), self.token):
            return None
        if not _same(request.query.get("token", ""), self.token):
            return web.Response(status=403, text="open the address that openmath view printed: it has a token\n")
        rest = urlencode([(name, value) for name, value in request.query.items() if name != "token"])
        answer = web.Response(status=303, headers={"Location": request.path + (f"?{rest}" if rest else "")})
        # Lax: a link of comparison.html leads here; what is asked by a foreign page itself has no cookie all the same
        answer.set_cookie(cookie, self.token, httponly=True, samesite="Lax", path="/")
        return answer

    def _error(self, status: int, problem: str) -> web.Response:
        return web.Response(status=status, text=self.pages.error(problem), content_type="text/html")


async def _page(make: Callable[..., str], *arguments: object) -> web.Response:
    """Make a page in a thread: a search over a million problems must not stop the others."""
    text = await asyncio.to_thread(make, *arguments)
    return web.Response(text=text, content_type="text/html")


def _page_number(request: web.Request) -> int:
    text = request.query.get("page", "1")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"page {text[:40]!r}", remedy="pages are numbered from 1 on")
    return int(text)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), wanted.encode())
