"""The HTTP server and our client, over loopback."""

import asyncio
import json
import os
import signal

import aiohttp
import pytest

from nemo_openmath.core.engine import EngineError, Finish, InvalidRequest, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.http.retrying import RetryPolicy
from nemo_openmath.inference.open import EngineConfig, open_engine
from nemo_openmath.inference.replay import Recorder, ReplayEngine
from nemo_openmath.inference.serving.launch import ServerConfig
from nemo_openmath.inference.serving.openai_server import OpenAIServer
from nemo_openmath.inference.serving.supervise import ServerProcess
from tests.inference.faulty import FaultyServer
from tests.support.waiting import until

PROMPT = tuple(range(20, 60))


@pytest.fixture
async def served(model_dir):
    engine = EmbeddedEngine.load(model_dir, slots=4, threads=1)
    async with OpenAIServer(engine) as server:
        yield engine, server.url
    await engine.close()


@pytest.fixture
async def client(served):
    client = HTTPEngine(served[1], served[0].model, tokenizer=served[0].tokenizer)
    yield client
    await client.close()


async def post(url: str, path: str = "/v1/completions", **body):
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body) as answer:
        return answer.status, await answer.json()


async def test_client_and_server_lose_nothing(served, client):
    """The same completion through HTTP, whole, streamed and within a time limit, as from the engine itself."""
    engine, _ = served
    stop = (await engine.complete(Request(PROMPT, Sampling(max_tokens=40, temperature=1.0, seed=3)))).text[10:12]
    for sampling in (
        Sampling(max_tokens=30, temperature=1.0, top_k=50, min_p=0.001, seed=2, logprobs=True),
        Sampling(max_tokens=40, temperature=1.0, seed=3, stop=("~~", stop)),
        Sampling(max_tokens=40, temperature=1.0, seed=3, stop=(stop,), keep_stop=False),
    ):
        direct = await engine.complete(Request(PROMPT, sampling))
        whole = await client.complete(Request(PROMPT, sampling, conversation="c"))
        timed = await client.complete(Request(PROMPT, sampling, time_limit=60))
        *_, last = [c async for c in client.stream(Request(PROMPT, sampling))]
        for answer in (whole, timed, last.completion):
            assert (answer.text, answer.token_ids, answer.stop) == (direct.text, direct.token_ids, direct.stop)
            assert answer.finish is direct.finish
            assert answer.usage == direct.usage
        assert whole.logprobs == pytest.approx(direct.logprobs)
    assert client.capabilities.max_context == engine.capabilities.max_context


async def test_time_limit_over_http_returns_the_part_that_came():
    """From a server that sends all tokens but the last, then nothing."""
    server = await FaultyServer(1.0, faults=("hold",)).start()
    client = HTTPEngine(server.url, "m")
    time_limit, answer = 0.1, None
    while answer is None or not answer.token_ids:  # nothing came within the limit: the machine is slow
        time_limit *= 2
        answer = await client.complete(Request(PROMPT, time_limit=time_limit))
        assert answer.finish is Finish.TIME
    assert answer.token_ids == PROMPT[: len(answer.token_ids)] != PROMPT
    assert answer.text == "".join(f"{token} " for token in answer.token_ids)
    await client.close()
    await server.die()


async def test_disconnect_frees_the_engine(served, client):
    engine, _ = served
    await client.probe()
    tasks = [
        asyncio.create_task(client.complete(Request((i, 9), Sampling(max_tokens=500, temperature=1.0))))
        for i in range(3, 99)
    ]
    await until(lambda: len(engine._scheduler._batch.running) == 4)
    for task in tasks:
        task.cancel()
    await until(lambda: engine._scheduler._batch.idle)
    assert engine.statistics.finished[Finish.CANCELLED] > 0


