"""Packs in NeMo's form hold what our own loader serves, in order, whole, whatever the layout. Needs no NeMo."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_openmath.core.errors import UserError
from nemo_openmath.data import Mixture, PackedData, PackPlan, imbalance, write_packs, write_tokens
from nemo_openmath.models import cpu_compat

cpu_compat.install()  # a megatron-core that is imported without it loads torch's compiler

from megatron.core import parallel_state  # noqa: E402

from nemo_openmath.integrations.nemo.packs import (  # noqa: E402
    PackStream,
    collate,
    packed_data_step,
    packs_per_batch,
)
from tests.support.rows import make_rows, store_rows  # noqa: E402
from tests.support.tokenizers import byte_level  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs in two phases, trained on one after the other."""
    folder = tmp_path_factory.mktemp("packed")
    tokenizer = byte_level(folder / "tokenizer")
    write_tokens(store_rows(folder / "rows", make_rows(300)), tokenizer, folder / "tokens", workers=1)
    phases = Mixture(phases=[["cot", "genselect"], ["tir"]])
    write_packs(folder / "tokens", folder / "packs", capacity=2048, pad_multiple=8, mixture=phases)
    return folder / "packs"


def test_the_stream_is_our_loaders(folder: Path) -> None:
    data = PackedData.open(folder, batch_samples=1, epochs=2, seed=3)
    ours = [row for step in range(data.num_steps) for pack in data.rows(step) for row in pack]
    stream = PackStream(data.plan, epochs=2, batch_packs=7, seed=3)
    packs = [stream[i] for i in range(stream.num_packs)]
    assert [name for pack in packs for name in pack.sample_ids] == [data.plan.samples[row].id for row in ours]
    assert stream.num_packs == 2 * data.plan.num_packs
    assert len(stream) % 7 == 0
    assert not any(stream[i].num_target_tokens for i in range(stream.num_packs, len(stream)))
    assert not stream[-1].num_target_tokens


def test_balancing_moves_packs_within_a_step_and_evens_out_ranks(folder: Path) -> None:
    plan = PackPlan(folder)
    plain, balanced = (PackStream(plan, epochs=2, batch_packs=8, ranks=ranks) for ranks in (1, 4))
    before, after = [], []
    for step in range(plain.num_steps):
        places = range(8 * step, 8 * step + 8)
        a, b = [plain[i] for i in places], [balanced[i] for i in places]
        assert Counter(p.sample_ids for p in a) == Counter(p.sample_ids for p in b)
        ranks = [list(range(rank, 8, 4)) for rank in range(4)]  # as NeMo's sampler gives them out
        before.append(imbalance([p.attention_cost for p in a], ranks))
        after.append(imbalance([p.attention_cost for p in b], ranks))
    assert np.mean(after) < np.mean(before)
    with pytest.raises(UserError, match="multiple of the ranks"):
        PackStream(plan, epochs=1, batch_packs=6, ranks=4)
    assert packs_per_batch(plan, 64, 4) % 4 == 0


def test_a_batch_holds_its_packs_and_nothing_else(folder: Path) -> None:
    stream = PackStream(PackPlan(folder), epochs=1, batch_packs=4)
    packs = [stream[i] for i in (0, 1, 2, len(stream) - 1)]
    for batch in (collate(packs, multiple=48), collate(packs, length=2048)):
        total = batch["tokens"].shape[1]
        assert total % 48 == 0 or total == 2048
        for i, pack in enumerate(packs):
            size = len(pack.tokens)
            bounds = batch["cu_seqlens"][i, : int(batch["cu_seqlens_argmin"][i])].tolist()
            assert bounds == [*pack.cu_seqlens.tolist(), *([total] if total > size else [])]
            assert (batch["cu_seqlens"][i, len(bounds) :] == -1).all()
            assert int(batch["max_seqlen"][i]) == max(np.diff(bounds))
            for name, expected in (
                ("tokens", pack.tokens),
                ("labels", pack.labels),
                ("loss_mask", pack.loss_mask),
                ("position_ids", pack.position_ids()),
            ):
                assert batch[name].dtype == torch.int64
                assert batch[name][i, :size].tolist() == expected.astype(int).tolist()
            assert not batch["loss_mask"][i, size:].any()
    with pytest.raises(ValueError, match="in rows of 8"):
        collate(packs, length=8)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_context_ranks_share_every_sample(folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    """Each rank gets its two chunks of every sample, so all see the whole of each; NeMo's own step cuts the row."""
    stream = PackStream(PackPlan(folder), epochs=1, batch_packs=1)
    batch = collate([stream[0]], multiple=64)
    monkeypatch.setattr(parallel_state, "is_pipeline_first_stage", lambda: True)
    monkeypatch.setattr(parallel_state, "is_pipeline_last_stage", lambda: False)
    monkeypatch.setattr(parallel_state, "get_context_parallel_world_size", lambda: ranks)
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(ranks):
        monkeypatch.setattr(parallel_state, "get_context_parallel_rank", lambda rank=rank: rank)
        out = packed_data_step(iter([(batch, 0, 0)]))
        assert out["labels"] is None
        assert out["loss_mask"] is None
        assert out["cu_seqlens"].tolist() == batch["cu_seqlens"].tolist()
        bounds = out["cu_seqlens"][0, : int(out["cu_seqlens_argmin"])].tolist()
        at = 0
        for number, (start, stop) in enumerate(pairwise(bounds)):
            chunk = (stop - start) // (2 * ranks)
            places = [*range(rank * chunk, (rank + 1) * chunk)]
            places += range((2 * ranks - 1 - rank) * chunk, (2 * ranks - rank) * chunk)
            part = slice(at, at + len(places))
            assert out["position_ids"][0, part].tolist() == places
            assert out["tokens"][0, part].tolist() == batch["tokens"][0, start:stop][places].tolist()
            seen.update((number, place) for place in places)
            at += len(places)
        assert at == out["tokens"].shape[1]
    assert seen == Counter({(n, p): 1 for n, (a, b) in enumerate(pairwise(bounds)) for p in range(b - a)})
    with pytest.raises(UserError, match="micro_batch_size"):
        packed_data_step(iter([collate([stream[0], stream[1]])]))
