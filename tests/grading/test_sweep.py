"""The sweeps over a few answers of each kind; ``python -m tests.grading.sweep`` goes over thousands."""

from __future__ import annotations

import itertools

import pytest

from nemo_openmath.grading import Grade, Majority, Verdict
from tests.grading import sweep as sweeps
from tests.grading.independent import confirmed

ANSWERS = [
    "0", "7", "-12", "2048", "18446744073709551617", "0.125", "-2.50", "1,234", "3/4", r"-\frac{22}{7}",
    r"3\frac{1}{2}", r"2\sqrt{3}-1", r"\frac{\pi}{6}", r"30^\circ", r"50\%", r"5 \mathrm{~cm}", "2:3",
    "4:00 PM", r"\binom{10}{3}",
    "1,2,5", "(1,-2)", r"\{1,2,3\}", r"x=\pm 3", "x=1, y=2", "[1,4)", r"(-\infty,0)\cup(2,\infty)", "x>2",
    r"|x|+|y|=1", "x^2+y^2=9", "y=2x-1", "a^2-4b=0", "(x+1)^2=x^2+2x+1", r"\frac{80}{9}\approx 8.89",
    r"x^2\sqrt{x}", r"|x-1|", r"\ln(x+1)", r"\sin^2x+C", "n(n+1)", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "1101_2",
    "P(A)=1/3", r"f(t)=t+1", r"\mathrm{r}=5", r"\text{Monday}", r"\frac{\pi}{4}+k\pi",
]  # fmt: skip
CASES = {"rewritings": 600, "mutations": 600, "votes": 25}  # at most, of each sweep


@pytest.mark.parametrize("name", list(CASES))
def test_sweep(name: str) -> None:
    report = sweeps.sweep(name, ANSWERS, sample=CASES[name])
    assert not report.failures, report
    assert sum(report.counts.values()) >= CASES[name]


def test_all_pairs() -> None:
    pairs = [("pair", a, b) for a, b in itertools.combinations(ANSWERS, 2)]
    report = sweeps.report("pairs", map(sweeps.check_claim, pairs), len(pairs))
    assert not report.failures, report
    assert report.counts["not_equal"] > 400


def test_sweeps_find_what_they_look_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grader that calls all equal, one that refuses all, and one that answers by direction are found out."""
    for verdict, said in ((Verdict.EQUAL, "refuted: "), (Verdict.NOT_EQUAL, "refused: ")):
        monkeypatch.setattr(sweeps, "compare", lambda a, b, verdict=verdict: Grade(verdict, ""))
        name = "pairs" if verdict is Verdict.EQUAL else "rewritings"
        assert any(f.startswith(said) for f in sweeps.sweep(name, ["1/2", "x+1", "3"]).failures)
    monkeypatch.setattr(sweeps, "compare", lambda a, b: Grade(Verdict.UNKNOWN if a < b else Verdict.NOT_EQUAL, ""))
    assert all(f.startswith("directions") for f in sweeps.sweep("pairs", ["1/2", "x+1"]).failures)
    monkeypatch.setattr(sweeps, "majority", lambda votes, compare: Majority(votes[0], 1, 1, (), False, 0, 0, True))
    assert sweeps.sweep("votes", ["1/2", "x+1"]).failures


@pytest.mark.parametrize(
    ("a", "b", "opinion"),
    [
        ("0.5", r"\frac12", True), ("1,234", "1234", True), ("5 cm", "5", True), ("5 cm", "5 m", False),
        (r"x=1, x=2", "2,1", True), ("1,1,2", "1,2,2", False), ("(1,2)", "(2,1)", False), ("[1,2)", "[1,2]", False),
        (r"x^2\sqrt{x}", r"|x|^2\sqrt{x}", True), ("|x|", "x", False), ("x+y=1", "2x+2y=2", True),
        ("x<y", "y<x", False), (r"(x+1)^2=x^2+2x+1", "y=3", False), (r"\sqrt{2}\approx 1.41", r"\sqrt{2}", True),
        ("P(A)=1/3", "P(B)=1/3", False), ("f(x)=x+1", "f(t)=t+1", True), (r"(2,\infty]", r"(2,\infty)", True),
        (r"\sum a_n", r"\foo", None), ("n!", "n(n-1)!", True), (r"1\pm i", "1+i,1-i", True),
    ],
)  # fmt: skip
def test_the_independent_check(a: str, b: str, opinion: bool | None) -> None:
    assert confirmed(a, b) is opinion
