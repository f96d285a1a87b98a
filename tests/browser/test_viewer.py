"""The browser of solutions in headless Chromium: a reader filters, pages, reads, compares; hostile texts stay texts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from nemo_openmath.chat import Message, Transcript
from nemo_openmath.core.records.store import write_records
from nemo_openmath.evaluation.viewer.building import build_index
from nemo_openmath.evaluation.viewer.server import ViewerServer
from nemo_openmath.evaluation.viewer.sources import find_sources
from tests.support.browser import NEEDS_CHROMIUM, Browser, Page
from tests.support.solutions import HOSTILE, make_run, solution, write_many

pytestmark = NEEDS_CHROMIUM
PICTURES = "pictures"
CODE = """<think>
Half of six: $\\frac{6}{2}$.
<tool_call>
print(6 // 2)
</tool_call>

```output
3
```
```system
Remaining code executions: 7. You will not be able to call code when you run out of executions, so use it wisely. \
Note that you can still continue solving the problem without code after that.
```
So it is three.
</think>
It is \\[x^2 = \\boxed{3}\\] and $\\frac{1$ is broken, $\\nosuch{x}$ too."""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """The first page of the browser over two runs, one of them with 130 solutions."""
    problem = make_run(tmp_path / "run")["sum"]
    hostile = f"{HOSTILE}\n<img src=x onerror=\"document.title='taken'\">"
    texts = {"g-code": CODE, "g-hostile": hostile, "g-long": "a" * 200_000}
    question = (Message("user", problem.problem),)
    write_records(
        tmp_path / "run" / "texts",
        [
            solution(name, problem).with_(transcript=Transcript.from_text(question, text).to_json())
            for name, text in texts.items()
        ],
    )
    write_many(tmp_path / "many", 130, 7)
    index = build_index(find_sources([tmp_path / "run", tmp_path / "many"]))
    async with ViewerServer(index, "run, many") as server, Browser(tmp_path / "profile") as browser:
        page = await browser.open(server.url)
        page.url = server.url.partition("?")[0]
        yield page
        assert page.problems == [], "no page asks for what its policy forbids"
        assert "taken" not in await page.ask("document.title")


async def rows(page: Page) -> list[str]:
    return await page.texts("table.list tbody tr")


async def test_filters_pages_and_a_problem(page: Page, tmp_path: Path) -> None:
    await page.click("nav li:nth-child(2) a", leads_on=True)
    assert "137 in all, page 1 of 3" in await page.text(".pager")
    for name, value in (("stage", "many/many"), ("mode", "cot"), ("verdict", "equal"), ("order", "longest")):
        await page.choose(f"select[name={name}]", value)
    await page.type("input[name=least]", "1000")
    await page.type("input[name=most]", "20000")
    await page.type("input[name=text]", "number 3:")
    await page.click("form.filters button", leads_on=True)
    shown = await rows(page)
    tokens = [int(row.split("\t")[-1].replace(",", "")) for row in shown]
    assert len(shown) > 2
    assert all("equal" in row and "Problem number 3" in row for row in shown)
    assert tokens == sorted(tokens, reverse=True)
    assert all(1000 <= number <= 20000 for number in tokens)
    assert await page.ask("document.querySelector('select[name=verdict]').value") == "equal"
    assert await page.ask("document.querySelector('input[name=text]').value") == "number 3:"
    # paging keeps the filter, and each row is on one page
    await page.go(f"{page.url}solutions?stage=many/many")
    seen = await page.ask("[...document.querySelectorAll('input[name=a]')].map(e => e.value)")
    for place in ("2", "3"):
        await page.click(".pager a[rel=next]", leads_on=True)
        assert f"page {place} of 3" in await page.text(".pager")
        seen += await page.ask("[...document.querySelectorAll('input[name=a]')].map(e => e.value)")
    assert len(seen) == len(set(seen)) == 130
    await page.click("nav li:nth-child(3) a", leads_on=True)
    assert len(await rows(page)) == 9
    await page.click("table.list tbody a", leads_on=True)
    assert "All problems" in await page.text()


async def test_a_solution_with_code_formulas_and_what_judges_said(page: Page) -> None:
    await page.go(f"{page.url}solution?id=g-code")
    kinds = await page.texts("article.transcript .segment .kind")
    assert kinds == [
        *("user", "model: reasoning", "model: code", "sandbox: output", "sandbox: notice", "model: reasoning"),
        "model: summary",
    ]
    assert (await page.texts(".segment.code .text"))[0].strip() == "print(6 // 2)"
    assert (await page.texts(".segment.output .text"))[0].strip() == "3"
    fraction = "document.querySelector('.segment.reasoning mfrac')"
    assert await page.ask(f"{fraction}.namespaceURI") == "http://www.w3.org/1998/Math/MathML"
    # Chromium lays the numerator above the denominator: it reads the formula as one
    over, under = [await page.ask(f"{fraction}.children[{n}].getBoundingClientRect().top") for n in (0, 1)]
    assert over < under
    assert "$\\frac{1$ is broken, $\\nosuch{x}$ too." in await page.text(".segment.summary")
    assert "could not be parsed" in await page.text()
    await page.go(f"{page.url}solution?id={quote('run/graded:g-right')}")
    assert "What was said: equal" in await page.text()
    assert "Judgement: Yes" in await page.text()
    assert HOSTILE in await page.text(".segment.notice")


async def test_two_solutions_side_by_side(page: Page) -> None:
    await page.go(f"{page.url}solutions?stage=run/graded")
    await page.click("tbody tr:nth-child(2) input[name=a]")
    await page.click("tbody tr:nth-child(1) input[name=b]")
    await page.click("table.list thead button", leads_on=True)
    headings = await page.texts("article h2")
    assert [text.split()[:2] for text in headings] == [["A", "g-wrong"], ["B", "g-right"]]
    lefts = await page.ask("[...document.querySelectorAll('.sides article')].map(e => e.getBoundingClientRect().left)")
    assert lefts[0] < lefts[1], "beside each other"
    await page.resize(400)
    tops = await page.ask("[...document.querySelectorAll('.sides article')].map(e => e.getBoundingClientRect().top)")
    assert tops[0] < tops[1], "on a phone below each other"


async def test_hostile_and_long_texts_stay_texts_and_no_page_is_too_wide(page: Page, tmp_path: Path) -> None:
    await page.go(f"{page.url}solution?id=g-hostile")
    assert HOSTILE in await page.text("article.transcript")
    assert await page.ask("document.querySelectorAll('script, img, iframe').length") == 0
    await page.go(f"{page.url}solution?id=g-long")
    assert "160,000 more characters" in await page.text()
    await page.click(".left-out a", leads_on=True)
    assert "a" * 200_000 in await page.text()
    addresses = ["", "solutions", "problems", "solution?id=g-code", "solution?id=g-hostile", "solution?id=g-cut"]
    addresses += ["compare?a=g-code&b=g-wrong", "solution?id=s-1", "solution?id=run/graded:g-right"]
    (tmp_path / PICTURES).mkdir()
    for width in (1280, 400):
        await page.resize(width)
        for number, address in enumerate(addresses):
            await page.go(f"{page.url}{address}")
            assert await page.overflow() <= 0, (address, width)
            await page.picture(tmp_path / PICTURES / f"{width}-{number}.png")
