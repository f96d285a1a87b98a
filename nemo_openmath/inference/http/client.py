"""Client for any OpenAI-compatible server: vLLM, SGLang, TensorRT-LLM, our own, or a plain one.

Every request ends exactly once, with a completion or an :class:`EngineError` that names the server and the cause.
Cancelling it closes its connection, which makes every one of these servers free what it held.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import (
    Capabilities,
    Chunk,
    Completion,
    ContextOverflow,
    EngineError,
    Finish,
    InvalidRequest,
    Request,
    Sampling,
    WrongServer,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.inference.http.answers import AnswerPart, alias_of, error_of, is_error, same_model
from nemo_openmath.inference.http.dialects import DIALECTS, OWNERS, Dialect, ServerKind, chat_dialect, to_completion
from nemo_openmath.inference.http.same_tokens import count_difference, difference, probe_text
from nemo_openmath.inference.http.server_pool import Endpoint, ServerPool
from nemo_openmath.inference.http.sse import events as sse_events
from nemo_openmath.models.stop_tokens import end_ids

log = logging.getLogger(__name__)

CONNECT_S = 10.0
PROBE_S = 15.0  # a server that does not say within this time what it serves is away
SPARE = 8  # tokens of its context that a server may keep for itself
# a prompt that is too long, in the words of vLLM, SGLang, TensorRT-LLM, llama.cpp, OpenAI and our own server
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|fit the context|max(imum)?[ _](model|seq|input|sequence)[ _]?len|max_num_tokens",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``attempts``: how often a server may fail a request (5xx, disconnect, time-out, damaged answer) before it ends.
    Waiting because servers are busy (429) or away (connection refused) is bounded by ``patience_s`` instead, in which
    the time that a server worked on the request does not count. Delays grow from ``first_s`` to ``most_s`` by doubling,
    each drawn between half and whole; Retry-After is obeyed."""

    attempts: int = 5
    first_s: float = 0.25
    most_s: float = 30.0
    patience_s: float = 600.0

    def delay(self, failure: int) -> float:
        return min(self.most_s, self.first_s * 2.0 ** min(failure, 30)) * random.uniform(0.5, 1.0)


class _Failure(Exception):
    """An attempt failed in a way that another attempt may not. ``counts``: as one of RetryPolicy.attempts;
    ``blames``: the server's health."""

    def __init__(self, message: str, *, counts: bool = True, blames: bool = True, after_s: float | None = None):
        super().__init__(message)
        self.counts, self.blames, self.after_s = counts, blames, after_s


