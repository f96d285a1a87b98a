"""The prior of the rule ``bayes``: what was planted is found, and a fitted prior says what comes true."""

from __future__ import annotations

import random

import pytest

from nemo_openmath.competition.lab.calibration import brier_interval, fit_prior, judge_prior
from nemo_openmath.competition.lab.rollouts import StoredProblem, StoredSolution
from nemo_openmath.competition.policy import BayesPrior
from nemo_openmath.grading import compare


def planted(rng: random.Random, name: str, a: float, b: float, spread: float, number: int = 12) -> StoredProblem:
    """Draw a problem from the model, one solution after the other: 1 is right, a wrong answer is a new one or repeats
    one of those before it."""
    share, answers, wrong = rng.betavariate(a, b), list[str](), list[str]()
    for _ in range(number):
        if rng.random() < share:
            answers.append("1")
            continue
        new = rng.random() < spread / (spread + len(wrong))
        wrong.append(str(2 + len(set(wrong))) if new else rng.choice(wrong))
        answers.append(wrong[-1])
    return StoredProblem.make(name, [StoredSolution("", x, x == "1", 9) for x in answers], compare)


def test_a_planted_prior_is_found_and_says_what_comes_true() -> None:
    rng = random.Random(1)
    problems = [planted(rng, f"p{n}", 0.6, 1.8, 1.2) for n in range(700)]
    fitted = fit_prior(problems[:500], BayesPrior())
    assert fitted.accuracy == pytest.approx((0.6, 1.8), rel=0.2)
    assert fitted.spread == pytest.approx(1.2, rel=0.2)
    before = judge_prior(problems[500:], BayesPrior(), most=8)
    after = judge_prior(problems[500:], fitted, most=8)
    assert len(after.stated) == 200 * 32 * 8
    for _, _, _, number, said, right in after.table():
        assert said == pytest.approx(right, abs=0.12 if number < 60 else 0.06)
    value, low, high = brier_interval(before, after)
    assert low < value < high < 0, "four equal answers of so weak a model are not right with 0.97"


def test_numbers_that_few_problems_do_not_bound_are_bounded() -> None:
    """Where all answers are right, nothing is known of wrong ones."""
    right = [StoredProblem.make(f"p{n}", [StoredSolution("", "1", True, 9)] * 4, compare) for n in range(5)]
    fitted = fit_prior(right, BayesPrior())
    assert fitted.accuracy[0] == 50.0
    assert fitted.spread == 4.0
    assert judge_prior(right, fitted, most=4).brier.max() < 0.001
