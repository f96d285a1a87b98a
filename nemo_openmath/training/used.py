"""A training that goes on must be the one that was begun: what its checkpoints say about the model is compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_openmath.checkpoints.checkpoint import Checkpoint, open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.configs import ModelConfig

_REMEDY = "restore it, or choose another output folder"


def model_facts(shape: ModelConfig, source: Checkpoint) -> dict[str, Any]:
    """What a checkpoint's manifest says about its model: the configuration, and a digest of the weights that the
    training started from."""
    return {"model": json.loads(json.dumps(asdict(shape))), "source": source.sampled_digest()}


def refuse_another_model(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UserError naming the first field of the model in which the training of checkpoint ``folder``, whose manifest says
    ``before``, was another than ``now`` (:func:`model_facts`). Older checkpoints say nothing about their model."""
    was = before.get("model")
    if not isinstance(was, dict):
        return
    for name, value in now["model"].items():
        if name in was and was[name] != value:
            problem = f"this training's model has {name} {was[name]!r}, the job says {value!r}"
            raise UserError(problem, file=folder, remedy=_REMEDY)
    if before.get("source") not in (None, now["source"]):
        problem = "this training started from other weights than those of the job's model"
        raise UserError(problem, file=folder, remedy=_REMEDY)


def refuse_used(output: Path, model: Path, changes: Mapping[str, Any]) -> None:
    """The same for the newest checkpoint under ``output`` that can be read, before anything is written there."""
    for folder in reversed(step_folders.list_checkpoints(output / "checkpoints")):
        try:
            before = step_folders.read_manifest(folder).training
        except DamagedFile:
            continue
        shape = ModelConfig.from_hf(step_folders.model_files_of(model)).with_changes(**changes)
        return refuse_another_model(folder, before, model_facts(shape, open_checkpoint(model)))
    return None
