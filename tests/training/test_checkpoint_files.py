"""Damaged, truncated and half-written checkpoints are skipped, with the reason; folders hold what they promise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.training.checkpoint import remove_old
from tests.support import models


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints of steps 1, 2, 3 of random models."""
    for step in (1, 2, 3):
        models.make_step(tmp_path / "checkpoints", step, models.make(tmp_path / f"hf{step}", seed=step), loss=1.5)
    return tmp_path / "checkpoints"


def test_what_is_written_is_read(root: Path) -> None:
    newest, skipped = step_folders.newest_valid(step_folders.list_checkpoints(root))
    assert newest == step_folders.step_folder(root, 3)
    assert skipped == []
    manifest = step_folders.read_manifest(newest)
    assert (manifest.step, manifest.training) == (3, {"loss": 1.5})
    opened, expected = open_checkpoint(newest), models.random_tensors(models.UNTIED, 3)
    assert (opened.step, opened.model) == (3, models.UNTIED)
    assert models.same({name: opened.read(name) for name in opened.tensors}, expected)
    assert (newest / "model/tokenizer.json").is_file()


@pytest.mark.parametrize(
    "damage", ["truncated", "bit flipped", "file missing", "no manifest", "torn manifest", "empty"]
)
def test_damage_is_skipped_with_the_reason(root: Path, damage: str) -> None:
    folder = step_folders.step_folder(root, 3)
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
    newest, skipped = step_folders.newest_valid(step_folders.list_checkpoints(root))
    assert newest == step_folders.step_folder(root, 2)
    [(path, why)] = skipped
    assert path == folder
    assert reason.get(damage, "no manifest") in why


def test_ranks_share_the_reading_of_a_checkpoint(root: Path) -> None:
    folder = step_folders.step_folder(root, 3)
    assert [step_folders.wrong_files(folder, rank, 3) for rank in range(3)] == [[]] * 3
    for name in ("state/__0_0.distcp", "model/config.json"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(bytes(content))
    of_ranks = [step_folders.wrong_files(folder, rank, 3) for rank in range(3)]
    assert sorted(name for names in of_ranks for name in names) == ["model/config.json", "state/__0_0.distcp"]
    assert step_folders.verify(folder, []).step == 3  # sizes alone
    with pytest.raises(DamagedFile, match=r"config\.json: its checksum differs"):
        step_folders.verify(folder, ["model/config.json"])
    (folder / "manifest.json").unlink()
    assert step_folders.wrong_files(folder, 0, 3) == []


def test_the_digests_of_version_1_are_checked(root: Path) -> None:
    folder = step_folders.step_folder(root, 3)
    raw = json.loads((folder / "manifest.json").read_text())
    assert raw["version"] == 2
    for name, entry in raw["files"].items():
        assert entry.pop("digest").startswith("blake3:")
        entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(raw | {"version": 1}))
    step_folders.verify(folder)
    data = folder / "state/__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(DamagedFile, match="its checksum differs"):
        step_folders.verify(folder)
    (folder / "manifest.json").write_text(json.dumps(raw | {"version": 3}))
    with pytest.raises(DamagedFile, match="checkpoint version 3, this program reads 1 and 2"):
        step_folders.read_manifest(folder)


def test_a_half_written_folder_does_not_count(root: Path) -> None:
    step_folders.step_folder(root, 3).rename(step_folders.partial_folder(root, 3))
    assert step_folders.newest_valid(step_folders.list_checkpoints(root))[0] == step_folders.step_folder(root, 2)


def test_a_missing_tensor_is_named(root: Path) -> None:
    folder = step_folders.step_folder(root, 1)
    config = models.UNTIED.with_changes(num_hidden_layers=10)
    (folder / "model/config.json").write_text(json.dumps(config.to_hf()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model/config.json"] = step_folders.checksum(folder / "model/config.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"the weights hold no decoder\.layers\.4"):
        open_checkpoint(folder)


def test_every_flipped_bit_of_a_manifest_is_harmless(root: Path) -> None:
    """The folder is skipped, or (a flip in a name that nothing checks) still whole; nothing else is raised."""
    folder = step_folders.step_folder(root, 3)
    manifest = (folder / "manifest.json").read_bytes()
    skipped = 0
    for place in range(len(manifest)):
        flipped = bytearray(manifest)
        flipped[place] ^= 1 << place % 7
        (folder / "manifest.json").write_bytes(bytes(flipped))
        try:
            step_folders.check_sizes(folder)
        except DamagedFile:
            skipped += 1
    assert skipped > len(manifest) / 4


def test_other_folders_are_no_checkpoints(root: Path) -> None:
    step_folders.step_folder(root, 3).rename(root / "step-00000003.kept")
    (root / "step-of-mine").mkdir()
    assert [p.name for p in step_folders.list_checkpoints(root)] == ["step-00000001", "step-00000002"]


def test_damaged_later_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    """Resumed before a damaged step 6 with keep_last 1: what is saved at step 2, then 4, stays until the next."""
    step_folders.step_folder(tmp_path, 6).mkdir()
    for step in (2, 3, 4):
        step_folders.step_folder(tmp_path, step).mkdir()
        remove_old(tmp_path, step, {3}, keep_last=1)
        assert step_folders.step_folder(tmp_path, step).is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004", "step-00000006"]
