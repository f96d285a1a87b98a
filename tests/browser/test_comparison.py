"""The page of ``openmath evaluate compare`` in headless Chromium, and its links into the browser of solutions."""

from __future__ import annotations

from pathlib import Path

from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.store import write_records
from nemo_openmath.evaluation.comparison.build import compare_runs, write_comparison
from nemo_openmath.evaluation.comparison.reading import NamedFolders
from nemo_openmath.evaluation.viewer.building import build_index
from nemo_openmath.evaluation.viewer.server import ViewerServer
from nemo_openmath.evaluation.viewer.sources import find_sources
from nemo_openmath.grading import compare
from tests.support.browser import NEEDS_CHROMIUM, Browser
from tests.support.solutions import HOSTILE, solution

pytestmark = NEEDS_CHROMIUM
INSIDE = """[...document.querySelectorAll('svg.chart text')].map(e => e.getBoundingClientRect())
    .every(box => box.left >= 0 && box.right <= window.innerWidth)"""


def write_runs(folder: Path, names: str, problems: int = 12, samples: int = 8) -> list[NamedFolders]:
    """Runs of which each solves more than the one before it."""
    made = [Problem.make(f"Problem {n}: {HOSTILE} and $x^{n}$", expected_answer="3") for n in range(problems)]
    runs = []
    for skill, name in enumerate(names, 1):
        records = []
        for n, problem in enumerate(made):
            for sample in range(samples):
                right = (n * 7 + sample * 3) % 11 < 3 * skill
                values = {"verdict": "equal" if right else "not_equal", "predicted_answer": "3" if right else "4"}
                values |= {"completion_tokens": 100 + 37 * ((n + sample) % 9) * skill, "sample": sample}
                records.append(solution(f"{name}-{n}-{sample}", problem, f"{HOSTILE} by {name}", **values))
        write_records(folder / name / "graded", records)
        write_records(folder / name / "problems", made)
        runs.append(NamedFolders(f"run {name} {HOSTILE}", {"model": (folder / name / "graded",)}))
    return runs


async def test_the_page_is_readable_at_any_width_and_leads_to_the_solutions(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, "abc")
    index = build_index(find_sources([tmp_path / name for name in "abc"]))
    async with ViewerServer(index, "runs") as server, Browser(tmp_path / "profile") as browser:
        address = server.url.partition("?")[0]
        comparison = compare_runs(runs, compare=compare, viewer=address, view_command="openmath view a b c --port 1")
        write_comparison(comparison, tmp_path / "out")
        page = await browser.open((tmp_path / "out" / "comparison.html").as_uri())
        assert HOSTILE in await page.text("h1")
        assert await page.ask("document.querySelectorAll('script, img, link').length") == 0
        ink, paper = await page.ask("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert [sum(map(int, colour.strip("rgb()").split(","))) > 384 for colour in (ink, paper)] == [False, True]
        # every picture has a name and a description; every curve has as many points as numbers
        labels = await page.ask("[...document.querySelectorAll('svg.chart')].map(e => e.getAttribute('aria-label'))")
        assert len(labels) == 5
        assert labels[0].startswith("Majority of k samples. A maj@1: ")
        assert "maj@8" in labels[0]
        assert await page.ask("document.querySelector('svg.chart').querySelectorAll('circle').length") == 3 * 8
        for width in (1280, 400):
            await page.resize(width)
            assert await page.overflow() <= 0
            assert await page.ask(INSIDE), "no label is cut off"
            await page.picture(tmp_path / f"{width}.png")
        # a reader opens the browser of solutions by its address once; then the links lead into it
        differing = comparison.modes[0].differing
        assert len(await page.texts("table.turned tbody tr")) == len(differing) > 0
        await page.go(server.url)
        await page.go((tmp_path / "out" / "comparison.html").as_uri())
        await page.resize(1280)
        await page.click("table.turned td a", leads_on=True)
        assert "24 in all" in await page.text(".pager")
        await page.go((tmp_path / "out" / "comparison.html").as_uri())
        await page.click("table.turned td small a", leads_on=True)
        assert len(await page.texts(".sides article")) == 2
        assert page.problems == []
