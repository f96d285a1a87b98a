"""The training loop. Runs inside every rank of an already launched process group."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.checkpoints.model_files import copy_model_files
from nemo_openmath.core.errors import ExitCode, Preempted, UserError
from nemo_openmath.data.batches.source import PackSource
from nemo_openmath.models.build import PackedGPT, build_model, choose_backend, load_hf
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.stop_tokens import StopTokens
from nemo_openmath.training.checkpoint import CheckpointStore, load_model
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.metrics import LossGuard, TrainingDiverged, TrainingMetrics, console_line
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.profile import Phases, profiled
from nemo_openmath.training.read_ahead import read_ahead
from nemo_openmath.training.run_lock import RunLock, locked, run_on_main
from nemo_openmath.training.runtime import is_main, parallel_state_of
from nemo_openmath.training.schedule import learning_rate
from nemo_openmath.training.step import BatchFacts, RankBatch, Stepper, total_loss, update
from nemo_openmath.training.used import model_facts, refuse_another_model

# Dense bf16 matrix peak in FLOP/s, from the vendors' data sheets.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}


SECONDS_BETWEEN_LINES = 30.0  # within a step


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    step: int
    loss: float  # of the last step; NaN when there was nothing left to do
    checkpoint: Path  # of the last step


def train(
    model: Path,
    source: PackSource,
    config: TrainingConfig,
    output: Path,
    *,
    validation: PackSource | None = None,
    batch_samples: int | None = None,
    changes: dict[str, Any] | None = None,
    ends: tuple[int, ...] = (),
    say: Callable[[str], None] = print,
) -> TrainResult:
    """Train ``model`` on all steps of ``source``; resumes from the newest valid checkpoint under ``output``.

    model: a Hugging Face folder, or a checkpoint folder whose weights (not optimizer) are the start. ``changes``:
    fields of its :class:`ModelConfig` to change, e.g. ``rope_theta``. ``ends``: ids of the tokens that the samples end
    in; the checkpoints' files name them. ``batch_samples`` turns ``checkpoints.epochs`` into steps. Raises UserError
    where another training runs in ``output``, and :class:`Preempted` after SIGTERM or SIGUSR1, once everything is
    saved.
    """
    if config.validation.every and validation is None:
        raise UserError(
            f"validation.every = {config.validation.every}, but nothing is held out",
            remedy="give data.validation or data.validation_share",
        )
    is_checkpoint = (model / step_folders.STATE).is_dir()
    files = step_folders.model_files_of(model)
    shape = ModelConfig.from_hf(files).with_changes(**(changes or {}))
    config.parallel.check(shape, dist.get_world_size())
    opened = open_checkpoint(model, say=say if is_main() else _unsaid)
    with (
        locked(output) as run_lock,
        parallel_state_of(config.parallel, config.seed),
        _stop_signals(run_lock) as stopped,
    ):
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        models = build_model(shape, config.parallel, dtype=dtype, recompute=config.recompute, backend=config.backend)
        if is_main():
            say(_first_line(shape, config))
        store = _store(output, source, config, batch_samples, say)
        newest = store.newest(say)
        facts = model_facts(shape, opened)
        if newest is None:
            if is_main() and step_folders.list_checkpoints(store.root):
                say(f"no valid checkpoint is left under {store.root}: starting from {model}")
            if is_checkpoint:
                step_folders.verify(model)
                load_model(model, models)
            else:
                load_hf(models, shape, opened.read)
        optimizer = Optimizer.build(models, config)
        first, found = 0, dict[str, Any]()
        if newest is not None:
            refuse_another_model(newest, step_folders.read_manifest(newest).training, facts)
            found = store.load(newest, models, optimizer, source.fingerprint)
            first, before = int(found["step"]), int(found["num_steps"])
            if first > source.num_steps:
                raise UserError(
                    f"this checkpoint is of step {first}, the job ends after step {source.num_steps}",
                    file=newest,
                    remedy="ask for more steps, or choose another output folder",
                )
            changed = _changed(found.get("settings"), config)
            if first == source.num_steps and changed:
                raise UserError(
                    f"this training has finished, with other settings: {changed}",
                    file=output,
                    remedy="choose another output folder, or ask for more steps",
                )
            if is_main():
                if first == source.num_steps:
                    say(f"finished before: all {first} steps are done and saved ({newest}); nothing to do")
                else:
                    say(f"resuming after step {first} ({newest.name})")
                if changed:
                    say(f"from here on with other settings: {changed}")
                if before != source.num_steps:
                    say(f"{before} steps were planned before, {source.num_steps} are now: the learning rate follows")
        if is_main():  # nothing is written before it is known that the training in the folder is this one
            _write_model_files(files, store.model_files, shape, config, ends)
        run = _Run(models, optimizer, store, shape, source, config, output, validation, say, stopped, run_lock, facts)
        try:
            return run.steps(first, found)
        except TrainingDiverged:  # all ranks raise it: what is being written is finished
            store.wait()
            raise


class _Run:
    def __init__(
        self,
        models: list[PackedGPT],
        optimizer: Optimizer,
        store: CheckpointStore,
        shape: ModelConfig,
        source: PackSource,
        config: TrainingConfig,
        output: Path,
        validation: PackSource | None,
        say: Callable[[str], None],
        stopped: Callable[[], bool],
        run_lock: RunLock | None,
        facts: dict[str, Any],
    ) -> None:
        self.models, self.optimizer, self.store, self.shape = models, optimizer, store, shape
        self.source, self.config, self.output, self.validation = source, config, output, validation
        self.say, self.stopped, self.run_lock, self.facts = say, stopped, run_lock, facts
        self.guard = LossGuard(config.guard)
        self._said_at = 0.0
        self.stepper = Stepper(models, optimizer.chunks, shape, config)
        self.peak_flops = _peak_flops(config.precision)
        if is_main():
            self.stepper.on_pack = self._within_a_step

    def _within_a_step(self, done: int, count: int, seconds: float) -> None:
        """A line now and then while a step takes long."""
        if seconds - self._said_at > SECONDS_BETWEEN_LINES or seconds < self._said_at:
            if seconds > SECONDS_BETWEEN_LINES:
                self.say(f"... {done} of {count} packs of this step, {seconds:.0f} s")
            self._said_at = seconds

    def steps(self, first: int, found: Mapping[str, Any]) -> TrainResult:
        """Trains from step ``first`` on; ``found``: what :meth:`_save` left in the checkpoint resumed from."""
        count, config = self.source.num_steps, self.config
        if is_main() and config.log_every and first < count:
            self.say(f"MFU is the share of {self.peak_flops / 1e12:,.3g} TFLOP/s, the peak of a process's device")
        metrics = TrainingMetrics(self.output, config, first, found.get("record")) if is_main() else None
        self.guard = LossGuard(config.guard, found.get("recent_losses", ()))
        loss, saved = float("nan"), first
        with read_ahead(self._batch, range(first, count)) as batches:
            for done in range(first + 1, count + 1):
                with profiled(done, config.profile, self.output):
                    loss, stop, was_saved = self._step(done, batches, metrics)
                saved = done if was_saved else saved
                if stop and done < count:
                    self.store.wait()
                    if metrics is not None:
                        metrics.close()
                    raise Preempted(
                        f"asked to stop: saved after step {done} of {count}; run the same command again to go on"
                    )
        if saved < count or first == count == 0:
            self._save(count, None)
        self.store.wait()
        if metrics is not None:
            metrics.close()
        return TrainResult(count, loss, step_folders.step_folder(self.store.root, count))

    def _batch(self, step: int) -> RankBatch:
        return self.stepper.shard(self.source.batch(step))

    def _step(
        self, done: int, batches: Iterator[RankBatch], metrics: TrainingMetrics | None
    ) -> tuple[float, bool, bool]:
        """The step after which ``done`` are done: its loss, whether to stop after it, whether it is saved."""
        count, config, phases = self.source.num_steps, self.config, Phases()
        start = time.perf_counter()
        batch = next(batches)
        read = time.perf_counter()
        lr = learning_rate(done - 1, count, config)
        check = self.guard.for_batch(done - 1, batch.facts.sample_ids)
        loss, norm, facts, stop = update(
            *(self.stepper, self.optimizer, batch, lr), check=check, stopping=self.stopped, phases=phases
        )
        computed = time.perf_counter()
        record: dict[str, Any] = {"step": done, "loss": loss, "grad_norm": norm, "lr": lr, **_counts(facts)}
        record |= {"profiled": True} if done in config.profile.steps else {}
        if self.validation is not None and _due(done, count, config.validation.every) and not stop:
            held_out, stop = self.validate()
            record |= {} if held_out is None else {"validation_loss": held_out}
            if stop and is_main():
                self.say(f"asked to stop: step {done} is not validated")
        evaluated = time.perf_counter()
        times = partial(_times, start, read, computed, evaluated, phases, facts, self._ideal(facts))
        saves = stop or done in self.store.lasting or _due(done, 0, config.checkpoints.every)
        if saves:
            self._save(done, record | times())
        record |= times()
        if metrics is not None:
            shown = _due(done, count, config.log_every) or "validation_loss" in record
            metrics.write(record, boards=shown)
            if shown:
                self.say(console_line(record, count))
        return loss, stop, saves

    def validate(self) -> tuple[float | None, bool]:
        """Mean loss over the held-out samples: total over target tokens, whatever their batches. And whether a rank
        was asked to stop: then the loss is None, given up in the middle."""
        assert self.validation is not None
        total, tokens, stop = 0.0, 0, False
        for model in self.models:
            model.eval()
        with torch.no_grad():
            for step in range(self.validation.num_steps):
                batch = self.validation.batch(step)
                if not any(pack.num_target_tokens for pack in batch):
                    continue
                part, facts = self.stepper.run(batch, train=False)
                loss, stop = total_loss(part, self.stopped())
                if stop:
                    break
                total += loss * facts.num_target_tokens
                tokens += facts.num_target_tokens
        for model in self.models:
            model.train()
        return (total / tokens if tokens and not stop else None), stop

    def _save(self, step: int, record: Mapping[str, Any] | None) -> None:
        """``record``: the step's line of metrics.jsonl, kept with the checkpoint."""
        run_on_main(lambda: self.run_lock.check() if self.run_lock else None)
        layout = {"world_size": dist.get_world_size(), **asdict(self.config.parallel)}
        facts = {"fingerprint": self.source.fingerprint, "num_steps": self.source.num_steps, "layout": layout}
        facts |= {"recent_losses": self.guard.recent, "settings": _decisive(self.config), **self.facts}
        self.store.save(step, self.models, self.optimizer, facts, {} if record is None else {"record": dict(record)})

    def _ideal(self, facts: BatchFacts) -> float:
        """Model FLOPs of the step over the devices' peak FLOP/s: the seconds it would take at 100%."""
        flops = self.shape.flops(facts.tokens, facts.sum_squared_lengths, facts.num_target_tokens)
        return flops / (self.peak_flops * dist.get_world_size())


