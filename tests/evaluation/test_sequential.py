"""Comparisons until decided: never wrong more often than they say, however they are stopped."""

from __future__ import annotations

from itertools import permutations, product
from math import prod, sqrt

import numpy as np
import pytest
from scipy.stats import binom, binomtest, nct, norm, t, ttest_1samp

from nemo_openmath.core.errors import UserError
from nemo_openmath.evaluation.intervals import share_difference_interval
from nemo_openmath.evaluation.sequential.capital import DecisionRule, Floats, Ruling, total
from nemo_openmath.evaluation.sequential.drawn import DrawnProblems, share_alpha
from nemo_openmath.evaluation.sequential.planning import (
    PowerRequest,
    least_like_these,
    make_plan,
    problems_needed,
    t_power,
)
from nemo_openmath.evaluation.sequential.procedure import Estimand, make_procedure
from nemo_openmath.evaluation.sequential.rates import assumed, measured
from nemo_openmath.evaluation.sequential.simulate import excluded, fixed_problems
from nemo_openmath.evaluation.sequential.stratified import ThisBenchmark

HALF = DecisionRule(0.5, 0.25)  # an error that small cases can reach


def _outcomes(counts: Floats, chances: Floats) -> tuple[Floats, Floats]:
    """Return every outcome of a round (outcomes x 2 x problems) and its probability."""
    arms = [range(int(n) + 1) for n in counts.ravel()]
    outcomes = np.array(list(product(*arms))).reshape(-1, *counts.shape)
    flat, p = counts.ravel(), chances.ravel()
    weights = [prod(binom.pmf(k, n, c) for k, n, c in zip(row.ravel(), flat, p, strict=True)) for row in outcomes]
    return outcomes, np.array(weights)


@pytest.mark.parametrize(
    "chances",
    [
        [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.2], [0.2, 0.9]], [[1.0, 0.0], [0.0, 1.0]], [[0.05, 0.1], [0.1, 0.05]],
        [[0.3, 0.6], [0.6, 0.8]], [[0.0, 0.9], [0.4, 1.0]],
    ],
)  # fmt: skip
def test_no_outcome_of_two_adaptive_rounds_is_more_likely_than_allowed(chances: list[list[float]]) -> None:
    """By enumeration of all outcomes, with counts of the second round that the first one chose."""
    p = np.array(chances)
    truth = float((p[1] - p[0]).mean())
    claims = ((truth, 1), (truth, -1))
    first_counts = np.ones((2, 2), np.int64)
    mean = {claim: np.zeros((2, len(HALF.gaps))) for claim in claims}  # by round
    wrong = dict.fromkeys(claims, 0.0)
    for right, weight in zip(*_outcomes(first_counts, p), strict=True):
        state = ThisBenchmark(2, HALF)
        state.add(first_counts[None], right[None])
        counts = state.plan(7)[0]
        assert counts.sum() == 7
        second, weights = _outcomes(counts, p)
        both = ThisBenchmark(2, HALF, len(second), claims)
        both.add(np.broadcast_to(first_counts, second.shape), np.broadcast_to(right, second.shape))
        both.add(np.broadcast_to(counts, second.shape), second)
        for claim in claims:
            logs = [done.log_capital(*claim) for done in both.rounds]
            mean[claim][0] += weight * (weights @ np.exp(logs[0]))
            mean[claim][1] += weight * (weights @ np.exp(logs[0] + logs[1]))
            reached = np.maximum(total(logs[0]), total(logs[0] + logs[1])) >= HALF.threshold
            assert np.array_equal(reached, both.refuted[claim])
            wrong[claim] += weight * float(weights @ reached)
    for claim in claims:
        assert (mean[claim] <= 1 + 1e-9).all(), "capital that grows on a truth"
        assert wrong[claim] <= HALF.alpha / 2 + 1e-9


@pytest.mark.parametrize("values", [[0.0, 0.5, -0.5, 1.0], [1.0, 1.0, 1.0, -1.0], [-0.25, 0.0, 0.0, 0.0]])
def test_a_full_run_is_foreseen_wrongly_in_few_of_all_orders(values: list[float]) -> None:
    runs = np.array(list(permutations(values)))
    truth = float(np.mean(values))
    state = DrawnProblems(HALF, len(values), len(runs), ((truth, 1), (truth, -1)))
    state.add(runs)
    for claim, refuted in state.refuted.items():
        assert refuted.mean() <= HALF.alpha / 2, claim
    one = DrawnProblems(DecisionRule(), len(values))
    one.add(runs[:1])
    assert one.interval() == pytest.approx((truth, truth))


