"""Servers that answer in unexpected words, shapes and pieces; each case is one that a real server or proxy makes."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from nemo_openmath.core.engine import ContextOverflow, EngineError, Finish, Request, Sampling
from nemo_openmath.inference.http.answers import AnswerPart
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.http.retrying import RetryPolicy
from nemo_openmath.inference.http.server_pool import ServerPool
from nemo_openmath.inference.http.sse import events
from tests.support.servers import LoopbackServer
from tests.support.waiting import until

CHOICE = {"index": 0, "text": "ab", "token_ids": [5, 6], "finish_reason": "stop"}
ANSWER = {"model": "m", "choices": [CHOICE], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}


class Rough(LoopbackServer):
    """Answers each POST with the next of ``answers`` (a dict, or a coroutine function); the last again and again."""

    def __init__(self, *answers, status: int = 200, headers: dict | None = None, models=None):
        routes = [web.post("/v1/completions", self.post), *([web.get("/v1/models", models)] if models else [])]
        super().__init__(*routes, cancel_handlers=True)
        self.answers, self.status, self.headers, self.asked = list(answers), status, headers, 0

    async def post(self, request):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            return await answer(request)
        return web.json_response(answer, status=self.status, headers=self.headers)

    def client(self, kind="vllm", attempts=2, patience_s=5.0, model="m"):
        return HTTPEngine(self.url, model, kind=kind, retry=RetryPolicy(attempts, 0.001, 0.01, patience_s))


def streamed(*parts: bytes):
    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return answer


def event(**choice) -> bytes:
    return b"data: " + json.dumps({"model": "m", "choices": [CHOICE | choice]}).encode() + b"\n\n"


async def parsed(*chunks: bytes) -> list:
    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [e async for e in events(source())]


async def test_events_are_the_same_wherever_the_network_cuts_them():
    stream = b': hi\r\n\r\ndata:{"a":1}\r\n\r\nevent: x\nid: 7\ndata: {"b":\ndata: [2]}\n\n'
    stream += b'data: {"c":3}\n\n:\n\ndata: [DONE]'
    whole = [{"a": 1}, {"b": [2]}, {"c": 3}, None]
    for cut in range(len(stream) + 1):
        assert await parsed(stream[:cut], stream[cut:]) == whole
        try:
            seen = await parsed(stream[:cut])
        except ValueError:
            continue
        assert seen == whole[: len(seen)]
    assert await parsed(*(stream[i : i + 1] for i in range(len(stream)))) == whole
    with pytest.raises(ValueError, match="not JSON"):
        await parsed(b'data: {"a\n\ndata: {}\n\n')


async def test_an_event_may_be_longer_than_any_line_limit():
    ids = list(range(400_000))
    async with Rough(streamed(event(token_ids=ids), b"data: [DONE]\n\n")) as server:
        client = server.client()
        answer = await client.complete(Request((1,), time_limit=30))
        assert list(answer.token_ids) == ids
        await client.close()


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Prompt length (5000) exceeds maximum input length (4096).",
        "The sum of prompt length (5000) and query length (0) should not exceed max_num_tokens (4096)",
        "the request exceeds the available context size, try increasing it",
    ],
)
async def test_a_prompt_that_is_too_long_is_known_by_each_servers_words(words):
    async with Rough({"error": {"message": words}}, status=400) as server:
        client = server.client()
        with pytest.raises(ContextOverflow):
            await client.complete(Request((1,)))
        assert server.asked == 1
        await client.close()


@pytest.mark.parametrize(("status", "names"), [(401, "401"), (403, "403"), (404, "404"), (422, "422"), (302, "/else")])
async def test_a_refusal_is_final_and_says_why(status, names):
    async with Rough({"detail": "because"}, status=status, headers={"Location": "/elsewhere"}) as server:
        client = server.client()
        for limit in (None, 5.0):
            with pytest.raises(EngineError, match=names) as error:
                await client.complete(Request((1,), time_limit=limit))
            assert not error.value.retryable
        assert server.asked == 2
        await client.close()


async def test_the_stop_string_may_be_all_there_is():
    """And an error in a stream may be a plain string."""
    stop = CHOICE | {"text": "", "token_ids": [], "stop_reason": "\n"}
    none = ANSWER | {"choices": [CHOICE | {"token_ids": []}]}
    fails = streamed(b'data: {"error": "out of pages"}\n\n')
    async with Rough(ANSWER | {"choices": [stop]}, none, none, fails) as server:
        client = server.client()
        answer = await client.complete(Request((1,), Sampling(stop=("\n",), keep_stop=False)))
        assert (answer.text, answer.token_ids, answer.finish) == ("", (), Finish.STOP)
        with pytest.raises(EngineError, match="no token ids"):
            await client.complete(Request((1,)))
        with pytest.raises(EngineError, match="out of pages"):
            await client.complete(Request((1,), time_limit=5))
        assert all(s.in_flight == 0 for s in client.servers)
        await client.close()


@pytest.mark.parametrize(
    ("served", "asked", "same"),
    [("org/m", "m", True), ("m", "/models/org/m", True), ("org/m", "other/m", False), ("m2", "m", False)],
)
async def test_a_model_is_the_same_by_path_and_not_by_another_owner(served, asked, same):
    async def models(_):
        return web.json_response({"data": [{"id": served, "owned_by": "vllm"}]})

    async def post(request):
        seen.append((await request.json())["model"])
        return web.json_response(ANSWER | {"model": served})

    seen: list[str] = []
    async with Rough(post, models=models) as server:
        client = server.client("auto", model=asked)
        if same:
            assert (await client.complete(Request((1,)))).token_ids == (5, 6)
            assert seen == [served]
        else:
            with pytest.raises(EngineError, match=served):
                await client.complete(Request((1,)))
        await client.close()


async def test_work_done_does_not_use_up_patience():
    """A request that ran for longer than ``patience_s`` before its server failed is tried again."""

    async def slow(_):
        await asyncio.sleep(0.3)
        return web.json_response({}, status=500)

    async with Rough(slow, ANSWER) as server:
        client = server.client(patience_s=0.1)
        assert (await client.complete(Request((1,)))).token_ids == (5, 6)
        await client.close()


async def test_a_time_limit_holds_from_submission_and_keeps_what_was_finished(monkeypatch):
    loop, late = asyncio.get_running_loop(), 0.0
    time, add = loop.time, AnswerPart.add

    def heard(self, other):
        nonlocal late
        late += 1000  # the time is over once the client has heard this
        return add(self, other)

    async def hang(_):
        await asyncio.Event().wait()

    async def no_end(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(event(stop_reason="b"))
        await asyncio.Event().wait()

    async with Rough(no_end, models=hang) as server:
        unknown, known = server.client("auto"), server.client()
        answer = await unknown.complete(Request((1,), time_limit=0.1))
        assert (answer.finish, answer.token_ids) == (Finish.TIME, ())
        *_, last = [c async for c in unknown.stream(Request((1,), time_limit=0.1))]
        assert last.completion.finish is Finish.TIME
        monkeypatch.setattr(loop, "time", lambda: time() + late)
        monkeypatch.setattr(AnswerPart, "add", heard)
        answer = await known.complete(Request((1,), Sampling(stop=("b",)), time_limit=900.0))
        assert (answer.finish, answer.stop, answer.token_ids) == (Finish.STOP, "b", (5, 6))
        for client in (unknown, known):
            assert all(s.in_flight == 0 for s in client.servers)
            await client.close()


async def test_closing_ends_what_waits_for_its_next_attempt():
    async with Rough({"error": "busy"}, status=429, headers={"Retry-After": "50"}) as server:
        client = server.client(patience_s=1000)
        task = asyncio.create_task(client.complete(Request((1,))))
        await until(lambda: server.asked)
        await client.close()
        async with asyncio.timeout(300):
            with pytest.raises(EngineError, match="closed"):
                await task


def test_a_list_of_servers_that_is_half_written_is_not_believed(tmp_path):
    file = tmp_path / "urls"
    file.write_text("\ufeffhttp://a:1\nhttp://b:1\n")
    pool = ServerPool(file)
    home = pool.pick("c")
    for half in (b"htt", b"\xff\xfe", b""):
        file.write_bytes(half)
        pool._read_at = -100.0
        assert pool.pick("c") is home
    file.write_text("http://new:1\n")
    pool._read_at = -100.0
    assert pool.pick("c").url == "http://new:1"  # its home is gone


def test_delays_double_up_to_the_longest():
    policy = RetryPolicy(first_s=0.5, most_s=3.0)
    for failure, whole in enumerate([0.5, 1.0, 2.0, 3.0, 3.0]):
        delays = [policy.delay(failure) for _ in range(100)]
        assert whole / 2 <= min(delays) < max(delays) <= whole
    assert policy.delay(10**6) <= 3.0
