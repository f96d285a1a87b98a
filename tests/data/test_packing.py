"""pack(): a real best fit, nothing lost or doubled, the same on every call."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.data.batches.balance import assign, assign_in_order, imbalance
from nemo_openmath.data.packs.bin_packing import Decisions, _pairs_in_bulk, best_fit, pair_fit
from nemo_openmath.data.packs.packing import _longest_first, pack
from nemo_openmath.data.permutation import permutation


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """The textbook algorithm, one sample at a time: packs it needs."""
    rooms: list[int] = []
    packs = 0
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            packs += 1
            bisect.insort(rooms, capacity - length)
        else:
            bisect.insort(rooms, rooms.pop(at) - length)
    return packs


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 300))
    return draw(st.lists(st.integers(1, capacity), max_size=200)), capacity


@given(problems(), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_sample_is_in_one_pack_that_holds_it(problem: tuple[list[int], int], seed: int) -> None:
    lengths, capacity = problem
    index, count = pack(lengths, capacity, seed)
    assert len(index) == len(lengths)
    loads = np.bincount(index, weights=lengths, minlength=count)
    assert len(loads) == count
    assert not count or (loads.max() <= capacity and loads.min() > 0)
    assert count <= best_fit_decreasing(lengths, capacity)


@given(problems(), st.sampled_from([pair_fit, best_fit]), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_every_way_to_decide_uses_up_the_stock_and_overfills_nothing(
    problem: tuple[list[int], int], decide: Callable[..., tuple[Decisions, int]], times: int
) -> None:
    lengths, capacity = problem
    lengths = [n for n in lengths for _ in range(1 + n * times % 9)]  # from 4 of each on, pair_fit begins in bulk
    counts = np.bincount(lengths) if lengths else np.zeros(1, np.int64)
    decisions, packs = decide(counts, capacity)
    used, loads = np.zeros_like(counts), np.zeros(packs, np.int64)
    for first, packs_of, per_pack, length in decisions.tolist():
        assert min(packs_of, per_pack) > 0
        used[length] += packs_of * per_pack
        loads[first : first + packs_of] += per_pack * length
    assert (used == counts).all()
    assert not packs or (0 < loads.min() <= loads.max() <= capacity)
    if decide is best_fit:
        assert packs == best_fit_decreasing(lengths, capacity)


def test_bulk_decides_much_of_what_abounds() -> None:
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(np.log(110), 0.8, 20_000)), 1, 600).astype(np.int64)
    counts = np.bincount(lengths)
    decisions, packs = pair_fit(counts, 600)
    first, packs_of, per_pack, length = decisions.T
    assert np.bincount(length, weights=packs_of * per_pack, minlength=len(counts)).tolist() == counts.tolist()
    # The pack of each decision, pack after pack.
    members = np.repeat(first - np.cumsum(packs_of) + packs_of, packs_of) + np.arange(packs_of.sum())
    loads = np.bincount(members, weights=np.repeat(per_pack * length, packs_of), minlength=packs)
    assert (len(loads), loads.max()) == (packs, 600)
    remaining = np.append(counts, np.zeros(601 - len(counts), np.int64))
    _, opened = _pairs_in_bulk(remaining, 600)
    assert opened > packs / 3
    assert remaining.min() == 0


def test_fill_is_near_the_bound_at_the_lengths_of_the_recipe() -> None:
    rng = np.random.default_rng(1)
    lengths = np.clip(np.exp(rng.normal(np.log(6000), 0.8, 200_000)), 16, 32768).astype(np.int64)
    index, count = pack(lengths, 32768)
    assert np.bincount(index, weights=lengths, minlength=count).max() <= 32768
    assert lengths.sum() / (count * 32768) > 0.9998
    assert -(-lengths.sum() // 32768) <= count <= len(lengths) * 0.25  # about four lie in a pack


def test_word_sort_and_key_sort_agree() -> None:
    """Where length, hash and sample do not fit into one word, keys are sorted: the same order but for equal hashes."""
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 5, 400)
    hashes = rng.integers(0, 1 << 63, 400).astype(np.uint64)
    by_keys = np.lexsort((hashes, -sizes))
    assert _longest_first(sizes, 1 << 40, hashes.copy()).tolist() == by_keys.tolist()
    assert (
        _longest_first(sizes, 4, hashes << np.uint64(1)).tolist()
        == np.lexsort((hashes << np.uint64(1), -sizes)).tolist()
    )


def test_seed_moves_samples_of_one_length_and_nothing_else() -> None:
    lengths = [5, 3, 3, 3, 2, 2, 5, 7] * 20
    first, count = pack(lengths, 10, 0)
    same_seed, _ = pack(lengths, 10, 0)
    another_seed, other_count = pack(lengths, 10, 1)
    assert (first == same_seed).all()
    assert (first != another_seed).any()
    assert count == other_count


def test_lengths_that_no_pack_holds_are_refused() -> None:
    for wrong in ([4, 11], [0, 4], [-1]):
        with pytest.raises(ValueError, match=r"outside 1\.\.10"):
            pack(wrong, 10)
    with pytest.raises(ValueError, match="integers"):
        pack([1.5], 10)
    assert pack([], 10)[1] == 0


def test_permutations_never_change() -> None:
    """Frozen values: a run resumed years later must see the same order."""
    assert permutation(10, 0).tolist() == [6, 8, 0, 9, 3, 1, 4, 2, 7, 5]
    assert permutation(10, 7, 1, 2).tolist() == [0, 6, 8, 4, 2, 9, 7, 3, 1, 5]
    assert sorted(permutation(1000, 3).tolist()) == list(range(1000))


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60), st.integers(1, 16))
@settings(deadline=None)
def test_assign_gives_every_pack_once_and_evenly(costs: list[int], ranks: int) -> None:
    shares = assign(costs, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    assert max(map(len, shares)) <= -(-len(costs) // ranks)
    assert all(costs[a] >= costs[b] for share in shares for a, b in pairwise(share))


def test_assign_evens_out_what_the_plain_order_does_not() -> None:
    costs = np.random.default_rng(0).integers(2**26, 2**30, 512)  # between a pack of short samples and one of 32K
    assert imbalance(costs, assign_in_order(512, 64)) > 1.25
    assert imbalance(costs, assign(costs, 64)) < 1.05
