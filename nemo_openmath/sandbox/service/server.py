"""One `LocalSandbox` for the many processes of a node, over HTTP on TCP or a unix socket.

The routes are those of `openapi.ROUTES`; what they do is in `table.SessionTable`. A session's id is in its path, so
that a balancer in front of several services can keep a session with the service that has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import math
import os
import re
import resource
import signal
import stat
from collections.abc import Awaitable, Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Self, TypeVar

import orjson
from aiohttp import web

from nemo_openmath.core.clock import Clock, SystemClock
from nemo_openmath.core.errors import UserError, of_the_system, words_of
from nemo_openmath.core.listening import check_address, in_url
from nemo_openmath.core.logs import configure_logging
from nemo_openmath.core.sandbox import Limits, SandboxError
from nemo_openmath.sandbox import channel
from nemo_openmath.sandbox.local import LocalSandbox
from nemo_openmath.sandbox.service import wire
from nemo_openmath.sandbox.service.metrics import LOG, JSONLines, Metrics, log
from nemo_openmath.sandbox.service.openapi import OPEN_TO_ALL, ROUTES, document
from nemo_openmath.sandbox.service.settings import TOKEN_ENV, ServiceSettings
from nemo_openmath.sandbox.service.table import Refusal, SessionTable

T = TypeVar("T")

_MOST_BODY_BYTES = 6 * channel.MAX_CODE_BYTES + 65_536  # JSON writes a byte as at most six
_SHORTEST_TOKEN = 16
_NUMBERS_END = 10**18  # of a session's executions: JSON and its readers hold 64 bits
_WATCH_S = 0.5
_RETRY_S = 0.5  # for a zygote that is being replaced
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SandboxService:
    """The service: ``async with SandboxService(settings) as service: ... service.url``.

    Raises UserError where a wall is missing, or the token for an address that others can reach. ``clock``: of idle
    sessions.
    """

    def __init__(self, settings: ServiceSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._local = settings.socket is None and _is_loopback(settings.host)
        self._token = _token(settings.token_env, required=settings.socket is None and not self._local)
        self._workers = settings.workers or len(os.sched_getaffinity(0))
        self._sandbox = LocalSandbox(
            workers=self._workers, sessions=settings.sessions, packages=settings.packages, unsafe=settings.unsafe
        )
        self._metrics = Metrics()
        self._table = SessionTable(
            self._sandbox,
            self._metrics,
            workers=self._workers,
            queue=settings.queue,
            sessions=settings.sessions,
            idle_s=settings.idle_s,
            clock=clock or SystemClock(),
        )
        self._runner: web.AppRunner | None = None
        self._watching: asyncio.Task[None] | None = None
        self._bound: tuple[int, int] | None = None  # the socket's file, once we made it
        self.url = ""

    async def start(self) -> Self:
        """Start the sandbox and listen."""
        settings = self._settings
        if settings.socket is None:
            check_address(settings.host, settings.port)
        else:
            _check_path(settings.socket)
        await self._sandbox.start()
        try:
            self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=5.0)
            await self._runner.setup()
            try:
                await self._listen(self._runner)
            except OSError as error:
                where = settings.socket or f"{settings.host}:{settings.port}"
                raise UserError(f"cannot listen on {where}: {words_of(error)}", remedy="choose another") from error
        except BaseException:
            await self.close()
            raise
        self._watching = asyncio.create_task(self._watch())
        walls = list(self._sandbox.layers)
        log("listening", url=self.url, pid=os.getpid(), walls=walls, unsafe=self._sandbox.missing_walls)
        if self._token is None and settings.socket is None:
            remedy = f"set {settings.token_env}, or use a unix socket"
            log("no token", logging.WARNING, means="every user of this machine can run code here", remedy=remedy)
        return self

    async def drain(self) -> None:
        """Take nothing new; wait for what runs, at most ``drain_s``."""
        log("draining", sessions=self._table.sessions, executions=self._table.executions)
        finished = await self._table.drain(self._settings.drain_s)
        log("drained", finished=finished)

    async def close(self) -> None:
        """End every session and stop serving. A second call does nothing."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self._table.end()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._settings.socket is not None and self._bound == _identity(self._settings.socket):
            self._settings.socket.unlink(missing_ok=True)
        await self._sandbox.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=_MOST_BODY_BYTES)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, getattr(self, route.handler))
        return app

    # -- the routes ------------------------------------------------------------------------------------------------

    async def describe(self, _: web.Request) -> web.Response:
        sandbox, settings = self._sandbox, self._settings
        return _json(
            wire.Description(
                version("nemo-openmath"),
                sandbox.layers,
                sandbox.missing_walls,
                self._workers,
                settings.sessions,
                settings.most,
            )
        )

    async def open(self, request: web.Request) -> web.Response:
        body = await _body(request, wire.NewSession)
        name = _session(request)
        return _json(wire.SessionState(name, await self._table.open(name, self._granted(body.limits))))

    async def execute(self, request: web.Request) -> web.Response:
        body = await _body(request, wire.NewExecution)
        limits = self._granted(body.limits)
        return _json(await self._table.execute(_session(request), _positive(body.number), body.code, limits))

    async def cancel(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        if not re.fullmatch(r"[0-9]{1,18}", number):
            raise UserError(f"{number!r} is not the number of an execution")
        await self._table.cancel(_session(request), _positive(int(number)))
        return web.Response(status=204)

    async def reset(self, request: web.Request) -> web.Response:
        body = await _body(request, wire.NewReset)
        await self._table.reset(_session(request), _positive(body.number))
        return web.Response(status=204)

    async def close_session(self, request: web.Request) -> web.Response:
        await self._table.close(_session(request))
        return web.Response(status=204)

    async def health(self, _: web.Request) -> web.Response:
        status = "draining" if self._table.draining else "ok" if self._sandbox.alive else "unhealthy"
        health = wire.Health(status, self._table.sessions, self._table.executions)
        return _json(health, 200 if status == "ok" else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        running = min(self._table.executions, self._workers)
        gauges = {
            "sessions": self._table.sessions,
            "executions_running": running,
            "executions_waiting": self._table.executions - running,
            "zygote_starts": self._sandbox.starts,
            "draining": int(self._table.draining),
        }
        return web.Response(text=self._metrics.render(gauges), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def openapi(self, _: web.Request) -> web.Response:
        return _json(document())

    # -- around them -----------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Check the token, and answer every failure as a `wire.Failure`."""
        try:
            if self._token is None:
                self._check_host(request)
            elif request.path not in OPEN_TO_ALL:
                token = request.headers.get("Authorization", "").removeprefix("Bearer ")
                if not hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
                    raise Refusal(401, "token", "the bearer token is missing or wrong")
            return await handler(request)
        except Refusal as error:
            return self._refuse(error)
        except UserError as error:
            return self._refuse(Refusal(400, "request", str(error)))
        except SandboxError as error:
            status, after = (503, _RETRY_S) if error.retryable else (409, None)
            return self._refuse(Refusal(status, "sandbox", str(error), after))
        except web.HTTPException as error:
            return self._refuse(Refusal(error.status, "http", error.reason))
        except Exception:
            LOG.exception("defect")
            return self._refuse(Refusal(500, "defect", "a defect of the service; its log has the trace"))

    def _refuse(self, refusal: Refusal) -> web.Response:
        self._metrics.count("refused_total", status=refusal.status, reason=refusal.reason)
        log("refused", logging.WARNING, status=refusal.status, reason=refusal.reason, error=str(refusal))
        after = refusal.retry_after_s
        headers = {} if after is None else {"Retry-After": str(math.ceil(after))}
        return _json(wire.Failure(str(refusal), refusal.reason, after), refusal.status, headers)

    def _check_host(self, request: web.Request) -> None:
        """Refuse a name that leads to loopback where there is no token: a web page must not reach us through a name of
        its own."""
        host = (request.url.host or "").rstrip(".")
        if self._local and not _is_loopback(host):
            raise Refusal(401, "host", f"{host!r} is not a name of this machine")

    def _granted(self, limits: Limits | None) -> Limits | None:
        most = self._settings.most
        for name in (f.name for f in fields(Limits)) if limits is not None else ():
            if getattr(limits, name) > getattr(most, name):
                raise UserError(f"limits.{name}={getattr(limits, name)} is more than {getattr(most, name)}")
        return limits

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                await self._table.sweep()
                if not self._sandbox.alive:
                    await self._sandbox.start()
                    log("zygote replaced", logging.WARNING, starts=self._sandbox.starts)
            except (SandboxError, UserError, OSError) as error:
                log("unhealthy", logging.ERROR, error=str(error))

    async def _listen(self, runner: web.AppRunner) -> None:
        settings = self._settings
        if settings.socket is None:
            await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
            self.url = f"http://{in_url(settings.host)}:{runner.addresses[0][1]}"
            return
        await _check_unused(settings.socket)
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(settings.socket), backlog=1024).start()
        finally:
            os.umask(before)
        self._bound = _identity(settings.socket)
        self.url = f"unix:{settings.socket.resolve()}"


async def serve(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal does not wait. Log lines go to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines())
    configure_logging(handler=handler)
    for library in ("aiohttp", "asyncio"):  # their warnings and errors, in the same form
        logging.getLogger(library).addHandler(handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a session holds two descriptors, a client one more
    stop, now = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled)
    async with SandboxService(settings) as service:
        await stop.wait()
        draining, hurry = asyncio.create_task(service.drain()), asyncio.create_task(now.wait())
        await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, hurry):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _token(name: str, *, required: bool) -> str | None:
    token = os.environ.get(name) or None
    if token is None and name != TOKEN_ENV:
        raise UserError(f"{name} is not set", remedy="put the token there that clients must send")
    if token is None and required:
        raise UserError(
            "others could reach this address, and there is no token",
            remedy=f"set {name} in the environment, or serve on 127.0.0.1 or a unix socket",
        )
    if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"the token in {name} is too short or not ASCII", remedy=f"{_SHORTEST_TOKEN} characters or more"
        )
    return token


def _check_path(path: Path) -> None:
    """Raise UserError where no socket can be made of this name."""
    try:
        if not path.parent.is_dir():
            raise UserError(f"cannot listen on {path}: no such folder", remedy="make it, or choose another")
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise UserError("is no socket", file=path, remedy="choose another --socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise of_the_system(error, path) or error from error


async def _check_unused(path: Path) -> None:
    """Raise UserError if somebody listens there: binding would take the path away from them."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:  # nothing there, or a dead service's, which asyncio replaces
        return
    writer.close()
    raise UserError(f"cannot listen on {path}: another service does", remedy="stop it, or choose another")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _body(request: web.Request, kind: type[T]) -> T:
    return wire.parse(kind, await request.read())


def _session(request: web.Request) -> str:
    name = request.match_info["session"]
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise UserError("the session's id is not 32 hexadecimal digits")
    return name


def _positive(number: int) -> int:
    if not 1 <= number < _NUMBERS_END:
        raise UserError(f"number={number}", remedy=f"count from 1; the last is {_NUMBERS_END - 1}")
    return number


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)