async def test_completions_of_several_prompts_and_samples(served):
    engine, url = served
    status, body = await post(
        url, prompt=["Solve the", "The answer is"], n=2, seed=5, max_tokens=4, return_token_ids=True, logprobs=1
    )
    assert status == 200
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert [len(c["token_ids"]) for c in body["choices"]] == [4] * 4
    assert body["choices"][2]["prompt_token_ids"] == engine.tokenizer.encode("The answer is")
    assert len(body["choices"][0]["logprobs"]["token_logprobs"]) == 4
    assert body["usage"]["completion_tokens"] == 16
    alone = await engine.complete(Request("Solve the", Sampling(max_tokens=4, temperature=1.0, top_p=1.0, seed=6)))
    assert body["choices"][1]["text"] == alone.text


async def test_chat_renders_the_template(served):
    engine, url = served
    messages = [{"role": "user", "content": [{"type": "text", "text": "6 times 7?"}]}]
    status, body = await post(url, "/v1/chat/completions", messages=messages, max_tokens=5, temperature=0, seed=1)
    rendered = "<|im_start|>user\n6 times 7?<|im_end|>\n<|im_start|>assistant\n"
    prompt = tuple(engine.tokenizer.encode(rendered))
    direct = await engine.complete(Request(prompt, Sampling(max_tokens=5, temperature=0)))
    assert status == 200
    assert body["choices"][0]["message"] == {"role": "assistant", "content": direct.text}
    assert body["usage"]["prompt_tokens"] == len(prompt)


