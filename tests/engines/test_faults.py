"""A server that does everything wrong, and a thousand requests: each ends exactly once."""

import asyncio
import json
import random
from collections import Counter

import pytest
import tiny
from aiohttp import web

from nemo_openmath.engines.dialects import DIALECTS, Piece, to_completion
from nemo_openmath.engines.http import HTTPEngine, RetryPolicy
from nemo_openmath.engines.protocol import EngineError, Finish, Request, Sampling
from nemo_openmath.engines.servers import TRIPS_AFTER, ServerPool

FAULTS = ("500", "429", "hang", "disconnect", "truncated", "wrong model", "slow")


class FaultyServer:
    """Answers like vLLM, echoing the prompt's ids; each request draws a fault with probability ``rate``."""

    def __init__(self, rate: float, seed: int = 0, port: int = 0):
        self.rate, self.random, self.port = rate, random.Random(seed), port
        self.seen: Counter[str] = Counter()
        self.answered = 0

    async def start(self):
        app = web.Application()
        app.router.add_post("/v1/completions", self.completions)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self.runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def die(self):
        await self.runner.cleanup()

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        fault = self.random.choice(FAULTS) if self.random.random() < self.rate else "none"
        self.seen[fault] += 1
        ids = body["prompt"]
        choice = {"index": 0, "text": " ".join(map(str, ids)), "token_ids": ids, "finish_reason": "stop"}
        answer = {
            "model": "m",
            "choices": [choice],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(ids)},
        }
        if fault == "500":
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        if fault == "429":
            return web.json_response({"error": "busy"}, status=429, headers={"Retry-After": "0.02"})
        if fault == "hang":
            await asyncio.sleep(5)
        if fault == "wrong model":
            answer["model"] = "other"
        if fault == "slow":
            await asyncio.sleep(0.1)
        if body.get("stream"):
            return await self.stream(request, fault, ids)
        text = json.dumps(answer)
        if fault == "disconnect":
            response = web.StreamResponse(headers={"Content-Length": str(len(text))})
            await response.prepare(request)
            await response.write(text[: len(text) // 2].encode())
            request.transport.close()
            return response
        if fault == "truncated":
            text = text[: len(text) // 2]
        self.answered += fault in ("none", "slow")
        return web.Response(text=text, content_type="application/json")

    async def stream(self, request, fault, ids):
        response = web.StreamResponse()
        await response.prepare(request)
        for i, token in enumerate(ids):
            choice = {"index": 0, "text": f"{token} ", "token_ids": [token], "finish_reason": None}
            if i == len(ids) - 1:
                choice["finish_reason"] = "stop"
            line = json.dumps({"model": "other" if fault == "wrong model" else "m", "choices": [choice]})
            if i == 1 and fault in ("disconnect", "truncated"):
                await response.write(f"data: {line[:9] if fault == 'truncated' else line}\n\n".encode())
                request.transport.close()
                return response
            await response.write(f"data: {line}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def client(urls, **policy):
    retry = RetryPolicy(**{"attempts": 25, "first_s": 0.002, "most_s": 0.05, "patience_s": 60} | policy)
    return HTTPEngine(urls, "m", kind="vllm", retry=retry, timeout_s=1.0)


@pytest.mark.slow
async def test_each_of_1000_requests_ends_exactly_once():
    """Four servers, one of which dies in the middle and comes back; every fault occurs."""
    servers = [await FaultyServer(0.15, seed).start() for seed in range(4)]
    engine = client([s.url for s in servers])
    ends: Counter[int] = Counter()

    async def ask(i: int, gate: asyncio.Semaphore):
        async with gate:
            limit = 30.0 if i % 4 == 0 else None  # these are streamed
            answer = await engine.complete(Request((i, 7, 8), conversation=str(i % 50), time_limit=limit))
        ends[i] += 1
        assert answer.token_ids == (i, 7, 8)
        assert answer.finish is Finish.STOP

    async def restart():
        await asyncio.sleep(0.5)
        await servers[0].die()
        await asyncio.sleep(1.0)
        servers[0] = await FaultyServer(0.15, 9, servers[0].port).start()

    gate = asyncio.Semaphore(64)
    await asyncio.gather(restart(), *(ask(i, gate) for i in range(1000)))
    assert ends == Counter(range(1000))
    assert all(sum(s.seen[fault] for s in servers) for fault in FAULTS)
    assert all(s.in_flight == 0 for s in engine.servers)
    await engine.close()
    for server in servers:
        await server.die()


@pytest.mark.parametrize("fault", ["500", "hang", "disconnect", "truncated", "wrong model"])
async def test_a_server_that_only_fails_ends_in_a_named_error(fault, monkeypatch):
    monkeypatch.setattr(f"{__name__}.FAULTS", (fault,))
    server = await FaultyServer(1.0).start()
    engine = client(server.url, attempts=2)
    with pytest.raises(EngineError, match=server.url) as error:
        async with asyncio.timeout(20):
            await engine.complete(Request((1, 2, 3)))
    assert error.value.retryable
    assert server.seen[fault] == 2
    await engine.close()
    await server.die()


async def test_a_busy_server_is_waited_for(monkeypatch):
    """429 does not count as a failure: more of them than ``attempts`` and the request still succeeds."""
    monkeypatch.setattr(f"{__name__}.FAULTS", ("429",))
    server = await FaultyServer(1.0).start()
    engine = client(server.url, attempts=1)
    task = asyncio.create_task(engine.complete(Request((1, 2, 3))))
    await tiny.until(lambda: server.seen["429"] >= 4)
    server.rate = 0
    assert (await task).token_ids == (1, 2, 3)
    await engine.close()
    await server.die()


def test_conversations_stay_and_load_is_spread():
    pool = ServerPool([f"http://h{i}" for i in range(4)])
    home = pool.pick("a")
    for _ in range(3):
        with pool.using(home):
            assert pool.pick("a") is home
    busy = pool.servers[:2]
    for server in busy:
        server.in_flight += 1
    assert pool.pick() not in busy
    for server in busy:
        server.in_flight -= 1
    for _ in range(TRIPS_AFTER):
        home.failed()
    assert pool.pick("a") is not home  # its breaker is open
    home.closed_until = 0.0
    assert home.available(1.0)
    with pool.using(home):
        assert not home.available(1.0)  # one request at a time until one succeeds
    home.succeeded()
    assert not home.on_trial


def test_servers_that_move_are_found_again(tmp_path):
    file = tmp_path / "urls"
    file.write_text("http://old:1/v1\n")
    pool = ServerPool(file)
    assert pool.pick().url == "http://old:1"
    file.write_text("http://new:1\nhttp://new:2\n")
    pool._read_at = -100.0
    assert {pool.pick().url for _ in range(50)} == {"http://new:1", "http://new:2"}


class Digits:
    """A tokenizer whose tokens are characters."""

    end_of_turn = 0

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_dialects_agree_on_the_same_answer():
    """The same completion, as each server words it; a server that trims the stop string has it put back."""
    request = Request((1, 2), Sampling(stop=("</c>",), seed=7))
    ids = Digits().encode("ab</c>")
    choice = {"text": "ab</c>", "token_ids": ids, "finish_reason": "stop", "stop_reason": "</c>"}
    usage = {"prompt_tokens": 2, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 1}}
    meta = {"prompt_tokens": 2, "completion_tokens": 6, "cached_tokens": 1}
    reason = {"type": "stop", "matched": "</c>"}
    answers = {
        "vllm": {"choices": [choice], "usage": usage},
        "trtllm": {"choices": [choice | {"text": "", "token_ids": ids[:2]}], "usage": usage},
        "sglang": {"text": "ab", "output_ids": ids, "meta_info": meta | {"finish_reason": reason}},
    }
    for kind, answer in answers.items():
        got = to_completion(DIALECTS[kind].read(answer, Piece()), request, Digits())
        assert (got.text, got.stop, got.finish, list(got.token_ids)) == ("ab</c>", "</c>", Finish.STOP, ids), kind
        assert (got.usage.prompt_tokens, got.usage.cached_tokens) == (2, 1)
    assert "logprobs" not in DIALECTS["trtllm"].body(Request((1,), Sampling(logprobs=True)), "m", False)
    so_far = Piece(text="a", ids=(97,))
    cumulative = {"text": "ab", "output_ids": [97, 98], "meta_info": meta | {"completion_tokens": 2}}
    assert DIALECTS["sglang"].read(cumulative, so_far).ids == (98,)
