"""A server answers with status 200 and something that is no answer: what it answered is said, and it is asked again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from nemo_openmath.core.engine import EngineError, Finish, Request, WrongServer
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.http.retrying import RetryPolicy
from tests.support.servers import LoopbackServer

USAGE = {"prompt_tokens": 3, "completion_tokens": 1}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "5"}, "finish_reason": "stop"}


def answer(**changed: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [CHOICE], "usage": USAGE} | changed


def choice(**changed: Any) -> dict[str, Any]:
    return answer(choices=[{name: value for name, value in (CHOICE | changed).items() if value != "left out"}])


NO_ANSWERS: dict[str, tuple[Any, str]] = {
    "no choice": (answer(choices=[]), r"`choices` is \[\]"),
    "null": (answer(choices=None), "`choices` is null"),
    "an object": (answer(choices={"0": CHOICE}), r'`choices` is \{"0"'),
    "no choices": ({"model": "m", "usage": USAGE}, "there are no `choices`"),
    "nothing": ({}, "there are no `choices`: {}"),
    "another's choice": (choice(index=1), "no choice with index 0"),
    "a text as a choice": (answer(choices=["5"]), 'a choice is no object: "5"'),
    "message null": (choice(message=None), "`message` is null"),
    "message a text": (choice(message="5"), '`message` is "5"'),
    "no message": (choice(message="left out"), "neither `message` nor `text`"),
    "content a number": (choice(message={"content": 5}), "text was expected, not 5"),
    "no reason": (choice(finish_reason="left out"), "does not say why its text ended"),
    "reason null": (choice(finish_reason=None), "does not say why its text ended"),
    "reason a number": (choice(finish_reason=5), "finish_reason is no word: 5"),
    "a list": ([answer()], r"no JSON object: \[\{"),
    "a number": (5, "no JSON object: 5"),
    "empty": ("", "the body is empty"),
    "a page": ("<!DOCTYPE html>\n<html><body>Log in</body></html>", "is this the address of the API.*Log in"),
    "cut": (json.dumps(answer())[:-9], r"no JSON \(it breaks off\)"),
    "words": ("upstream request timeout", "no JSON: .*upstream request timeout"),
    "an error": ({"error": {"message": "CUDA out of memory"}}, "HTTP 500: CUDA out of memory"),
    "an error in the choice": (answer(choices=[{"index": 0, "error": {"message": "worker died"}}]), "worker died"),
}


class SayingServer(LoopbackServer):
    """Answers every question with the same body, and counts the questions."""

    def __init__(self, body: Any):
        super().__init__(web.post("/v1/chat/completions", self.say), web.get("/v1/models", self.models))
        self.text = body if isinstance(body, str) else json.dumps(body)
        self.asked = 0

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def say(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=self.text, content_type="text/html" if self.text[:1] == "<" else "application/json")


async def ask(server: SayingServer, **request: Any) -> Any:
    retry = RetryPolicy(attempts=2, first_s=0.001, most_s=0.001, patience_s=60)
    engine = HTTPEngine(server.url, "m", kind="openai", api="chat", retry=retry, timeout_s=10)
    try:
        return await engine.complete(Request("q", **request))
    finally:
        await engine.close()


@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_what_was_answered_is_said(name: str) -> None:
    body, words = NO_ANSWERS[name]
    async with SayingServer(body) as server:
        with pytest.raises(EngineError, match=words) as error:
            await ask(server)
        assert error.value.retryable
        assert server.asked == 2
        assert "(None)" not in str(error.value)


@pytest.mark.parametrize("name", ["no choice", "a list", "a page", "cut", "words", "an error", "nothing"])
async def test_what_was_answered_in_place_of_a_stream_is_said(name: str) -> None:
    body, words = NO_ANSWERS[name]
    async with SayingServer(body) as server:
        with pytest.raises(EngineError, match="no stream of events" if name in ("no choice", "nothing") else words):
            await ask(server, time_limit=60.0)


async def test_an_error_with_a_status_of_its_own_is_final() -> None:
    async with SayingServer({"error": {"message": "no such key", "code": 401}}) as server:
        with pytest.raises(WrongServer, match="no such key"):
            await ask(server)
        assert server.asked == 1


async def test_what_is_an_answer_all_the_same() -> None:
    for body in (
        {name: value for name, value in answer().items() if name != "usage"},
        answer(usage=None, error=None),
        choice(message={"content": None, "reasoning_content": "5"}),
        answer(choices=[CHOICE | {"index": 1, "message": {"content": "6"}}, CHOICE]),
    ):
        async with SayingServer(body) as server:
            completion = await ask(server)
        assert "5" in completion.text
        assert completion.finish is Finish.STOP
