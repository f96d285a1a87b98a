"""Client for any OpenAI-compatible server: vLLM, SGLang, TensorRT-LLM, our own, or a plain one.

Every request ends exactly once, with a completion or an :class:`EngineError` that names the server and the cause.
Cancelling it closes its connection, which makes every one of these servers free what it held.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import (
    Capabilities,
    Chunk,
    Completion,
    ContextOverflow,
    EngineError,
    Finish,
    Request,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.inference.http.answers import AnswerPart
from nemo_openmath.inference.http.dialects import DIALECTS, OWNERS, Dialect, ServerKind, chat_dialect, to_completion
from nemo_openmath.inference.http.model_names import ModelNames
from nemo_openmath.inference.http.retrying import AttemptFailed, Retrying, RetryPolicy
from nemo_openmath.inference.http.same_tokens import check_tokenizer
from nemo_openmath.inference.http.server_pool import Endpoint, ServerPool
from nemo_openmath.inference.http.transport import Transport
from nemo_openmath.models.stop_tokens import end_ids

log = logging.getLogger(__name__)

LEAST = 64  # tokens that are asked for at least, where it is tried how many fit
T = TypeVar("T")
SPARE = 8  # tokens of its context that a server may keep for itself


class HTTPEngine:
    """An :class:`Engine` behind HTTP.

    - ``urls``: base URLs, or the path of a file or folder that lists them (see :class:`ServerPool`).
    - ``model``: its name on the servers.
    - ``tokenizer``: needed for trtllm, useful for cutting stop strings from token ids.
    - ``api``: "completions", or "chat" for conversations, which the server renders.
    - ``kind``: what the server is; "auto" asks it at the first request or :meth:`probe`.
    - ``reasoning_effort``, ``template_options``: what a chat server renders prompts with besides their turns.
    - ``api_key_env``: the environment variable that holds the bearer token.
    - ``connections``: open at once, at most.
    - ``timeout_s``: seconds of a whole attempt; a request's own time limit is kept besides.
    - ``waiting``: says what is waited for; default: the log.
    """

    def __init__(
        self,
        urls: str | Sequence[str] | Path,
        model: str,
        *,
        tokenizer: ChatTokenizer | None = None,
        api: str = "completions",
        kind: ServerKind = "auto",
        reasoning_effort: str | None = None,
        template_options: Mapping[str, Any] | None = None,
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
        if (reasoning_effort is not None or template_options) and api != "chat":
            raise UserError("a server that gets token ids renders nothing", remedy="use the chat api")
        self.tokenizer, self._api = tokenizer, api
        self._options: dict[str, Any] = {}
        if reasoning_effort is not None:
            self._options["reasoning_effort"] = reasoning_effort
        if template_options:
            self._options["chat_template_kwargs"] = dict(template_options)
        self._model = ModelNames(model)
        self._pool = ServerPool([urls] if isinstance(urls, str) else urls)
        self._retrying = Retrying(self._pool, retry or RetryPolicy(), waiting or Waiting(say=log.warning))
        self._transport = Transport(
            self._pool, self._model, timeout_s=timeout_s, connections=connections, api_key_env=api_key_env
        )
        self._end_ids = () if tokenizer is None else tuple(sorted(end_ids(tokenizer)))
        self._dialect: Dialect | None = None
        self._capabilities: Capabilities | None = None
        self._probing: asyncio.Lock | None = None
        if kind != "auto":
            self._speak(kind, None)

    @property
    def model(self) -> str:
        return self._model.name

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineError("what the server can do is not known yet: await probe() first", retryable=False)
        return self._capabilities

    @property
    def servers(self) -> list[Endpoint]:
        """The servers and their state, for progress pages."""
        return self._pool.servers

    async def close(self) -> None:
        """Close the connections; pending requests end with an EngineError."""
        self._retrying.close()
        await self._transport.close()

    # -- what the server is ----------------------------------------------------------------------------------------

    async def probe(self) -> Capabilities:
        """Ask a server what it is, how long its context is, and whether its tokenizer is ours. Raises EngineError where
        none answers in time, and UserError where the tokenizer is another one."""

        async def ask(server: Endpoint) -> tuple[Endpoint, dict[str, Any]]:
            return server, await self._transport.request(server, "GET", "/v1/models", None, short=True)

        server, answer = await self._retrying.run(ask, None)
        cards = [card for card in answer.get("data") or [] if isinstance(card, dict)]
        card = self._model.choose_card(cards, ", ".join(server.url for server in self.servers))
        kind = self._dialect.name if self._dialect else OWNERS.get(str(card.get("owned_by")), "openai")
        dialect, capabilities = self._speak(kind, card.get("max_model_len"))
        if self.tokenizer is not None and self._api == "completions":  # chat servers are asked in text alone
            same = await check_tokenizer(self._transport, server, dialect, self._model, self.tokenizer, self._end_ids)
            capabilities = self._capabilities = replace(capabilities, same_tokens=same)
        return capabilities

    def _speak(self, kind: ServerKind, max_context: int | None) -> tuple[Dialect, Capabilities]:
        dialect = DIALECTS[kind] if self._api == "completions" else chat_dialect(kind)
        if kind == "trtllm" and self._api == "completions" and self.tokenizer is None:
            raise UserError("trtllm returns token ids only", remedy="give the model's tokenizer")
        if left_out := dialect.takes.left_out:
            self._model.warn(
                f"{self.model}: asked as a plain OpenAI server, which decides by itself on {', '.join(left_out)}; "
                "if it is vLLM, SGLang or TensorRT-LLM, name its kind"
            )
        limit = max_context if type(max_context) is int and max_context > 0 else None
        options = orjson.dumps(self._options, option=orjson.OPT_SORT_KEYS).decode() if self._options else ""
        capabilities = replace(dialect.capabilities, max_context=limit, options=options)
        self._dialect, self._capabilities = dialect, capabilities
        return dialect, capabilities

    async def _ready(self) -> Dialect:
        if self._dialect is None:
            self._probing = self._probing or asyncio.Lock()
            async with self._probing:
                if self._dialect is None:
                    await self.probe()
        assert self._dialect is not None
        return self._dialect

    # -- completions -----------------------------------------------------------------------------------------------

    async def complete(self, request: Request) -> Completion:
        """Return the finished completion. Cancelling the task closes the connection.

        Raises InvalidRequest for a request that the server refuses, EngineError where no server could make it.
        """
        if request.time_limit is not None:
            return await self._complete_in_time(request)
        dialect = await self._ready()

        async def ask_for(request: Request) -> Completion:
            body = self._body(request, stream=False)

            async def ask(server: Endpoint) -> Completion:
                answer = await self._transport.request(server, "POST", dialect.path, body)
                return self._completion(lambda: dialect.read_whole(answer), request)

            return await self._retrying.run(ask, request.conversation)

        return await self._fitting(request, ask_for)

    async def _complete_in_time(self, request: Request) -> Completion:
        """Stream, so that what was generated when the time is over can be returned."""
        so_far = AnswerPart()

        async def ask_for(request: Request) -> Completion:
            body = self._body(request, stream=True)

            async def ask(server: Endpoint) -> Completion:
                nonlocal so_far
                so_far = AnswerPart()
                async for part in self._transport.stream(server, dialect, body, so_far):
                    so_far.add(part)
                return self._completion(lambda: so_far, request)

            return await self._retrying.run(ask, request.conversation)

        try:
            async with asyncio.timeout(request.time_limit):
                dialect = await self._ready()
                return await self._fitting(request, ask_for)
        except TimeoutError:
            _end_in_time(so_far)
            return to_completion(so_far, request, self.tokenizer)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the completion as the server sends it. What was yielded cannot be taken back: a stream that breaks off
        is an EngineError, not another attempt."""
        loop = asyncio.get_running_loop()
        deadline = None if request.time_limit is None else loop.time() + request.time_limit
        so_far = AnswerPart()

        async def begin(request: Request) -> tuple[Endpoint, AsyncGenerator[AnswerPart, None], AnswerPart]:
            body = self._body(request, stream=True)

            async def ask(server: Endpoint) -> tuple[Endpoint, AsyncGenerator[AnswerPart, None], AnswerPart]:
                parts = self._transport.stream(server, dialect, body, so_far)
                return server, parts, await anext(parts)

            return await self._retrying.run(ask, request.conversation)

        opened: AsyncGenerator[AnswerPart, None] | None = None
        yielded = ""
        try:
            async with asyncio.timeout_at(deadline):
                dialect = await self._ready()
                server, parts, part = await self._fitting(request, begin)
                opened = parts
            with self._pool.using(server):
                while True:
                    so_far.add(part)
                    text = part.text if not so_far.thinking else _beyond(so_far.whole, yielded)
                    yielded += text
                    yield Chunk(text, part.ids, logprobs=part.logprobs)
                    async with asyncio.timeout_at(deadline):
                        part = await anext(parts)
        except StopAsyncIteration:
            pass
        except TimeoutError:
            _end_in_time(so_far)
        except AttemptFailed as error:  # what was yielded cannot be taken back
            if error.blames:
                server.failed(str(error))
            raise EngineError(f"{server.url}: {error}", retryable=True) from error
        finally:
            if opened is not None:
                await opened.aclose()
        completion = to_completion(so_far, request, self.tokenizer)
        self._learn(so_far)
        logprobs = (completion.logprobs or ())[len(so_far.logprobs) :]
        text = _beyond(completion.text, yielded)
        yield Chunk(text, completion.token_ids[len(so_far.ids) :], completion, logprobs)

    async def _fitting(self, request: Request, ask_for: Callable[[Request], Awaitable[T]]) -> T:
        """Ask for as many tokens as the context leaves. Of a prompt that the server cuts into tokens it knows how many
        they are; where it refuses without saying it, half as many are asked for, and so on."""
        request = fit_context(request, self.capabilities.max_context)
        while True:
            try:
                return await ask_for(request)
            except ContextOverflow as error:
                sampling = request.sampling
                room = sampling.max_tokens // 2 if error.room is None else error.room
                fewer = 0 < room < sampling.max_tokens and (error.room is not None or room >= LEAST)
                if not fewer or isinstance(request.prompt, tuple):
                    raise
                request = replace(request, sampling=replace(sampling, max_tokens=room))

    def _body(self, request: Request, *, stream: bool) -> bytes:
        assert self._dialect is not None
        body = self._dialect.body(request, self._model.asks_for, stream, self._end_ids)
        return orjson.dumps(body | self._options)

    def _completion(self, read: Callable[[], AnswerPart], request: Request) -> Completion:
        try:
            answer = read()
            completion = to_completion(answer, request, self.tokenizer)
        except EngineError as error:
            raise AttemptFailed(str(error)) from error
        except ValueError as error:
            raise AttemptFailed(f"damaged answer: {error}") from error
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise AttemptFailed(f"damaged answer: {error!r}") from error
        generated = answer.text or (answer.stop is None and (answer.usage.get("completion_tokens") or 0) > 1)
        if self.capabilities.token_ids and not answer.ids and generated:
            raise AttemptFailed("the server returned no token ids; does it support return_token_ids?")
        self._learn(answer)
        self._warn_of(completion, request)
        return completion

    def _learn(self, answer: AnswerPart) -> None:
        """Give thinking back in the field in which it comes."""
        if answer.thinking_field and self._dialect is not None:
            self._dialect = chat_dialect(self._dialect.name, answer.thinking_field)

    def _warn_of(self, completion: Completion, request: Request) -> None:
        """Warn once of what the server did otherwise than it was asked."""
        usage, context = completion.usage, self.capabilities.max_context
        if usage.estimated:
            self._model.warn(f"{self.model}: the server does not count all tokens (usage); the counts are estimates")
        if context is None or usage.estimated or completion.finish is not Finish.LENGTH:
            return
        if usage.completion_tokens < min(request.sampling.max_tokens, context - SPARE - usage.prompt_tokens):
            self._model.warn(
                f"{self.model}: the server ends texts after {usage.completion_tokens} tokens, though "
                f"{request.sampling.max_tokens} were asked for and its context has room (max_new_tokens of the model's "
                "generation_config.json? start vLLM with --generation-config vllm)"
            )


def _beyond(text: str, yielded: str) -> str:
    """What ``text`` has beyond what was yielded; nothing where it turned out otherwise: the completion has all."""
    return text[len(yielded) :] if text.startswith(yielded) else ""


def _end_in_time(so_far: AnswerPart) -> None:
    """Make what was received until the request's time was over a whole answer."""
    if so_far.finish is None:
        so_far.finish, so_far.stop = "time_limit", None


def fit_context(request: Request, max_context: int | None) -> Request:
    """Return the request with ``max_tokens`` cut to what the context leaves: vLLM refuses more than that. Raises
    ContextOverflow where it leaves nothing. Of a prompt without ids it is known that it has one token at least."""
    if max_context is None:
        return request
    prompt_tokens = len(request.prompt) if isinstance(request.prompt, tuple) else 1
    left_tokens = max_context - prompt_tokens
    if left_tokens <= 0:
        raise ContextOverflow(prompt_tokens, max_context)
    if request.sampling.max_tokens <= left_tokens:
        return request
    return replace(request, sampling=replace(request.sampling, max_tokens=left_tokens))
