"""What models answer is read strictly: every form that was asked for, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.synthesis.problems.answers import parse_answer
from nemo_openmath.synthesis.problems.classify import parse_category
from nemo_openmath.synthesis.problems.convert import parse_conversion
from nemo_openmath.synthesis.problems.decontaminate import parse_bool
from nemo_openmath.synthesis.problems.extract import parse_problems

line = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).map(str.strip).filter(bool)


@given(st.lists(line.filter(lambda t: not t.startswith("Problem ")), min_size=1, max_size=5))
def test_listed_problems_come_back(texts: list[str]) -> None:
    assert parse_problems("\n".join(f"Problem {i}: {t}" for i, t in enumerate(texts, 1))) == texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [("No problem", []), ("No problem.", []), ("Here you are: Problem 1: x", None), ("Problem 1: ", None), ("", None)],
)
def test_other_extractions(text: str, expected: list[str] | None) -> None:
    assert parse_problems(text) == expected


def test_problems_of_several_lines() -> None:
    assert parse_problems("Problem 1: a\nb\nProblem 2: c") == ["a\nb", "c"]


@given(line, line)
def test_conversions_come_back(problem: str, answer: str) -> None:
    assert parse_conversion(f"Problem: {problem}\nAnswer: {answer}") == (problem, answer)


@pytest.mark.parametrize(
    ("text", "expected"), [("Not possible", ()), ("Problem: x", None), ("x\nAnswer: 3", None), ("", None)]
)
def test_other_conversions(text: str, expected: tuple[()] | None) -> None:
    assert parse_conversion(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Answer: 12", "12"), ("Not found", ""), ("It is 12", None), ("I think Answer: 12", None), ("Answer:", None)],
)
def test_answers(text: str, expected: str | None) -> None:
    assert parse_answer(text) == expected


def test_categories_and_booleans() -> None:
    assert parse_category("Multiple-choice.") == "multiple-choice"
    assert parse_category("a proof") is None
    assert parse_bool("They differ in one number: False.") is False
    assert parse_bool("maybe") is None
