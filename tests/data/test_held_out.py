"""A validation share: by id and seed alone, disjoint from what is trained on, and nothing lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.packs.write import Mixture, write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest

SHARE = 0.2


def _tokens(folder: Path, names: list[str]) -> Path:
    """Samples of 1 to 60 tokens, two groups; a sample's content depends on its name alone."""
    folder.mkdir()
    with ShardWriter(folder / "00000.tokens", tokenizer="t", vocab_size=300, source="s") as writer:
        for name in names:
            random = np.random.default_rng(int(name))
            size = int(random.integers(2, 60))
            writer.add(
                name, "cot" if int(name) % 3 else "tir", random.integers(0, 300, size), [False] + [True] * (size - 1)
            )
        writer.finish({})
    write_manifest(folder, ["00000.tokens"])
    return folder


def _open(folder: Path, *, batch: int = 16, seed: int = 1, share: float = SHARE) -> PackedData:
    return PackedData.open(folder, batch_samples=batch, epochs=1, seed=seed, pad_multiple=1, validation_share=share)


def _ids(data: PackedData | None) -> Counter[str]:
    assert data is not None
    packs = [pack for step in range(data.num_steps) for pack in data.batch(step)]
    assert all(len(pack.tokens) <= data.plan.capacity for pack in packs)
    return Counter(name for pack in packs for name in pack.sample_ids)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _tokens(tmp_path_factory.mktemp("data") / "tokens", [str(n) for n in range(600)])
    weights = {"cot": 2.0, "tir": 1.0}
    write_packs(folder, capacity=128, pad_multiple=4, mixture=Mixture([["cot"], ["tir"]], weights))
    return folder


def test_both_sides_together_are_the_plan_and_share_no_sample(packed: Path) -> None:
    whole, data = _ids(_open(packed, share=0.0)), _open(packed)
    trained, held = _ids(data), _ids(data.held_out)
    assert trained + Counter({name: whole[name] for name in held}) == whole
    assert not trained.keys() & held.keys()
    assert set(held.values()) == {1}  # however often an epoch trains it
    assert abs(len(held) / 600 - SHARE) < 0.06  # three standard deviations
    batches = [sum(len(pack.sample_ids) for pack in data.batch(step)) for step in range(data.num_steps - 1)]
    assert set(batches) == {16}  # still exact
    first, last = ([name for pack in data.batch(step) for name in pack.sample_ids] for step in (0, data.num_steps - 1))
    assert all(int(name) % 3 for name in first)  # the phases stay in their order: cot, then tir
    assert not any(int(name) % 3 for name in last)


def test_the_choice_depends_on_ids_and_seed_alone(packed: Path, tmp_path: Path) -> None:
    held = set(_ids(_open(packed).held_out))
    names = [str(n) for n in range(800)][::-1]  # more data, written in another order, packed otherwise, other batches
    other = _tokens(tmp_path / "tokens", names)
    write_packs(other, capacity=64, seed=9)
    again = set(_ids(_open(other, batch=50).held_out))
    assert {name for name in again if int(name) < 600} == held
    assert set(_ids(_open(packed, seed=2).held_out)) != held


def test_a_resume_with_another_share_is_of_other_data(packed: Path) -> None:
    prints = {_open(packed, share=share).fingerprint for share in (0.0, 0.1, SHARE)}
    assert len(prints) == 3
    assert _open(packed).fingerprint in prints


@pytest.mark.parametrize(
    ("share", "says"), [(1e-9, "none to validate on; choose it higher, or 0"), (-0.1, "choose it")]
)
def test_shares_that_leave_a_side_empty_are_refused(packed: Path, share: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        _open(packed, share=share)
