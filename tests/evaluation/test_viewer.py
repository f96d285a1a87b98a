"""The browser of solutions: what it finds, what it shows, and that no text of a model becomes markup."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.store import write_records
from nemo_openmath.evaluation.viewer import mathematics
from nemo_openmath.evaluation.viewer.building import build_index
from nemo_openmath.evaluation.viewer.filters import FilteredRows, RowFilter
from nemo_openmath.evaluation.viewer.index import SolutionIndex
from nemo_openmath.evaluation.viewer.mathematics import MathWriter
from nemo_openmath.evaluation.viewer.pages import Pages
from nemo_openmath.evaluation.viewer.server import ViewerServer
from nemo_openmath.evaluation.viewer.sources import find_sources
from tests.support.solutions import HOSTILE, make_run, solution, write_many

MATHML = {"math", "mrow", "mi", "mn", "mo", "mtext", "mfrac", "msup", "msub", "msqrt", "menclose", "mstyle"}


def index_of(*folders: Path) -> SolutionIndex:
    return build_index(find_sources(folders))


class Seen(HTMLParser):
    """The tags, attributes and text of a page, as a parser of others sees them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_filters_find_what_a_plain_loop_finds(tmp_path):
    made = write_many(tmp_path / "run", 3000, 70)
    index = index_of(tmp_path / "run")
    rows = FilteredRows(index)
    assert len(index) == 3000
    wanted = [i for i, (at, verdict, tokens) in enumerate(made) if verdict == "equal" and 1000 <= tokens <= 9000]
    chosen = RowFilter(verdict="equal", least=1000, most=9000)
    assert rows.rows(chosen).tolist() == wanted
    longest = rows.rows(RowFilter(verdict="equal", least=1000, most=9000, order="longest")).tolist()
    assert sorted(longest) == wanted
    assert [made[i][2] for i in longest] == sorted((made[i][2] for i in wanted), reverse=True)
    # the text of the problem, in any case and across line ends
    assert rows.rows(RowFilter(text="NUMBER  6:")).tolist() == [i for i, (at, _, _) in enumerate(made) if at == 6]
    assert RowFilter.parse({"verdict": "equal", "least": "1000", "most": "9000", "page": "2"}, index) == chosen
    for query in ({"verdict": "eqal"}, {"least": "-1"}, {"least": "9" * 30}, {"stage": "nowhere"}):
        with pytest.raises(UserError):
            RowFilter.parse(query, index)


def test_pages_hold_every_row_once(tmp_path):
    write_many(tmp_path / "run", 120, 7)
    pages = Pages(index_of(tmp_path / "run"), "run")
    found: list[str] = []
    for page in (1, 2, 3):
        found += re.findall(r'name="a" value="([^"]*)"', pages.solutions(RowFilter(), page))
    assert found == [f"many:generation-{i:032x}" for i in range(120)]
    assert pages.solutions(RowFilter(), 99) == pages.solutions(RowFilter(), 3)  # there is no page behind the last


def test_a_solution_is_shown_with_all_that_is_known_of_it(tmp_path):
    make_run(tmp_path / "run")
    pages = Pages(index_of(tmp_path / "run"), "run")
    cut = Seen(pages.solution("g-cut", whole=False)).text
    assert "judged 1 to 0, 1 invalid" in cut
    assert "equal, unreadable" in cut
    assert f"I cannot say {HOSTILE}" in cut
    assert "unknown: not alike" in cut
    right = pages.solution("g-right", whole=False)
    assert "What was said: equal" in Seen(right).text
    assert HOSTILE in Seen(right).text
    assert "Judgement: Yes" in Seen(right).text
    assert not Seen(right).tags & {"script", "img"}
    selection = pages.solution("selected:s-1", whole=False)
    assert [word for word in ("g-right", "g-wrong") if word in Seen(selection).text] == ["g-right", "g-wrong"]
    assert "/solution?id=graded%3Ag-right" in selection
    assert "Chosen by 1 selection" in Seen(pages.solution("g-right", whole=False)).text
    both = Seen(pages.compare("g-right", "graded:g-wrong", whole=False)).text
    assert both.index("A g-right") < both.index("B g-wrong")
    assert HOSTILE in both
    with pytest.raises(UserError, match="no solution 'graded:nobody'"):
        pages.solution("graded:nobody", whole=False)


def test_versions_of_two_runs_are_told_apart(tmp_path):
    make_run(tmp_path / "one")
    make_run(tmp_path / "two")
    index = index_of(tmp_path / "one", tmp_path / "two")
    assert index.stages == ["one/graded", "one/selected", "two/graded", "two/selected"]
    page = Pages(index, "both").solution("one/graded:g-right", whole=False)
    assert "/solution?id=two%2Fgraded%3Ag-right" in page
    # a stage alone: its problems and groups are looked for in its run
    alone = index_of(tmp_path / "one" / "selected")
    assert alone.stages == ["selected"]
    assert alone.problems.text(0).startswith("What is the Sum")
    with pytest.raises(UserError, match="Problem records, no solutions"):
        index_of(tmp_path / "one" / "problems")


def test_a_prompt_stands_for_a_problem_that_no_record_has(tmp_path):
    problem = make_run(tmp_path / "made")["sum"]
    write_records(tmp_path / "run" / "graded", [solution("g", problem)])
    index = index_of(tmp_path / "run")
    assert index.from_prompts == 1
    assert index.problems.text(0) == problem.problem


