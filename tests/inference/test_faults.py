"""A server that does everything wrong, and a thousand requests: each ends exactly once."""

import asyncio
import json
import sys
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import pytest

from nemo_openmath.core.engine import EngineError, Finish, Request, Sampling
from nemo_openmath.core.records import Generation, Problem, RecordWriter, read_records
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.http.dialects import DIALECTS, AnswerPart, to_completion
from nemo_openmath.inference.http.retrying import RetryPolicy
from nemo_openmath.inference.http.server_pool import FIRST_PAUSE_S, TRIPS_AFTER, Endpoint, ServerPool
from nemo_openmath.inference.http.transport import retry_after
from nemo_openmath.recipe.generate import generate
from nemo_openmath.recipe.selection import StageSelection
from tests.inference.faulty import FAULTS, FaultyServer
from tests.support.waiting import until

BASE = Path(__file__).parents[2] / "examples" / "base"


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
            limit = 300.0 if i % 4 == 0 else None  # these are streamed
            answer = await engine.complete(Request((i, 7, 8), conversation=str(i % 50), time_limit=limit))
        ends[i] += 1
        assert answer.token_ids == (i, 7, 8)
        assert answer.finish is Finish.STOP

    async def restart():
        await until(lambda: servers[0].answered >= 50)
        await servers[0].die()
        answered = len(ends)
        await until(lambda: len(ends) >= answered + 100)
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
async def test_a_server_that_only_fails_ends_in_a_named_error(fault):
    server = await FaultyServer(1.0, faults=(fault,)).start()
    engine = client(server.url, attempts=2)
    with pytest.raises(EngineError, match=server.url) as error:
        async with asyncio.timeout(300):
            await engine.complete(Request((1, 2, 3)))
    assert error.value.retryable
    assert server.seen[fault] == 2
    await engine.close()
    await server.die()


async def test_a_busy_server_is_waited_for():
    """429 does not count as a failure: more of them than ``attempts`` and the request still succeeds."""
    server = await FaultyServer(1.0, faults=("429",)).start()
    engine = client(server.url, attempts=1)
    task = asyncio.create_task(engine.complete(Request((1, 2, 3))))
    await until(lambda: server.seen["429"] >= 4)
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
        home.failed("HTTP 500: x")
    assert pool.pick("a") is not home  # its breaker is open
    assert pool.away == f"every server failed ({home.url} said: HTTP 500: x)"
    home.closed_until = 0.0
    assert home.available(1.0)
    with pool.using(home):
        assert not home.available(1.0)  # one request at a time until one succeeds
    home.succeeded()
    assert not home.on_trial


def test_failures_at_the_same_moment_are_one_event():
    """A thousand requests lose a server at once: it is tried again after the first pause, not after the longest."""
    server = Endpoint("http://h")
    for _ in range(1000):
        server.failed()
    assert server.pause_s == FIRST_PAUSE_S
    server.closed_until = 0.0
    server.failed()
    assert server.pause_s == 2 * FIRST_PAUSE_S


@pytest.mark.parametrize("seconds", [3, 90])
def test_retry_after_is_a_number_or_a_date(seconds):
    date = formatdate(time.time() + seconds, usegmt=True)
    for value in (str(seconds), date):
        assert seconds - 1.1 <= retry_after(value) <= 1.25 * seconds
    assert retry_after("soon") is None
    assert retry_after("") is None


