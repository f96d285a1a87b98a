"""A training job's file: read, and checked before any process is started."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from nemo_openmath.core.build import Builder
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.training.config import TrainingConfig, TrainingJob


def read_job(path: str | Path, overrides: list[str] | None = None) -> TrainingJob:
    """Read a job's file (YAML or JSON) with ``a.b=value`` overrides; relative paths are relative to the file.

    ``training.`` may be left out of an override: ``parallel.tp=2`` is ``training.parallel.tp=2``. Raises UserError that
    names file, row and remedy.
    """
    settings = {field.name for field in fields(TrainingConfig)}
    full = [f"training.{text}" if re.split(r"[.=]", text)[0] in settings else text for text in overrides or []]
    source = Source.read(path, full)
    return Builder(source.origin, Path(path).parent, taken_out=source.taken_out).build(TrainingJob, source.data)


def check_job(job: TrainingJob, processes: int) -> None:
    """Raise UserError for what can be refused before any rank is started.

    - a model that is missing or is not what it says,
    - a layout that does not divide ``processes`` or the model,
    - ``training.device = cuda`` with fewer GPUs than ``processes``,
    - packs that the layout cannot split,
    - a batch of more samples than there are,
    - an output folder in which another model was trained.
    """
    from nemo_openmath.data.packs.plan import PackPlan
    from nemo_openmath.training.base_model import BaseModel, refuse_used_output  # torch takes seconds to import
    from nemo_openmath.training.choose_device import refuse_few_gpus

    base = BaseModel.open(job.model, job.model_changes, quiet=True)  # rank 0 will say what is left out
    job.training.parallel.check(base.config, processes)
    refuse_few_gpus(job.training.device, processes)
    plan = PackPlan(job.data.folder)
    plan.require_multiple(job.training.parallel.sample_multiple)
    check_batch(job.data.batch_samples, len(plan.entries), job.data.folder)
    refuse_used_output(job.output, job.model, job.model_changes)


def check_batch(batch: int, samples: int, folder: Path) -> None:
    """Raise UserError for a batch that goes through the data more than once: one step of it may take longer than the
    training that was meant."""
    if batch > samples > 0:
        raise UserError(
            f"batch_samples = {batch:,} is more than the {samples:,} samples there are: a step would take all of them",
            file=folder,
            remedy=f"choose {samples:,} or fewer",
        )
