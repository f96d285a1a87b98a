"""Damaged inputs and full disks: a clear error, and nothing under the final name."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_openmath.checkpoints.combine import average
from nemo_openmath.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemo_openmath.checkpoints.safetensors_files import INDEX
from nemo_openmath.errors import DamagedFile, UserError

from . import models


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    source = models.make(tmp_path / "hf")
    hf_to_megatron(source, tmp_path / "megatron")
    return megatron_to_hf(tmp_path / "megatron", tmp_path / "sharded", shard_bytes=60_000)


def refuses(source: Path, error: type[Exception], match: str) -> None:
    target = source.parent / "target"
    for attempt in (hf_to_megatron, lambda src, dst: average([src, src], dst)):
        with pytest.raises(error, match=match):
            attempt(source, target)
        assert not target.exists()
        assert not list(source.parent.glob(".*partial"))


def test_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    refuses(sharded, DamagedFile, rf"{shard.name}: truncated: model.layers.* ends at byte")
    shard.write_bytes(shard.read_bytes()[:50])
    refuses(sharded, DamagedFile, rf"{shard.name}: truncated: 50 bytes do not hold the header")
    shard.write_bytes(b"")
    refuses(sharded, DamagedFile, rf"{shard.name}: truncated")


def test_missing_shard(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    refuses(sharded, DamagedFile, rf"missing {shards[0].name}, {shards[2].name} of {len(shards)} shards")


def test_index_that_names_absent_tensors(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.9.absent"] = sorted(set(index["weight_map"].values()))[0]
    (sharded / INDEX).write_text(json.dumps(index))
    refuses(sharded, DamagedFile, r"lacks, though the index names it: model\.layers\.9\.absent")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_broken_number(tmp_path: Path, value: float) -> None:
    source = models.make(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, source / "model.safetensors")
    refuses(source, UserError, r"layers\.2\.mlp\..* holds NaN or infinity")


def test_large_finite_numbers_are_not_broken(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"].fill_(torch.finfo(torch.float32).max)
    save_file(tensors, source / "model.safetensors")
    hf_to_megatron(source, tmp_path / "megatron")


def test_damaged_torch_dist(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    folder = hf_to_megatron(source, tmp_path / "megatron")
    file = folder / "state" / "__0_0.distcp"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(DamagedFile, match=r"__0_0\.distcp"):
        megatron_to_hf(folder, tmp_path / "back")
    with pytest.raises(DamagedFile, match=r"__0_0\.distcp: truncated; it holds a part of"):
        megatron_to_hf(folder / "state", tmp_path / "back", model_files=source)
    file.unlink()
    with pytest.raises(DamagedFile, match=r"__0_0\.distcp: missing"):
        megatron_to_hf(folder / "state", tmp_path / "back", model_files=source)
    (folder / "state" / ".metadata").write_bytes(b"\x80\x04garbage")
    with pytest.raises(DamagedFile, match=r"\.metadata: unreadable"):
        megatron_to_hf(folder / "state", tmp_path / "back", model_files=source)
    assert not (tmp_path / "back").exists()


def test_missing_classic_rank(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    folder = hf_to_megatron(source, tmp_path / "megatron", classic_folders=True, tp=2, pp=2)
    rank = folder / "iter_0000000" / "mp_rank_01_000"
    (rank / "model_optim_rng.pt").rename(rank / "x")
    with pytest.raises(DamagedFile, match=r"mp_rank_01_000/model_optim_rng\.pt: missing"):
        megatron_to_hf(folder, tmp_path / "back")
    (rank / "x").unlink()
    rank.rmdir()
    with pytest.raises(DamagedFile, match="missing mp_rank_01_000 of 2 x 2 ranks"):
        megatron_to_hf(folder, tmp_path / "back")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let files grow beyond ``size``, as it does on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("classic", [False, True])
def test_disk_full_in_the_middle(tmp_path: Path, classic: bool) -> None:
    source = models.make(tmp_path / "hf")
    with files_of_at_most(100_000), pytest.raises(UserError, match="no space left while writing"):
        hf_to_megatron(source, tmp_path / "out", classic_folders=classic)
    with files_of_at_most(100_000), pytest.raises(UserError, match="no space left while writing"):
        average([source, source], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    with pytest.raises(UserError, match="exists already"):
        average([source], source)
    assert models.same(models.load(source), models.random_tensors(models.UNTIED))