@pytest.mark.slow
async def test_kill_9_of_the_client_at_random_comes_to_the_same_set(tmp_path):
    """1,000 requests of ``openmath generate`` to a faulty server that also dies and restarts."""
    problems = "".join(json.dumps({"problem": f"What is {i} + {i}?"}) + "\n" for i in range(500))
    (tmp_path / "problems.jsonl").write_text(problems)
    server = await FaultyServer(0.1, faults=("500", "429", "disconnect", "truncated", "slow")).start()
    job = {
        "problems": "./problems.jsonl",
        "engine": {"kind": "http", "urls": [server.url], "model": "m", "tokenizer": str(BASE), "attempts": 50},
        "generate": {"samples": 2, "concurrency": 32},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))

    async def run(output: str, kill_after: float | None = None) -> int:
        command = [sys.executable, "-m", "nemo_openmath.cli.main", "generate", str(tmp_path / "job.yaml")]
        process = await asyncio.create_subprocess_exec(*command, "--output", str(tmp_path / output))
        if kill_after is not None:
            journal = tmp_path / output / "solutions" / "journal-00000-of-00001.jsonl"
            await until(lambda: (journal.exists() and journal.stat().st_size > 0) or process.returncode)
            await asyncio.sleep(kill_after)
            if process.returncode is None:
                process.kill()
        return await process.wait()

    for kill_after in (0.0, 0.3):
        if await run("killed", kill_after) == 0:
            break
    await server.die()
    server = await FaultyServer(0.1, 5, server.port, server.faults).start()
    assert await run("killed") == 0
    server.rate = 0.0
    assert await run("whole") == 0
    await server.die()
    killed, whole = (
        json.loads((tmp_path / o / "solutions" / "manifest.json").read_text()) for o in ("killed", "whole")
    )
    assert killed["counts"] == whole["counts"] == {"units": 1000, "records": 1000, "merged": 0, "drops": 0}
    assert killed["digest"] == whole["digest"]
    records = (tmp_path / "killed" / "solutions" / "part-00000-of-00001.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in records}) == 1000


async def test_more_samples_keep_what_is_there(tmp_path):
    """Also for an array of jobs, of any number; other settings make everything anew."""
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps({"problem": f"{i} + {i}?"}) + "\n" for i in range(8)))
    server = await FaultyServer(0.0).start()
    engine = {"kind": "http", "urls": [server.url], "model": "m", "tokenizer": str(BASE)}
    (tmp_path / "job.yaml").write_text(json.dumps({"problems": "./problems.jsonl", "engine": engine}))

    async def made(*overrides: str, output: str = "one", shard: int = 0, shards: int = 1, prepare: bool = False) -> int:
        """How many solutions a run asked for."""
        before = server.answered
        asked = StageSelection(shard=shard, shards=shards, prepare=prepare)
        await generate(tmp_path / "job.yaml", overrides, tmp_path / output, asked)
        return server.answered - before

    def stored(output: str) -> list[tuple[str, int]]:
        found = [(g.problem_id, g.sample) for g in read_records(tmp_path / output / "solutions", Generation)]
        return sorted(found)

    assert await made("generate.samples=2", "generate.limit=3") == 6
    assert await made("generate.samples=4", "generate.limit=3") == 6
    assert await made("generate.samples=4") == 20
    assert await made("generate.samples=4") == 0
    for shard in range(2):
        await made("generate.samples=2", output="array", shard=shard, shards=2, prepare=shard == 0)
        await made("generate.samples=2", output="array", shard=shard, shards=2)
    assert await made("generate.samples=4", output="array", shards=2, prepare=True) == 0
    first = await made("generate.samples=4", output="array", shard=0, shards=3)
    assert 0 < first < 16
    assert first + await made("generate.samples=4", output="array") == 16, "one job goes on with what an array began"
    assert stored("array") == stored("one")
    assert len(set(stored("one"))) == 32
    manifests = [json.loads((tmp_path / o / "solutions" / "manifest.json").read_text()) for o in ("one", "array")]
    assert manifests[0]["digest"] == manifests[1]["digest"]
    assert await made("generate.samples=1") == 8
    assert await made("generate.samples=2", "generate.temperature=0.5") == 16
    await server.die()


@pytest.mark.parametrize("count", ["fixed", "agreement"])
async def test_a_problem_that_is_there_twice_is_solved_once(tmp_path, count):
    with RecordWriter(tmp_path / "problems") as writer:
        for i in range(6):
            writer.commit(f"row {i}", [Problem(id=f"problem-{i % 3}", problem=f"{i % 3} + 1?")])
    server = await FaultyServer(0.0).start()
    engine = {"kind": "http", "urls": [server.url], "model": "m", "tokenizer": str(BASE)}
    (tmp_path / "job.yaml").write_text(json.dumps({"problems": "./problems", "engine": engine}))
    overrides = ["generate.samples=4", f"generate.count={count}"]
    await generate(tmp_path / "job.yaml", overrides, tmp_path / "out")
    await server.die()
    found = [(g.problem_id, g.sample) for g in read_records(tmp_path / "out" / "solutions", Generation)]
    assert sorted(found) == [(f"problem-{i}", n) for i in range(3) for n in range(4)]


def test_servers_that_move_are_found_again(tmp_path):
    file = tmp_path / "urls"
    file.write_text("http://old:1/v1\n")
    pool = ServerPool(file)
    assert pool.pick().url == "http://old:1"
    file.write_text("http://new:1\nhttp://new:2\n")
    pool._read_at = -100.0
    assert {pool.pick().url for _ in range(50)} == {"http://new:1", "http://new:2"}


async def test_servers_of_a_folder_come_and_go(tmp_path):
    """While none is there, requests wait, for as long as the client is patient."""
    first = await FaultyServer(0.0).start()
    engine = client(tmp_path)
    waiting = asyncio.create_task(engine.complete(Request((1, 7))))
    (tmp_path / "0.url").write_text(first.url)
    assert (await waiting).finish is Finish.STOP
    await first.die()
    (tmp_path / "0.url").unlink()
    second = await FaultyServer(0.0).start()
    waiting = asyncio.create_task(engine.complete(Request((2, 7))))
    (tmp_path / "1.url").write_text(f"{second.url}\n")
    (tmp_path / "2.url").write_text("")  # not written yet
    assert (await waiting).finish is Finish.STOP
    assert [server.url for server in engine.servers] == [second.url]
    await engine.close()
    await second.die()
    for file in tmp_path.glob("*.url"):
        file.unlink()
    impatient = client(tmp_path, patience_s=0.05)
    with pytest.raises(EngineError, match=rf"no address in {tmp_path}/\*\.url \(after 0\.05 s\)"):
        await impatient.complete(Request((1, 7)))
    await impatient.close()


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
        got = to_completion(DIALECTS[kind].read(answer, AnswerPart()), request, Digits())
        assert (got.text, got.stop, got.finish, list(got.token_ids)) == ("ab</c>", "</c>", Finish.STOP, ids), kind
        assert (got.usage.prompt_tokens, got.usage.cached_tokens) == (2, 1)
    assert "logprobs" not in DIALECTS["trtllm"].body(Request((1,), Sampling(logprobs=True)), "m", False)
    so_far = AnswerPart(text="a", ids=(97,))
    cumulative = {"text": "ab", "output_ids": [97, 98], "meta_info": meta | {"completion_tokens": 2}}
    assert DIALECTS["sglang"].read(cumulative, so_far).ids == (98,)
