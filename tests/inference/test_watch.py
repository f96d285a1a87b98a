"""A rollout under watch: what it has survives a cancellation, on servers and in the embedded engine, with its times."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from nemo_openmath.chat import ChatTokenizer, Message
from nemo_openmath.chat.blocks import output_block
from nemo_openmath.core.clock import SystemClock
from nemo_openmath.core.engine import Finish, Request, Sampling
from nemo_openmath.core.records import Generation, Problem, read_records
from nemo_openmath.core.records.notes import Timing
from nemo_openmath.core.records.store import write_records
from nemo_openmath.grading import extract_answer
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.rollout import RolloutSettings, roll_out
from nemo_openmath.inference.rollout.stage import Generate, GenerateConfig
from nemo_openmath.inference.rollout.watch import TAIL, Watch, surprise
from tests.competition.timed import TimedSandbox
from tests.support.engines import ScriptedEngine
from tests.support.servers import LoopbackServer
from tests.support.services import Lent, stage_context

QUESTION = (Message("user", "What is 6 times 7?"),)
HOLD, BREAK = "hold", "break"


class Streaming(LoopbackServer):
    """A chat server that streams. The n-th request gets the n-th list of texts; HOLD: nothing more comes; BREAK: the
    connection is lost."""

    def __init__(self, *replies: list[str]):
        super().__init__(web.post("/v1/chat/completions", self._answer), web.get("/v1/models", self._models))
        self.replies, self.asked = replies, 0

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        texts, self.asked = self.replies[self.asked], self.asked + 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text in texts:
            if text == HOLD:
                await asyncio.Event().wait()
            if text == BREAK:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(self._event({"delta": {"content": text}, "finish_reason": None}))
        await response.write(self._event({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n")
        return response

    def _event(self, choice: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps({"model": "m", "choices": [{"index": 0} | choice]}) + b"\n\n"


async def test_a_cancelled_conversation_still_has_its_text(tokenizer: ChatTokenizer) -> None:
    code = "I compute.\n<tool_call>\nprint(6 * 7)\n</tool_call>"
    server = Streaming([code[:12], code[12:]], ["So it is ", "\\boxed{42}, I", " think", HOLD])
    heard, arrived = [], asyncio.Event()

    def told(text: str) -> None:
        heard.append(text)
        if text == " think":
            arrived.set()

    async with server:
        engine = HTTPEngine(server.url, "m", kind="openai", api="chat")
        watch = Watch(SystemClock(), told=told)
        assert watch.outcome() is None, "nothing has begun"
        task = asyncio.ensure_future(
            roll_out(
                engine,
                tokenizer,
                QUESTION,
                RolloutSettings(max_tokens=1000),
                seed=1,
                key="k",
                sandbox=TimedSandbox(seconds=0.0),
                budget=3,
                watch=watch,
            )
        )
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.close()
    outcome = watch.outcome()
    assert outcome is not None
    assert (outcome.finish, outcome.transcript.finished, outcome.cost.code_calls) == (Finish.TIME, False, 1)
    text = outcome.transcript.text
    assert text.index("print(6 * 7)") < text.index(output_block("42")) < text.index("So it is \\boxed{42}, I think")
    assert extract_answer(outcome.transcript.said).answer == "42"
    assert "".join(heard) == code + "So it is \\boxed{42}, I think"


async def test_a_lost_connection_is_asked_again(tokenizer: ChatTokenizer) -> None:
    async with Streaming(["<think>so", BREAK], ["<think>so</think>", "\\boxed{42}"]) as server:
        engine = HTTPEngine(server.url, "m", kind="openai", api="chat")
        watch = Watch(SystemClock())
        outcome = await roll_out(
            engine, tokenizer, QUESTION, RolloutSettings(max_tokens=1000), seed=1, key="k", watch=watch
        )
        await engine.close()
    assert (outcome.finish, server.asked) == (Finish.STOP, 2)
    assert outcome.transcript.text == "<think>so</think>\\boxed{42}"
    seconds = [second for second, _ in watch.points]
    assert seconds == sorted(seconds)


async def test_the_embedded_engine_under_watch(model_dir: Path) -> None:
    engine = EmbeddedEngine.load(model_dir, slots=2, threads=1)
    request = Request((5, 6, 7), Sampling(max_tokens=90, temperature=1.0, seed=3, logprobs=True))
    plain = await engine.complete(request)
    watch = Watch(SystemClock(), logprobs=True)
    completion = await watch.complete(engine, request)
    assert (completion.token_ids, completion.logprobs) == (plain.token_ids, plain.logprobs)
    timing = watch.timing(engine.tokenizer, answered=False, code_seconds=0.0)
    assert plain.logprobs is not None
    tail = plain.logprobs[-TAIL:]
    assert timing.tail_surprise == pytest.approx(-sum(tail) / len(tail))
    assert (timing.tail_tokens, timing.answer_surprise) == (len(tail), None)
    assert timing.points[-1][1] == len(plain.token_ids)

    cut = Watch(SystemClock(), logprobs=True, told=lambda _: task.cancel())
    task = asyncio.ensure_future(cut.complete(engine, request))
    with pytest.raises(asyncio.CancelledError):
        await task
    tokens = cut.timing(engine.tokenizer, answered=False, code_seconds=0.0, cut=True).points[-1][1]
    assert 0 < tokens < len(plain.token_ids), "what had come by then"
    await engine.close()


def test_the_surprise_is_that_of_the_last_box(tokenizer: ChatTokenizer) -> None:
    before, answer, after = "We try \\boxed{7} first. " * 40 + "It is \\boxed{", "1234567", "}. Done."
    ids = tokenizer.encode(before + answer + after)
    ends = [len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    start, end = len(before), len(before) + len(answer)
    inside = [n for n, at in enumerate(ends) if (ends[n - 1] if n else 0) < end and at > start]
    logprobs = [-1.0 if n in inside else -100.0 for n in range(len(ids))]
    assert surprise(tokenizer, ids, logprobs) == 1.0
    assert surprise(tokenizer, ids, []) is None
    assert surprise(tokenizer, tokenizer.encode("no box"), [-1.0] * len(tokenizer.encode("no box"))) is None


@pytest.mark.parametrize("timed", [True, False])
def test_generations_say_when_they_were_made(tokenizer: ChatTokenizer, tmp_path: Path, timed: bool) -> None:
    write_records(tmp_path / "in", [Problem.make("What is 6 times 7?", expected_answer="42")])
    engine = ScriptedEngine(tokenizer, lambda _: "<think>so</think>\\boxed{42}")
    stage = Generate(GenerateConfig(samples=2, max_tokens=100, timed=timed))
    services = Lent(engine=engine, tokenizer=tokenizer)
    asyncio.run(stage.run(stage_context({"problems": [tmp_path / "in"]}, tmp_path / "out", services=services)))
    for record in read_records(tmp_path / "out", Generation):
        timing = Timing.of(record)
        assert (timing is not None) == timed
        assert timing is None or timing.points[-1][1] == record.completion_tokens
