"""Majority by meaning."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.grading import Grade, GradingPool, Majority, Verdict, compare, majority


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


def test_ties_are_reported_and_go_to_the_shorter_answer_whatever_came_first() -> None:
    vote = majority(["4", "5", "05", "4.0"])
    assert vote.tie
    assert vote.answer == "4"
    assert majority(["5", "4", "4.0", "05"]) == vote
    assert "the shorter one is taken" in vote.reason


def test_minority_threshold() -> None:
    answers = ["1", "1", "2", None, None]
    assert majority(answers, min_share=0.4).answer == "1"
    assert majority(answers, min_share=0.5).answer is None
    assert majority(answers, min_share=0.5).count == 2


def everything(vote: Majority) -> tuple[object, ...]:
    """All that a vote says, so that one comparison holds it all."""
    return vote, sorted(vote.places.items()), sorted(vote.ambiguous.items())


def shuffles(votes: list[str | None], count: int) -> Iterator[list[str | None]]:
    return (random.Random(seed).sample(votes, len(votes)) for seed in range(count))


def test_every_order_of_a_spelling_that_fits_two_answers_gives_one_result() -> None:
    votes = ["0.5", "50%", "50", "50", "0.5"]
    results = [majority(order) for order in itertools.permutations(votes)]
    assert results[0].groups == (("50", 3), ("0.5", 2))
    assert all(everything(result) == everything(results[0]) for result in results)
    assert results[0].ambiguous == {"50%": ("50", "0.5")}
    assert results[0].reason == "3 of 5 votes; '50%' is counted as '50' and also equals '0.5'"


NASTY = [
    "50%", "0.5", "50", "1/2", r"50\%", r"\frac12", "5", "5 cm", r"5 \text{ m}", "5 m", "5.0", "0.05 m", "x=5",
    "y=5", "5%", r"30^\circ", "30", r"\pi/6", "0.5236", "0.523599", "3.14", "3.14159", "3.141593", r"\pi",
    r"\{1,2\}", "1, 2", "(1,2)", "2, 1", "x=1, y=2", "[1,2]", "1,234", "1234", "(1,234)", "yes", "true", "(A)", "A",
    "(A) 5", "None", r"\emptyset", "1:2", "2:4", r"\log 2", r"\sqrt{4}", "2", "x=1 or x=2", "x+1", "a+1", "0,5",
    "1/3", "0.333333", "0.3333333", "", None,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_no_order_changes_the_vote_over_nasty_spellings(seed: int) -> None:
    rng = random.Random(seed)
    votes = [rng.choice(rng.sample(NASTY, 12)) for _ in range(24)] + rng.sample(NASTY, 12)
    whole = majority(votes)
    assert all(everything(majority(order)) == everything(whole) for order in shuffles(votes, 20))
    check_groups(whole)


def check_groups(vote: Majority) -> None:
    """The groups are an equivalence: each spelling in one; none with two that differ; each held by equalities."""
    members: dict[int, list[str]] = {}
    for text, group in vote.places.items():
        members.setdefault(group, []).append(text)
    for texts in members.values():
        reached, left = {texts[0]}, set(texts[1:])
        while near := {t for t in left if any(compare(t, r).is_equal for r in reached)}:
            reached, left = reached | near, left - near
        assert not left
        for a, b in itertools.combinations(texts, 2):
            assert compare(*sorted((a, b), key=lambda t: (len(t), t))).verdict is not Verdict.NOT_EQUAL, (a, b)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=14), st.lists(st.integers(0, 2), min_size=15, max_size=15))
@settings(max_examples=200, deadline=None)
def test_any_relation_gives_one_vote_in_every_order(votes: list[int], relation: list[int]) -> None:
    """Whatever the comparison says, even one that is no equivalence and not symmetric."""
    pairs = list(itertools.combinations("abcdef", 2))

    def odd(a: str, b: str) -> Grade:
        low, high = sorted((a, b))
        verdict = list(Verdict)[relation[pairs.index((low, high))]]
        return Grade(verdict if a == low else Verdict.UNKNOWN, "")

    answers: list[str | None] = ["abcdef"[i] for i in votes]
    whole = majority(answers, compare=odd)
    assert all(everything(majority(order, compare=odd)) == everything(whole) for order in shuffles(answers, 5))
    assert sum(count for _, count in whole.groups) == len(answers)
    assert whole.lead[0] <= whole.count


def test_votes_over_published_answers_are_the_same_in_every_order() -> None:
    golds = Path(__file__).parents[2] / "../shared/data/public-golds.txt"
    if not golds.exists():
        pytest.skip("the published answers are not here")
    rng = random.Random(1)
    answers = golds.read_text().splitlines()
    for _ in range(12):
        start = rng.randrange(len(answers) - 8)
        near = answers[start : start + 4] + rng.sample(answers, 4)
        spellings = near + [f"${a}$" for a in near] + [rf"\boxed{{{a}}}" for a in near] + [f"x = {a}" for a in near[:3]]
        votes: list[str | None] = [rng.choice(spellings) for _ in range(20)]
        whole = majority(votes)
        assert all(everything(majority(order)) == everything(whole) for order in shuffles(votes, 20))


async def test_the_pool_counts_as_the_process_does() -> None:
    votes = ["0.5", "50%", "50", "1/2", r"\frac{1}{2}", "x+1", "1+x", None, "", "yes"]
    with GradingPool() as pool:
        assert everything(pool.majority_now(votes)) == everything(majority(votes))
        assert everything(await pool.majority(votes)) == everything(majority(votes))


def test_equal_by_a_chain_is_equal() -> None:
    """a and c are undecided; both equal b."""

    def chain(a: str, b: str) -> Grade:
        return Grade(Verdict.UNKNOWN if {a, b} == {"a", "c"} else Verdict.EQUAL, "")

    assert majority(["a", "c", "b"], compare=chain).groups == (("a", 3),)


def test_lead_counts_ambiguous_spellings_against_the_winner() -> None:
    vote = majority(["50"] * 4 + ["50%"] * 2 + ["0.5"] * 3 + ["7"])
    assert (vote.answer, vote.count) == ("50", 6)
    assert vote.lead == (4, 5)
    assert majority(["1", "1", "2"]).lead == (2, 1)
    assert majority([]).lead == (0, 0)


def test_comparisons_are_bounded_and_the_bound_is_reported() -> None:
    calls = 0

    def counted(a: str, b: str) -> Grade:
        nonlocal calls
        calls += 1
        return compare(a, b)

    answers: list[str | None] = [f"x^{{{i}}}" for i in range(100)] + ["x^{0}", "1"]
    vote = majority(answers, compare=counted, max_comparisons=50)
    assert calls == vote.comparisons == 45  # all pairs of ten spellings
    assert not vote.complete
    assert sum(count for _, count in vote.groups) == len(answers)
    numbers: list[str | None] = [str(i) for i in range(100)] + ["0", "00"]
    assert majority(numbers, max_comparisons=0).complete  # plain numbers are grouped by value
    assert majority(numbers).groups[0] == ("0", 3)
    vote = majority(numbers, compare=counted, max_comparisons=50)  # whoever compares
    assert vote.complete
    assert vote.comparisons == 0


def test_numbers_of_a_rule_that_sees_them_otherwise() -> None:
    with GradingPool(take_modulo=10) as pool:
        assert pool.majority_now(["3", "13", "4"]).groups == (("3", 2), ("4", 1))


def test_only_equal_joins() -> None:
    vote = majority(["a", "b"], compare=lambda a, b: Grade(Verdict.UNKNOWN, ""))
    assert len(vote.groups) == 2


def test_no_group_holds_two_different_answers() -> None:
    """Equality of answers is not transitive where one leaves its unit out."""
    vote = majority(["5", "5", "5 cm", r"5 \text{ m}", r"5 \text{ m}"])
    assert vote.groups == (("5", 4), ("5 cm", 1))
    assert majority(["50\\%", "50\\%", "50", "0.5"]).groups == (("50\\%", 3), ("0.5", 1))
