"""Generations -> metrics and paired differences, counted by hand."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation
from nemo_openmath.evaluation import Pair, ProblemScores, evaluate, paired_difference, score
from nemo_openmath.evaluation.metrics import group_answers
from nemo_openmath.evaluation.reports.formats import interval_text, value_text
from nemo_openmath.grading import Grade, Verdict


def sample(problem: str, index: int, answer: str | None, right: bool, mode: str = "tir", **more: Any) -> Generation:
    values = {
        "finish": "stop" if answer is not None else "length",
        "completion_tokens": 100,
        "code_calls": 2,
        "verdict": "equal" if right else "not_equal",
        "extra": {},
    } | more
    return Generation(
        id=f"{mode}-{problem}-{index}-{values['extra'].get('round', '')}",
        problem_id=problem,
        mode=mode,
        model="m",
        sample=index,
        transcript={},
        predicted_answer=answer,
        **values,
    )


def benchmark() -> Iterator[Generation]:
    """Problem a: 7 7 1 1; problem b: 5 8 9 and one unfinished, 5 is right; problem c: all wrong."""
    yield from (sample("a", i, answer, answer == "7") for i, answer in enumerate(["7", "7", "1", "1"]))
    yield from (sample("b", i, answer, answer == "5") for i, answer in enumerate(["8", None, "5", "9"]))
    yield from (sample("c", i, "3", False, completion_tokens=400) for i in range(4))


def test_every_metric_by_hand() -> None:
    rows = {(r.metric, r.k): r for r in evaluate(benchmark(), ks=[1, 2, 4], seed=0)}
    assert rows["pass@1", 1].value == pytest.approx((1 / 2 + 1 / 4 + 0) / 3)
    assert rows["pass@k", 2].value == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert rows["maj@k", 1].value == pytest.approx(rows["pass@1", 1].value)
    assert rows["maj@k", 4].value == pytest.approx((1 / 2 + 1 / 3) / 3)  # a tie of two, a tie of three
    assert rows["unfinished", None].value == pytest.approx(1 / 12)
    assert rows["tokens", None].value == pytest.approx(200)
    assert rows["code_calls", None].value == pytest.approx(2)
    assert rows["called", None].value == pytest.approx(1)
    mixed = [sample("a", i, "7", True, code_calls=i) for i in range(4)]  # the first of four calls none
    shares = [r.value for r in evaluate(mixed, ks=[1], seed=0) if r.metric == "called"]
    assert shares == pytest.approx([3 / 4])
    assert all(r.metric != "called" for r in evaluate([sample("a", 0, "7", True, "cot")], ks=[1], seed=0))
    assert all(row.problems == 3 and row.low <= row.value <= row.high for row in rows.values())


def test_order_of_generations_does_not_matter() -> None:
    generations = list(benchmark())
    assert evaluate(generations, ks=[2], seed=1) == evaluate(reversed(generations), ks=[2], seed=1)


def test_votes_go_by_meaning_and_are_grouped_once() -> None:
    asked: list[tuple[str, str]] = []

    def compare(left: str, right: str) -> Grade:
        asked.append((left, right))
        return Grade(Verdict.EQUAL if eval(left) == eval(right) else Verdict.NOT_EQUAL, "")

    votes = group_answers(
        [("1/2", True), ("3", False), ("0.5", True), (None, False), ("3", False), (" 1/2", True)], compare
    )
    assert votes.sizes == [3, 2]
    assert votes.right == [1.0, 0.0]
    assert votes.missing == 1
    assert len(asked) <= 4


def test_selection_is_the_majority_over_rounds_and_the_mean_over_single_ones() -> None:
    def selection(problem: str, round_: int, chosen: str | None, answer: str | None, right: bool) -> Generation:
        extra = {"group": f"g{round_}", "chosen": chosen, "k": 4, "round": round_}
        verdict = "equal" if right else None if chosen is None else "not_equal"
        return sample(problem, round_, answer, right, "genselect", verdict=verdict, extra=extra)

    rows = evaluate(
        [
            selection("a", 0, "x", "7", True),
            selection("a", 1, "y", "1", False),
            selection("a", 2, "z", "7", True),
            selection("b", 0, None, None, False),
            selection("b", 1, "v", "5", True),
            selection("b", 2, None, None, False),
        ],
        ks=[64],  # of solutions; selections bring their own
        seed=0,
    )
    values = {(r.metric, r.k): r.value for r in rows}
    assert values["genselect@k", 4] == 1.0
    assert values["genselect-single@k", 4] == pytest.approx((2 / 3 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([sample("a", 0, "7", True)], "given twice"),
        ([sample("d", 0, "7", True, verdict=None)], "no verdict"),
        ([sample("d", 0, "7", True)], "problem d has 1 tir samples"),
        ([sample("a", 0, "7", True, "genselect")], "does not say what it chose"),
    ],
)
def test_what_would_bend_a_number_is_refused_by_name(extra: list[Generation], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate([*benchmark(), *extra], ks=[4], seed=0)


def test_a_missing_problem_is_refused_and_a_large_k_is_skipped_aloud() -> None:
    with pytest.raises(UserError, match="1 of 4 problems have no tir generation, for example d"):
        score(benchmark(), ks=[1], seed=0, expected=["a", "b", "c", "d"])
    scores = score(benchmark(), ks=[4, 8], seed=0)
    assert scores.skipped == {"tir": [8]}
    assert "maj@4" in scores.problems[0].values
    assert "maj@8" not in scores.problems[0].values


def test_paired_difference_joins_by_problem() -> None:
    before = score(benchmark(), ks=[1], seed=0).problems
    after = score(
        (g.with_(verdict="equal") if g.problem_id == "c" else g for g in benchmark()), ks=[1], seed=0
    ).problems
    row = paired_difference(reversed(before), after, Pair.parse("tir pass@1"))
    assert (row.difference, row.better, row.worse, row.problems) == (pytest.approx(1 / 3), 1, 0, 3)
    across = paired_difference(before, after, Pair.parse("tir pass@1 -> tir maj@1"))
    assert across.metric == "pass@1 -> maj@1"
    with pytest.raises(UserError, match="1 problems of before are not in after, for example a"):
        paired_difference(before, after[1:], Pair.parse("tir pass@1"))
    with pytest.raises(UserError, match="did you mean 'maj@1'"):
        paired_difference(before, after, Pair.parse("tir maj@l"))
    with pytest.raises(UserError, match="not a pair"):
        Pair.parse("tir -> cot")


def test_intervals_of_a_table_stay_within_what_is_possible() -> None:
    """Tokens of few solutions vary widely, and nothing is right or unfinished: no end is below zero or above one."""
    generations = [
        sample(f"p{n}", 0, None if n else "1", False, completion_tokens=1 + 400 * (n == 3)) for n in range(4)
    ]
    rows = evaluate(generations, ks=[1], seed=0)
    for row in rows:
        assert row.low is not None
        assert row.high is not None
        assert 0.0 <= row.low <= row.value <= row.high
        assert row.high <= 1.0 or row.metric in ("tokens", "code_calls")
        assert "-" not in value_text(row.metric, row.value) + interval_text(row.metric, row.low, row.high)
    assert interval_text("pass@1", -1e-17, 0.001) == "0.0–0.1"
    assert (value_text("pass@1", -1e-9), value_text("tokens", -0.0)) == ("0.0%", "0.0")


def test_order_of_samples_that_fit_two_answers_does_not_matter() -> None:
    answers = ["0.5", "50%", "50", "50", "0.5"]
    found = set()
    for order in itertools.permutations(answers):
        votes = group_answers([(answer, answer != "50") for answer in order])
        found.add((tuple(votes.sizes), tuple(votes.right), votes.missing))
    assert found == {((3, 2), (0.0, 1.0), 0)}


def test_a_pair_leaves_out_what_either_side_counts_apart() -> None:
    def scores(*values: float | None) -> list[ProblemScores]:
        return [ProblemScores(f"p{i}", "cot", 1, {} if v is None else {"pass@1": v}) for i, v in enumerate(values)]

    row = paired_difference(scores(None, 0.0, 1.0, 0.0), scores(1.0, 1.0, 1.0, None), Pair.parse("cot pass@1"))
    assert (row.problems, row.apart, row.difference) == (2, 2, 0.5)
    with pytest.raises(UserError, match="no problem has a value on both sides"):
        paired_difference(scores(None, 0.0), scores(1.0, None), Pair.parse("cot pass@1"))
