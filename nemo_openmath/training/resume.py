"""Going on with a training: from its newest checkpoint, and only where it is the training that was begun."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.checkpoints.formats.step_folders import read_manifest
from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.source import PackSource
from nemo_openmath.models.build import PackedGPT
from nemo_openmath.training.agreement import alike
from nemo_openmath.training.base_model import refuse_another_model
from nemo_openmath.training.checkpoint import CheckpointStore
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.optimizer import Optimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a training goes on, beside weights and optimizer state."""

    step: int = 0  # steps done
    record: Mapping[str, Any] | None = None  # that step's line of metrics.jsonl
    recent_losses: Sequence[float] = ()  # of the loss guard


def resume(
    folder: Path,
    store: CheckpointStore,
    models: list[PackedGPT],
    optimizer: Optimizer,
    identity: Mapping[str, Any],
    source: PackSource,
    config: TrainingConfig,
) -> ResumePoint:
    """Fill ``models`` and ``optimizer`` from checkpoint ``folder`` and return where to go on. ``identity`` is that of
    the base model.

    Says what is different from before. Raises UserError where the checkpoint is of another model, other data, another
    precision or of a later step than ``source`` has, and where the training has finished with other settings.
    """
    manifest = alike(lambda: read_manifest(folder), lambda m: (m.step, len(m.files), m.training), str(folder))
    refuse_another_model(folder, manifest.training, identity)
    saved = store.load(folder, models, optimizer, source.fingerprint)
    step, num_steps_before = int(saved["step"]), int(saved["num_steps"])
    if step > source.num_steps:
        raise UserError(
            f"this checkpoint is of step {step}, the job ends after step {source.num_steps}",
            file=folder,
            remedy="ask for more steps, or choose another output folder",
        )
    changes = _changed_settings(saved.get("settings"), config)
    if step == source.num_steps and changes:
        raise UserError(
            f"this training has finished, with other settings: {changes}",
            file=store.root.parent,
            remedy="choose another output folder, or ask for more steps",
        )
    if step == source.num_steps:
        log.info(f"finished before: all {step} steps are done and saved ({folder}); nothing to do")
    else:
        log.info(f"resuming after step {step} ({folder.name})")
    if changes:
        log.info(f"from here on with other settings: {changes}")
    if num_steps_before != source.num_steps:
        log.info(f"{num_steps_before} steps were planned before, {source.num_steps} are now: the learning rate follows")
    return ResumePoint(step, saved.get("record"), saved.get("recent_losses", ()))


def decisive_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that decide what is learned. The layout and what is only watched are not among them."""
    names = ("lr", "final_lr_ratio", "schedule", "warmup", "weight_decay", "decay_norms_and_biases", "beta1", "beta2")
    return {name: getattr(config, name) for name in (*names, "epsilon", "clip", "precision", "seed")}


def _changed_settings(before: Mapping[str, Any] | None, config: TrainingConfig) -> str:
    """Return ``lr was 0.001, is 0.002``; empty where nothing that matters has changed, or nothing is known of
    before."""
    now = decisive_settings(config)
    return ", ".join(f"{k} was {v}, is {now[k]}" for k, v in (before or {}).items() if k in now and now[k] != v)
