"""The report of a made-up run: the fixed schema, a page that needs nobody, and numbers that are the same everywhere."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from nemo_openmath.core.records import Drop, Manifest, RecordWriter
from nemo_openmath.core.records.manifest import write_manifest
from nemo_openmath.evaluation.reports import (
    RunView,
    StageView,
    build_report,
    competition_lines,
    gather,
    results_table,
    status_table,
)
from nemo_openmath.evaluation.reports.formats import bytes_text, made_text
from nemo_openmath.evaluation.reports.view import read_curves
from nemo_openmath.recipe.registry import register_stages
from nemo_openmath.synthesis.problems.read import ReadProblems
from tests.evaluation.made_run import made_run

VOID = {"meta", "br", "link", "img", "input"}


class Checker(HTMLParser):
    """Every element is closed in order; what could ask the network, and what is said in text, is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.tags.append((tag, dict(attrs)))
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return made_run(tmp_path_factory.mktemp("run"), problems=20)


@pytest.fixture(scope="module")
def report(run: RunView, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(run, tmp_path_factory.mktemp("report") / "new")


@pytest.fixture(scope="module")
def page(report: Path) -> Checker:
    checker = Checker()
    checker.feed(report.read_text())
    assert checker.open == []
    return checker


def test_the_page_asks_nothing_of_the_network(report: Path, page: Checker) -> None:
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {reference[1:] for reference in page.references} <= ids
    text = report.read_text()
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_what_others_wrote_is_text_not_markup(page: Checker) -> None:
    assert any("<script>alert('not run')</script> find x & y" in text for text in page.texts)


def test_tables_have_headers_and_pictures_have_names(page: Checker) -> None:
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers
    assert all("scope" in attributes for attributes in headers)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) > 20
    assert all("aria-label" in a if a.get("role") == "img" else a.get("aria-hidden") == "true" for a in pictures)


def test_the_page_says_what_matters(run: RunView, page: Checker) -> None:
    text = " ".join(page.texts)
    for sentence in run.standins:
        assert sentence in text
    for value in run.config:
        assert value.origin in text
    row = next(r for r in run.results if (r["checkpoint"], r["mode"], r["metric"]) == ("iteration2", "tir", "pass@1"))
    assert f"{100 * row['value']:.1f}%" in text
    assert f"{100 * row['low']:.1f}–{100 * row['high']:.1f}" in text
    for words in ("like a benchmark problem", "count = sum(1 for n in range(200) if n % 7 == 3)", "megatron-core"):
        assert words in text
    kinds = {
        a["class"].split()[-1] for tag, a in page.tags if tag == "div" and (a.get("class") or "").startswith("segment ")
    }
    assert kinds == {"prompt", "reasoning", "code", "output", "notice", "summary"}


def test_the_json_keeps_its_schema(run: RunView, report: Path) -> None:
    data = orjson.loads((report.parent / "report.json").read_bytes())
    assert set(data) == {
        "label", "standins", "results", "paired", "funnel", "drops", "seconds", "config", "versions", "seeds", "losses",
        "competition", "states", "left_out", "prompts", "note", "apart", "iterations", "economics",
            "problem_set", "controls",
    }  # fmt: skip
    fields = {"checkpoint", "mode", "metric", "k", "value", "low", "high", "problems"}
    assert all(set(row) == fields for row in data["results"])
    assert len(data["results"]) == len(run.results)
    assert data["drops"]["classify"] == {"multiple choice": 3, "yes or no": 10, "invalid": 17}
    assert data["seconds"]["extract"] == 8.2
    assert data["config"]["training.lr"] == {"value": 0.003, "origin": "override"}
    curves = data["losses"]["train-iteration1"]
    assert len(curves["steps"]) == len(curves["loss"]) == len(curves["lr"]) == len(curves["grad_norm"]) == 240


def test_an_empty_run_has_a_report_too(tmp_path: Path) -> None:
    page = build_report(RunView("nothing yet", [StageView("forum", "waiting")]), tmp_path)
    checker = Checker()
    checker.feed(page.read_text())
    assert "nothing yet" in checker.texts
    assert results_table([]).row_count == 0