LAWS = {
    "even": lambda rng, n: rng.random(n),
    "ends": lambda rng, n: rng.beta(0.2, 0.2, n),
    "rare": lambda rng, n: rng.beta(0.5, 20, n),
    "coins": lambda rng, n: np.full(n, 0.5),
}


@pytest.mark.parametrize("problems", [5, 15, 30])
@pytest.mark.parametrize("law", LAWS)
def test_intervals_hold_at_all_times_at_once(problems: int, law: str) -> None:
    """Stopped by an adversary at the first moment when the truth is outside. The chances of A and B are no pairs, so
    that single problems differ although their mean may not."""
    rng = np.random.default_rng([problems, len(law)])
    for same_mean in (True, False):
        chances = np.stack([LAWS[law](rng, problems), LAWS[law](rng, problems)])
        if same_mean:
            chances[1] = rng.permutation(chances[0])
        wrong = excluded(chances, DecisionRule(), samples=24, runs=300, seed=problems)
        assert binomtest(int(wrong.sum()), len(wrong), 0.05, "greater").pvalue > 1e-4
    # problems that are a draw: A and B are equally good there, problem by problem they are not
    a, b = LAWS[law](rng, (1000, problems)), LAWS[law](rng, (1000, problems))
    state = DrawnProblems(DecisionRule(), runs=1000)
    state.add((rng.binomial(4, b) - rng.binomial(4, a)) / 4)
    wrong_runs = int((state.verdicts() != Ruling.UNDECIDED).sum())
    assert binomtest(wrong_runs, 1000, 0.05, "greater").pvalue > 1e-4


def test_a_t_test_after_each_sample_fails_where_this_does_not() -> None:
    rng = np.random.default_rng(1)
    chances = np.stack([rng.random(30)] * 2)
    runs, looks = 200, 40
    rounds = rng.binomial(1, chances, (runs, looks, 2, 30))
    differences = (rounds[:, :, 1] - rounds[:, :, 0]).mean(axis=2)
    naive = np.zeros(runs, bool)
    for seen in range(5, looks + 1):
        naive |= ttest_1samp(differences[:, :seen], 0, axis=1).pvalue < 0.05
    state = ThisBenchmark(30, DecisionRule(), runs, keeps_rounds=False)
    for look in range(looks):
        state.add(np.ones((runs, 2, 30), np.int64), rounds[:, look])
    ours = state.refuted[0.0, 1] | state.refuted[0.0, -1]
    assert binomtest(int(naive.sum()), runs, 0.05, "greater").pvalue < 1e-6
    assert binomtest(int(ours.sum()), runs, 0.05, "greater").pvalue > 0.01


def test_samples_go_where_they_decide_and_sure_problems_get_one_a_round() -> None:
    state = ThisBenchmark(3, DecisionRule())
    counts = np.full((1, 2, 3), 16, np.int64)
    state.add(counts, np.array([[[16, 8, 0], [16, 8, 2]]]))
    planned = state.plan(24)[0]
    assert planned.sum() == 24
    assert (planned[:, 0] == 1).all()
    assert (planned[:, 1] == planned.max()).all()
    state.cost = np.array([[[1.0, 4.0, 1.0], [1.0, 1.0, 1.0]]])  # a dear sample of A
    dear = state.plan(60)[0]
    assert dear[0, 1] == pytest.approx(dear[1, 1] / 2, abs=1)


def test_equal_models_are_found_equal_and_the_budget_ends_the_rest() -> None:
    sure = np.stack([np.full(50, 0.97)] * 2)
    outcomes = fixed_problems(sure, DecisionRule(0.05, 0.05), 64, 30, 0)
    assert outcomes.share(Ruling.EQUAL)[0] > 0.9
    coins = np.full((2, 50), 0.5)
    open_ones = fixed_problems(coins, DecisionRule(0.05, 0.005), 8, 30, 0)
    assert open_ones.share(Ruling.UNDECIDED)[0] > 0.8
    assert (open_ones.samples <= 2 * 50 * 8).all()


