"""Sharding a batch over ranks loses no sample and changes none."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.data.batches.batch_sharding import shard_batch
from nemo_openmath.data.packs.pack import Pack, samples_of
from nemo_openmath.models.layout import Parallel

batches = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=6), min_size=1, max_size=6)
layouts = st.sampled_from(
    [
        Parallel(),
        Parallel(cp=2),
        Parallel(tp=2, sequence_parallel=True),
        Parallel(tp=4, cp=2, sequence_parallel=True),
        Parallel(pp=2, vpp=2),
        Parallel(pp=3, cp=4),
    ]
)


def _pack(number: int, lengths: list[int]) -> Pack:
    cu = np.cumsum([0, *lengths]).astype(np.int32)
    random = np.random.default_rng(number)
    tokens, labels = (random.integers(1, 1000, cu[-1]).astype(np.int32) for _ in range(2))
    return Pack(tokens, labels, random.random(cu[-1]) < 0.7, cu, tuple(f"{number}/{i}" for i in range(len(lengths))))


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(1, 5), layouts)
def test_every_sample_is_on_one_rank_and_unchanged(batch: list[list[int]], ranks: int, parallel: Parallel) -> None:
    packs = [_pack(i, lengths) for i, lengths in enumerate(batch)]
    shares = shard_batch(packs, ranks, parallel)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    assert parallel.vpp == 1 or len(shares[0]) % parallel.pp == 0
    if parallel.pp > 1:
        assert len({len(pack.tokens) for share in shares for pack in share}) == 1
    seen = {}
    for share in shares:
        for pack in share:
            assert len(pack.tokens) % parallel.pack_multiple == 0
            assert all(n % parallel.sample_multiple == 0 for n in np.diff(pack.cu_seqlens))
            for sample in samples_of(pack):
                if sample.sample_ids == ("",):
                    assert not sample.loss_mask.any()
                else:
                    assert sample.sample_ids not in seen
                    seen[sample.sample_ids] = sample
    for pack in packs:
        for sample in samples_of(pack):
            got, n = seen.pop(sample.sample_ids), len(sample.tokens)
            for field in ("tokens", "labels", "loss_mask"):
                assert np.array_equal(getattr(got, field)[:n], getattr(sample, field))
            assert not got.loss_mask[n:].any()
    assert not seen
