"""Requests over HTTP: JSON objects and event streams in, and every way in which a server fails as one of two errors.

:class:`AttemptFailed` is what another attempt may not meet, EngineError what it would meet again.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import aiohttp
import orjson

from nemo_openmath.core import activity
from nemo_openmath.core.engine import ContextOverflow, EngineError, InvalidRequest, WrongServer
from nemo_openmath.core.errors import UserError, words_of
from nemo_openmath.inference.http.answers import AnswerPart, error_of, is_error, shown
from nemo_openmath.inference.http.dialects import Dialect
from nemo_openmath.inference.http.model_names import ModelNames
from nemo_openmath.inference.http.retrying import AttemptFailed
from nemo_openmath.inference.http.server_pool import Endpoint, ServerPool
from nemo_openmath.inference.http.sse import events as sse_events

_KEPT = 1 << 16  # bytes of an answer without an event
CONNECT_S = 10.0
PROBE_S = 15.0  # a server that does not answer a short question within this time is away
# a prompt that is too long, in the words of vLLM, SGLang, TensorRT-LLM, llama.cpp, OpenAI and our own server
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|fit the context|max(imum)?[ _](model|seq|input|sequence|prompt)[ _]?len"
    r"|max_num_tokens|allowed input length|prompt is too long|input token count",
    re.IGNORECASE,
)
# How many tokens the prompt has, and the context, in their words. vLLM says "at least" where it did not count all.
_PROMPT_TOKENS = re.compile(
    r"(\d+)(?: tokens)? (?:in|from) the (?:input |prompt )?(?:messages|prompt)|contains (\d+) input tokens"
    r"|has (\d+) input tokens|input \((\d+) tokens\)|prompt \(length (\d+)\)|input length \(?(\d+)",
    re.IGNORECASE,
)
_CONTEXT_TOKENS = re.compile(r"(?:context|model) length(?: of| is)? \(?(\d+)", re.IGNORECASE)
_PROMPT_ALONE = re.compile(r"without any output tokens|is longer than|prompt is too long", re.IGNORECASE)


class Transport:
    """The connections to the servers of a pool.

    ``timeout_s``: seconds of a whole attempt. ``connections``: open at once, at most. ``api_key_env``: the environment
    variable that holds the bearer token.
    """

    def __init__(
        self, pool: ServerPool, model: ModelNames, *, timeout_s: float, connections: int, api_key_env: str | None
    ):
        self._pool, self._model = pool, model
        activity.may_be_silent(timeout_s)
        self._timeout_s, self._connections = timeout_s, connections
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key_env is not None:
            self._headers["Authorization"] = f"Bearer {_api_key(api_key_env)}"
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self, server: Endpoint, method: str, path: str, body: bytes | None, *, short: bool = False
    ) -> dict[str, Any]:
        """Return the JSON object that the server answers.

        ``short``: the question takes no time, so a server that does not answer it within ``PROBE_S`` is away. Else it
        has failed after the time of an attempt.
        """
        seconds = min(PROBE_S, self._timeout_s) if short else self._timeout_s
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_S)
        try:
            async with (await self._client()).request(
                method, server.url + path, data=body, allow_redirects=False, timeout=timeout
            ) as response:
                content = await response.read()
                activity.happened()
                self._check_status(response, content)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise AttemptFailed(f"cannot connect: {_reason(error)}", counts=False) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise AttemptFailed(f"connection lost: {words_of(error)}") from error
        except TimeoutError as error:
            raise AttemptFailed(f"no answer within {seconds:g} s", counts=not short) from error
        return self._object(server, content)

    def _object(self, server: Endpoint, content: bytes) -> dict[str, Any]:
        """Return the JSON object that was answered with status 200. Raises AttemptFailed, with what was answered, where
        it is none, and what an error means that it holds."""
        try:
            answer = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise AttemptFailed(f"damaged answer: {_no_json(content, str(error))}") from error
        if not isinstance(answer, dict):
            raise AttemptFailed(f"damaged answer: no JSON object: {shown(answer)}")
        if is_error(answer):
            self._refuse(server.url, *error_of(answer))
        self._model.check(answer)
        return answer

    async def request_or_nothing(self, server: Endpoint, path: str, body: bytes) -> dict[str, Any]:
        """Return the answer to a question that a server may not know; an empty object where it gives none."""
        try:
            with self._pool.using(server):
                return await self.request(server, "POST", path, body, short=True)
        except (AttemptFailed, EngineError):
            return {}

    async def stream(
        self, server: Endpoint, dialect: Dialect, body: bytes, so_far: AnswerPart
    ) -> AsyncGenerator[AnswerPart, None]:
        """Yield the parts of one streamed answer. Raises AttemptFailed where the stream breaks off before its end."""
        ended, answered = False, bytearray()  # as long as there was no event

        async def chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
            async for chunk in response.content.iter_any():
                if len(answered) < _KEPT:
                    answered.extend(chunk)
                yield chunk

        any_event = False
        try:
            async with (await self._client()).post(
                server.url + dialect.path, data=body, allow_redirects=False
            ) as response:
                if response.status != 200:
                    self._check_status(response, await response.read())
                async for event in sse_events(chunks(response)):
                    activity.happened()
                    any_event = True
                    if event is None:
                        ended = True
                        break
                    if not isinstance(event, dict):
                        raise AttemptFailed(f"damaged answer: an event is no JSON object: {shown(event)}")
                    if is_error(event):
                        self._refuse(server.url, *error_of(event))
                    self._model.check(event)
                    yield dialect.read(event, so_far)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise AttemptFailed(f"cannot connect: {_reason(error)}", counts=False) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise AttemptFailed(f"connection lost: {words_of(error)}") from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise AttemptFailed(f"damaged answer: {error!r}") from error
        except EngineError as error:
            if error.retryable:
                raise AttemptFailed(str(error)) from error
            raise
        except TimeoutError as error:
            raise AttemptFailed(f"no answer within {self._timeout_s:g} s") from error
        if not any_event and answered.strip():
            answer = self._object(server, bytes(answered))  # where it is an error, that is said
            raise AttemptFailed(f"damaged answer: no stream of events: {shown(answer)}")
        if not ended and so_far.finish is None:  # not every server ends with [DONE]
            raise AttemptFailed("the stream broke off")

    def _check_status(self, response: aiohttp.ClientResponse, content: bytes) -> None:
        status = response.status
        if status == 200:
            return
        words = _message(content)
        if 300 <= status < 400:  # followed, a POST would arrive as a GET
            words = f"the address has moved to {response.headers.get('Location', 'nowhere')}; name that"
        self._refuse(str(response.url.origin()), status, words, retry_after(response.headers.get("Retry-After", "")))

    def _refuse(self, url: str, status: int, words: str, after_s: float | None = None) -> NoReturn:
        """Raise what an error of the HTTP status ``status`` means; a server may also send it with status 200."""
        message = f"HTTP {status}: {words}"
        if status == 429:
            raise AttemptFailed(message, counts=False, blames=False, after_s=after_s)
        if status >= 500 or status == 408:
            raise AttemptFailed(message, after_s=after_s)
        if status == 404 and len(self._pool.servers) > 1:
            raise AttemptFailed(message)  # this server may have another model; the next may have ours
        if status in (400, 413, 422) and _TOO_LONG.search(message):
            # of a prompt in text: only the server counts its tokens
            raise ContextOverflow.in_words(f"{url}: {message}", room_in(message))
        if status in (400, 413, 422):
            raise InvalidRequest(f"{url}: {message}")
        raise WrongServer(f"{url}: {message}")

    async def _client(self) -> aiohttp.ClientSession:
        """The connections, of the event loop that runs now."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            await self.close()  # those of another loop
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=10),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S),
                headers=self._headers,
                read_bufsize=1 << 20,
            )
        return self._session