class HTTPEngine:
    """An :class:`Engine` behind HTTP. ``kind="auto"`` asks the server what it is at the first request or ``probe()``.

    ``urls``: base URLs, or the path of a file that lists them (read again when it changes). ``tokenizer``: needed for
    trtllm, useful for cutting stop strings from token ids. ``api``: "completions", or "chat" for prompts in text that
    the server renders as a user turn. ``timeout_s``: of a whole attempt; a request's own time limit is kept besides.
    ``api_key_env``: name of the environment variable that holds the bearer token. ``waiting``: says what is waited for.
    """

    def __init__(
        self,
        urls: str | Sequence[str] | Path,
        model: str,
        *,
        tokenizer: ChatTokenizer | None = None,
        api: str = "completions",
        kind: ServerKind = "auto",
        retry: RetryPolicy | None = None,
        api_key_env: str | None = None,
        connections: int = 1024,
        timeout_s: float = 3600.0,
        waiting: Waiting | None = None,
    ):
        if kind != "auto" and kind not in DIALECTS:
            raise UserError(f"server kind {kind!r} is unknown", remedy=f"use auto or one of {', '.join(DIALECTS)}")
        if api not in ("completions", "chat"):
            raise UserError(f"api {api!r} is unknown", remedy="use completions or chat")
        self._model, self.tokenizer, self._api = model, tokenizer, api
        self._asks_for = model  # the name by which the server knows it
        self._pool = ServerPool([urls] if isinstance(urls, str) else urls)
        self._retry = retry or RetryPolicy()
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key_env is not None:
            if not (key := os.environ.get(api_key_env)):
                raise UserError(f"the environment variable {api_key_env} is empty", remedy="set it to the API key")
            if not key.isascii() or not key.isprintable():
                raise UserError(f"the key in {api_key_env} is not printable ASCII", remedy="set it to the API key")
            self._headers["Authorization"] = f"Bearer {key}"
        self._connections, self._timeout_s = connections, timeout_s
        self._dialect: Dialect | None = None
        self._capabilities: Capabilities | None = None
        self._ends = () if tokenizer is None else tuple(sorted(end_ids(tokenizer)))
        self._waiting = waiting or Waiting(say=log.warning)
        self._aliases: set[str] = {model}  # names under which the server may answer
        self._said: set[str] = set()
        if kind != "auto":
            self._speak(kind, None)
        self._probing: asyncio.Lock | None = None
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def model(self) -> str:
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineError("what the server can do is not known yet: await probe() first", retryable=False)
        return self._capabilities

    @property
    def servers(self) -> list[Endpoint]:
        """The servers and their state, for progress pages."""
        return self._pool.servers

    async def probe(self) -> Capabilities:
        """Ask a server what it is, how long its context is, and whether its tokenizer is ours. Raises EngineError where
        none answers in time, and UserError where the tokenizer is another one."""
        asked = self.servers[0]

        async def ask(server: Endpoint) -> dict[str, Any]:
            nonlocal asked
            asked = server
            return await self._json(server, "GET", "/v1/models", None, timeout_s=min(PROBE_S, self._timeout_s))

        answer = await self._with_retries(ask, None)
        cards = [card for card in answer.get("data") or [] if isinstance(card, dict)]
        for means in (str.__eq__, same_model, alias_of):
            same = [card for card in cards if means(str(card.get("id")), self._model)]
            if same:
                break
        else:
            served = ", ".join(str(card.get("id")) for card in cards) or "nothing"
            where = ", ".join(server.url for server in self.servers)
            raise WrongServer(
                f"{where}: no server has the model {self._model!r}; it serves {served}; name one of these"
            )
        card = same[0]
        self._asks_for = str(card["id"])
        self._aliases |= {str(card[key]) for key in ("id", "root") if card.get(key)}
        self._tell_alias(self._asks_for)
        kind = self._dialect.name if self._dialect else OWNERS.get(str(card.get("owned_by")), "openai")
        capabilities = self._speak(kind, card.get("max_model_len"))
        if self.tokenizer is not None and self._api == "completions":  # chat servers are asked in text alone
            await self._compare_tokenizers(asked, self.tokenizer)
        return capabilities

    async def _compare_tokenizers(self, server: Endpoint, tokenizer: ChatTokenizer) -> None:
        found, known = await self._tokenizer_difference(server, tokenizer)
        if found is not None:
            raise UserError(
                f"{server.url}: {self._model!r} has another tokenizer than {tokenizer.folder}: {found}",
                remedy="give as tokenizer the folder of the model that is served",
            )
        if not known:
            self._say(
                f"{self._model}: the server does not tell how it cuts a text into tokens; make sure that "
                f"{tokenizer.folder} has its tokenizer"
            )

    async def _tokenizer_difference(self, server: Endpoint, tokenizer: ChatTokenizer) -> tuple[str | None, bool]:
        """(what differs, whether the server told)."""
        text = probe_text(tokenizer)
        body = orjson.dumps({"model": self._asks_for, "prompt": text, "add_special_tokens": False})
        ids = (await self._once(server, "/tokenize", body)).get("tokens")
        if isinstance(ids, list) and ids and all(type(i) is int for i in ids):
            return difference(tokenizer, ids), True
        assert self._dialect is not None
        one = Request(text, Sampling(max_tokens=1, temperature=0.0))
        body = orjson.dumps(self._dialect.body(one, self._asks_for, False, self._ends))
        answer = await self._once(server, self._dialect.path, body)
        try:
            count = self._dialect.read(answer, AnswerPart()).usage.get("prompt_tokens") if answer else None
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, EngineError):
            count = None
        if type(count) is not int or count <= 0:
            return None, False
        return count_difference(tokenizer, count), True

    async def _once(self, server: Endpoint, path: str, body: bytes) -> dict[str, Any]:
        """The answer of a server that may not know the question; empty where it gives none."""
        try:
            with self._pool.using(server):
                return await self._json(server, "POST", path, body, timeout_s=min(PROBE_S, self._timeout_s))
        except (_Failure, EngineError):
            return {}

    def _speak(self, kind: ServerKind, max_context: int | None) -> Capabilities:
        self._dialect = DIALECTS[kind] if self._api == "completions" else chat_dialect(kind)
        if kind == "trtllm" and self._api == "completions" and self.tokenizer is None:
            raise UserError("trtllm returns token ids only", remedy="give the model's tokenizer")
        if left := self._dialect.takes.left:
            self._say(
                f"{self._model}: asked as a plain OpenAI server, which decides by itself on {', '.join(left)}; "
                "if it is vLLM, SGLang or TensorRT-LLM, name its kind"
            )
        limit = max_context if type(max_context) is int and max_context > 0 else None
        self._capabilities = replace(self._dialect.capabilities, max_context=limit)
        return self._capabilities

    async def complete(self, request: Request) -> Completion:
        if request.time_limit is not None:
            return await self._complete_in_time(request)
        dialect = await self._ready()
        request = _fits(request, self.capabilities.max_context)
        body = orjson.dumps(dialect.body(request, self._asks_for, False, self._ends))

        async def ask(server: Endpoint) -> Completion:
            answer = await self._json(server, "POST", dialect.path, body)
            return self._completion(lambda: dialect.read(answer, AnswerPart()), request)

        return await self._with_retries(ask, request.conversation)

    async def _complete_in_time(self, request: Request) -> Completion:
        """Streams, so that what was generated when the time is over can be returned."""
        so_far = AnswerPart()

        async def ask(server: Endpoint) -> Completion:
            nonlocal so_far
            so_far = AnswerPart()
            async for piece in self._events(server, dialect, body, so_far):
                so_far.add(piece)
            return self._completion(lambda: so_far, request)

        try:
            async with asyncio.timeout(request.time_limit):
                dialect = await self._ready()
                request = _fits(request, self.capabilities.max_context)
                body = orjson.dumps(dialect.body(request, self._asks_for, True, self._ends))
                return await self._with_retries(ask, request.conversation)
        except TimeoutError:
            _end_in_time(so_far)
            return to_completion(so_far, request, self.tokenizer)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        deadline = None if request.time_limit is None else loop.time() + request.time_limit
        so_far = AnswerPart()

        async def begin(server: Endpoint) -> tuple[Endpoint, AsyncGenerator[AnswerPart, None], AnswerPart]:
            events = self._events(server, dialect, body, so_far)
            return server, events, await anext(events)

        events: AsyncGenerator[AnswerPart, None] | None = None
        given = ""  # text that was yielded
        try:
            async with asyncio.timeout_at(deadline):
                dialect = await self._ready()
                request = _fits(request, self.capabilities.max_context)
                body = orjson.dumps(dialect.body(request, self._asks_for, True, self._ends))
                server, events, piece = await self._with_retries(begin, request.conversation)
            with self._pool.using(server):
                while True:
                    so_far.add(piece)
                    text = piece.text if not so_far.thinking else _behind(so_far.whole, given)
                    given += text
                    yield Chunk(text, piece.ids, logprobs=piece.logprobs)
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(events)
        except StopAsyncIteration:
            pass
        except TimeoutError:
            _end_in_time(so_far)
        except _Failure as error:  # what was yielded cannot be taken back
            if error.blames:
                server.failed()
            raise EngineError(f"{server.url}: {error}", retryable=True) from error
        finally:
            if events is not None:
                await events.aclose()
        completion = to_completion(so_far, request, self.tokenizer)
        logprobs = (completion.logprobs or ())[len(so_far.logprobs) :]
        text = _behind(completion.text, given)
        yield Chunk(text, completion.token_ids[len(so_far.ids) :], completion, logprobs)

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- attempts --------------------------------------------------------------------------------------------------

    async def _ready(self) -> Dialect:
        if self._dialect is None:
            self._probing = self._probing or asyncio.Lock()
            async with self._probing:
                if self._dialect is None:
                    await self.probe()
        assert self._dialect is not None
        return self._dialect

    async def _with_retries(self, attempt: Callable[[Endpoint], Awaitable[Any]], conversation: str | None) -> Any:
        waited, failures, waits = 0.0, 0, 0
        avoid: tuple[Endpoint, ...] = ()
        cause: _Failure | None = None
        where = "no server"
        while True:
            if self._closed:
                raise EngineError("the engine is closed", retryable=False)
            server, asked = self._pool.pick(conversation, avoid), None
            if server is None:
                delay = self._pool.seconds_until_open()
            else:
                where, began = server.url, time.monotonic()
                try:
                    with self._pool.using(server):
                        result = await attempt(server)
                    server.succeeded()
                    self._waiting.over(server.url)
                    return result
                except _Failure as failure:
                    cause, avoid = failure, (server,)
                    failures += failure.counts
                    if not failure.counts:
                        waits += 1
                        waited += time.monotonic() - began
                    if failure.blames:
                        server.failed()
                    asked = failure.after_s
                    delay = asked or self._retry.delay(failures + waits - 1)
            if not asked and (left := self._retry.patience_s - waited) > self._retry.first_s:
                delay = min(delay, left)  # the last attempt comes when the time is over
            late = waited + delay > self._retry.patience_s
            if failures >= self._retry.attempts or late:
                after = f"after {failures} failed attempts" if not late else f"after {self._retry.patience_s:g} s"
                message = f"{where}: {cause or 'every server is away'} ({after})"
                raise EngineError(message, retryable=True) from cause
            waited += delay
            over = time.monotonic() + delay
            self._wait_on(where, cause, waited - delay)
            while not self._closed and (left := over - time.monotonic()) > 0:  # of any event loop
                await asyncio.sleep(min(left, 1.0))
                self._wait_on(where, cause, waited - max(0.0, over - time.monotonic()))

    def _wait_on(self, where: str, cause: _Failure | None, waited_s: float) -> None:
        what = f"{where} ({cause or 'every server is away'})"
        self._waiting.still(what, self._retry.patience_s, "patience_s", waited_s=waited_s)

    async def _json(
        self, server: Endpoint, method: str, path: str, body: bytes | None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """A JSON object. ``timeout_s``: after which the server counts as away; default: the attempt's time, after which
        it has failed."""
        timeout = aiohttp.ClientTimeout(total=timeout_s or self._timeout_s, sock_connect=CONNECT_S)
        try:
            async with (await self._client()).request(
                method, server.url + path, data=body, allow_redirects=False, timeout=timeout
            ) as response:
                content = await response.read()
                self._check_status(response, content)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise _Failure(f"cannot connect: {_reason(error)}", counts=False) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _Failure(f"connection lost: {error or type(error).__name__}") from error
        except TimeoutError as error:
            seconds = timeout_s or self._timeout_s
            raise _Failure(f"no answer within {seconds:g} s", counts=timeout_s is None) from error
        try:
            answer = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise _Failure(f"damaged answer: {error}: {content[:80]!r}") from error
        if not isinstance(answer, dict):
            raise _Failure("damaged answer: not a JSON object")
        if is_error(answer):
            self._refuse(server.url, *error_of(answer), None)
        self._check_model(answer)
        return answer

    async def _events(
        self, server: Endpoint, dialect: Dialect, body: bytes, so_far: AnswerPart
    ) -> AsyncGenerator[AnswerPart, None]:
        """The pieces of one streamed answer; _Failure where it breaks off before its end."""
        ended = False
        try:
            async with (await self._client()).post(
                server.url + dialect.path, data=body, allow_redirects=False
            ) as response:
                if response.status != 200:
                    self._check_status(response, await response.read())
                async for event in sse_events(response.content.iter_any()):
                    if event is None:
                        ended = True
                        break
                    if is_error(event):
                        self._refuse(server.url, *error_of(event), None)
                    self._check_model(event)
                    yield dialect.read(event, so_far)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise _Failure(f"cannot connect: {_reason(error)}", counts=False) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _Failure(f"connection lost: {error or type(error).__name__}") from error
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise _Failure(f"damaged answer: {error!r}") from error
        except EngineError as error:
            if error.retryable:
                raise _Failure(str(error)) from error
            raise
        except TimeoutError as error:
            raise _Failure(f"no answer within {self._timeout_s:g} s") from error
        if not ended and so_far.finish is None:  # not every server ends with [DONE]
            raise _Failure("the stream broke off")

    def _completion(self, read: Callable[[], AnswerPart], request: Request) -> Completion:
        try:
            piece = read()
            completion = to_completion(piece, request, self.tokenizer)
        except EngineError as error:
            raise _Failure(str(error)) from error
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise _Failure(f"damaged answer: {error!r}") from error
        made = piece.text or (piece.stop is None and (piece.usage.get("completion_tokens") or 0) > 1)
        if self.capabilities.token_ids and not piece.ids and made:
            raise _Failure("the server returned no token ids; does it support return_token_ids?")
        self._tell_of(completion, request)
        return completion

    def _tell_of(self, completion: Completion, request: Request) -> None:
        """Say what the server did otherwise than it was asked."""
        if completion.usage.estimated:
            self._say(f"{self._model}: the server does not count all tokens (usage); the counts are estimates")
        made, context = completion.usage.completion_tokens, self.capabilities.max_context
        if context is None or completion.usage.estimated or completion.finish is not Finish.LENGTH:
            return
        room = context - SPARE - completion.usage.prompt_tokens
        if made < min(request.sampling.max_tokens, room):
            self._say(
                f"{self._model}: the server ends texts after {made} tokens, though {request.sampling.max_tokens} were "
                "asked for and its context has room (max_new_tokens of the model's generation_config.json? start vLLM "
                "with --generation-config vllm)"
            )

    def _check_status(self, response: aiohttp.ClientResponse, content: bytes) -> None:
        status = response.status
        if status == 200:
            return
        words = _message(content)
        if 300 <= status < 400:  # followed, a POST would arrive as a GET
            words = f"the address has moved to {response.headers.get('Location', 'nowhere')}; name that"
        self._refuse(str(response.url.origin()), status, words, _retry_after(response))

    def _refuse(self, url: str, status: int, words: str, after_s: float | None) -> None:
        """Raise what an error of the HTTP status ``status`` means; a server may also send it with status 200."""
        message = f"HTTP {status}: {words}"
        if status == 429:
            raise _Failure(message, counts=False, blames=False, after_s=after_s)
        if status >= 500 or status == 408:
            raise _Failure(message, after_s=after_s)
        if status == 404 and len(self._pool.servers) > 1:
            raise _Failure(message)  # this server may have another model; the next may have ours
        if status in (400, 413, 422) and _TOO_LONG.search(message):
            # of a prompt in text: only the server counts its tokens
            raise ContextOverflow.said(f"{url}: {message}")
        if status in (400, 413, 422):
            raise InvalidRequest(f"{url}: {message}")
        raise WrongServer(f"{url}: {message}")

    def _check_model(self, answer: dict[str, Any]) -> None:
        served = answer.get("model")
        if not served or any(same_model(str(served), name) for name in self._aliases):
            return
        if not any(alias_of(str(served), name) for name in self._aliases):
            raise _Failure(f"the server answers as {served!r}, asked for {self._model!r}")
        self._tell_alias(str(served))

    def _tell_alias(self, served: str) -> None:
        if not same_model(served, self._model):
            self._say(f"the server calls {self._model!r} {served!r}; taken for the same model")

    def _say(self, line: str) -> None:
        """Once, however often it is the case."""
        if line not in self._said:
            self._said.add(line)
            log.warning(line)

    async def _client(self) -> aiohttp.ClientSession:
        """The connections, of the event loop that runs now."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not loop:
            if self._session is not None:
                await self._session.close()  # those of another loop
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=10),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S),
                headers=self._headers,
                read_bufsize=1 << 20,
            )
        return self._session


def _behind(text: str, given: str) -> str:
    """What ``text`` has beyond what was ``given``; nothing where it turned out otherwise: the completion has all."""
    return text[len(given) :] if text.startswith(given) else ""


def _reason(error: aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError) -> str:
    """The system's words for it; the address is said besides."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection within {CONNECT_S:g} s"
    number = error.os_error.errno
    return os.strerror(number) if number and number > 0 else error.os_error.strerror or str(error.os_error)


def _end_in_time(so_far: AnswerPart) -> None:
    """Make what was received until the request's time was over a whole answer."""
    if so_far.finish is None:
        so_far.finish, so_far.stop = "time_limit", None


def _message(content: bytes) -> str:
    """The server's own words, in whichever of the customary places they are."""
    try:
        return error_of(orjson.loads(content))[1]
    except (orjson.JSONDecodeError, AttributeError):
        return content.decode(errors="replace")[:500].strip() or "no explanation"


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that the server asks to wait, as a number or as a date; a little more, so that not all come at once."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) * random.uniform(1.0, 1.25)


def _fits(request: Request, max_context: int | None) -> Request:
    """The request with ``max_tokens`` cut to what the context leaves: vLLM refuses more than that. Raises
    ContextOverflow where it leaves nothing."""
    if max_context is None or isinstance(request.prompt, str):
        return request
    left = max_context - len(request.prompt)
    if left <= 0:
        raise ContextOverflow(len(request.prompt), max_context)
    if request.sampling.max_tokens <= left:
        return request
    return replace(request, sampling=replace(request.sampling, max_tokens=left))
