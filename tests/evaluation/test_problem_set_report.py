"""The problem set in the report: two models' agreement by the textbook, and a page on which hostile posts are text."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nemo_openmath.evaluation.reports.build import build_report
from nemo_openmath.evaluation.reports.problem_set import ProblemSet, StageAgreement, StageBalance
from nemo_openmath.evaluation.reports.samples import StageSamples, write_samples_page
from nemo_openmath.evaluation.reports.view import RunView
from nemo_openmath.evaluation.two_models import model_agreement


def pairs(table: dict[tuple[str, str], int]) -> list[tuple[str, str, bool]]:
    return [(first, second, first == second) for (first, second), count in table.items() for _ in range(count)]


def test_agreement_is_the_textbooks() -> None:
    # two readers of fifty applications: agreement 0.7, by chance 0.5, kappa 0.4
    of = model_agreement(pairs({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}))
    assert of is not None
    assert (of.units, of.agreed, of.same, of.kappa) == (50, 35, 35, pytest.approx(0.4))
    assert (of.low, of.high) == (pytest.approx(0.5539, abs=1e-4), pytest.approx(0.8214, abs=1e-4))
    assert (of.kappa_low, of.kappa_high) == (pytest.approx(2 * of.low - 1), pytest.approx(2 * of.high - 1))
    perfect = model_agreement(pairs({("yes", "yes"): 20, ("no", "no"): 20}))
    assert perfect is not None
    assert perfect.kappa == perfect.kappa_high == 1.0
    assert 0.8 < (perfect.kappa_low or 0) < 0.9, "40 of 40 is not certainty"
    alone = model_agreement(pairs({("kept", "kept"): 9}))
    assert alone is not None
    assert (alone.kappa, alone.kappa_low) == (None, None)
    assert model_agreement([]) is None


def test_kappas_interval_covers_the_true_one() -> None:
    rng = np.random.default_rng(3)
    names = ("a", "b", "c")
    true = np.array([[0.70, 0.03, 0.01], [0.02, 0.15, 0.02], [0.01, 0.01, 0.05]])
    chance = float(true.sum(0) @ true.sum(1))
    kappa = (float(np.trace(true)) - chance) / (1 - chance)
    covered = 0
    for counts in rng.multinomial(150, true.ravel(), 300).reshape(-1, 3, 3):
        table = {(names[i], names[j]): int(counts[i, j]) for i in range(3) for j in range(3)}
        of = model_agreement(pairs(table))
        assert of is not None
        covered += (of.kappa_low or 0) <= kappa <= (of.kappa_high or 0)
    assert covered >= 0.93 * 300


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \0 \u202e &amp;"


def test_hostile_posts_are_text_on_the_page_of_samples(tmp_path: Path) -> None:
    side = {
        "asked": [{"fields": {"forum_post": HOSTILE + "x" * 20_000}, "reply": HOSTILE}],
        "records": [{"id": "problem-1", "problem": HOSTILE, "expected_answer": HOSTILE}],
        "drops": [{"reason": "disagreement", "detail": HOSTILE}],
    }
    row = {"unit": HOSTILE, "outcomes": ["accepted"], "sources": ["thread-1"], **side, "second": side}
    stages = [StageSamples(HOSTILE, "problems.extract", {HOSTILE: [row]}, {HOSTILE: 1234})]
    write_samples_page(tmp_path / "samples.html", HOSTILE, stages, {"thread-1": HOSTILE})
    page = Reader()
    page.feed((tmp_path / "samples.html").read_text())
    assert not {"script", "img"} & page.tags
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "\0" not in page.text
    assert "\u202e" not in page.text
    assert "{{ 7*7 }}" in page.text
    assert "1 of 1,234" in page.text
    assert page.text.count("alert(1)") >= 10
    assert "more characters]" in page.text


def test_the_report_has_the_stages_and_two_models(tmp_path: Path) -> None:
    balance = StageBalance(
        "extracted", "problems.extract", 620_000, 60_000, 580_000, 20_000, {"no <b>problem</b>": 80_000}
    )
    of = model_agreement(pairs({("1 problem", "1 problem"): 9, ("1 problem", "no <b>problem</b>"): 3}))
    assert of is not None
    problems = ProblemSet([balance], [StageAgreement("extracted", "one", "two", of)], notes=["a note"])
    page = Reader()
    page.feed(build_report(RunView(label="run", stages=[], problem_set=problems), tmp_path).read_text())
    for text in (
        "620,000",
        "+60,000",
        "−80,000",
        "−20,000",
        "580,000",
        "no <b>problem</b>",
        "75.0%",
        "one, two",
        "a note",
    ):
        assert text in page.text
