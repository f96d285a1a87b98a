"""The live page of ``openmath solve --serve`` in headless Chromium."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.competition import Solver, SolverSettings, TimeBank
from nemo_openmath.competition.serving.server import SolveServer
from nemo_openmath.competition.serving.service import SolveService
from nemo_openmath.core.clock import SystemClock
from nemo_openmath.core.engine import Chunk, Request
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.timed import Say, TimedEngine, boxed
from tests.support.browser import NEEDS_CHROMIUM, Browser

HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"

pytestmark = NEEDS_CHROMIUM


class GatedEngine(TimedEngine):
    """Writes all of a solution but its last token at once, and that when ``gate`` is open."""

    def __init__(self, tokenizer: ChatTokenizer, text: str):
        super().__init__(tokenizer, lambda *_: Say(text, 0.0))
        self.gate = asyncio.Event()

    async def _speak(self, request: Request, say: Say) -> AsyncIterator[Chunk]:
        async for chunk in super()._speak(request, say):
            if chunk.completion is not None:
                await self.gate.wait()
            yield chunk


def solver_of(engine: TimedEngine, tokenizer: ChatTokenizer) -> Solver:
    settings = SolverSettings(batch=4, agree=4, rollout=RolloutSettings(max_tokens=400))
    return Solver(engine, tokenizer, None, load_template("cot"), settings, clock=SystemClock())


async def test_the_page_shows_what_runs_and_runs_nothing_that_it_shows(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    def say(prompt: str, number: int) -> Say:
        return Say(boxed(HOSTILE), 0.0) if "first" in prompt or number % 4 else Say("so", hangs=True)

    solver = solver_of(TimedEngine(tokenizer, say), tokenizer)
    service = SolveService(solver, TimeBank(600.0, 60.0))
    async with SolveServer(service) as server:
        await service.solve(f"first {HOSTILE}")
        ended = asyncio.Event()
        ends = 0

        def hear(name: str, body: dict[str, object]) -> None:
            nonlocal ends
            ends += name == "solution_ended"
            if ends == 3:
                ended.set()

        running = asyncio.create_task(service.solve(f"second {HOSTILE}", on_message=hear))
        await ended.wait()
        async with Browser(tmp_path / "profile") as browser:
            shown = await browser.open(f"{server.url}/", width=1000)
            await shown.until("document.querySelectorAll('#solutions li').length === 4 && at('answered').rows.length")
            page = await shown.ask("document.documentElement.outerHTML")
            await shown.picture(shot := tmp_path / "page.png")
        running.cancel()
    assert "<title>openmath solve</title>" in page, "no text of a problem was run"
    assert "<img" not in page
    assert page.count("&lt;img src=x") >= 6, "the problem, three answers, and the answered problem with its answer"
    assert len(re.findall(r"<li[^>]*>#\d ended at", page)) == 3
    assert len(re.findall(r"<li[^>]*>#\d runs, \d+ characters: s?", page)) == 1
    clock = re.search(r'id="clock">([\d.]+) of ([\d.]+) s', page)
    assert clock is not None
    assert float(clock[2]) == pytest.approx(660, abs=1)
    assert re.search(r'id="bank">\d+ s saved', page)
    assert shot.stat().st_size > 10_000


async def test_a_problem_is_typed_and_its_answer_is_watched(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    engine = GatedEngine(tokenizer, boxed("42", thought=f"six times seven {HOSTILE}"))
    service = SolveService(solver_of(engine, tokenizer), TimeBank(600.0, 60.0))
    async with SolveServer(service) as server, Browser(tmp_path / "profile") as browser:
        page = await browser.open(server.url, width=400)
        await page.click("#ask button")
        await page.until("at('said').textContent.startsWith('problem: give a text')")
        await page.type("#problem", "What is 6 times 7?")
        await page.click("#ask button")
        written = "[...document.querySelectorAll('#solutions li')].filter(e => WRITTEN.test(e.textContent))"
        written = written.replace("WRITTEN", r"/runs, \d\d+ characters: [^]*42/")
        await page.until(f"{written}.length === 4")
        assert await page.text("#said") == "asked"
        assert await page.text("#text") == "What is 6 times 7?"
        assert re.fullmatch(r"\d+\.\d of 600\.0 s", await page.text("#clock"))
        assert await page.overflow() <= 0
        await page.picture(tmp_path / "asked.png")
        engine.gate.set()
        await page.until("at('said').textContent === 'answer: 42'")
        await page.until("at('answered').rows.length === 1")
        cells = await page.texts("#answered td")
        assert cells[:3] == ["What is 6 times 7?", "42", "4 of 4"]
        await page.until("at('clock').textContent === 'no problem is being solved'")
        await page.picture(tmp_path / "answered.png")
        assert await page.ask("document.title") == "openmath solve"
        assert [text for text in page.problems if "400" not in text] == []
