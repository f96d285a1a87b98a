"""Which answers a contest takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.competition.answers import AnswerRule

AIMO2 = AnswerRule(integers=True, most=999, modulo=1000)
AIMO3 = AnswerRule(integers=True, most=99999)


@pytest.mark.parametrize(
    ("rule", "written", "answer", "became"),
    [
        (AIMO2, "007", "7", "kept"),
        (AIMO2, "1,234", "234", "reduced"),
        (AIMO2, "1{,}234{,}567", "567", "reduced"),
        (AIMO2, "-1", "999", "reduced"),
        (AIMO2, "$ 52 $", "52", "kept"),
        (AIMO2, "52.00", "52", "kept"),
        (AIMO2, "52.5", None, "not_integer"),
        (AIMO2, "2^5", None, "not_integer"),
        (AIMO2, "1, 2", None, "not_integer"),
        (AIMO2, "12,34", None, "not_integer"),
        (AIMO2, "", None, "not_integer"),
        (AIMO2, "9" * 5000, None, "not_integer"),
        (AIMO2, None, None, "none"),
        (AIMO3, "99999", "99999", "kept"),
        (AIMO3, "100000", None, "out_of_range"),
        (AIMO3, "-3", None, "out_of_range"),
        (AnswerRule(), "\\frac12", "\\frac12", "kept"),
        (AnswerRule(integers=True, least=-5), "-5", "-5", "kept"),
    ],
)
def test_what_becomes_of_an_answer(rule: AnswerRule, written: str | None, answer: str | None, became: str) -> None:
    read = rule.read(written)
    assert (read.answer, read.became) == (answer, became)


@given(st.integers(-(10**30), 10**30))
def test_a_reduced_answer_is_congruent_and_in_range(number: int) -> None:
    for text in (str(number), f"{number:,}"):
        answer = AIMO2.read(text).answer
        assert answer is not None
        assert 0 <= int(answer) <= 999
        assert (int(answer) - number) % 1000 == 0


@pytest.mark.parametrize("settings", [{"most": 9}, {"integers": True, "most": 9, "modulo": 11}, {"modulo": 7}])
def test_rules_that_contradict_themselves_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"most|modulo"):
        AnswerRule(**settings)  # type: ignore[arg-type]
