"""Every expected answer of 256 contest problems equals its rewritings and none of its near misses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nemo_openmath.grading import Verdict, compare
from tests.grading.rewritings import near_misses, rewritings

FOLDER = Path(os.environ.get("OPENMATH_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
FILE = FOLDER / "comp-math-24-25.jsonl"
SAME_BY_NATURE = {"0"}  # -0 and 00 mean the same


@pytest.fixture(scope="module")
def answers() -> list[str]:
    if not FILE.exists():
        pytest.skip(f"{FILE} is absent; set OPENMATH_TEST_DATA to its folder")
    with FILE.open(encoding="utf-8") as lines:
        return list(dict.fromkeys(json.loads(line)["expected_answer"] for line in lines))


def test_rewritings_are_equal(answers: list[str]) -> None:
    total, missed = 0, []
    for answer in answers:
        texts = list(dict.fromkeys(rewritings(answer)))
        assert len(texts) >= (10 if "$" not in answer.strip("$.") else 6), answer
        for text in texts:
            total += 1
            grade = compare(text, answer)
            if not grade.is_equal:
                missed.append(f"{answer}  ~  {text}: {grade.verdict} ({grade.reason})")
    assert len(missed) <= 0.01 * total, f"{len(missed)} of {total}\n" + "\n".join(missed)


def test_near_misses_are_not_equal(answers: list[str]) -> None:
    total, accepted, open_ = 0, [], 0
    for answer in answers:
        for text in dict.fromkeys(near_misses(answer)):
            total += 1
            grade = compare(text, answer)
            open_ += grade.verdict is Verdict.UNKNOWN
            if grade.is_equal:
                accepted.append(f"{answer}  !~  {text} ({grade.reason})")
    assert total > 1000
    assert not accepted, f"{len(accepted)} of {total}\n" + "\n".join(accepted)
    assert open_ <= 0.05 * total, f"{open_} of {total} are unknown"


def test_other_units_are_not_equal(answers: list[str]) -> None:
    numbers = [answer for answer in answers if answer.isdigit() and answer != "0"]
    for answer in numbers:
        assert not compare(rf"{answer} \text{{ cm}}", rf"{answer} \text{{ m}}").is_equal
        assert not compare(rf"{answer}^\circ", rf"{answer} \text{{ radians}}").is_equal
        assert compare(rf"{answer} \text{{ cm}}", answer).is_equal
