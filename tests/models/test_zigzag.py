"""Context parallelism: each rank gets the same share of every sample's attention."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.models.context_plan import zigzag


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_zigzag_shares_every_sample_evenly(chunks: list[int], cp: int) -> None:
    cu = [0, *np.cumsum([2 * cp * n for n in chunks]).tolist()]
    held = [zigzag(cu, cp, rank) for rank in range(cp)]
    assert sorted(np.concatenate(held).tolist()) == list(range(cu[-1]))
    for a, b in pairwise(cu):  # causal cost: a token costs its position
        costs = {int((h[(h >= a) & (h < b)] - a).sum()) for h in held}
        assert len(costs) == 1