def room_in(message: str) -> int | None:
    """Return how many tokens a prompt leaves of the context, by a server's refusal; None where it does not say it. It
    is one less than the difference: SGLang fills no context to its last token."""
    prompt, context = _PROMPT_TOKENS.search(message), _CONTEXT_TOKENS.search(message)
    if prompt is not None and context is not None:
        tokens = next(int(digits) for digits in prompt.groups() if digits)
        return max(0, int(context[1]) - tokens - 1)
    return 0 if _PROMPT_ALONE.search(message) else None


def _no_json(content: bytes, error: str) -> str:
    """Return in words what a body is that is no JSON."""
    text = " ".join(content[:400].decode(errors="replace").split())[:120]
    if not text:
        return "the body is empty"
    if re.match(r"(?:\ufeff)?<(?:!doctype|html|head|body|\?xml)", text, re.I):
        return f"a page, not JSON; is this the address of the API? {text}"
    broken = " (it breaks off)" if text[0] in "{[" and content.rstrip()[-1:] not in (b"}", b"]") else ""
    return f"no JSON{broken}: {error}: {text}"


def _api_key(variable: str) -> str:
    key = os.environ.get(variable)
    if not key:
        raise UserError(f"the environment variable {variable} is empty", remedy="set it to the API key")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the key in {variable} is not printable ASCII", remedy="set it to the API key")
    return key


def _reason(error: aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError) -> str:
    """The system's words for it; the address is said besides."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection within {CONNECT_S:g} s"
    number = error.os_error.errno
    return os.strerror(number) if number and number > 0 else words_of(error.os_error)


def _message(content: bytes) -> str:
    """The server's own words, in whichever of the customary places they are."""
    try:
        return error_of(orjson.loads(content))[1]
    except (orjson.JSONDecodeError, AttributeError):
        return content.decode(errors="replace")[:500].strip() or "no explanation"


def retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, as a number or as a date; None where it is neither.

    They are a little more than asked for, so that not all requests come back at once.
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) * random.uniform(1.0, 1.25)
