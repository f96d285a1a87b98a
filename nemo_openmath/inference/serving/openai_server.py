"""Serves any :class:`Engine` over the OpenAI-compatible protocol.

    POST /v1/completions        text or token-id prompts, n, seed, stop, stream, logprobs, return_token_ids ..
    POST /v1/chat/completions   the same, the prompt rendered by the tokenizer's chat template
    POST /tokenize              {prompt, add_special_tokens} -> {tokens, count}, as vLLM answers it
    GET  /v1/models  /health  /metrics

Extensions, all optional: ``conversation`` (requests that share a growing prefix), ``time_limit`` (seconds; what was
generated so far is returned with finish_reason ``time_limit``). Sample i of ``n`` has the seed ``seed + i``. A field
that is not understood is an error, never ignored. A client that disconnects cancels its requests.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import orjson
from aiohttp import web

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import Chunk, Completion, Engine, EngineError, InvalidRequest, Request
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.listening import HttpServer, in_url
from nemo_openmath.core.tokenizer import Message
from nemo_openmath.inference.asking import LONG
from nemo_openmath.inference.serving.wire import (
    FINISH_REASON,
    BadRequest,
    Call,
    envelope,
    error_body,
    parse_call,
    usage_body,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MOST_BODY_BYTES = 64 << 20


class OpenAIServer(HttpServer):
    """An engine behind HTTP: ``async with OpenAIServer(engine) as server: .. server.url``.

    - ``tokenizer``: for chat templates, and for text prompts where the engine takes ids only; default: the engine's own
      (``engine.tokenizer``).
    - ``port``: 0 takes a free one.
    - ``api_key``: required as a bearer token where it is given.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        tokenizer: ChatTokenizer | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
    ):
        super().__init__(host, port)
        self.engine = engine  # it belongs to the caller, and stays open
        self.tokenizer: ChatTokenizer | None = tokenizer or getattr(engine, "tokenizer", None)
        self._api_key = api_key
        self._counts: Counter[str] = Counter()
        self._in_flight = 0

    @property
    def url(self) -> str:
        return f"http://{in_url(self.host)}:{self.port}"

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MOST_BODY_BYTES)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    # -- endpoints -------------------------------------------------------------------------------------------------

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _tokenize(self, request: web.Request) -> web.Response:
        try:
            body = orjson.loads(await request.read())
            prompt, whole = body["prompt"], body.get("add_special_tokens", True)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise BadRequest("give {prompt: a text, add_special_tokens: true or false}") from error
        if not isinstance(prompt, str) or self.tokenizer is None:
            raise BadRequest("prompt must be a text" if self.tokenizer else "this server has no tokenizer", "prompt")
        ids = self.tokenizer.encode_whole(prompt) if whole else self.tokenizer.encode(prompt)
        return _json({"tokens": ids, "count": len(ids), "max_model_len": self.engine.capabilities.max_context})

    async def _models(self, _: web.Request) -> web.Response:
        context = self.engine.capabilities.max_context
        card = {"id": self.engine.model, "object": "model", "created": 0, "owned_by": "nemo-openmath"}
        return _json({"object": "list", "data": [card | ({"max_model_len": context} if context else {})]})

    async def _health(self, _: web.Request) -> web.Response:
        alive = bool(getattr(self.engine, "alive", True))
        return _json({"status": "ok" if alive else "engine stopped"}, 200 if alive else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        lines = ["# TYPE openmath_requests_in_flight gauge", f"openmath_requests_in_flight {self._in_flight}"]
        for name in sorted(self._counts):
            lines += [f"# TYPE {name.partition('{')[0]} counter", f"{name} {self._counts[name]}"]
        if (statistics := getattr(self.engine, "statistics", None)) is not None:
            lines += statistics.draft_metrics()
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    # -- one request -----------------------------------------------------------------------------------------------

    async def _answer(self, http: web.Request, chat: bool) -> web.StreamResponse:
        try:
            body = orjson.loads(data := await http.read())
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        call = parse_call(body, self.engine.model, chat)
        if len(data) > LONG:
            prompts = await asyncio.to_thread(self._prompts, call, chat)  # nobody waits while it is cut into tokens
        else:
            prompts = self._prompts(call, chat)
        requests = [self._request(call, prompt, i) for prompt in prompts for i in range(call.n)]
        request_id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        if call.stream:
            return await self._stream(http, call, requests, request_id, chat)
        completions = await _gather([self.engine.complete(r) for r in requests])
        self._count(completions)
        choices = [
            self._choice(i, call, r, c, chat) for i, (r, c) in enumerate(zip(requests, completions, strict=True))
        ]
        answer = envelope("chat.completion" if chat else "text_completion", request_id, self.engine.model, choices)
        return _json(answer | {"usage": usage_body(completions)})

    def _prompts(self, call: Call, chat: bool) -> list[tuple[int, ...] | str]:
        return [self._render(call)] if chat else [self._prompt(p) for p in call.prompts]

    def _render(self, call: Call) -> tuple[int, ...] | str:
        if self.tokenizer is None:
            raise BadRequest("this server has no chat template; use /v1/completions")
        messages = [Message(m["role"], m["content"]) for m in call.messages or ()]
        try:
            if self.engine.capabilities.token_ids:
                return tuple(self.tokenizer.prompt_ids(messages))
            return self.tokenizer.render(messages)
        except UserError as error:
            raise BadRequest(str(error), "messages") from error

    def _prompt(self, prompt: tuple[int, ...] | str) -> tuple[int, ...] | str:
        able = self.engine.capabilities
        if isinstance(prompt, str) and able.token_ids and self.tokenizer is not None:
            return tuple(self.tokenizer.encode_whole(prompt))
        if isinstance(prompt, str) and not able.text_prompts:
            raise BadRequest("this engine takes token ids only", "prompt")
        if not isinstance(prompt, str) and not able.token_ids:
            raise BadRequest("this engine takes text only", "prompt")
        return prompt

    def _request(self, call: Call, prompt: tuple[int, ...] | str, index: int) -> Request:
        sampling = replace(call.sampling, seed=call.sampling.seed + index)
        if call.max_tokens is None:
            context = self.engine.capabilities.max_context or 1 << 20
            used = len(prompt) if not isinstance(prompt, str) else 0
            sampling = replace(sampling, max_tokens=max(1, context - used))
        return Request(prompt, sampling, call.conversation, call.time_limit)

    def _choice(self, index: int, call: Call, r: Request, c: Completion, chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": FINISH_REASON[c.finish], "stop_reason": c.stop}
        choice |= {"message": {"role": "assistant", "content": c.text}} if chat else {"text": c.text}
        if call.return_token_ids:
            choice["token_ids"] = c.token_ids
            choice["prompt_token_ids"] = None if isinstance(r.prompt, str) else r.prompt
        known = call.sampling.logprobs and c.logprobs is not None
        choice["logprobs"] = self._logprobs(c.token_ids, c.logprobs or (), chat) if known else None
        return choice

    def _logprobs(self, ids: Sequence[int], values: Sequence[float], chat: bool, offset: int = 0) -> dict[str, Any]:
        """Log-probabilities in the protocol's form. ``offset``: characters of the tokens before these, of a stream."""
        texts = [self.tokenizer.decode([i]) if self.tokenizer is not None else str(i) for i in ids]
        if chat:
            return {
                "content": [
                    {"token": t, "logprob": p, "bytes": list(t.encode()), "top_logprobs": []}
                    for t, p in zip(texts, values, strict=True)
                ]
            }
        offsets = list(accumulate(map(len, texts), initial=offset))[: len(texts)]
        top = [{t: p} for t, p in zip(texts, values, strict=True)]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}

    async def _stream(
        self, http: web.Request, call: Call, requests: list[Request], request_id: str, chat: bool
    ) -> web.StreamResponse:
        chunks = _merge([self.engine.stream(r) for r in requests])
        first = await anext(chunks)  # a refused request becomes a plain error answer, not a broken stream
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        kind = "chat.completion.chunk" if chat else "text_completion"
        done: list[Completion] = []
        sent: Counter[int] = Counter()  # log-probabilities, of each request
        offsets: Counter[int] = Counter()

        async def send(index: int, chunk: Chunk) -> None:
            c = chunk.completion
            choice: dict[str, Any] = {"index": index, "finish_reason": None}
            choice |= {"delta": {"role": "assistant", "content": chunk.text}} if chat else {"text": chunk.text}
            if call.return_token_ids:
                choice["token_ids"] = chunk.token_ids
            ids, values = chunk.token_ids, chunk.logprobs
            if c is not None:
                done.append(c)
                choice |= {"finish_reason": FINISH_REASON[c.finish], "stop_reason": c.stop}
                ids, values = c.token_ids[sent[index] :], (c.logprobs or ())[sent[index] :]
            if call.sampling.logprobs and values:
                choice["logprobs"] = logprobs = self._logprobs(ids, values, chat, offsets[index])
                sent[index] += len(values)
                offsets[index] += sum(map(len, logprobs.get("tokens", ())))
            await response.write(_event(envelope(kind, request_id, self.engine.model, [choice])))

        try:
            await response.prepare(http)
            await send(*first)
            async for index, chunk in chunks:
                await send(index, chunk)
            self._count(done)
            if call.include_usage:
                usage = {"usage": usage_body(done)}
                await response.write(_event(envelope(kind, request_id, self.engine.model, []) | usage))
            await response.write(b"data: [DONE]\n\n")
        except EngineError as error:  # the headers are gone: the error is the stream's last event
            await response.write(_event(error_body(str(error), "engine_error", 500)))
        finally:
            await chunks.aclose()  # also when the client is gone: that cancels what it asked for
        await response.write_eof()
        return response

    # -- around every request --------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authentication, errors as JSON, counts."""
        self._in_flight += 1
        status = 499  # what the log of a web server calls a client that went away
        try:
            response = await self._guarded(request, handler)
            status = response.status
            return response
        finally:
            self._in_flight -= 1
            self._counts[f'openmath_http_requests_total{{path="{_route(request)}",status="{status}"}}'] += 1

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._api_key is not None and request.path.startswith("/v1/"):
            key = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(key.encode(errors="surrogateescape"), self._api_key.encode()):
                return _json(error_body("missing or wrong API key", "authentication_error", 401), 401)
        try:
            return await handler(request)
        except BadRequest as error:
            return _json(error_body(str(error), "invalid_request_error", error.status, error.param), error.status)
        except InvalidRequest as error:
            return _json(error_body(str(error), "invalid_request_error", 400), 400)
        except ConnectionError:  # nobody is there to read an answer
            return web.Response(status=499)
        except EngineError as error:
            status = 503 if error.retryable else 500
            headers = {"Retry-After": "1"} if error.retryable else None
            return _json(error_body(str(error), "engine_error", status), status, headers)
        except web.HTTPException as error:
            return _json(error_body(error.reason, "invalid_request_error", error.status), error.status)

    def _count(self, completions: list[Completion]) -> None:
        for c in completions:
            self._counts["openmath_prompt_tokens_total"] += c.usage.prompt_tokens
            self._counts["openmath_cached_prompt_tokens_total"] += c.usage.cached_tokens
            self._counts["openmath_generated_tokens_total"] += c.usage.completion_tokens
            self._counts[f'openmath_completions_total{{finish="{c.finish.value}"}}'] += 1


async def _gather(calls: list[Any]) -> list[Completion]:
    """Return all completions; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _merge(streams: list[AsyncIterator[Chunk]]) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Yield the chunks of several streams as they come, with the stream's index; closing closes all."""
    queue: asyncio.Queue[tuple[int, Chunk | BaseException | None]] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[Chunk]) -> None:
        try:
            async for chunk in stream:
                queue.put_nowait((index, chunk))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pump(i, s)) for i, s in enumerate(streams)]
    try:
        open_streams = len(tasks)
        while open_streams:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _route(request: web.Request) -> str:
    """The endpoint's own path: what clients invent must not become names of counters."""
    resource = request.match_info.route.resource
    return "other" if resource is None else resource.canonical


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


def _event(body: Any) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
