"""Intervals: equal to the textbook where one exists, and covering 95% wherever the product uses them."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm, ttest_1samp

from nemo_openmath.evaluation.intervals import (
    Interval,
    Values,
    amount_interval,
    mean_interval,
    share_difference_interval,
    share_interval,
)
from nemo_openmath.evaluation.share import ShareOfRight

PROBLEMS = (5, 15, 30, 200)
DRAWS = {5: 1000, 15: 600, 30: 500, 200: 300}  # simulated benchmarks: a share of 0.95 is known to 0.007 to 0.013


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (0, 5), (3, 5), (14, 15), (0, 200), (1, 200), (77, 200), (200, 200), (9, 1000)]
)
def test_shares_of_single_samples_get_clopper_and_pearsons_interval(hits: int, count: int) -> None:
    values = np.array([1.0] * hits + [0.0] * (count - hits))
    expected = binomtest(hits, count).proportion_ci(0.95, "exact")
    assert share_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_ends_are_quantiles_of_randomly_weighted_means(count: int) -> None:
    """Against plain drawing of the weights; the standard error of a drawn end is below 0.002."""
    rng = np.random.default_rng(count)
    values = rng.random(count)
    weights = rng.exponential(size=(100_000, count + 1))
    weights /= weights.sum(axis=1, keepdims=True)
    low, high = (np.quantile(weights @ np.append(values, end), q) for end, q in ((0.0, 0.025), (1.0, 0.975)))
    assert share_interval(values) == pytest.approx((low, high), abs=0.006)
    low, high = share_difference_interval(2 * values - 1)
    assert ((low + 1) / 2, (high + 1) / 2) == pytest.approx(share_interval(values), abs=1e-9)


def test_order_and_mirror_images_change_nothing() -> None:
    values = np.random.default_rng(3).beta(0.3, 0.7, 60).round(2)
    low, high = share_interval(values)
    assert share_interval(values[::-1]) == (low, high)
    assert share_interval(1 - values) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    low, high = share_difference_interval(values)
    assert share_difference_interval(-values) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.25, 1.0])
@pytest.mark.parametrize("count", [1, 5, 200, 3000])
def test_equal_values_still_leave_doubt(value: float, count: int) -> None:
    low, high = share_interval(np.full(count, value))
    assert 0.0 <= low <= value <= high <= 1.0
    doubt = 1 - 0.025 ** (1 / count)
    assert low == pytest.approx(value * (1 - doubt), abs=1e-9)
    assert high == pytest.approx(value + (1 - value) * doubt, abs=1e-9)
    low, high = share_difference_interval(np.full(count, -value))
    assert -1.0 <= low <= -value <= high <= 1.0
    assert high > low


def wilson(values: Values) -> Interval:
    """Wilson's interval at the effective sample size: right for large benchmarks."""
    n, mean, z = len(values), float(np.mean(values)), float(norm.ppf(0.975))
    variance, binary = float(np.var(values)), mean * (1 - mean)
    size = n * binary / variance if variance > 1e-12 and binary > 0 else float(n)
    centre, half = mean + z * z / (2 * size), z * sqrt(binary / size + (z / (2 * size)) ** 2)
    return (centre - half) / (1 + z * z / size), (centre + half) / (1 + z * z / size)


# difficulty of problems (None: all alike), samples a problem
WORLDS: dict[str, tuple[tuple[float, float] | float, int]] = {
    "one sample, mostly right": (0.9, 1),
    "one sample, nearly always right": (0.98, 1),
    "hard or easy, 8 samples": ((0.3, 0.7), 8),
    "nearly all right, 16 samples": ((6.0, 0.2), 16),
    "nearly all wrong, 64 samples": ((0.2, 6.0), 64),
    "middling, 8 samples": ((2.0, 2.0), 8),
}


def passes(world: str, problems: int) -> tuple[Values, float]:
    """Pass rates of simulated benchmarks [draws, problems] and the true mean."""
    shape, samples = WORLDS[world]
    rng = np.random.default_rng([problems, *world.encode()])
    size = (DRAWS[problems], problems)
    difficulty = np.full(size, shape) if isinstance(shape, float) else rng.beta(*shape, size)
    truth = shape if isinstance(shape, float) else shape[0] / sum(shape)
    return rng.binomial(samples, difficulty) / samples, truth


def coverage(interval: Callable[[Values], Interval], benchmarks: Values, truth: float) -> float:
    """Share of benchmarks whose interval holds the truth. Equal benchmarks are worked out once."""
    rows, counts = np.unique(np.sort(benchmarks, axis=1), axis=0, return_counts=True)
    held = 0
    for row, count in zip(rows, counts, strict=True):
        low, high = interval(row)
        assert low is not None
        assert high is not None
        held += count if low <= truth <= high else 0
    return held / len(benchmarks)


def enough(problems: int) -> float:
    """What a coverage of 95% falls below once in 1000 simulations."""
    return 0.95 - 3.1 * sqrt(0.95 * 0.05 / DRAWS[problems])


@pytest.mark.parametrize("problems", PROBLEMS)
@pytest.mark.parametrize("world", WORLDS)
def test_shares_are_covered(world: str, problems: int) -> None:
    benchmarks, truth = passes(world, problems)
    assert coverage(share_interval, benchmarks, truth) >= enough(problems)


@pytest.mark.parametrize("interval", [wilson, mean_interval])
@pytest.mark.parametrize(
    ("world", "problems"),
    [("nearly all wrong, 64 samples", 5), ("nearly all wrong, 64 samples", 15), ("nearly all right, 16 samples", 15)],
)
def test_the_simulation_finds_intervals_that_cover_too_little(
    world: str, problems: int, interval: Callable[[Values], Interval]
) -> None:
    benchmarks, truth = passes(world, problems)
    assert coverage(interval, benchmarks, truth) < enough(problems)


