"""Intervals: equal to the textbook where one exists, honest at the ends, and covering 95% where one can simulate."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from nemo_openmath.evaluation.intervals import Z, mean_interval, share_difference_interval, share_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 200), (1, 200), (77, 200), (200, 200), (0, 1), (1, 1), (3, 5)])
def test_shares_of_single_samples_get_wilsons_interval(hits: int, count: int) -> None:
    values = np.array([1.0] * hits + [0.0] * (count - hits))
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert share_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_means_without_bounds_get_students_interval() -> None:
    values = np.random.default_rng(0).lognormal(size=40)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:1]) == (None, None)


@pytest.mark.parametrize(("better", "worse", "count"), [(0, 0, 200), (40, 10, 200), (200, 0, 200), (0, 1, 3)])
def test_differences_of_single_samples_get_bonett_and_prices_interval(better: int, worse: int, count: int) -> None:
    values = np.array([1.0] * better + [-1.0] * worse + [0.0] * (count - better - worse))
    p12, p21 = (better + 1) / (count + 2), (worse + 1) / (count + 2)
    half = Z * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (count + 2))
    low, high = share_difference_interval(values)
    assert low == pytest.approx(max(-1.0, p12 - p21 - half))
    assert high == pytest.approx(min(1.0, p12 - p21 + half))
    assert low < values.mean() <= high or values.mean() == 1.0 == high


@pytest.mark.parametrize("problems", [40, 200])
@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize(("a", "b"), [(0.3, 0.7), (0.2, 6.0)])
def test_intervals_cover_the_truth(problems: int, samples: int, a: float, b: float) -> None:
    """2000 benchmarks drawn from a world of problems whose difficulty is Beta(a, b): 95% must hold the truth."""
    rng = np.random.default_rng(problems + samples)
    draws, truth = 2000, a / (a + b)
    difficulty = rng.beta(a, b, (draws, problems))
    before = rng.binomial(samples, difficulty) / samples
    after = rng.binomial(samples, np.sqrt(difficulty)) / samples
    gain = float(np.mean(np.sqrt(rng.beta(a, b, 2_000_000)))) - truth
    shares = [share_interval(row) for row in before]
    differences = [share_difference_interval(row) for row in after - before]
    # 2000 draws: standard error 0.5 points. Discreteness and skew cost at most three points.
    assert np.mean([low <= truth <= high for low, high in shares]) > 0.92
    assert np.mean([low <= gain <= high for low, high in differences]) > 0.92
