"""Saving and loading a training's state at any layout; the folder is described in
:mod:`nemo_openmath.checkpoints.formats.step_folders`.

A checkpoint holds

- the model weights under their stored names,
- Adam's moments (and the fp32 main weights in bf16 training) under ``optimizer.<kind>.<stored name>``, in the shapes of
  the parameters,
- a few numbers: step, Adam updates, random state, the data's fingerprint.

The learning rate and the position in the data are functions of the step. Nothing depends on the layout. Data-parallel
ranks, which hold the same, share out the parameters and write a part each.

Saving calls PyTorch's distributed checkpoint directly: megatron-core's writer starts helper processes, which costs
seconds and needs a guarded ``__main__``.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
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
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture

from nemo_openmath.checkpoints.formats import step_folders, torch_dist
from nemo_openmath.checkpoints.model_files import copy_model_files
from nemo_openmath.core.errors import MachineFailure, UserError
from nemo_openmath.data.batches.source import PackSource
from nemo_openmath.models.build import PackedGPT
from nemo_openmath.models.layout import Precision
from nemo_openmath.training.agreement import on_main, verify_together
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.rank_watch import collective_timeout_s
from nemo_openmath.training.sharded_state import fill, parameters_by_name, sharded_model, sharded_state
from nemo_openmath.training.shards import Box, read_boxes, rows_of

T = TypeVar("T")
PAUSE_S = 20.0  # before a save that is needed is tried again
log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one training: ``OUTPUT/checkpoints``. All methods are called by all ranks together."""

    def __init__(
        self,
        root: Path,
        model_files: Path,
        *,
        lasting: tuple[int, ...],
        keep_last: int,
        asynchronous: bool,
        failed_saves: int,
        device: torch.device,
        timeout_s: float,
    ):
        """``device`` is this rank's; ``timeout_s`` is how long ranks wait for each other's writing and reading."""
        self.root, self.model_files = root, model_files
        self.lasting, self.keep_last, self.failed_saves = frozenset(lasting), keep_last, failed_saves
        self._failed = 0  # attempts to save, in a row
        self._last: Path | None = None  # the newest good checkpoint
        self._pending: Future[None] | None = None
        self._pool = writing_thread(device) if asynchronous else None
        # The writer's own group: its messages must not mix with those of the training going on.
        own_group, timeout = dist.get_backend() != "gloo" or asynchronous, datetime.timedelta(seconds=timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if own_group else None

    @classmethod
    def open(cls, output: Path, source: PackSource, config: TrainingConfig, device: torch.device) -> CheckpointStore:
        """Return the checkpoints of the training in ``output``, whose model files are those of ``OUTPUT/model``. Says
        which of the asked-for checkpoints lie behind the end."""
        settings = config.checkpoints
        steps_per_epoch = source.num_samples / source.batch_samples
        late = settings.unreached(source.num_steps, steps_per_epoch)
        if late:
            log.info(f"no checkpoint after {', '.join(late)}: the training ends after step {source.num_steps}")
        return cls(
            output / "checkpoints",
            output / "model",
            lasting=settings.lasting(source.num_steps, steps_per_epoch),
            keep_last=settings.keep_last,
            asynchronous=device.type == "cuda" if settings.asynchronous is None else settings.asynchronous,
            failed_saves=settings.failed_saves,
            device=device,
            timeout_s=collective_timeout_s(config.hang_seconds),
        )

    def save(
        self,
        step: int,
        models: list[PackedGPT],
        optimizer: Optimizer,
        numbers: Mapping[str, Any],
        notes: Mapping[str, Any],
        *,
        needed: bool = True,
    ) -> None:
        """Write ``step-<step>``. An asynchronous save writes a copy in host memory; :meth:`wait` or the next save ends
        it.

        ``numbers`` are part of the state, the same for the same training; ``notes`` (times and the like) go into the
        manifest alone. :meth:`load` returns both.

        A save that fails is logged, and leaves nothing. One that is ``needed`` is tried again at once. Raises
        MachineFailure, in all ranks, where ``failed_saves`` attempts in a row have failed.
        """
        self.wait()
        common = {"step": step, "updates": optimizer.updates, **numbers, "random_state": torch.get_rng_state()}
        writers = optimizer.share_out()
        tensors = self._tensors(sharded_state(models, optimizer.full_state(writers), writers), optimizer)
        if self._pool is None:
            self._write(tensors, common, notes, step, needed)
        else:
            self._pending = self._pool.submit(self._write, tensors, common, notes, step, needed)

    def _tensors(self, state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        """Return ``state`` as PyTorch's writer takes it; copied to the host where it is written while training goes
        on."""
        sharded, _ = save_preprocess(state, validate_access_integrity=False)
        if self._pool is not None:
            for entry in nested_values(sharded):
                # the distributed optimizer's were put together for this save: nothing else changes them
                ours = optimizer.config.distributed_optimizer and entry.key.startswith("optimizer.")
                if isinstance(entry, ShardedTensor) and entry.data is not None and not ours:
                    entry.data = entry.data.detach().to("cpu", copy=True)
        sharded, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
        return mcore_to_pyt_state_dict(sharded, False)

    def wait(self) -> None:
        """Wait until the save under way, if any, is on disk. Raises what it raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(
        self, tensors: dict[str, Any], common: dict[str, Any], notes: Mapping[str, Any], step: int, needed: bool
    ) -> None:
        """Write a checkpoint, as often as :meth:`save` says. All ranks know of every failure, and do the same."""
        final = step_folders.step_folder(self.root, step)
        while problem := self._attempt(tensors, common, notes, step, final):
            self._failed += 1
            count = f"{self._failed} of {self.failed_saves} attempts in a row"
            if self._failed >= self.failed_saves:
                goes_on = f"it goes on from {self._last.name}" if self._last else "nothing is saved yet"
                raise MachineFailure(f"{final}: {problem}; {count} failed; make room, then run it again: {goes_on}")
            next_try = f"tried again in {PAUSE_S:g} s" if needed else "the training goes on"
            if dist.get_rank() == 0:
                log.warning(f"checkpoint {final.name} was not saved ({problem}): {count} failed; {next_try}")
            if not needed:
                return
            time.sleep(PAUSE_S)
        self._failed, self._last = 0, final

    def _attempt(
        self, tensors: dict[str, Any], common: dict[str, Any], notes: Mapping[str, Any], step: int, final: Path
    ) -> str:
        """Write a checkpoint and return "", or why it could not be written, the same in all ranks; nothing is left of
        it then."""
        rank, partial = dist.get_rank(), step_folders.partial_folder(self.root, step)
        try:
            self._together(partial, lambda: self._begin(partial) if rank == 0 else None)
            writer = _Writer(partial / step_folders.STATE, single_file_per_rank=True, sync_files=False)
            state_dict_saver.save(
                tensors,
                storage_writer=writer,
                planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
                process_group=self._group,
            )
            numbers = common if rank == 0 else None
            sums_of_ranks = self._together(partial, lambda: _sums(partial, writer.files, numbers))
            files = {name: entry for sums in sums_of_ranks for name, entry in sums.items()}
            training = {key: value for key, value in {**common, **notes}.items() if not isinstance(value, Tensor)}
            manifest = step_folders.StepManifest(step, files, training)
            self._together(partial, lambda: step_folders.finish(partial, manifest, final) if rank == 0 else None)
        except CheckpointException as error:  # every rank's; not an Exception
            problem = _why(partial, *next((failed, cause) for failed, (cause, _) in error.failures.items()))
        except _NotWritten as error:
            problem = str(error)
        else:
            if rank == 0:
                with _only_logged("too old a checkpoint could not be removed"):
                    remove_old(self.root, step, self.lasting, self.keep_last)
            return ""
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        return problem

    def _begin(self, partial: Path) -> None:
        """Make the folder of a checkpoint, in rank 0, and remove what was left of earlier ones."""
        for unfinished in self.root.glob(".step-*.partial"):
            shutil.rmtree(unfinished, ignore_errors=True)
        (partial / step_folders.STATE).mkdir(parents=True)
        copy_model_files(self.model_files, partial / step_folders.MODEL)

    def _together(self, partial: Path, action: Callable[[], T]) -> list[T]:
        """Do something in all ranks and return what each has got. Raises _NotWritten in all of them where it failed in
        one: no rank waits for another that gave up."""
        outcome: tuple[T | None, str]
        try:
            outcome = action(), ""
        except Exception as error:
            outcome = None, _why(partial, dist.get_rank(), error)
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, outcome, group=self._group)
        if problem := next((why for _, why in of_ranks if why), ""):
            raise _NotWritten(problem)
        return [value for value, _ in of_ranks]

    def newest(self) -> Path | None:
        """Return the newest valid checkpoint of those that rank 0 sees; None where there is none. Says what is skipped,
        with the reason."""
        folders = on_main(lambda: step_folders.list_checkpoints(self.root), self._group)
        self._last, skipped = step_folders.newest_valid(folders, lambda folder: verify_together(folder, self._group))
        for path, reason in skipped:
            log.info(f"skipping checkpoint {path.name}: {reason}")
        if self._last is None and skipped:
            log.info(f"no valid checkpoint is left under {self.root}: starting from the base model")
        return self._last

    def load(self, folder: Path, models: list[PackedGPT], optimizer: Optimizer, fingerprint: str) -> dict[str, Any]:
        """Fill models and optimizer from ``folder``, written at any layout; return its numbers and notes (``step``,
        ...).

        Raises UserError where the checkpoint is of other data (``fingerprint``) or another precision, DamagedFile where
        it does not fit the model.
        """
        manifest, state = step_folders.read_manifest(folder), folder / step_folders.STATE
        if manifest.training.get("fingerprint") != fingerprint:
            raise UserError(
                "this checkpoint was trained on other data, packing, order or batch size",
                file=folder,
                remedy="restore the data settings, or choose another output folder to start anew from this checkpoint",
            )
        _refuse_another_precision(folder, optimizer.config.precision)
        sharded = sharded_model(models)
        targets, boxes = _optimizer_targets(models, sharded, optimizer)
        loaded = dist_checkpointing.load(sharded, str(state), validate_access_integrity=False)
        fill(models, loaded)
        read_boxes(state, boxes)
        del boxes
        optimizer.load_state(targets, int(loaded["updates"]))
        torch.set_rng_state(loaded["random_state"])
        return manifest.training


def writing_thread(device: torch.device) -> ThreadPoolExecutor:
    """Return a thread that writes checkpoints, with this rank's GPU as its own: a new thread's is GPU 0, and PyTorch's
    writer asks for the stream of the thread's GPU, on which a context of half a GiB would be opened."""
    if device.type == "cuda":
        return ThreadPoolExecutor(1, "checkpoint", torch.cuda.set_device, (device,))
    return ThreadPoolExecutor(1, "checkpoint")


def remove_old(root: Path, step: int, lasting: Collection[int], keep_last: int) -> None:
    """Remove the checkpoints up to ``step``, just saved, that are too many.

    The ``lasting`` ones stay, and the newest ``keep_last`` of the others (0: all).

    Later ones were damaged, else the training had resumed from them: they must not count, and are replaced when the
    training comes to their steps.
    """
    saved = (p for p in step_folders.list_checkpoints(root) if int(p.name[5:]) <= step)
    passing = [p for p in saved if int(p.name[5:]) not in lasting]
    for folder in passing[: len(passing) - keep_last] if keep_last > 0 else []:
        unread = folder.with_name(f".{folder.name}.partial")  # so that a half-removed one is never read
        folder.rename(unread)
        shutil.rmtree(unread)


def _optimizer_targets(
    models: list[PackedGPT], sharded: dict[str, dict[str, Any]], optimizer: Optimizer
) -> tuple[dict[Tensor, dict[str, Tensor]], list[Box]]:
    """Return empty tensors for the optimizer state that this rank holds, by parameter and kind, and the boxes of the
    stored tensors that fill them."""
    targets, boxes = dict[Tensor, dict[str, Tensor]](), list[Box]()
    ranges, parameters = optimizer.held_ranges(), parameters_by_name(models)
    for chunk, entries in sharded.items():
        for name, entry in entries.items():
            parameter = parameters[f"{chunk}.{name}"]
            for kind in optimizer.state_keys if parameter in ranges else ():
                target, parts = rows_of(entry, ranges[parameter], f"optimizer.{kind}.")
                targets.setdefault(parameter, {})[kind] = target
                boxes += parts
    return targets, boxes


def _refuse_another_precision(folder: Path, precision: Precision) -> None:
    """Raise UserError where fp32 weights would be lost, or made up."""
    stored = torch_dist.tensor_names(folder / step_folders.STATE)
    before: Precision = "bf16" if any(name.startswith("optimizer.main.") for name in stored) else "fp32"
    if before != precision:
        raise UserError(
            f"this checkpoint is of {before} training", file=folder, remedy=f"set training.precision to {before}"
        )


def _sums(partial: Path, own: Sequence[str], common: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Flush the files of a partial folder that this rank wrote, and return their sizes and digests by path.

    ``own``: its files of tensors, by name: no folder is listed, which many ranks would do at once. ``common``: the
    numbers, which rank 0 writes.
    """
    state = partial / step_folders.STATE
    paths = [state / name for name in own]
    if common is not None:
        torch.save(common, state / "common.pt")
        (state / "metadata.json").write_text(json.dumps(torch_dist.DESCRIPTION))
        paths += [state / name for name in (".metadata", "common.pt", "metadata.json")]
        paths += sorted((partial / step_folders.MODEL).iterdir())
    return {str(path.relative_to(partial)): step_folders.checksum(path) for path in paths}


class _Writer(FileSystemWriter):
    """PyTorch's writer, which also says which files of tensors this rank wrote (what ``save`` returns does not, with
    torch 2.11)."""

    files: Sequence[str] = ()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        future = super().write_data(plan, planner)
        self.files = sorted({result.storage_data.relative_path for result in future.value()})
        return future


class _NotWritten(Exception):
    """A rank could not write its part of a checkpoint."""


@contextlib.contextmanager
def _only_logged(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning(f"{what} ({error})")


_FULL = 2**20  # bytes: a disk with less than this is full, whatever the writer says


def _why(partial: Path, rank: int, cause: BaseException) -> str:
    """Return why a rank could not write, in words."""
    chain: BaseException | None = cause
    while chain is not None and not isinstance(chain, OSError):  # torch's zip writer complains of its own
        chain = chain.__cause__ or chain.__context__
    why = (chain.strerror if isinstance(chain, OSError) else None) or " ".join(str(cause).split())
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(next(path for path in partial.parents if path.exists())).free
        if free < _FULL and not isinstance(chain, OSError):
            why = os.strerror(errno.ENOSPC)
        why += f"; {free / 2**20:,.1f} MiB are free there"
    return f"rank {rank} could not write the checkpoint: {why}"