def test_a_stage_that_was_made_again_is_refused(tmp_path):
    make_run(tmp_path / "run")
    index = index_of(tmp_path / "run")
    part = tmp_path / "run" / "graded" / "part-00000-of-00001.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(reversed(lines)))
    with pytest.raises(UserError, match="graded"):
        Pages(index, "run").solution("g-right", whole=False)


def test_nothing_of_a_text_becomes_markup(tmp_path):
    texts = [
        HOSTILE,
        "$\\text{<script>alert(1)</script>}$",
        "$\\href{javascript:alert(1)}{x}$ $\\style{background:url(//a)}{y}$ $\\class{a}{z}$",
        '\\(\\color{red" onload="alert(1)}{x}\\)',
        "$\\text{&#x3C;script&#x3E;}$ &#x3C;b&#x3E;",
        "\x1b[31m \u202eabc \x00 \ud800",
        "a" * 100_000,
        "\\[" * 30_000 + "$" * 30_000,
        "{" * 3000 + "$" + "{" * 500 + "x" + "}" * 500 + "$",
    ]
    problem = make_run(tmp_path / "run")["sum"]
    written = [text.encode("utf-8", "replace").decode() for text in texts]
    write_records(
        tmp_path / "run" / "hostile",
        [solution(f"h{i}", problem, text, verdict_reason=text[:500], model=HOSTILE) for i, text in enumerate(written)],
    )
    pages = Pages(index_of(tmp_path / "run"), HOSTILE)
    shown = [pages.home(), pages.solutions(RowFilter(), 1), pages.problems(RowFilter(), 1, True), pages.error(HOSTILE)]
    shown += [pages.solution(f"hostile:h{i}", whole=True) for i in range(len(texts))]
    for page in shown:
        seen = Seen(page)
        assert not seen.tags & {"script", "img"}
        assert not {name for name in seen.attributes if name.startswith("on")} | seen.attributes & {"style", "src"}
        assert "javascript:" not in re.sub(r">[^<]*<", "><", page)
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", page)
    assert HOSTILE in Seen(shown[4]).text
    assert "a" * 100_000 in shown[4 + 6]
    assert "60,000 more characters" in pages.solution("hostile:h6", whole=False)


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    writer = MathWriter()
    page = writer.text("Half: $\\frac{1}{2}$, then \\[x^2\\] is \\boxed{\\frac{a}{b}}. Tea is $5 and $6; \\$1.")
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in page
    assert '<math display="block">' in page
    assert '<menclose notation="box">' in page
    assert "Tea is $5 and $6; \\$1." in page
    assert (writer.written, writer.note()) == (3, "")
    assert Seen(page).tags <= MATHML
    raw = writer.text("$\\frac{1$ and $\\nosuchcommand{x}$")
    assert html.unescape(re.sub("<[^>]*>", "", raw)) == "$\\frac{1$ and $\\nosuchcommand{x}$"
    assert writer.note() == "2 formulas could not be parsed: they are shown as they are written."
    many = MathWriter(left=10)
    many.text("$aaaaaaaa$ $bbbbbbbb$")
    assert (many.written, many.beyond) == (1, 1)


def test_without_the_package_formulas_stay_as_they_are_written(monkeypatch):
    monkeypatch.setattr(mathematics, "parser", lambda: None)
    writer = MathWriter()
    assert writer.text("$\\frac{1}{2}$ <b>") == "$\\frac{1}{2}$ &lt;b&gt;"
    assert "pip install 'nemo-openmath[view]'" in writer.note()


async def test_the_server_asks_for_its_token_and_name(tmp_path):
    make_run(tmp_path / "run")
    server = ViewerServer(index_of(tmp_path / "run"), "run", token="secret")
    async with TestClient(TestServer(server.app())) as client:
        assert (await client.get("/")).status == 403
        assert (await client.get("/?token=other")).status == 403
        assert (await client.get("/?token=secret", headers={"Host": "evil.example:80"})).status == 421
        first = await client.get("/solutions?token=secret&verdict=equal", allow_redirects=False)
        assert (first.status, first.headers["Location"]) == (303, "/solutions?verdict=equal")
        page = await client.get("/solutions?verdict=equal")
        assert page.status == 200
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self';")
        assert "script" not in policy
        assert "g-right" in await page.text()
        for path, status in {
            "/style.css": 200,
            "/problems?text=sum": 200,
            "/solution?id=g-cut": 200,
            "/compare?a=g-cut&b=s-1": 200,
            "/compare?a=g-cut": 404,
            "/solution?id=nobody": 404,
            "/solutions?mode=none": 404,
            "/solutions?page=x": 404,
            "/etc/passwd": 404,
        }.items():
            assert (await client.get(path)).status == status, path
        assert (await client.post("/solutions")).status == 405
    named = ViewerServer(index_of(tmp_path / "run"), "run", token="", allowed=["login-node"])
    async with TestClient(TestServer(named.app())) as client:
        assert (await client.get("/", headers={"Host": "login-node:8080"})).status == 200
        refused = await client.get("/", headers={"Host": "evil.example:80"})
        assert (refused.status, await refused.text()) == (421, named._names.refusal("evil.example:80"))
