"""Damaged inputs and full disks: a clear error, and nothing under the final name."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from nemo_openmath.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemo_openmath.checkpoints.formats import torch_dist, torch_file
from nemo_openmath.checkpoints.formats.safetensors import INDEX, read_file
from nemo_openmath.checkpoints.lazy import InMemory, LazyTensor
from nemo_openmath.checkpoints.merge.combine import average
from nemo_openmath.checkpoints.output import building
from nemo_openmath.checkpoints.quantize.export import quantize
from nemo_openmath.core.errors import DamagedFile, SystemFailure, UserError
from tests.checkpoints.word_models import LONG, word_model
from tests.support import models


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


def test_shards_without_their_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    megatron_to_hf(hf_to_megatron(sharded, sharded.parent / "whole"), sharded.parent / "again")
    shards = sorted(sharded.glob("*.safetensors"))
    (sharded / "other.safetensors").write_bytes(shards[0].read_bytes())
    refuses(sharded, UserError, r"neither .* is here to say whether other\.safetensors is the model")
    (sharded / "other.safetensors").unlink()
    shards[1].unlink()
    refuses(sharded, DamagedFile, rf"missing {shards[1].name} of {len(shards)} shards")


def test_two_models_in_one_folder(sharded: Path) -> None:
    save_file(models.random_tensors(models.UNTIED, 1), sharded / "model.safetensors")
    refuses(sharded, UserError, r"holds model\.safetensors and model\.safetensors\.index\.json")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda h: [], "not of safetensors"),
        (lambda h: {"a": 3}, "not of safetensors"),
        (lambda h: {"a": {"dtype": "F32", "shape": [1]}}, "not of safetensors"),
        (lambda h: {"a": {**h["a"], "shape": [2.5]}, "b": h["b"]}, "not of safetensors"),
        (lambda h: {"a": {**h["a"], "dtype": "F6"}, "b": h["b"]}, "unknown dtype F6"),
        (lambda h: {"a": h["a"], "b": {**h["b"], "data_offsets": [4, 20]}}, "b begins at byte 4, what is before it"),
        (lambda h: {"a": h["a"], "b": {**h["b"], "data_offsets": [-16, 0]}}, "begins at byte -16"),
        (lambda h: {"a": h["a"]}, "16 bytes belong to no tensor"),
    ],
)
def test_headers_that_lie(tmp_path: Path, change: Callable[[Any], Any], problem: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, file)
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    with pytest.raises((DamagedFile, UserError), match=rf"model\.safetensors: .*{problem}"):
        read_file(file)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_escapes_as_something_else(data: st.DataObject) -> None:
    """Any byte of the files that describe tensors, changed: the tensors are read, or the file is named."""
    file = data.draw(st.sampled_from(sorted(DESCRIPTIONS)))
    content = bytearray(DESCRIPTIONS[file])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DamagedFile, UserError):
        path = Path(folder) / file
        path.write_bytes(content)
        if file == "x.safetensors":
            found = read_file(path)
        elif file == "x.pt":
            found = torch_file.load(path)
        else:
            found = torch_dist.read(Path(folder))
        for tensor in found.values() if isinstance(found, dict) else ():
            if isinstance(tensor, LazyTensor) and tensor.numel < 1000:
                tensor.full()


def _descriptions() -> dict[str, bytes]:
    tensors = {"a": torch.ones(4), "b": torch.ones(3, 2)}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with tempfile.TemporaryDirectory() as folder:
        torch_dist.write(Path(folder), {name: InMemory(tensor) for name, tensor in tensors.items()})
        metadata = (Path(folder) / ".metadata").read_bytes()
    return {"x.safetensors": save(tensors), "x.pt": buffer.getvalue(), ".metadata": metadata}


DESCRIPTIONS = _descriptions()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    child = os.fork()
    if not child:  # killed in the middle of writing
        with building(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.glob(".*")] == [f".out.{socket.gethostname()}-{child}.partial"]
    (tmp_path / f".out.{socket.gethostname()}-1.partial").mkdir()  # of a process that lives
    (tmp_path / ".out.elsewhere-77777.partial").mkdir()
    average([source], tmp_path / "out")
    assert sorted(path.name.split(".")[2] for path in tmp_path.glob(".*")) == [
        "elsewhere-77777",
        f"{socket.gethostname()}-1",
    ]
    stage = tmp_path / "stage"
    (stage / ".stage.elsewhere-77777.partial").mkdir(parents=True)  # a stage's folder has one writer
    average([source], stage, into_existing=True)
    assert not list(stage.glob(".*"))


@pytest.mark.parametrize("format", ["int8", "fp8", "int4_awq"])
def test_broken_number_is_not_quantized(tmp_path: Path, format: Any) -> None:
    source = word_model(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"):
        quantize(source, tmp_path / "q", format=format, calibration=LONG[:1])
    assert not (tmp_path / "q").exists()


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
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedFile, match="no manifest: this is not a finished checkpoint"):
        megatron_to_hf(folder, tmp_path / "back")
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
    with files_of_at_most(100_000), pytest.raises(SystemFailure, match="no space left"):
        hf_to_megatron(source, tmp_path / "out", classic_folders=classic)
    with files_of_at_most(100_000), pytest.raises(SystemFailure, match="no space left"):
        average([source, source], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    with pytest.raises(UserError, match="exists already"):
        average([source], source)
    assert models.same(models.load(source), models.random_tensors(models.UNTIED))


def test_a_link_to_an_empty_folder_as_output(tmp_path: Path) -> None:
    source = models.make(tmp_path / "hf")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    average([source], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert models.same(models.load(tmp_path / "there"), models.load(source))


def test_what_another_process_finished_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def both() -> None:
        with building(target) as folder:
            (folder / "ours").write_text("")
            target.mkdir()
            (target / "theirs").write_text("")

    with pytest.raises(UserError, match="out: exists already"):
        both()
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
