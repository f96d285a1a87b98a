"""The solver over HTTP and in Kaggle's shape: answers by the deadline, in order, and nothing left running."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import pandas
import pytest
from aiohttp import ClientSession

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.competition import Solver, SolverSettings, TimeBank
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.kaggle import KaggleContest
from nemo_openmath.competition.serving.opening import SolveServiceSettings, open_service
from nemo_openmath.competition.serving.server import BadQuestion, SolveServer, read_question
from nemo_openmath.competition.serving.service import QueueFull, SolveService
from nemo_openmath.core.clock import Clock, SystemClock
from nemo_openmath.core.records import Mode
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.open import EngineConfig
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.timed import Say, TimedEngine, boxed
from tests.support.virtual_time import VirtualClock, in_virtual_time

HANGS = Say(boxed("1"), 1.0, hangs=True, delay=1e6)


def service_of(
    tokenizer: ChatTokenizer, say: Callable[[str, int], Say], clock: Clock, *, base: float = 10.0, **settings: Any
) -> tuple[SolveService, TimedEngine]:
    engine = TimedEngine(tokenizer, say)
    answers = settings.pop("answers", AnswerRule())
    solver = Solver(
        engine,
        tokenizer,
        None,
        load_template("cot"),
        SolverSettings(batch=3, agree=2, answers=answers, rollout=RolloutSettings(max_tokens=400)),
        clock=clock,
    )
    return SolveService(solver, TimeBank(base, 6.0), **settings), engine


def by_name(prompt: str, number: int) -> Say:
    """A problem that hangs, one of a second, and one of three."""
    return HANGS if "hang" in prompt else Say(boxed("7"), 3.0 if "slow" in prompt else 1.0)


def test_questions_are_answered_in_order_with_a_bank(tokenizer: ChatTokenizer) -> None:
    async def main() -> None:
        service, engine = service_of(tokenizer, by_name, VirtualClock(), waiting_most=2)
        told: list[tuple[str, str]] = []

        async def ask(problem: str, seconds: float | None = None) -> dict[str, Any]:
            return await service.solve(
                problem, seconds=seconds, question=problem, on_message=lambda name, _: told.append((problem, name))
            )

        first = asyncio.create_task(ask("slow"))
        await asyncio.sleep(0.5)
        second, third = asyncio.create_task(ask("quick")), asyncio.create_task(ask("hang"))
        await asyncio.sleep(0.5)
        assert service.state()["waiting"] == 2
        assert [s["state"] for s in service.state()["current"]["solutions"]] == ["runs"] * 3
        with pytest.raises(QueueFull):
            await ask("one too many")
        assert ("quick", "waiting") in told
        assert ("quick", "begun") not in told, "one at a time"
        answers = [await first, await second, await third]
        assert [(a["answer"], a["votes"] >= 2, a["reason"]) for a in answers[:2]] == [("7", True, "agreement")] * 2
        assert answers[2]["answer"] is None
        assert [a["allowed"] for a in answers] == [10, 16, 16]
        assert answers[2]["seconds"] <= 16
        assert service.bank.saved == pytest.approx(30 - sum(a["seconds"] for a in answers), abs=0.1)
        assert (await ask("hang", 2.0))["seconds"] <= 2.0
        names = [name for problem, name in told if problem == "slow"]
        assert names[0] == "begun"
        assert names.count("solution_begun") == names.count("solution_ended") == 3
        assert names.index("decision") < len(names)
        assert engine.running == 0

    in_virtual_time(main())


def test_who_leaves_the_queue_or_the_turn_holds_nobody_up(tokenizer: ChatTokenizer) -> None:
    async def main() -> None:
        service, engine = service_of(tokenizer, by_name, VirtualClock())
        solved, left, last = (asyncio.create_task(service.solve(p)) for p in ("hang", "slow", "quick"))
        await asyncio.sleep(1)
        left.cancel()
        await asyncio.sleep(1)
        solved.cancel()
        assert (await last)["answer"] == "7"
        assert (engine.running, service.current, service.state()["waiting"]) == (0, None, 0)
        assert service.bank.spent == pytest.approx(3.0, abs=0.2), "the time of the one that left is used"
        assert [r for r in engine.requests if "slow" in tokenizer.decode(r.prompt)] == []  # type: ignore[arg-type]

    in_virtual_time(main())


HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\x00 \ud83d\ude00"


async def test_http(tokenizer: ChatTokenizer) -> None:
    service, engine = service_of(tokenizer, lambda p, n: HANGS if "hang" in p else Say(boxed("7"), 0.0), SystemClock())
    async with SolveServer(service) as server, ClientSession(server.url) as client:
        async with client.get("/healthz") as reply:
            assert (reply.status, await reply.json()) == (200, {"status": "ok"})
        for path in ("/", "/page.js", "/page.css"):
            async with client.get(path) as reply:
                assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")
        async with client.post("/solve", json={"problem": HOSTILE, "id": "a"}) as reply:
            assert (await reply.json())["answer"] == "7"
        async with client.post("/solve", data='{"problem": "x"}', headers={"Content-Type": "text/plain"}) as reply:
            assert reply.status == 415, "another site's form cannot ask"
        async with client.post("/solve", json={"problem": "x", "secs": 1}) as reply:
            assert (reply.status, "secs" in (await reply.json())["error"]) == (400, True)
        stream = {"Accept": "text/event-stream"}
        async with client.post("/solve", json={"problem": HOSTILE}, headers=stream) as reply:
            text = (await reply.read()).decode()
        events = [block.split("\n") for block in text.strip().split("\n\n")]
        assert [lines[0] for lines in events][:2] == ["event: begun", "event: solution_begun"]
        assert events[-1][0] == "event: answer"
        assert json.loads(events[-1][1].removeprefix("data: "))["answer"] == "7"
        async with client.post("/solve", json={"problem": "hang"}, headers=stream) as reply:
            await reply.content.readline()  # it has its turn; now the client goes away
            reply.close()
        async with client.post("/solve", json={"problem": "next"}) as reply:  # waits until the turn is given up
            assert (await reply.json())["answer"] == "7"
        assert engine.running == 0
        async with client.get("/state") as reply:
            assert (await reply.json())["answered"][0]["problem"] == "next"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"problem": 1}',
        b'{"problem": " "}',
        b'{"problem": "x", "seconds": 0}',
        b'{"problem": "x", "seconds": true}',
        b'{"problem": "x", "id": []}',
        json.dumps({"problem": "x" * 100_001}).encode(),
    ],
)
def test_what_is_no_question_is_refused(body: bytes) -> None:
    with pytest.raises(BadQuestion):
        read_question(body)


BASE = Path(__file__).parents[2] / "examples/base"


async def test_a_service_is_opened_with_a_reserve_and_answers_are_compared_in_processes_with_limits() -> None:
    settings = SolveServiceSettings(
        EngineConfig(model=str(BASE)), BASE, mode=Mode.COT, base_seconds=5.0, bank_seconds=3.0, total_seconds=40.0
    )
    async with open_service(settings) as service:
        assert isinstance(service.solver.vote.__self__, GradingPool)  # type: ignore[attr-defined]
        assert (await service.solver.vote(["1/2", "0.5", None])).count == 2
        assert service.bank == TimeBank(5.0, 3.0, total=40.0, reserve=10.0)


# -- Kaggle ------------------------------------------------------------------------------------------------------------


class OtherFrame:
    """The part of a polars frame that is used: one value, columns, and made from lists by column."""

    def __init__(self, data: dict[str, list[Any]]):
        self.data, self.columns = data, list(data)

    def item(self) -> Any:
        ((value,),) = self.data.values()
        return value


@asynccontextmanager
async def opened(service: SolveService) -> AsyncIterator[SolveService]:
    yield service


def contest_of(tokenizer: ChatTokenizer, say: Callable[[str, int], Say], **settings: Any) -> KaggleContest:
    service, _ = service_of(tokenizer, say, SystemClock(), **settings)
    return KaggleContest(lambda: opened(service), problems=3, default=42)


def test_kaggle_gets_the_frame_that_it_gave(tokenizer: ChatTokenizer) -> None:
    rule = AnswerRule(integers=True, modulo=1000, most=999)
    contest = contest_of(tokenizer, lambda p, n: Say(boxed("1007"), 0.0), answers=rule)
    try:
        answer = contest.predict(pandas.DataFrame({"id": ["a"]}), pandas.DataFrame({"problem": ["What?"]}))
        assert answer.to_dict("list") == {"id": ["a"], "answer": [7]}
        answer = contest.predict(pandas.Series(["b"], name="id"), pandas.Series(["What?"]))
        assert answer.to_dict("list") == {"id": ["b"], "answer": [7]}
        other = contest.predict(OtherFrame({"id": ["c"]}), OtherFrame({"problem": ["What?"]}))
        assert other.data == {"id": ["c"], "answer": [7]}
        listener = contest.listener()
        assert (type(listener), listener.__name__) == (FunctionType, "predict"), "the server takes nothing else"
        assert listener("d", "What?") == 7, "more problems than were announced"
        assert contest.predict(pandas.DataFrame(), None) is not None, "whatever comes, it does not raise"
    finally:
        contest.close()


def test_kaggle_gets_the_default_where_there_is_no_answer_or_no_time(tokenizer: ChatTokenizer) -> None:
    assert_default = contest_of(tokenizer, lambda p, n: Say(boxed("x"), 0.0))  # no whole number
    assert assert_default.predict("a", "What?") == 42
    assert_default.close()
    stuck, release, released = contest_of(tokenizer, by_name, base=0.2), threading.Event(), list[bool]()
    stuck._loop.call_soon_threadsafe(lambda: released.append(release.wait(60)))  # nothing in its loop moves
    assert stuck.predict("a", "What?") == 42
    assert stuck.predict("b", "What?") == 42
    release.set()
    stuck.close()
    assert released == [True], "nobody waited for it"


async def test_foreign_names_are_refused_and_what_runs_is_read(tokenizer: ChatTokenizer) -> None:
    service, engine = service_of(tokenizer, lambda *_: Say(boxed("7"), 0.0, hangs=True), SystemClock(), base=600.0)
    async with SolveServer(service, allowed=["solver.example"]) as server, ClientSession() as session:
        for name, status in (("solver.example", 200), ("localhost:1", 200), ("evil.example", 421)):
            async with session.get(f"{server.url}/state", headers={"Host": name}) as reply:
                assert reply.status == status
        heard = asyncio.Event()
        read = service.solver.told
        texts: dict[int, str] = {}

        def told(sample: int, text: str) -> None:
            read(sample, text)
            texts[sample] = texts.get(sample, "") + text
            if len(texts) == 3 and all("Well" in written for written in texts.values()):
                heard.set()

        service.solver.told = told
        asking = asyncio.create_task(service.solve("what hangs?"))
        await heard.wait()
        running = service.state()["current"]["solutions"]
        assert [one["written"] for one in running] == [len(texts[n]) for n in range(3)]
        assert all(texts[n].endswith(one["end"]) and one["end"] for n, one in enumerate(running))
        asking.cancel()
        await asyncio.wait({asking})
    assert engine.running == 0
