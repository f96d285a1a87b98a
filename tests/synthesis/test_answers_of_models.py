"""What models answer is read strictly: every form that was asked for, and nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.synthesis.problems.answers import parse_answer
from nemo_openmath.synthesis.problems.checks import bare_answer
from nemo_openmath.synthesis.problems.classify import parse_verdict
from nemo_openmath.synthesis.problems.convert import parse_conversion
from nemo_openmath.synthesis.problems.extract import parse_problems
from nemo_openmath.synthesis.problems.prompted import Rejected

line = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).map(str.strip).filter(bool)


def value(parsed: Any) -> Any:
    return None if isinstance(parsed, Rejected) else parsed


@given(st.lists(line.filter(lambda t: not t.startswith("Problem ")), min_size=1, max_size=5))
def test_listed_problems_come_back(texts: list[str]) -> None:
    assert parse_problems("\n".join(f"Problem {i}: {t}" for i, t in enumerate(texts, 1))) == texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No problem", []),
        ("No problem.", []),
        ("Here you are: Problem 1: x", None),
        ("Problem 1: ", [""]),
        ("Problem 2: x", None),
        ("", None),
    ],
)
def test_other_extractions(text: str, expected: list[str] | None) -> None:
    assert value(parse_problems(text)) == expected


def test_problems_of_several_lines() -> None:
    assert parse_problems("Problem 1: a\nb\nProblem 2: c") == ["a\nb", "c"]


@given(line, line)
def test_conversions_come_back(problem: str, answer: str) -> None:
    expected = (problem, bare_answer(answer)) if bare_answer(answer) else None
    assert value(parse_conversion(f"Problem: {problem}\nAnswer: {answer}")) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("Not possible", ()), ("Problem: x", None), ("x\nAnswer: 3", None), ("", None)]
)
def test_other_conversions(text: str, expected: tuple[()] | None) -> None:
    assert value(parse_conversion(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Answer: 12", "12"), ("Not found", ""), ("It is 12", None), ("I think Answer: 12", None), ("Answer:", None)],
)
def test_answers(text: str, expected: str | None) -> None:
    assert value(parse_answer(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why: it asks for a value.\nVerdict: no", False),
        ("**Verdict:** Yes.", True),
        ("yes", True),
        ("No.", False),
        ("Verdict: yes\nBut then again it is not.", None),
        ("Verdict: yes\nVerdict: no", None),
        ("It is a proof.", None),
        ("Verdict: <yes or no>", None),
        ("no yes " * 50_000, None),
        ("", None),
    ],
)
def test_verdicts(text: str, expected: bool | None) -> None:
    assert value(parse_verdict(text)) is expected


def test_bold_labels_are_read() -> None:
    assert parse_answer("**Answer:** 25") == parse_answer("**Answer**: 25") == "25"
    assert parse_problems("**Problem 1:** a\n**Problem 2**: b") == ["a", "b"]
    assert parse_conversion("**Problem:** Find n.\n**Answer:** 4") == ("Find n.", "4")
