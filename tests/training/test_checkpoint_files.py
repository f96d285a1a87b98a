"""Damaged, truncated and half-written checkpoints are skipped, with the reason; folders hold what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.models import hf_mapping, torch_dist
from tests.training.packs import SHAPES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints of steps 1, 2, 3 of a random tiny model."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(SHAPES["untied"].to_hf()))
    (tmp_path / "hf/tokenizer.json").write_text("{}")
    for step in (1, 2, 3):
        torch_dist.write_model(tmp_path / "checkpoints", step, _tensors(step), tmp_path / "hf")
    return tmp_path / "checkpoints"


def _tensors(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shape = SHAPES["untied"]
    return {e.stored: torch.randn(hf_mapping.stored_shape(e, shape)) for e in hf_mapping.mapping(shape)}


def test_what_is_written_is_read(root: Path) -> None:
    newest, skipped = torch_dist.newest_valid(root)
    assert newest == torch_dist.step_folder(root, 3)
    assert skipped == []
    config, tensors = torch_dist.read_model(newest)
    assert config == SHAPES["untied"]
    expected = _tensors(3)
    for entry, tensor in tensors:
        assert torch.equal(tensor, expected.pop(entry.stored))
    assert not expected
    assert (newest / "model/tokenizer.json").is_file()


@pytest.mark.parametrize(
    "damage", ["truncated", "bit flipped", "file missing", "no manifest", "torn manifest", "empty"]
)
def test_damage_is_skipped_with_the_reason(root: Path, damage: str) -> None:
    folder = torch_dist.step_folder(root, 3)
    data = folder / "state/__0_0.distcp"
    reason = {"truncated": "bytes", "bit flipped": "checksum", "file missing": "missing", "torn manifest": "not JSON"}
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "bit flipped":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(bytes(content))
    elif damage == "file missing":
        data.unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "torn manifest":
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text()[:-20])
    else:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    newest, skipped = torch_dist.newest_valid(root)
    assert newest == torch_dist.step_folder(root, 2)
    [(path, why)] = skipped
    assert path == folder
    assert reason.get(damage, "no manifest") in why


def test_a_half_written_folder_does_not_count(root: Path) -> None:
    torch_dist.step_folder(root, 3).rename(torch_dist.partial_folder(root, 3))
    assert torch_dist.newest_valid(root)[0] == torch_dist.step_folder(root, 2)


def test_a_missing_tensor_is_named(root: Path) -> None:
    with pytest.raises(DamagedFile, match=r"decoder\.layers\.9"):
        torch_dist.read_tensors(torch_dist.step_folder(root, 1), ["decoder.layers.9.mlp.linear_fc1.weight"])


def test_every_flipped_bit_of_a_manifest_is_harmless(root: Path) -> None:
    """The folder is skipped, or (a flip in a name that nothing checks) still whole; nothing else is raised."""
    folder = torch_dist.step_folder(root, 3)
    manifest = (folder / "manifest.json").read_bytes()
    skipped = 0
    for place in range(len(manifest)):
        flipped = bytearray(manifest)
        flipped[place] ^= 1 << place % 7
        (folder / "manifest.json").write_bytes(bytes(flipped))
        try:
            torch_dist.verify(folder, checksums=False)
        except DamagedFile:
            skipped += 1
    assert skipped > len(manifest) / 4


def test_other_folders_are_no_checkpoints(root: Path) -> None:
    torch_dist.step_folder(root, 3).rename(root / "step-00000003.kept")
    (root / "step-of-mine").mkdir()
    assert [p.name for p in torch_dist.list_checkpoints(root)] == ["step-00000001", "step-00000002"]