@pytest.mark.parametrize("estimand", Estimand)
def test_a_comparison_of_one_run_is_that_of_the_simulation_and_its_interval_says_the_same(estimand: Estimand) -> None:
    rng = np.random.default_rng(4)
    rule = DecisionRule(0.05, 0.1)
    chances = np.stack([rng.random(40) * 0.6, rng.random(40) * 0.6 + 0.4])
    procedure = make_procedure(estimand, rule, 40, 8)
    ends = []
    while (counts := procedure.next()) is not None:
        procedure.take(counts, rng.binomial(counts, chances), counts * 100.0)
        result = procedure.found()
        ends.append((result.low, result.high))
    assert result.verdict is Ruling.B_BETTER
    assert result.low > 0
    assert np.all(np.diff([low for low, _ in ends]) >= 0), "what was refuted stays refuted"
    assert np.all(np.diff([high for _, high in ends]) <= 0)
    assert result.low < float((chances[1] - chances[0]).mean()) + (estimand is Estimand.FULL_RUN)


@pytest.mark.parametrize(("problems", "shift"), [(2, 0.2), (5, 1.0), (30, 0.4), (200, 0.2), (1000, 0.09), (3, 40.0)])
def test_power_is_that_of_the_noncentral_t(problems: int, shift: float) -> None:
    critical = t.ppf(0.975, problems - 1)
    centre = shift * sqrt(problems)
    expected = nct.sf(critical, problems - 1, centre) + nct.cdf(-critical, problems - 1, centre)
    assert t_power(shift, 1.0, problems, 0.05) == pytest.approx(expected, abs=2e-6)


def test_plans_say_what_normal_theory_says() -> None:
    rates = assumed()
    assert rates.chances.mean() == pytest.approx(0.6, abs=1e-3)
    assert rates.chances.std() == pytest.approx(0.35, abs=1e-3)
    plan = make_plan(PowerRequest(30, 0.1, rates, runs=60, samples=32))
    noise = 2 * float((rates.chances * (1 - rates.chances)).mean())
    sure = norm.ppf(0.975) + norm.ppf(0.8)
    for row in plan.detectable[:-1]:
        assert row.samples is not None
        assert row.here == pytest.approx(sure * sqrt(noise / 30 / row.samples))
    needed = problems_needed(plan.request, noise / 64)
    assert needed == pytest.approx((sure / 0.1) ** 2 * (0.1**2 + noise / 64), abs=3)
    assert plan.problems_like_these[64] == needed
    assert plan.samples_here == -(-(noise / 30 * (sure / 0.1) ** 2) // 1)
    # no test of equal differences finds less than this, however many samples there are
    least = least_like_these(30, 0.05)
    assert share_difference_interval(np.full(30, least))[0] == pytest.approx(0, abs=1e-9)
    # until decided takes more than the one look that was made for the difference, and not many times as much
    assert plan.decided_here.value > 0.9
    assert plan.samples_here < plan.used_here.value < 4 * plan.samples_here
    with pytest.raises(UserError, match="no model differs from it"):
        make_plan(PowerRequest(30, 0.9, rates))


def test_pass_rates_of_few_samples_are_not_taken_for_spread() -> None:
    rng = np.random.default_rng(0)
    chances = np.stack([rng.beta(3, 2, 4000)] * 2)
    counts = np.full(chances.shape, 4)
    rates = measured(["a", "b"], rng.binomial(counts, chances), counts, 0.5)
    assert rates.chances.std() == pytest.approx(chances.std(), rel=0.05)
    assert rates.disagreement < 0.03
    pair = rates.pair(rates.of_benchmark(100), 0.07, rng)
    assert (pair[1] - pair[0]).mean() == pytest.approx(0.07, abs=1e-6)
    with pytest.raises(UserError, match="fewer than 2 samples"):
        measured(["a"], np.ones((1, 3), np.int64), np.ones((1, 3), np.int64), 0.1)


def test_passes_share_one_error() -> None:
    assert [sum(share_alpha(0.05, n)) for n in (1, 2, 3, 7)] == pytest.approx([0.05] * 4)
