"""Reads the rows of stored tensors that one process needs from a checkpoint's ``state/``, and no more into memory.

megatron-core's and PyTorch's own loading fill whole slices of tensor-parallel ranks. With the distributed optimizer
every data-parallel rank would hold the optimizer state of all for a while: 48 GB on each of eight GPUs for 32B at TP8.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nemo_openmath.core.errors import DamagedFile


@dataclass(frozen=True)
class Box:
    """A part of a stored tensor, and where it goes."""

    key: str
    whole: tuple[int, ...]  # shape of the stored tensor
    offset: tuple[int, ...]
    target: Tensor  # of the part's shape


def rows_of(entry: ShardedTensor | ShardedTensorFactory, flat: slice, prefix: str) -> tuple[Tensor, list[Box]]:
    """Return a tensor (fp32, on the host) for the elements ``flat`` of the flattened local tensor that ``entry``
    describes, and the boxes that fill it.

    Whole rows are read, and the tensor is a view of them. Stored names are ``prefix`` + key.
    """
    shape, inner = tuple(entry.data.shape), max(1, entry.data[:1].numel())
    first, last = flat.start // inner, -(-flat.stop // inner)
    rows = torch.empty((last - first, *shape[1:]), dtype=torch.float32)
    # A factory's tensors (gate and up) lie in the local one after another, along the first axis.
    parts = [entry] if isinstance(entry, ShardedTensor) else list(nested_values(entry.build()))
    boxes, start = [], 0
    for part in parts:
        count = part.local_shape[0]
        low, high = max(first, start), min(last, start + count)
        if low < high:
            offset = (part.global_offset[0] + low - start, *part.global_offset[1:])
            target = rows[low - first : high - first]
            boxes.append(Box(prefix + part.key, tuple(part.global_shape), offset, target))
        start += count
    if start != shape[0]:
        raise RuntimeError(f"{entry.key}: its parts have {start} rows, it has {shape[0]}")
    return rows.view(-1)[flat.start - first * inner : flat.stop - first * inner], boxes


def read_boxes(state: Path, boxes: Iterable[Box]) -> None:
    """Fill the boxes' targets from the folder ``state``; no process group is used. Raises DamagedFile where a tensor is
    missing or of another shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        planner = _Planner(state, boxes)
        try:
            state_dict_loader.load({}, storage_reader=FileSystemReader(state), planner=planner, no_dist=True)
        except CheckpointException as error:  # no Exception, and wrapped around the cause
            raise next(cause for cause, _ in error.failures.values()) from None


class _Planner(DefaultLoadPlanner):
    def __init__(self, state: Path, boxes: Iterable[Box]):
        super().__init__()
        self.folder = state
        self.boxes: dict[str, dict[tuple[int, ...], Box]] = defaultdict(dict)
        for box in boxes:
            self.boxes[box.key][box.offset] = box

    def create_local_plan(self) -> LoadPlan:
        items: list[Any] = []
        for key, boxes in self.boxes.items():
            stored = self.metadata.state_dict_metadata.get(key) if self.metadata else None
            for box in boxes.values():
                if not isinstance(stored, TensorStorageMetadata) or tuple(stored.size) != box.whole:
                    state = f"is {tuple(stored.size)}" if isinstance(stored, TensorStorageMetadata) else "is not there"
                    problem = f"{key} {state}, the model needs {box.whole}"
                    raise DamagedFile(self.folder, problem, "use another checkpoint")
                chunk = ChunkStorageMetadata(torch.Size(box.offset), box.target.size())
                reads = create_read_items_for_chunk_list(key, stored, [chunk])
                if sum(read.lengths.numel() for read in reads) != box.target.numel():
                    raise DamagedFile(self.folder, f"parts of {key} are not there", "use another checkpoint")
                items += reads
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.boxes[index.fqn][tuple(index.offset)].target
