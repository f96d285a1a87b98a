"""What a training starts from, and the check that a training which goes on is still the one that was begun."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_openmath.checkpoints.checkpoint import Checkpoint, open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.checkpoints.model_files import copy_model_files
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.layout import Precision
from nemo_openmath.models.stop_tokens import StopTokens, special_ids

_REMEDY = "restore it, or choose another output folder"


@dataclass(frozen=True)
class BaseModel:
    """The model that a training starts from: a Hugging Face folder, or a checkpoint (``step-*``) of another training,
    of which the weights alone are taken."""

    folder: Path
    config: ModelConfig
    checkpoint: Checkpoint
    is_checkpoint: bool = False  # of a training; known from the beginning, so that no rank finds out otherwise later
    end_tokens: tuple[int, ...] = ()  # which the data teaches to end a text with; the trained model's files name them

    @classmethod
    def open(cls, folder: Path, changes: Mapping[str, Any] | None = None, *, quiet: bool = False) -> BaseModel:
        """Open ``folder``; no tensor is read yet.

        ``changes`` are fields of its :class:`ModelConfig` with new values, such as ``rope_theta``. What is left out of
        the folder is said, except with ``quiet``. Raises UserError or DamagedFile where the folder is no model or its
        files do not fit each other.
        """
        config = ModelConfig.from_hf(step_folders.model_files_of(folder)).with_changes(**(changes or {}))
        is_checkpoint = (folder / step_folders.STATE).is_dir()
        return cls(folder, config, open_checkpoint(folder, quiet=quiet), is_checkpoint)

    def view(self) -> tuple[Any, ...]:
        """Return what must be the same in all ranks that opened it."""
        tensors = [(name, tensor.shape, str(tensor.dtype)) for name, tensor in sorted(self.checkpoint.tensors.items())]
        digest = hashlib.sha256(repr((self.config, tensors)).encode()).hexdigest()
        return self.checkpoint.kind, str(self.checkpoint.path), self.is_checkpoint, digest

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the manifest of each checkpoint says about the model: its configuration (``model``), and a digest of the
        weights that the training started from (``source``)."""
        return {"model": json.loads(json.dumps(asdict(self.config))), "source": self.checkpoint.sampled_digest()}

    def write_files(self, folder: Path, precision: Precision) -> None:
        """Write the trained model's config.json and tokenizer files to ``folder``. They name :attr:`end_tokens` as what
        ends a text (see :mod:`nemo_openmath.models.stop_tokens`)."""
        files = step_folders.model_files_of(self.folder)
        copy_model_files(files, folder)
        dtype = "bfloat16" if precision == "bf16" else "float32"
        (folder / "config.json").write_text(json.dumps(self.config.to_hf(dtype), indent=2))
        StopTokens.of(files).taught(self.end_tokens).write(folder)


def end_tokens(model: Path, last_targets: Counter[int]) -> tuple[int, ...]:
    """Return the tokens that the data teaches to end a text with, the most frequent first.

    ``last_targets`` counts the last target token of each sample. A sample may also end in a word, because it was cut or
    its author went on: only tokens that stand for no text are taken.
    """
    special = special_ids(step_folders.model_files_of(model))
    return tuple(token for token, _ in last_targets.most_common() if token in special)


def refuse_another_model(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError where the training that wrote checkpoint ``folder`` had another model than this one; the first
    field that differs is named.

    ``before`` is what the checkpoint's manifest says, ``now`` the :attr:`BaseModel.identity`. Older checkpoints say
    nothing about their model and pass.
    """
    model_before = before.get("model")
    if not isinstance(model_before, dict):
        return
    for name, value in now["model"].items():
        if name in model_before and model_before[name] != value:
            problem = f"this training's model has {name} {model_before[name]!r}, the job says {value!r}"
            raise UserError(problem, file=folder, remedy=_REMEDY)
    if before.get("source") not in (None, now["source"]):
        problem = "this training started from other weights than those of the job's model"
        raise UserError(problem, file=folder, remedy=_REMEDY)


def refuse_used_output(output: Path, model: Path, changes: Mapping[str, Any]) -> None:
    """Raise UserError where the newest readable checkpoint under ``output`` is of another model than ``model`` with
    ``changes``: :func:`refuse_another_model`, before anything is written there."""
    for folder in reversed(step_folders.list_checkpoints(output / "checkpoints")):
        try:
            before = step_folders.read_manifest(folder).training
        except DamagedFile:
            continue
        return refuse_another_model(folder, before, BaseModel.open(model, changes, quiet=True).identity)
    return None
