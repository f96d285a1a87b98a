"""Majority by meaning."""

from __future__ import annotations

import random

from nemo_openmath.grading import Grade, GradingPool, Verdict, compare, majority


def test_groups_by_meaning_and_represents_by_the_most_common_spelling() -> None:
    vote = majority(["1/2", r"\frac12", r"\frac12", "0.5", "3", "3", "3"])
    assert vote.answer == r"\frac12"
    assert (vote.count, vote.total, vote.tie) == (4, 7, False)
    assert vote.groups == ((r"\frac12", 4), ("3", 3))


def test_missing_answers_count_and_never_win() -> None:
    vote = majority([None, None, "", "7"])
    assert (vote.answer, vote.count, vote.total, vote.missing) == ("7", 1, 4, 3)
    nobody = majority([None, " "])
    assert (nobody.answer, nobody.count, nobody.total, nobody.groups, nobody.tie) == (None, 0, 2, (), False)
    assert majority([]).answer is None


def test_ties_are_reported_and_go_to_the_answer_that_came_first() -> None:
    vote = majority(["4", "5", "05", "4.0"])
    assert vote.tie
    assert vote.answer == "4"
    assert majority(["5", "4", "4.0", "05"]).answer == "5"


def test_minority_threshold() -> None:
    answers = ["1", "1", "2", None, None]
    assert majority(answers, min_share=0.4).answer == "1"
    assert majority(answers, min_share=0.5).answer is None
    assert majority(answers, min_share=0.5).count == 2


def test_order_of_votes_does_not_change_groups() -> None:
    answers = ["1/2"] * 4 + ["0.5"] * 3 + ["2"] * 6 + [r"\sqrt4"] * 2 + [None] * 3
    for seed in range(5):
        shuffled = random.Random(seed).sample(answers, len(answers))
        assert majority(shuffled).groups == (("2", 8), ("1/2", 7))


def test_comparisons_are_bounded_and_the_bound_is_reported() -> None:
    calls = 0

    def counted(a: str, b: str) -> Grade:
        nonlocal calls
        calls += 1
        return compare(a, b)

    answers = [f"x^{{{i}}}" for i in range(100)] + ["x^{0}", "1"]
    vote = majority(answers, compare=counted, max_comparisons=50)
    assert calls == vote.comparisons == 50
    assert not vote.complete
    assert sum(count for _, count in vote.groups) == len(answers)
    numbers = [str(i) for i in range(100)] + ["0", "00"]
    assert majority(numbers, max_comparisons=0).complete  # plain numbers are grouped by value
    assert majority(numbers).groups[0] == ("0", 3)
    vote = majority(numbers, compare=counted, max_comparisons=50)  # whoever compares
    assert vote.complete
    assert vote.comparisons == 0


def test_numbers_of_a_rule_that_sees_them_otherwise() -> None:
    with GradingPool(take_modulo=10) as pool:
        assert majority(["3", "13", "4"], compare=pool.compare, by_value=False).groups == (("3", 2), ("4", 1))


def test_only_equal_joins() -> None:
    vote = majority(["a", "b"], compare=lambda a, b: Grade(Verdict.UNKNOWN, ""))
    assert len(vote.groups) == 2


def test_no_group_holds_two_different_answers() -> None:
    """Equality of answers is not transitive where one leaves its unit out."""
    vote = majority(["5", "5", "5 cm", r"5 \text{ m}", r"5 \text{ m}"])
    assert vote.groups == (("5", 4), ("5 cm", 1))
    assert majority(["50\\%", "50\\%", "50", "0.5"]).groups == (("50\\%", 3), ("0.5", 1))
