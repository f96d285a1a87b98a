"""pass@k and maj@k against enumeration of all subsets, and against scipy."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from nemo_openmath.evaluation import estimators
from nemo_openmath.evaluation.estimators import majority_at_k, pass_at_k


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_hypergeometric_chance_of_a_hit(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert pass_at_k(n, c, k) == pytest.approx(1.0 - hypergeom(n, c, k).pmf(0), abs=1e-9)


def test_pass_at_k_neither_overflows_nor_cancels() -> None:
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5, rel=1e-9)
    assert pass_at_k(64, 0, 64) == 0.0
    assert pass_at_k(64, 1, 64) == 1.0
    with pytest.raises(ValueError, match="k=3 of 2"):
        pass_at_k(2, 1, 3)


def by_enumeration(answers: list[int | None], right: list[float], k: int) -> float:
    """The definition: every subset votes; tied answers share the win."""
    total, subsets = 0.0, list(combinations(answers, k))
    for subset in subsets:
        votes = [subset.count(a) for a in range(len(right))]
        best = max(votes, default=0)
        if best:
            winners = [a for a, v in enumerate(votes) if v == best]
            total += sum(right[a] for a in winners) / len(winners)
    return total / len(subsets)


@st.composite
def votes(draw: st.DrawFn) -> tuple[list[int], list[float], int]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda s: sum(s) <= 10))
    right = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(sizes), max_size=len(sizes)))
    return sizes, right, draw(st.integers(0, 3))


@given(votes())
@settings(max_examples=60, deadline=None)
def test_majority_at_k_equals_the_enumeration_of_all_subsets(case: tuple[list[int], list[float], int]) -> None:
    sizes, right, missing = case
    answers: list[int | None] = [a for a, size in enumerate(sizes) for _ in range(size)] + [None] * missing
    ks = list(range(1, len(answers) + 1))
    expected = [by_enumeration(answers, right, k) for k in ks]
    assert majority_at_k(sizes, right, missing, ks) == pytest.approx(expected, abs=1e-12)


def test_large_samples_draw_subsets_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ([60, 55, 20, 1, 1], [0.0, 1.0, 0.0, 1.0, 0.0], 12)
    exact = majority_at_k(*case, [1, 8, 64])
    monkeypatch.setattr(estimators, "EXACT_SAMPLES", 100)
    drawn = majority_at_k(*case, [1, 8, 64], seed=(3, 4), subsets=20_000)
    assert drawn == pytest.approx(exact, abs=4 * 0.5 / np.sqrt(20_000))
    assert drawn != exact
    assert drawn == majority_at_k(*case, [1, 8, 64], seed=(3, 4), subsets=20_000)


@pytest.mark.parametrize("n", [64, 1000])
def test_the_count_stays_exact_up_to_its_limit(n: int) -> None:
    """Two answers and odd k: the majority is right where more than half of the draw is, a hypergeometric tail."""
    right, k = n // 2 + 5, n // 2 - 1 | 1
    expected = hypergeom(n, right, k).sf(k // 2)
    assert majority_at_k([right, n - right], [1.0, 0.0], 0, [k])[0] == pytest.approx(expected, abs=1e-9)
