"""Saving and loading a training's state at any layout; the folder is described in
:mod:`nemo_openmath.checkpoints.formats.step_folders`.

What is saved: model weights under their stored names, Adam's moments (and the fp32 main weights in bf16 training)
under ``optimizer.<kind>.<stored name>`` in the parameters' own shapes, and a few numbers: step, Adam updates, random
state, the data's fingerprint. The learning rate and the position in the data are functions of the step. Nothing
depends on the layout. Data-parallel ranks, which hold the same, share out the parameters and write a part each.

Saving is PyTorch's distributed checkpoint called directly: megatron-core's writer starts helper processes, which costs
seconds and needs a guarded ``__main__``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from nemo_openmath.checkpoints.formats import step_folders, torch_dist
from nemo_openmath.checkpoints.model_files import copy_model_files
from nemo_openmath.core.errors import DamagedFile, OpenMathError, UserError
from nemo_openmath.models.build import PackedGPT
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.shards import Box, read_boxes, rows_of


class CheckpointStore:
    """The checkpoints of one training: ``OUTPUT/checkpoints``. All methods are called by all ranks together."""

    def __init__(self, root: Path, model_files: Path, *, lasting: tuple[int, ...], keep_last: int, asynchronous: bool):
        self.root, self.model_files = root, model_files
        self.lasting, self.keep_last = frozenset(lasting), keep_last
        self._pending: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        # The writer's own group: its messages must not mix with those of the training going on.
        self._group = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" or asynchronous else None

    def save(
        self,
        step: int,
        models: list[PackedGPT],
        optimizer: Optimizer,
        facts: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``step-<step>``. Asynchronously: from a copy in host memory; :meth:`wait` or the next save ends it.

        ``facts`` are part of the state, the same for the same training; ``notes`` (times and the like) go into the
        manifest alone. :meth:`load` returns both.
        """
        self.wait()
        partial = step_folders.partial_folder(self.root, step)
        if dist.get_rank() == 0:
            for old in self.root.glob(".step-*.partial"):
                shutil.rmtree(old, ignore_errors=True)
            (partial / step_folders.STATE).mkdir(parents=True)
            copy_model_files(self.model_files, partial / step_folders.MODEL)
        common = {"step": step, "updates": optimizer.updates, **facts, "random_state": torch.get_rng_state()}
        writers = optimizer.share_out()
        state = _state(models, optimizer.full_state(writers), writers)
        sharded, _ = save_preprocess(state, validate_access_integrity=False)
        if self._pool is not None:
            for entry in nested_values(sharded):
                # the distributed optimizer's were put together for this save: nothing else changes them
                ours = optimizer.config.distributed_optimizer and entry.key.startswith("optimizer.")
                if isinstance(entry, ShardedTensor) and entry.data is not None and not ours:
                    entry.data = entry.data.detach().to("cpu", copy=True)
        sharded, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
        tensors = mcore_to_pyt_state_dict(sharded, False)
        if self._pool is None:
            self._write(tensors, common, notes or {}, step, partial)
        else:
            self._pending = self._pool.submit(self._write, tensors, common, notes or {}, step, partial)

    def wait(self) -> None:
        """Until the save under way, if any, is on disk; raises what it raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(
        self, tensors: dict[str, Any], common: dict[str, Any], notes: Mapping[str, Any], step: int, partial: Path
    ) -> None:
        dist.barrier(group=self._group)  # rank 0 has made the folder
        state = partial / step_folders.STATE
        try:
            state_dict_saver.save(
                tensors,
                storage_writer=FileSystemWriter(state, single_file_per_rank=True, sync_files=False),
                planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
                process_group=self._group,
            )
            self._finish(common, notes, step, partial)
        except CheckpointException as error:  # every rank's; not an Exception
            raise _not_written(partial, *next((rank, cause) for rank, (cause, _) in error.failures.items())) from None
        except OSError as error:
            raise _not_written(partial, dist.get_rank(), error) from None

    def _finish(self, common: dict[str, Any], notes: Mapping[str, Any], step: int, partial: Path) -> None:
        """Checksums and manifest of a folder whose tensors are written; then it gets its name."""
        rank, state = dist.get_rank(), partial / step_folders.STATE
        if rank == 0:
            torch.save(common, state / "common.pt")
            (state / "metadata.json").write_text(json.dumps(torch_dist.DESCRIPTION))
        own = [p for p in step_folders.files_of(partial) if _writer_of(p) == rank]
        sums = {str(path.relative_to(partial)): step_folders.checksum(path) for path in own}
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, sums, group=self._group)
        if rank == 0:
            files = {name: entry for each in gathered for name, entry in each.items()}
            training = {key: value for key, value in {**common, **notes}.items() if not isinstance(value, Tensor)}
            step_folders.finish(
                partial, step_folders.StepManifest(step, files, training), step_folders.step_folder(self.root, step)
            )
            self._remove_old(step)
        dist.barrier(group=self._group)

    def _remove_old(self, step: int) -> None:
        """Those before ``step``, just saved, that are too many. Later ones were damaged, else we had resumed from them:
        they must not count, and are replaced when the training comes to their steps."""
        saved = (p for p in step_folders.list_checkpoints(self.root) if int(p.name[5:]) <= step)
        passing = [p for p in saved if int(p.name[5:]) not in self.lasting]
        for folder in passing[: len(passing) - self.keep_last] if self.keep_last > 0 else []:
            grave = folder.with_name(f".{folder.name}.partial")  # so that a half-removed one is never read
            folder.rename(grave)
            shutil.rmtree(grave)

    def newest(self, warn: Callable[[str], None]) -> Path | None:
        """The newest valid checkpoint, found by rank 0 for all; what is skipped is told to ``warn`` with the reason."""
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            folder, skipped = step_folders.newest_valid(self.root)
            for path, reason in skipped:
                warn(f"skipping checkpoint {path.name}: {reason}")
            found = [folder]
        dist.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def load(self, folder: Path, models: list[PackedGPT], optimizer: Optimizer, fingerprint: str) -> dict[str, Any]:
        """Fill models and optimizer from ``folder``, written at any layout; returns its numbers (``step``, ...)."""
        manifest = step_folders.read_manifest(folder)
        if manifest.training.get("fingerprint") != fingerprint:
            raise UserError(
                "this checkpoint was trained on other data, packing, order or batch size",
                file=folder,
                remedy="restore the data settings, or choose another output folder to start anew from this checkpoint",
            )
        mains = any(n.startswith("optimizer.main.") for n in torch_dist.tensor_names(folder / step_folders.STATE))
        if mains and optimizer.config.precision == "fp32":  # its fp32 weights would be lost
            raise UserError("this checkpoint is of bf16 training", file=folder, remedy="set training.precision to bf16")
        if not mains and optimizer.config.precision == "bf16":
            raise UserError("this checkpoint is of fp32 training", file=folder, remedy="set training.precision to fp32")
        state, sharded = folder / step_folders.STATE, sharded_model(models)
        held, boxes, ranges, names = dict[Tensor, dict[str, Tensor]](), list[Box](), optimizer.held(), _names(models)
        for chunk, entries in sharded.items():
            for name, entry in entries.items():
                parameter = names[f"{chunk}.{name}"]
                for kind in optimizer.state_keys if parameter in ranges else ():
                    target, parts = rows_of(entry, ranges[parameter], f"optimizer.{kind}.")
                    held.setdefault(parameter, {})[kind] = target
                    boxes += parts
        loaded = dist_checkpointing.load(sharded, str(state), validate_access_integrity=False)
        _fill(models, loaded)
        read_boxes(state, boxes)
        del boxes
        optimizer.load_state(held, int(loaded["updates"]))
        torch.set_rng_state(loaded["random_state"])
        return manifest.training


_FULL = 2**20  # bytes: a disk with less than this is full, whatever the writer says


def _not_written(partial: Path, rank: int, cause: BaseException) -> OpenMathError:
    chain: BaseException | None = cause
    while chain is not None and not isinstance(chain, OSError):  # torch's zip writer complains of its own
        chain = chain.__cause__ or chain.__context__
    why = (chain.strerror if isinstance(chain, OSError) else None) or " ".join(str(cause).split())
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(partial.parent).free
        if free < _FULL and not isinstance(chain, OSError):
            why = os.strerror(errno.ENOSPC)
        why += f"; {free / 2**20:,.1f} MiB are free there"
    return OpenMathError(
        f"{partial}: rank {rank} could not write the checkpoint ({why}); make room, then run the same command again"
    )


def _state(
    models: list[PackedGPT], tensors: Mapping[Tensor, dict[str, Tensor]], writers: Mapping[Tensor, int]
) -> dict[str, Any]:
    """Descriptions of the models' parameters and of their optimizer ``tensors``. ``writers``: the data-parallel rank
    that writes each parameter; only this rank's are in the result."""
    model, moments, names = sharded_model(models), dict[str, Any](), _names(models)
    rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    state: dict[str, Any] = {chunk: {} for chunk in model}
    for chunk, entries in model.items():
        for name, entry in entries.items():
            parameter = names[f"{chunk}.{name}"]
            if writers[parameter] != rank:
                continue
            if entry.replica_id[-1] != rank:  # (pipeline copy, tensor-parallel copy, data-parallel copy)
                raise RuntimeError(f"{entry.key}: replica {entry.replica_id} is not of data-parallel rank {rank}")
            entry = replace(entry, replica_id=(*entry.replica_id[:-1], 0))  # megatron-core writes copy 0
            state[chunk][name] = entry
            for kind, tensor in tensors[parameter].items():
                moments[f"{kind}.{chunk}.{name}"] = _like(entry, f"optimizer.{kind}.{entry.key}", tensor)
    return {**state, "optimizer": moments}


