"""Rows of stored tensors, read alone: each tensor-parallel rank, any range of it, against the whole tensor."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.models import cpu_compat

cpu_compat.install()

from megatron.core.dist_checkpointing.mapping import ShardedTensor  # noqa: E402
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory  # noqa: E402

from nemo_openmath.training.checkpoint import _why  # noqa: E402
from nemo_openmath.training.shards import read_boxes, rows_of  # noqa: E402

TP, ROWS, COLUMNS = 2, 6, 5  # of a rank
SHAPES = {"columns split": (ROWS, TP * COLUMNS), "gate and up": (TP * ROWS, COLUMNS), "norm": (7,)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    state = tmp_path_factory.mktemp("state")
    torch.manual_seed(0)
    tensors = {f"optimizer.m.{name}": torch.randn(shape) for name, shape in SHAPES.items()}
    state_dict_saver.save(dict(tensors), storage_writer=FileSystemWriter(state), no_dist=True)
    return state, {name: tensors[f"optimizer.m.{name}"] for name in SHAPES}


@pytest.mark.parametrize("rank", range(TP))
@pytest.mark.parametrize("name", SHAPES)
def test_any_range_of_any_rank(stored: tuple[Path, dict[str, torch.Tensor]], name: str, rank: int) -> None:
    state, tensors = stored
    whole = tensors[name]
    if name == "norm":
        local, offsets = whole, ()
    elif name == "columns split":
        local, offsets = whole[:, rank * COLUMNS : (rank + 1) * COLUMNS], ((1, rank, TP),)
    else:  # each rank has its half of the gate's rows and its half of the up's
        half = ROWS // 2
        parts = (whole[start + rank * half : start + (rank + 1) * half] for start in (0, TP * half))
        local, offsets = torch.cat(list(parts)), ((0, rank, TP),)
    entry = ShardedTensor.from_rank_offsets(name, torch.empty(local.shape), *offsets)
    described = apply_swiglu_sharded_factory(entry, ()) if name == "gate and up" else entry
    count, boxes, expected = local.numel(), [], {}
    for first, last in [(0, count), *((i, j) for i in range(0, count, 2) for j in range(i + 1, count, 5))]:
        target, parts = rows_of(described, slice(first, last), "optimizer.m.")
        expected[first, last] = target
        boxes.append(parts)
    for parts in boxes:
        read_boxes(state, parts)
    for (first, last), target in expected.items():
        assert torch.equal(target, local.reshape(-1)[first:last]), (first, last)


def test_a_tensor_that_is_not_as_needed_is_named(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    for name, says in (("none", "optimizer.m.none is not there"), ("norm", r"norm is \(7,\), the model needs \(8,\)")):
        entry = ShardedTensor.from_rank_offsets(name, torch.empty(8))
        with pytest.raises(DamagedFile, match=says):
            read_boxes(stored[0], rows_of(entry, slice(0, 8), "optimizer.m.")[1])


def test_a_full_disk_is_said_in_a_line() -> None:
    complaint = RuntimeError("unexpected pos 704 vs 598")
    complaint.__context__ = OSError(errno.ENOSPC, "No space left on device")
    message = _why(Path("out/.step-00000001.partial"), 3, complaint)
    assert message.startswith("rank 3 could not write the checkpoint: No space left on device;")


def test_a_full_disk_of_which_torch_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its zip writer often gives no reason: the disk is asked."""
    complaint = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    for free, says in (
        (0, "checkpoint: No space left on device; 0.0 MiB are free there"),
        (2**30, "unexpected pos 704 vs 598;"),
    ):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert says in _why(tmp_path / "x", 0, complaint)
