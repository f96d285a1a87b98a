"""The sandbox of a service, used like one in this process.

async with RemoteSandbox("http://127.0.0.1:8700") as sandbox, await sandbox.session() as session:
    result = await session.execute("1 + 1")
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections.abc import Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import orjson

from nemo_openmath.core import activity
from nemo_openmath.core.errors import UserError, words_of
from nemo_openmath.core.sandbox import Execution, Limits, SandboxError, Status
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.sandbox import channel
from nemo_openmath.sandbox.local import refusal_of_length
from nemo_openmath.sandbox.service.wire import Description, SessionState, parse

T = TypeVar("T")

_ATTEMPT_S = 60.0  # of one request; the next one waits for the same result
_CONNECT_S = 10.0
_FAREWELL_S = 5.0  # for ending what the service would end by itself
_BACKOFF_S = (0.05, 2.0)
_LOST = "the sandbox service had lost the session: variables, imports and files of earlier blocks are lost"


def check_url(url: str) -> None:
    """Raise UserError where ``url`` is no address of a sandbox service."""
    if not url.startswith(("http://", "https://", "unix:")):
        raise UserError(f"sandbox url {url!r}", remedy="write http://host:port, https://.. or unix:/path")


class RemoteSandbox:
    """The sandbox of the service at ``url`` (http://, https:// or unix:/path).

    - ``token_env``: the environment variable with the bearer token.
    - ``limits``: of sessions that name none; default: the service's.
    - ``patience_s``: how long a busy or absent service is waited for.
    - ``unsafe``: accept a service that runs without a required wall.
    - ``waiting``: says that it is waited for.

    A request that got no answer is repeated: the service runs no block twice.
    """

    def __init__(
        self,
        url: str,
        token_env: str | None = None,
        *,
        limits: Limits | None = None,
        patience_s: float = 600.0,
        unsafe: bool = False,
        waiting: Waiting | None = None,
    ) -> None:
        check_url(url)
        self._url, self._limits, self._patience_s, self._unsafe = url.rstrip("/"), limits, patience_s, unsafe
        self._waiting = waiting or Waiting()
        self._headers: dict[str, str] = {}
        if token_env is not None:
            if not (token := os.environ.get(token_env, "")):
                raise UserError(f"{token_env} is not set", remedy="put the sandbox service's token there")
            if not token.isascii() or not token.isprintable():
                raise UserError(f"the token in {token_env} is not printable ASCII", remedy="give the service's token")
            self._headers["Authorization"] = f"Bearer {token}"
        self._http: aiohttp.ClientSession | None = None
        self._sessions: set[RemoteSession] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self._closed = False
        self._walls: bool | None = None  # whether all of them stand; None: not asked yet

    async def start(self) -> Description:
        """Return what the service is. Raises UserError if it does not answer, or without walls, or refuses the
        token."""
        try:
            return await self._describe(min(_FAREWELL_S, self._patience_s))
        except SandboxError as error:
            raise UserError(
                f"no sandbox service at {self._url}: {error}", remedy="start one with: openmath sandbox serve"
            ) from error

    async def session(self, limits: Limits | None = None) -> RemoteSession:
        """Open a session; waits for a free place. Raises UserError for limits the service does not grant."""
        if self._walls is None:  # `start` was not called
            await self._describe(self._patience_s)
        session = RemoteSession(self, secrets.token_hex(16), limits or self._limits)
        try:
            await session.open()
        except BaseException:
            self.later(session.farewell())
            raise
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        """End the sessions made here. A second call does nothing."""
        self._closed = True
        await asyncio.gather(*(session.close() for session in list(self._sessions)))
        if self._farewells:
            await asyncio.wait(self._farewells)
        if self._http is not None:
            await self._http.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _describe(self, patience_s: float) -> Description:
        description: Description = _parsed(Description, (await self.call("GET", "/v1", patience_s=patience_s))[1])
        if description.unsafe and not self._unsafe:
            raise UserError(f"the sandbox at {self._url} lacks a wall", remedy="accept that by name: unsafe")
        self._walls = not description.unsafe
        return description

    # for RemoteSession

    @property
    def missing_walls(self) -> bool:
        """Whether the service lacks a required wall, which was accepted by name."""
        return self._walls is False

    def forget(self, session: RemoteSession) -> None:
        """Note that a session was closed."""
        self._sessions.discard(session)

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this even if the caller is cancelled."""
        task = asyncio.create_task(work)
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)
        return task

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, patience_s: float | None = None
    ) -> tuple[int, bytes]:
        """Return (status, body) of an answer that is not to be repeated: 200, 204 or 404.

        A 404 after a request that may have been received raises `_Gone`. Raises SandboxError and UserError.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        end = time.monotonic() + patience_s
        data = None if body is None else orjson.dumps(body)
        received, pause_s = False, _BACKOFF_S[0]
        while True:
            wait_s = 0.0
            activity.happened()
            try:
                async with self._client().request(method, self._base + path, data=data) as response:
                    answer = await response.read()
                status = response.status
                if status not in (429, 503):
                    self._waiting.over(self._url)
                    if status == 404 and received:
                        raise _Gone
                    return status, _checked(status, answer, self._url)
                problem, wait_s = _message(answer)
            except aiohttp.ClientConnectorError as error:
                problem = f"cannot connect: {words_of(error)}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                problem, received = f"no answer: {words_of(error)}", True
            pause_s = wait_s or min(2 * pause_s, _BACKOFF_S[1])
            pause_s *= random.uniform(0.75, 1.25)  # clients that were refused together should not return together
            if time.monotonic() + pause_s > end:
                raise SandboxError(f"sandbox service: {problem}", retryable=True)
            self._waiting.still(f"the sandbox service {self._url} ({problem})", patience_s, "patience_s")
            await asyncio.sleep(pause_s)

    @property
    def _base(self) -> str:
        return "http://localhost" if self._url.startswith("unix:") else self._url

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            connector: aiohttp.BaseConnector
            if self._url.startswith("unix:"):
                connector = aiohttp.UnixConnector(self._url.removeprefix("unix:").replace("//", "/"), limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=_ATTEMPT_S, sock_connect=_CONNECT_S)
            self._http = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        return self._http


class RemoteSession:
    """One interpreter of a `RemoteSandbox`. If the service loses it, it goes on with a fresh one and says so."""

    def __init__(self, sandbox: RemoteSandbox, name: str, limits: Limits | None) -> None:
        self._sandbox, self._asked = sandbox, limits
        self._path = f"/v1/sessions/{name}"
        self._number = 0
        self._busy = self._closed = False

    async def open(self) -> None:
        """Make the session in the service."""
        body = {} if self._asked is None else {"limits": self._asked}
        _parsed(SessionState, (await self._sandbox.call("PUT", self._path, body))[1])

    async def execute(self, code: str, limits: Limits | None = None) -> Execution:
        """Run a block; see `core.sandbox.Session.execute`."""
        self._check()
        data = code.encode("utf-8", "replace")
        if len(data) > channel.MAX_CODE_BYTES:
            return refusal_of_length(len(data), unsafe=self._sandbox.missing_walls)
        self._busy = True
        self._number += 1
        body = {"number": self._number, "code": data.decode()} | ({} if limits is None else {"limits": limits})
        try:
            return await self._execute(body)
        except asyncio.CancelledError:
            await asyncio.shield(self._sandbox.later(self._cancel(self._number)))
            raise
        finally:
            self._busy = False

    async def reset(self) -> None:
        """Forget all variables and files."""
        self._check()
        self._number += 1
        try:
            status, _ = await self._sandbox.call("POST", f"{self._path}/reset", {"number": self._number})
        except _Gone:
            status = 404
        if status == 404:
            await self.open()  # a new one has nothing to forget

    async def close(self) -> None:
        """End the session. One whose service does not answer ends there by itself. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._sandbox.forget(self)
            await asyncio.shield(self._sandbox.later(self.farewell()))

    async def farewell(self) -> None:
        """Tell the service that the session is over."""
        await self._tell(self._path)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _execute(self, body: dict[str, Any]) -> Execution:
        path, start = f"{self._path}/executions", time.monotonic()
        try:
            status, data = await self._sandbox.call("POST", path, body)
        except _Gone:  # it may have begun there: it does not begin again
            await self.open()
            note = f"The session was killed: {_LOST}\n"
            unsafe = self._sandbox.missing_walls
            return Execution(Status.KILLED, "", note, time.monotonic() - start, state_lost=True, unsafe=unsafe)
        if status != 404:
            return _parsed(Execution, data)
        await self.open()
        try:
            status, data = await self._sandbox.call("POST", path, body)
        except _Gone as error:
            raise SandboxError("sandbox service: it loses its sessions", retryable=True) from error
        result = _parsed(Execution, _checked(status if status != 404 else 409, data, "sandbox service"))
        separator = "\n" if result.stderr and not result.stderr.endswith("\n") else ""
        return replace(result, stderr=f"{result.stderr}{separator}[{_LOST}]\n", state_lost=True)

    async def _cancel(self, number: int) -> None:
        await self._tell(f"{self._path}/executions/{number}")

    async def _tell(self, path: str) -> None:
        try:
            await self._sandbox.call("DELETE", path, patience_s=_FAREWELL_S)
        except (SandboxError, UserError, _Gone):
            return  # the time limit, and then the idle limit, do the same

    def _check(self) -> None:
        if self._closed or self._busy:
            raise SandboxError("the session is closed" if self._closed else "the session is busy", retryable=False)


class _Gone(Exception):
    """Raised where the service does not know the session of a request that it may have received before."""


def _checked(status: int, answer: bytes, url: str) -> bytes:
    """Return the body of a good answer, or of a 404."""
    if status in (200, 204, 404):
        return answer
    message = f"{url}: {_message(answer)[0]}"
    if status in (400, 401, 413):
        raise UserError(message, remedy="give the service's token in token_env" if status == 401 else "")
    raise SandboxError(f"HTTP {status}: {message}", retryable=status >= 500)


def _message(answer: bytes) -> tuple[str, float]:
    """Return the service's words, and the seconds to wait (0: not said), also of something else that answers for it."""
    try:
        body = orjson.loads(answer)
        return str(body["error"]), float(body.get("retry_after_s") or 0.0)
    except (orjson.JSONDecodeError, TypeError, KeyError, ValueError, AttributeError):
        return answer[:200].decode("utf-8", "replace").strip() or "no explanation", 0.0


def _parsed(kind: type[T], data: bytes) -> T:
    try:
        return parse(kind, data, ignore_unknown=True)
    except UserError as error:
        raise SandboxError("sandbox service: it does not answer as a sandbox service", retryable=False) from error
