"""Models that say what a test wants: behind the product's own HTTP engine, and as an engine in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import Capabilities, Chunk, Completion, Finish, Request, Usage
from nemo_openmath.inference.http.client import HTTPEngine, RetryPolicy
from tests.support.servers import LoopbackServer

MODEL = "scripted"


@dataclass(frozen=True)
class Reply:
    """What the server answers. ``finish``: OpenAI's ``finish_reason``. ``status``: 400 refuses the request for good,
    500 says that the same request may succeed later."""

    text: str = ""
    finish: str = "stop"
    status: int = 200
    tokens: int = 1
    """Tokens that the server says it wrote."""


REFUSED = Reply("flagged by the content filter", status=400)
BUSY = Reply("out of memory", status=500)


@dataclass(frozen=True)
class Asked:
    """One request: the text of the user's turn and how it was to be sampled. A greedy request has no seed."""

    question: str
    temperature: float
    seed: int | None
    max_tokens: int


class ScriptedServer(LoopbackServer):
    """A chat server on loopback. ``answer``: from the text of the user's turn to what is said."""

    def __init__(self, answer: Callable[[str], str | Reply]):
        super().__init__(web.post("/v1/chat/completions", self._complete), web.get("/v1/models", self._models))
        self._answer = answer
        self.asked: list[Asked] = []

    def engine(self) -> HTTPEngine:
        """A client that asks once: whoever calls it sees each failure."""
        retry = RetryPolicy(attempts=1, first_s=0.001, most_s=0.001, patience_s=5.0)
        return HTTPEngine(self.url, MODEL, kind="openai", api="chat", retry=retry)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL}]})

    async def _complete(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        (turn,) = body["messages"]
        self.asked.append(Asked(turn["content"], body["temperature"], body.get("seed"), body["max_tokens"]))
        reply = self._answer(turn["content"])
        if isinstance(reply, str):
            reply = Reply(reply)
        if reply.status != 200:
            return web.json_response({"error": {"message": reply.text}}, status=reply.status)
        choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish}
        usage = {"prompt_tokens": 1, "completion_tokens": reply.tokens, "total_tokens": 1 + reply.tokens}
        return web.json_response({"model": MODEL, "choices": [choice], "usage": usage})


class LocalEngine:
    """An engine in this process that speaks token ids. A subclass says in ``complete`` what it answers."""

    model = MODEL
    capabilities = Capabilities(
        token_ids=True, text_prompts=True, seeds=True, logprobs=False, keep_stop=True, cached_tokens=False
    )

    def __init__(self, tokenizer: ChatTokenizer):
        self.tokenizer = tokenizer

    async def complete(self, request: Request) -> Completion:
        raise NotImplementedError

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        completion = await self.complete(request)
        yield Chunk(completion.text, completion.token_ids, completion)

    async def close(self) -> None:
        """Nothing is held."""

    def turn(self, request: Request, text: str) -> Completion:
        """The completion that is ``text`` and then the end of the model's turn."""
        ids = (*self.tokenizer.encode(text), self.tokenizer.end_of_turn)
        return Completion(text, ids, Finish.STOP, None, Usage(len(request.prompt), 0, len(ids)))


class ScriptedEngine(LocalEngine):
    """What a chat server cannot show: code blocks, conversations.

    ``answer``: from the text of the whole prompt to what is said; it may raise what engines raise. A text that ends in
    one of the request's stop strings stops there, any other ends the model's turn. ``finish`` is why it ended, unless
    ``max_tokens`` cut it.
    """

    def __init__(self, tokenizer: ChatTokenizer, answer: Callable[[str], str], finish: Finish = Finish.STOP):
        super().__init__(tokenizer)
        self._answer, self._finish = answer, finish
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        prompt = request.prompt if isinstance(request.prompt, str) else self.tokenizer.decode(request.prompt)
        text, finish = self._answer(prompt), self._finish
        stop = next((stop for stop in request.sampling.stop if text.endswith(stop)), None)
        ids = [*self.tokenizer.encode(text)] + ([] if stop else [self.tokenizer.end_of_turn])
        if len(ids) > request.sampling.max_tokens:
            ids, stop, finish = ids[: request.sampling.max_tokens], None, Finish.LENGTH
            text = self.tokenizer.decode(ids)
        return Completion(text, tuple(ids), finish, stop, Usage(len(request.prompt), 0, len(ids)))


def in_turn(texts: Iterable[str]) -> Callable[[str], str]:
    """Answer the first question with the first text, and so on."""
    remaining = iter(texts)
    return lambda _: next(remaining)