def sharded_model(models: list[PackedGPT]) -> dict[str, dict[str, Any]]:
    """megatron-core's description of each chunk's parameters: where each lies in which stored tensor."""
    metadata = {
        "non_homogeneous_layers": True,  # layers are stored one by one, under global numbers
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    return {
        f"chunk{number}": {
            name: entry
            for name, entry in model.sharded_state_dict(metadata=metadata).items()
            if not name.endswith("_extra_state")
        }
        for number, model in enumerate(models)
    }


def load_model(folder: Path, models: list[PackedGPT]) -> None:
    """Weights alone, for a training that starts from another's checkpoint (or from an average)."""
    _fill(
        models,
        dist_checkpointing.load(
            sharded_model(models), str(folder / step_folders.STATE), validate_access_integrity=False
        ),
    )


def _fill(models: list[PackedGPT], loaded: dict[str, Any]) -> None:
    for number, model in enumerate(models):
        keys = model.load_state_dict(loaded[f"chunk{number}"], strict=False)
        missing = [k for k in keys.missing_keys if not k.endswith("_extra_state")]
        if missing or keys.unexpected_keys:
            raise DamagedFile("checkpoint", f"parameters {missing + keys.unexpected_keys} do not match the model")


def _names(models: list[PackedGPT]) -> dict[str, Tensor]:
    return {f"chunk{number}.{name}": p for number, model in enumerate(models) for name, p in model.named_parameters()}


def _like(
    entry: ShardedTensor | ShardedTensorFactory, key: str, tensor: Tensor
) -> ShardedTensor | ShardedTensorFactory:
    """The description of a tensor that is divided as ``entry`` is."""
    if isinstance(entry, ShardedTensorFactory):
        return replace(entry, key=key, data=tensor)
    return replace(entry, key=key, data=tensor, dtype=tensor.dtype)


def _writer_of(path: Path) -> int:
    """The rank that wrote a file of a partial folder (``__3_0.distcp`` is rank 3's; all else is rank 0's)."""
    return int(path.name[2:].split("_")[0]) if path.suffix == ".distcp" else 0
