"""A training from its first step to its last: :class:`Trainer`, to be read top down.

Every rank of a launched process group has one and runs the same code, on its part of the model and of each batch.
``forward_backward.py`` computes a batch, ``optimizer.py`` updates the weights, ``checkpoint.py`` saves and loads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_openmath.checkpoints.formats.step_folders import step_folder
from nemo_openmath.core.errors import Preempted, UserError
from nemo_openmath.data.batches.source import PackSource
from nemo_openmath.models.build import PackedGPT, build_model, choose_backend
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.devices import process_device
from nemo_openmath.models.layout import Exchange
from nemo_openmath.training.agreement import on_main
from nemo_openmath.training.base_model import BaseModel
from nemo_openmath.training.certificate.first_step import check
from nemo_openmath.training.certificate.report import NotCertified
from nemo_openmath.training.checkpoint import CheckpointStore
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.device import peak_flops, peak_memory_bytes
from nemo_openmath.training.forward_backward import BatchStats, ForwardBackward, RankBatch, total_loss
from nemo_openmath.training.metrics import LossGuard, TrainingDiverged, TrainingMetrics, console_line
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.planning.layouts import choose_exchange
from nemo_openmath.training.planning.memory import Layout
from nemo_openmath.training.profile import Phases, profiled
from nemo_openmath.training.rank_watch import RankWatch
from nemo_openmath.training.read_ahead import read_ahead
from nemo_openmath.training.resume import ResumePoint, decisive_settings, resume
from nemo_openmath.training.run_lock import RunLock, locked
from nemo_openmath.training.runtime import parallel_state_of, stop_signals
from nemo_openmath.training.schedule import learning_rate
from nemo_openmath.training.sharded_state import load_base

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    step: int
    loss: float  # of the last step; NaN when there was nothing left to do
    checkpoint: Path  # of the last step


def train(
    base: BaseModel,
    source: PackSource,
    config: TrainingConfig,
    output: Path,
    *,
    validation: PackSource | None = None,
    watch: RankWatch | None = None,
) -> TrainResult:
    """Train ``base`` on all steps of ``source``; go on from the newest valid checkpoint under ``output``.

    ``validation`` holds the samples held out. ``watch`` is told what this rank is at. Raises

    - UserError where another training runs in ``output``, or the one in it was begun with other data or another model,
    - :class:`Preempted` after SIGTERM or SIGUSR1, once everything is saved,
    - :class:`MachineFailure` where too many saves in a row have failed,
    - :class:`TrainingDiverged` before a step that would spoil the weights,
    - :class:`NotCertified` where ``config.certify`` and the first step's loss is not the certificate's.
    """
    if config.validation.every and validation is None:
        raise UserError(
            f"validation.every = {config.validation.every}, but nothing is held out",
            remedy="give data.validation or data.validation_share",
        )
    config.parallel.check(base.config, dist.get_world_size())
    with (
        locked(output) as run_lock,
        parallel_state_of(config.parallel, config.seed),
        stop_signals(run_lock) as asked_to_stop,
    ):
        return Trainer(base, source, config, output, validation, run_lock, asked_to_stop, watch).train()


class Trainer:
    """One rank's part of a training. All ranks call the same methods together."""

    def __init__(
        self,
        base: BaseModel,
        source: PackSource,
        config: TrainingConfig,
        output: Path,
        validation: PackSource | None,
        run_lock: RunLock | None,
        asked_to_stop: Callable[[], bool],
        watch: RankWatch | None = None,
    ):
        """Build the model and its optimizer and fill them: from the newest checkpoint, or from ``base``."""
        self.base, self.source, self.config, self.output, self.validation = base, source, config, output, validation
        self.run_lock, self.asked_to_stop, self.watch = run_lock, asked_to_stop, watch
        self.stop = False  # whether any rank was asked to stop: known to all ranks with each loss
        self.device = process_device()
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        backend = choose_backend(config.backend, dtype, self.device)
        self.models: list[PackedGPT] = build_model(
            base.config, config.parallel, dtype=dtype, recompute=config.recompute, backend=backend, device=self.device
        )
        log.info(_first_line(base.config, config, self.device, backend))
        self.identity = on_main(lambda: base.identity)
        self.store = CheckpointStore.open(output, source, config, self.device)
        newest = self.store.newest()
        if newest is None:
            load_base(base, self.models)
        self.optimizer = Optimizer.build(self.models, config)
        start = ResumePoint()
        if newest is not None:
            start = resume(newest, self.store, self.models, self.optimizer, self.identity, source, config)
        # Nothing is written before it is known that the training in the folder is this one.
        on_main(lambda: base.write_files(self.store.model_files, config.precision))
        self.first_step = start.step + 1
        self.guard = LossGuard(config.guard, start.recent_losses)
        self.forward_backward = ForwardBackward(
            self.models, self.optimizer.chunks, base.config, config.parallel, self._exchange(backend)
        )
        self.peak_flops = peak_flops(config.precision, self.device)
        if self.first_step <= source.num_steps:
            log.info(f"MFU is the share of {self.peak_flops / 1e12:,.3g} TFLOP/s, the peak of a process's device")
        self.metrics: TrainingMetrics | None = None
        on_main(lambda: self._open_metrics(start))

    def train(self) -> TrainResult:
        """Take all steps that are left; the last one is always saved. Raises what :func:`train` raises."""
        loss, num_steps = float("nan"), self.source.num_steps
        try:
            with read_ahead(self._read_batch, range(self.first_step, num_steps + 1)) as batches:
                for step in range(self.first_step, num_steps + 1):
                    with profiled(step, self.config.profile, self.output, self.device):
                        loss = self.train_step(step, batches)
                    if self.stop and step < num_steps:
                        how_far = f"saved after step {step} of {num_steps}"
                        raise Preempted(f"asked to stop: {how_far}; run the same command again to go on")
        except (
            Preempted,
            TrainingDiverged,
            NotCertified,
        ):  # raised in all ranks together: what is being written is finished
            self._finish()
            raise
        self._finish()
        return TrainResult(num_steps, loss, step_folder(self.store.root, num_steps))

    def train_step(self, step: int, batches: Iterator[RankBatch]) -> float:
        """Take step number ``step`` (from 1), validate and save where that is due, and return the batch's loss."""
        phases = Phases(self._enter, self.device)
        self._enter("read", step)
        with phases("read"):
            batch = next(batches)
        lr = learning_rate(step - 1, self.source.num_steps, self.config)
        with phases("compute"):
            with phases("forward_backward"):
                self.optimizer.zero_grad()
                part = self.forward_backward.run(batch)
            with phases("gradient"):
                grad_norm = self.optimizer.gradient_norm()
                loss, self.stop = total_loss(part, self.asked_to_stop())
            if step == 1 and self.config.certify:
                log.info(on_main(lambda: self._certify(loss)))
            self.guard.check(step, loss, grad_norm, batch.stats.sample_ids)  # before the weights change
            with phases("optimizer"):
                self.optimizer.step(grad_norm, lr)
        if self.watch is not None:
            self.watch.step_done(phases.step_seconds)
        record: dict[str, Any] = {"step": step, "loss": loss, "grad_norm": grad_norm, "lr": lr}
        record |= batch.stats.record()
        if step in self.config.profile.steps:
            record["profiled"] = True
        if self.validation is not None and self._is_due(step, self.config.validation.every) and not self.stop:
            with phases("validation"):
                validation_loss = self.validate(self.validation)
            if validation_loss is not None:
                record["validation_loss"] = validation_loss
            elif self.stop:
                log.info(f"asked to stop: step {step} is not validated")
        if self.stop or step in self.store.lasting or _divides(self.config.checkpoints.every, step):
            with phases("save"):
                self.save(step, record | self._speed_record(phases, batch.stats))
        self._enter("between")
        record |= self._speed_record(phases, batch.stats)
        if self.metrics is not None:
            is_shown = self._is_due(step, self.config.log_every) or "validation_loss" in record
            self.metrics.write(record, boards=is_shown)
            if is_shown:
                log.info(console_line(record, self.source.num_steps))
        return loss

    @torch.no_grad()
    def validate(self, held_out: PackSource) -> float | None:
        """Return the mean loss over all target tokens of ``held_out``, whatever their batches. None where there are
        none, or where a rank was asked to stop: then the validation is given up in the middle."""
        total, target_tokens = 0.0, 0
        for model in self.models:
            model.eval()
        for step in range(held_out.num_steps):
            self._enter("validation")
            packs = held_out.batch(step)
            if not any(pack.num_target_tokens for pack in packs):
                continue
            batch = self.forward_backward.shard(packs)
            part = self.forward_backward.run(batch, train=False)
            loss, self.stop = total_loss(part, self.asked_to_stop())
            if self.stop:
                break
            total += loss * batch.stats.num_target_tokens
            target_tokens += batch.stats.num_target_tokens
        for model in self.models:
            model.train()
        return total / target_tokens if target_tokens and not self.stop else None

    def save(self, step: int, record: Mapping[str, Any]) -> None:
        """Write the checkpoint after ``step``, and with it the step's ``record`` (its line of metrics.jsonl).

        Raises UserError where another training has taken the folder over, MachineFailure where too many saves in a row
        have failed.
        """
        on_main(self._before_save)
        state = {
            "fingerprint": self.source.fingerprint,
            "num_steps": self.source.num_steps,
            "layout": {"world_size": dist.get_world_size(), **asdict(self.config.parallel)},
            "recent_losses": self.guard.recent,
            "settings": decisive_settings(self.config),
            **self.identity,
        }
        needed = self.stop or step in self.store.lasting
        self.store.save(step, self.models, self.optimizer, state, notes={"record": dict(record)}, needed=needed)

    def _exchange(self, backend: str) -> Exchange | None:
        """Return how context ranks exchange keys, by the estimate of the plan for the first batch; None: it is not
        ours to say. Raises UserError where the setting asks for what the layers cannot do."""
        config = self.config
        wanted = config.context_exchange
        if config.parallel.cp == 1:
            return None
        if backend == "transformer_engine":
            if wanted == "all_gather":
                raise UserError(
                    "training.context_exchange = all_gather: TransformerEngine's layers exchange keys in a ring",
                    remedy="set training.context_exchange to auto, or training.backend to local",
                )
            return None
        if self.device.type == "cuda" and config.precision == "fp32" and wanted == "ring":
            raise UserError(
                "training.context_exchange = ring: a GPU's flash attention computes in bf16",
                remedy="set training.precision to bf16, or training.context_exchange to all_gather",
            )
        if wanted != "auto" or self.device.type == "cpu" or config.precision == "fp32":
            return "ring" if wanted == "ring" else "all_gather"

        def choose() -> Exchange:
            packs = self.source.batch(self.first_step - 1 if self.first_step <= self.source.num_steps else 0)
            data_parallel = config.parallel.data_parallel(dist.get_world_size())
            return choose_exchange(
                self.base.config,
                Layout(config.parallel, data_parallel, config.distributed_optimizer, config.recompute),
                capacity=max(len(pack.tokens) for pack in packs),
                micro_batches=-(-len(packs) // data_parallel),
                precision=config.precision,
                gpu_memory=torch.cuda.get_device_properties(self.device).total_memory,
            )

        exchange = on_main(choose)
        log.info(f"context_exchange: {exchange} (by its estimated memory)")
        return exchange

    def _open_metrics(self, start: ResumePoint) -> None:
        self.metrics = TrainingMetrics(self.output, self.config, start.step, start.record)

    def _certify(self, loss: float) -> str:
        return check(self.output, self.identity, self.source.fingerprint, self.config.precision, loss)

    def _before_save(self) -> None:
        """In rank 0: see that the folder is still ours, and that metrics.jsonl is not behind the checkpoint."""
        if self.run_lock is not None:
            self.run_lock.check()
        if self.metrics is not None:
            self.metrics.flush()

    def _read_batch(self, step: int) -> RankBatch:
        return self.forward_backward.shard(self.source.batch(step - 1))

    def _enter(self, phase: str, step: int | None = None) -> None:
        if self.watch is not None:
            self.watch.enter(phase, step)

    def _is_due(self, step: int, every: int) -> bool:
        return step == self.source.num_steps or _divides(every, step)

    def _speed_record(self, phases: Phases, stats: BatchStats) -> dict[str, Any]:
        flops = self.base.config.flops(stats.tokens, stats.sum_squared_lengths, stats.num_target_tokens)
        ideal_seconds = flops / (self.peak_flops * dist.get_world_size())
        return {
            **phases.record(),
            "tokens_per_second": round(stats.tokens / phases.step_seconds, 1),
            "mfu": round(ideal_seconds / phases.step_seconds, 4),
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def _finish(self) -> None:
        self._enter("save")
        self.store.wait()
        if self.metrics is not None:
            self.metrics.close()


def _first_line(model: ModelConfig, config: TrainingConfig, device: torch.device, backend: str) -> str:
    layout, data_parallel = config.parallel, config.parallel.data_parallel(dist.get_world_size())
    layers = "TransformerEngine's" if backend == "transformer_engine" else "our own"
    return (
        f"{model.num_parameters:,} parameters, {config.precision} on {device.type}; tp {layout.tp} x pp {layout.pp} x "
        f"cp {layout.cp} x dp {data_parallel}; layers: {layers}; recompute {config.recompute}"
    )


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