def _unsaid(_line: str) -> None:
    """What another rank says."""


def _store(
    output: Path, source: PackSource, config: TrainingConfig, batch_samples: int | None, say: Callable[[str], None]
) -> CheckpointStore:
    """The checkpoint store, whose model files are those of ``OUTPUT/model``."""
    settings = config.checkpoints
    if settings.epochs and batch_samples is None:
        raise UserError("checkpoints.epochs needs the batch size in samples", remedy="give batch_samples to train()")
    per_epoch = source.num_samples / (batch_samples or 1)
    late = settings.unreached(source.num_steps, per_epoch)
    if late and is_main():
        say(f"no checkpoint after {', '.join(late)}: the training ends after step {source.num_steps}")
    return CheckpointStore(
        output / "checkpoints",
        output / "model",
        lasting=settings.lasting(source.num_steps, per_epoch),
        keep_last=settings.keep_last,
        asynchronous=torch.cuda.is_available() if settings.asynchronous is None else settings.asynchronous,
    )


def _write_model_files(
    files: Path, own_files: Path, shape: ModelConfig, config: TrainingConfig, ends: tuple[int, ...]
) -> None:
    """The trained model's config.json and tokenizer files, where the texts end as the data taught (see
    :mod:`nemo_openmath.models.stop_tokens`)."""
    copy_model_files(files, own_files)
    dtype = "bfloat16" if config.precision == "bf16" else "float32"
    (own_files / "config.json").write_text(json.dumps(shape.to_hf(dtype), indent=2))
    StopTokens.of(files).taught(ends).write(own_files)


