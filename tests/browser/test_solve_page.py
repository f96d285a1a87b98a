"""The live page of ``openmath solve --serve`` in headless Chromium."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.competition import Solver, SolverSettings, TimeBank
from nemo_openmath.competition.serving.server import SolveServer
from nemo_openmath.competition.serving.service import SolveService
from nemo_openmath.core.clock import SystemClock
from nemo_openmath.inference.rollout import RolloutSettings
from tests.competition.timed import Say, TimedEngine, boxed

CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


async def chromium(url: str, folder: Path, *options: str) -> str:
    """What Chromium prints of a page after two seconds of its time."""
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *words,
        f"--user-data-dir={folder}",
        *options,
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    printed, _ = await process.communicate()
    return printed.decode()


async def test_the_page_shows_what_runs_and_runs_nothing_that_it_shows(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    def say(prompt: str, number: int) -> Say:
        return Say(boxed(HOSTILE), 0.0) if "first" in prompt or number % 4 else Say("so", hangs=True)

    solver = Solver(
        TimedEngine(tokenizer, say),
        tokenizer,
        None,
        load_template("cot"),
        SolverSettings(batch=4, agree=4, rollout=RolloutSettings(max_tokens=400)),
        clock=SystemClock(),
    )
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
        page = await chromium(f"{server.url}/", tmp_path / "profile", "--dump-dom")
        shot = tmp_path / "page.png"
        await chromium(f"{server.url}/", tmp_path / "profile", f"--screenshot={shot}", "--window-size=1000,800")
        running.cancel()
    assert "<title>openmath solve</title>" in page, "no text of a problem was run"
    assert "<img" not in page
    assert page.count("&lt;img src=x") >= 6, "the problem, three answers, and the answered problem with its answer"
    assert len(re.findall(r"<li[^>]*>#\d ended at", page)) == 3
    assert len(re.findall(r"<li[^>]*>#\d runs", page)) == 1
    clock = re.search(r'id="clock">([\d.]+) of ([\d.]+) s', page)
    assert clock is not None
    assert float(clock[2]) == pytest.approx(660, abs=1)
    assert re.search(r'id="bank">\d+ s saved', page)
    assert shot.stat().st_size > 10_000