async def test_streamed_events_follow_the_protocol(served):
    _, url = served
    body = {"prompt": list(PROMPT), "max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}, "n": 2}
    body["seed"] = 3  # whose texts do not end by themselves
    async with aiohttp.ClientSession() as session, session.post(url + "/v1/completions", json=body) as answer:
        events = [line[6:] async for line in answer.content if line.startswith(b"data: ")]
    assert events[-1].strip() == b"[DONE]"
    parsed = [json.loads(e) for e in events[:-1]]
    assert parsed[-1]["usage"]["completion_tokens"] == 12
    assert sorted(e["choices"][0]["index"] for e in parsed[:-1] if e["choices"][0]["finish_reason"]) == [0, 1]


async def test_streamed_logprobs_come_with_their_tokens(served):
    _, url = served
    body = {"prompt": list(PROMPT), "max_tokens": 9, "seed": 3, "logprobs": 1, "return_token_ids": True}
    _, whole = await post(url, **body)
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/completions", json=body | {"stream": True}) as answer,
    ):
        lines = [line[6:] async for line in answer.content if line.startswith(b"data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [x for c in choices if c.get("logprobs") for x in c["logprobs"][name]] == whole["choices"][0][
            "logprobs"
        ][name]
    assert all(len(c["logprobs"]["tokens"]) == len(c["token_ids"]) for c in choices if c.get("logprobs"))
    assert sum(bool(c.get("logprobs")) for c in choices) == 9


@pytest.mark.parametrize(
    ("status", "body", "names"),
    [
        (400, {"prompt": "a", "temperature": "hot"}, "temperature"),
        (400, {"prompt": "a", "top_p": 2}, "top_p"),
        (400, {"prompt": "a", "flavour": 1}, "flavour"),
        (400, {"prompt": "a", "presence_penalty": 0.5}, "presence_penalty"),
        (400, {"prompt": "a", "stop": [""]}, "stop"),
        (400, {"prompt": [1, "a"]}, "prompt"),
        (400, {"prompt": [1] * 600}, "600 tokens"),
        (400, {"prompt": [99999]}, "99999|outside"),
        (400, {"prompt": [2**40]}, "outside"),
        (400, {"prompt": "a", "temperature": 1e39}, "temperature"),
        (404, {"prompt": "a", "model": "other"}, "other"),
        (400, {}, "prompt"),
    ],
)
async def test_wrong_requests_are_answered_by_name(served, status, body, names):
    import re

    got, answer = await post(served[1], **body)
    assert got == status
    assert re.search(names, answer["error"]["message"])


async def test_other_endpoints(served):
    engine, url = served
    await post(url, prompt="a", max_tokens=3, temperature=0)  # else an end is drawn now and then
    async with aiohttp.ClientSession() as session:
        async with session.get(url + "/v1/models") as answer:
            assert (await answer.json())["data"][0]["id"] == engine.model
        async with session.get(url + "/metrics") as answer:
            assert "openmath_generated_tokens_total 3" in await answer.text()
        async with session.post(url + "/v1/completions", data=b"{") as answer:
            assert answer.status == 400
        async with session.get(url + "/nowhere") as answer:
            assert (answer.status, "error" in await answer.json()) == (404, True)
        await engine.close()
        async with session.get(url + "/health") as answer:
            assert answer.status == 503


async def test_api_key(model_dir, monkeypatch):
    engine = EmbeddedEngine.load(model_dir, slots=1, threads=1)
    monkeypatch.setenv("A_KEY", "s3cret")
    async with OpenAIServer(engine, api_key="s3cret") as server:
        assert (await post(server.url, prompt="a"))[0] == 401
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\n\r\n")
        assert b" 401 " in await reader.readline()
        writer.close()
        client = HTTPEngine(server.url, engine.model, api_key_env="A_KEY")
        assert (await client.complete(Request((5, 6), Sampling(max_tokens=2)))).token_ids
        await client.close()
    await engine.close()


async def test_the_client_says_what_is_wrong(served, client):
    engine, url = served
    with pytest.raises(InvalidRequest, match="does not fit"):
        await client.complete(Request(tuple([5] * 600)))
    wrong = HTTPEngine(url, "another-model")
    with pytest.raises(EngineError, match=f"another-model.*{engine.model}"):
        await wrong.complete(Request((1, 2)))
    await wrong.close()
    nobody = HTTPEngine("http://127.0.0.1:9", "m", kind="vllm", retry=RetryPolicy(patience_s=0.3))
    with pytest.raises(EngineError, match="cannot connect") as error:
        await nobody.complete(Request((1, 2)))
    assert error.value.retryable
    await nobody.close()
    with pytest.raises(UserError, match="http://host:port"):
        HTTPEngine("localhost:80", "m")


async def test_a_recording_is_served_again_and_says_so(served, tmp_path):
    engine, _ = served
    recorder = Recorder(engine, tmp_path / "run.jsonl")
    requests = [Request((5, i), Sampling(max_tokens=5, temperature=1.0, seed=i, logprobs=True)) for i in range(3, 6)]
    answers = [await recorder.complete(r) for r in requests]
    chunks = [c async for c in recorder.stream(requests[0])]
    replay = await open_engine(EngineConfig(kind="replay", model=str(tmp_path / "run.jsonl")))
    assert replay.model == f"recording of {engine.model}"
    assert [await replay.complete(r) for r in requests] == answers
    assert [c async for c in replay.stream(requests[0])] == chunks
    with pytest.raises(EngineError, match="recording of"):
        await replay.complete(Request((9, 9)))
    (tmp_path / "torn.jsonl").write_bytes((tmp_path / "run.jsonl").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"torn\.jsonl:5"):
        ReplayEngine(tmp_path / "torn.jsonl")


@pytest.mark.slow
async def test_a_started_server_is_restarted_when_it_dies(model_dir, tmp_path, caplog):
    address = tmp_path / "address"
    config = ServerConfig(
        str(model_dir), name="m", arguments=("--slots", "2", "--threads", "1"), log=tmp_path / "log",
        address_file=address, check_s=0.2, start_s=120,
    )  # fmt: skip

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == ServerProcess.__module__]

    async with ServerProcess(config) as server:
        client = HTTPEngine(address, "m")
        before = await client.complete(Request(PROMPT, Sampling(max_tokens=5)))
        os.kill(server.pid, signal.SIGKILL)
        after = await client.complete(Request(PROMPT, Sampling(max_tokens=5)))
        assert after.token_ids == before.token_ids
        assert server.starts == 2
        await client.close()
        await until(lambda: len(lines()) == 2)
    died, again = lines()
    assert "was killed by SIGKILL (out of memory?" in died
    assert again.startswith(f"serving m again at {server.url}")