def _decisive(config: TrainingConfig) -> dict[str, Any]:
    """The settings that decide what is learned; the layout and what is only watched are not among them."""
    names = ("lr", "final_lr_ratio", "schedule", "warmup", "weight_decay", "decay_norms_and_biases", "beta1", "beta2")
    return {name: getattr(config, name) for name in (*names, "epsilon", "clip", "precision", "seed")}


def _changed(before: Mapping[str, Any] | None, config: TrainingConfig) -> str:
    """``lr was 0.001, is 0.002``; empty where nothing that matters has changed, or nothing is known of before."""
    now = _decisive(config)
    return ", ".join(f"{k} was {v}, is {now[k]}" for k, v in (before or {}).items() if k in now and now[k] != v)


def _first_line(shape: ModelConfig, config: TrainingConfig) -> str:
    layout, data_parallel = config.parallel, config.parallel.data_parallel(dist.get_world_size())
    layers = "TransformerEngine's" if choose_backend(config.backend) == "transformer_engine" else "our own"
    return (
        f"{shape.num_parameters:,} parameters, {config.precision}; tp {layout.tp} x pp {layout.pp} x cp {layout.cp} x "
        f"dp {data_parallel}; layers: {layers}; recompute {config.recompute}"
    )


def _due(step: int, last: int, every: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _counts(facts: BatchFacts) -> dict[str, Any]:
    return {
        "tokens": facts.tokens,
        "trained_tokens": facts.num_target_tokens,
        "samples": facts.samples,
        "fill": round(facts.fill, 5),
    }


def _times(
    start: float, read: float, computed: float, evaluated: float, phases: Phases, facts: BatchFacts, ideal: float
) -> dict[str, Any]:
    """See training/profile.py."""
    end = time.perf_counter()
    step = computed - start
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 1024 * _peak_kilobytes()
    return {
        "seconds": round(end - start, 4),
        "read_seconds": round(read - start, 4),
        "compute_seconds": round(computed - read, 4),
        **{f"{name}_seconds": round(seconds, 4) for name, seconds in phases.seconds.items()},
        "validation_seconds": round(evaluated - computed, 4),
        "save_seconds": round(end - evaluated, 4),
        "tokens_per_second": round(facts.tokens / step, 1),
        "mfu": round(ideal / step, 4),
        "peak_memory_bytes": memory,
    }


def _peak_flops(precision: str) -> float:
    """FLOP/s of one device: the data sheet's for a GPU we know in bf16, else measured on a matrix product (ten
    rounds, the best; on CPU with this process's threads)."""
    device, dtype = "cpu", torch.float32
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        stated = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
        if stated is not None and precision == "bf16":
            return stated
        device, dtype = "cuda", torch.bfloat16 if precision == "bf16" else torch.float32
    size = 8192 if device == "cuda" else 512
    a, best = torch.ones(size, size, device=device, dtype=dtype), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def _stop_signals(run_lock: RunLock | None) -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM, SIGUSR1 or Ctrl-C came; the handlers are put back at the end. A second
    Ctrl-C ends this rank at once."""
    received: list[int] = []
    names = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def receive(number: int, _frame: object) -> None:
        if number == signal.SIGINT and number in received:
            os._exit(ExitCode.INTERRUPTED)
        received.append(number)
        if run_lock is not None:
            run_lock.stopping()

    before = {name: signal.signal(name, receive) for name in names}
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