def test_colours_are_readable_on_both_papers() -> None:
    """WCAG AA: 4.5 to 1 for every colour that text is set in."""
    css = (Path(__file__).parents[2] / "nemo_openmath/evaluation/reports/templates/report.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(themes) == 2

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for name in ("ink", "soft", "c0", "c1", "c2", "c3", "c4", "good", "bad"):
            for ground in ("paper", "raised", "notice") if name == "ink" else ("paper", "raised"):
                light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_stages_are_read_from_their_folders(tmp_path: Path) -> None:
    assert StageView.read("later", tmp_path / "none").state == "waiting"
    folder = tmp_path / "stage"
    with RecordWriter(folder) as writer:
        writer.commit("a", drops=[Drop("too short", "x")])
        writer.commit("b", drops=[Drop("too short", "y"), Drop("not a problem", "z")])
    assert (StageView.read("s", folder).state, StageView.read("s", folder).units) == ("started", 2)
    rows = [{"checkpoint": "base", "value": 0.5}]
    counts = {"units": 2, "records": 0, "drops": 3}
    drops = {"too short": 2, "not a problem": 1}
    write_manifest(folder, Manifest("kind", "f", "d", counts, drops, seconds=75.0, metrics={"results": rows}))
    stage = StageView.read("s", folder)
    assert (stage.state, stage.examples) == ("finished", {"too short": "x", "not a problem": "z"})
    assert gather([stage], "results") == rows

    console = Console(file=StringIO(), width=120)
    console.print(status_table([stage, StageView("later", "waiting")]))
    shown = console.file.getvalue()
    for words in ("finished", "2 too short; 1 not a problem", "1 min 15 s", "later", "waiting"):
        assert words in shown


def test_the_console_shows_the_same_numbers(run: RunView) -> None:
    console = Console(file=StringIO(), width=140)
    console.print(results_table(run.results))
    shown = console.file.getvalue()
    row = next(r for r in run.results if (r["checkpoint"], r["metric"], r["k"]) == ("base", "genselect@k", 16))
    assert f"{100 * row['value']:.1f}%  {100 * row['low']:.1f}–{100 * row['high']:.1f}" in shown
    assert "iteration 2" in shown


def test_losses_survive_a_kill_and_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": float(s), "lr": 0.1, "grad_norm": 1.0, "tokens": 10} for s in (1, 2, 3, 2, 3, 4)]
    rows[3]["loss"] = 9.0
    path.write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows) + b'{"step": 5, "lo')
    curves = read_curves(path)
    assert (curves.steps, curves.loss, curves.tokens) == ([1, 2, 3, 4], [1.0, 9.0, 3.0, 4.0], 40)
    assert read_curves(tmp_path / "none").steps == []


def test_what_a_stage_made_is_in_its_own_units() -> None:
    register_stages()

    def made(stage: str, counts: dict[str, int], facts: dict[str, Any]) -> str:
        return made_text(Manifest(stage, "f", "d", counts, {}, {}, {}, {}, 1.0, facts))

    assert made("competition.solve", {"units": 3, "records": 3}, {"right": 2}) == "3 answers, 2 right"
    assert made(ReadProblems.kind, {"units": 0, "records": 0}, {}) == "nothing"
    assert made("training.sft", {"records": 0}, {"steps": 8, "loss": 1.5}) == "8 steps, loss 1.500"
    assert made("training.sft", {"records": 0}, {}) == "done"
    assert (bytes_text(2e6), bytes_text(590.4e9)) == ("2 MB", "590.4 GB")


def test_problems_that_are_in_no_mean_stand_beside_the_results(run: RunView, tmp_path: Path) -> None:
    apart = {"checkpoint": "base", "mode": "genselect", "problems": 3, "of": 60, "example": "problem-007"}
    build_report(replace(run, apart=[apart]), tmp_path)
    said = "base, GenSelect: 3 of 60 problems are in no mean"
    assert said in (tmp_path / "report.html").read_text()
    assert orjson.loads((tmp_path / "report.json").read_bytes())["apart"] == [apart]


def test_the_score_of_a_competition_is_everywhere(run: RunView, tmp_path: Path) -> None:
    row = {"stage": "contest", "model": "m", "problems": 24, "answered": 24, "right": 23, "value": 23 / 24}
    row |= {"low": 0.789, "high": 0.999, "seconds": 71.0}
    build_report(replace(run, competition=[row]), tmp_path)
    assert orjson.loads((tmp_path / "report.json").read_bytes())["competition"] == [row]
    text = re.sub(r"<[^>]+>|\s+", " ", (tmp_path / "report.html").read_text())
    assert re.search(r"m +\( *contest *\) +23 of 24 +95\.8% +78\.9–99\.9", " ".join(text.split())), "on the page"
    assert competition_lines([row]) == [
        "competition (contest, m): 23 of 24 right, 95.8% (78.9–99.9); 24 answered, 1 min 11 s used"
    ]


def test_the_status_is_readable_at_80_columns(tmp_path: Path) -> None:
    drops = {"in the benchmark, word for word": 3, "in the benchmark, reworded": 1, "chose an incorrect candidate": 8}
    counts = {"units": 1_234_567, "records": 1_234_555, "drops": 12}
    manifest = Manifest("kind", "f", "d", counts, drops, seconds=12_345.0)
    stage = StageView("student2_tir_graded", "finished", "kind", manifest)
    console = Console(file=StringIO(), width=80)
    console.print(status_table([stage]))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    whole = [" ".join(filter(None, column)) for column in zip(*cells, strict=True)]
    assert whole == [
        "student2_tir_graded", "finished", "1,234,555 records", "3 h 25 min",
        "8 chose an incorrect candidate; 3 in the benchmark, word for word; 1 in the benchmark, reworded",
    ]  # fmt: skip