@pytest.mark.parametrize("problems", PROBLEMS)
@pytest.mark.parametrize("kind", ["pass@4", "maj@8"])
def test_other_shares_are_covered(kind: str, problems: int) -> None:
    """pass@4 and maj@8 (with three wrong answers) of 8 samples, over hard and easy problems."""
    from nemo_openmath.evaluation import majority_at_k, pass_at_k

    rng = np.random.default_rng(problems)

    def value(right: float) -> float:
        hits = rng.binomial(8, right)
        if kind == "pass@4":
            return pass_at_k(8, hits, 4)
        wrong = rng.multinomial(8 - hits, [0.6, 0.3, 0.1])
        return majority_at_k([hits, *wrong], [1.0, 0.0, 0.0, 0.0], 0, [8])[0]

    world = np.array([value(right) for right in rng.beta(0.5, 0.5, 4000)])
    benchmarks = rng.choice(world, (DRAWS[problems] // 2, problems))
    low = 0.95 - 3.1 * sqrt(0.95 * 0.05 / len(benchmarks))
    assert coverage(share_interval, benchmarks, float(world.mean())) >= low


@pytest.mark.parametrize("problems", PROBLEMS)
@pytest.mark.parametrize(
    ("before", "after"),
    [("one sample, mostly right", "one sample, nearly always right"), ("nearly all wrong, 64 samples", "base"),
     ("won or lost", "won or lost"), ("hard or easy, 8 samples", "better")],
)  # fmt: skip
def test_paired_differences_are_covered(before: str, after: str, problems: int) -> None:
    rng = np.random.default_rng([problems, *before.encode()])
    size = (DRAWS[problems], problems)
    if before == "won or lost":
        differences, truth = rng.choice([-1.0, 0.0, 1.0], size, p=[0.3, 0.25, 0.45]), 0.15
    elif after == "base":
        differences, truth = passes(before, problems)  # a base that solves nothing
    elif after == "better":
        right = rng.beta(0.3, 0.7, size)
        differences = (rng.binomial(8, np.sqrt(right)) - rng.binomial(8, right)) / 8
        truth = float(beta.expect(np.sqrt, (0.3, 0.7))) - 0.3
    else:
        old, new = passes(before, problems), passes(after, problems)
        differences, truth = new[0] - old[0], new[1] - old[1]
    assert coverage(share_difference_interval, differences, truth) >= enough(problems)


@pytest.mark.parametrize(("world", "most"), [("hard or easy, 8 samples", 1.1), ("middling, 8 samples", 1.15)])
def test_intervals_of_200_problems_are_hardly_wider_than_needed(world: str, most: float) -> None:
    values = passes(world, 200)[0][0]
    low, high = share_interval(values)
    normal_low, normal_high = wilson(values)
    assert normal_low is not None
    assert normal_high is not None
    assert high - low < most * (normal_high - normal_low)


def test_means_without_bounds_get_students_interval() -> None:
    values = np.random.default_rng(0).lognormal(size=40)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:1]) == (None, None)


def test_amounts_are_never_below_zero() -> None:
    values = np.array([0.0, 0.0, 0.0, 300.0])
    low, high = mean_interval(values)
    assert low is not None
    assert low < 0
    assert amount_interval(values) == (0.0, high)
    assert amount_interval(values[:1]) == (None, None)


@pytest.mark.parametrize("count", [9_000, 11_000, 50_000, 300_000])
@pytest.mark.parametrize(("kind", "skew"), [("two values", 0.03), ("rare", 0.2), ("spread", 0.01)])
def test_intervals_of_many_problems_come_to_the_normal_limit(count: int, kind: str, skew: float) -> None:
    """Half of the interval is 1.96 standard errors, up to ``skew`` at 9,000 problems and less with the root of more."""
    rng = np.random.default_rng(count)
    values = {
        "two values": np.repeat([0.25, 0.5], [count // 3, count - count // 3]),
        "rare": 0.5 * (rng.random(count) < 0.01),
        "spread": rng.integers(0, 9, count) / 8,
    }[kind]
    mean, half = values.mean(), norm.ppf(0.975) * values.std() / sqrt(count)
    low, high = share_interval(values)
    assert ((mean - low) / half, (high - mean) / half) == pytest.approx((1.0, 1.0), abs=skew * sqrt(9_000 / count))


def test_a_share_of_rows_has_its_interval_over_problems() -> None:
    """Eight samples of each of five problems are five problems, not forty. Rows without one stand for themselves."""
    share = ShareOfRight()
    assert share.text() == ""
    for problem in range(5):
        for sample in range(8):
            share.add(f"p{problem}", problem == 0 or sample == 0)
    low, high = share_interval(np.array([1.0, *[1 / 8] * 4]))
    assert share.text() == f"30.0%, 95% interval {100 * low:.1f}–{100 * high:.1f} over 5 problems"
    assert (share.right, share.tried) == (12, 40)
    for _ in range(4):
        share.add("p0", False)
    assert share.text().startswith("27.3%; mean over problems 23.3%, 95% interval "), "p0 was asked more often"
    alone = ShareOfRight()
    for row in range(40):
        alone.add(None, row < 12)
    expected = binomtest(12, 40).proportion_ci(0.95, "exact")
    interval = f"{100 * expected.low:.1f}–{100 * expected.high:.1f}"
    assert alone.text() == f"30.0%, 95% interval {interval} over 40 problems"


def test_beyond_its_limit_a_share_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_openmath.evaluation.share.MOST_PROBLEMS", 3)
    share = ShareOfRight()
    for problem in range(5):
        share.add(str(problem), problem < 2)
    assert share.text() == "40.0%"
