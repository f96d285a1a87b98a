"""What is trained: model, packs, tokens of a step, steps.

It comes from a training job's file, from a model's folder or name, or from a stage of a recipe. Each number says
whether it was given, measured in the job's packs, or assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from nemo_openmath.core.build import Builder
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.training.config import TrainingConfig, TrainingJob
from nemo_openmath.training.job import read_job
from nemo_openmath.training.planning.models import known_model, model_folder, unknown_model

# Assumed where no packs are at hand: log-normal lengths cut to a pack; and the recipe's pack, batch
# (arXiv 2504.16891, section 5.1) and share of tokens that are targets.
MEDIAN_LENGTH, SIGMA = 6000, 1.0
CAPACITY, BATCH_SAMPLES = 32768, 1024
TARGET_SHARE = 0.97
FILL = 0.99  # of packs


@dataclass(frozen=True)
class Workload:
    """A step of a training, and how many there are."""

    name: str
    model: ModelConfig
    training: TrainingConfig
    capacity: int  # tokens of a pack
    batch_samples: int
    packs: int  # of a step
    tokens: int  # of a step
    num_target_tokens: int
    sum_squared_lengths: int  # over the samples of a step
    longest: int  # sample
    steps: int | None  # of the whole training; None: not said
    has_layout: bool  # whether the configuration chose a layout
    sources: tuple[str, ...] = field(default=())  # where the numbers come from

    @property
    def flops(self) -> float:
        """Return the model FLOPs of a step, with nothing recomputed."""
        return self.model.flops(self.tokens, self.sum_squared_lengths, self.num_target_tokens)

    @property
    def head_flops(self) -> float:
        """Return those of :attr:`flops` that are the output layer's."""
        return self.model.flops(0, 0, self.num_target_tokens)


@dataclass(frozen=True)
class PlanOptions:
    """Numbers from the command line. Those that are None come from the job or its packs, or are assumed."""

    capacity: int | None = None
    batch_samples: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_samples", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}", remedy="choose it 1 or more")


@dataclass(frozen=True)
class _Preset:
    """The settings that ``key=value`` may change when CONFIG is a model's name."""

    training: TrainingConfig


def read_workload(config: str, overrides: Sequence[str] = (), options: PlanOptions | None = None) -> Workload:
    """Return the workload of ``config``: a job's file (training.job.read_job), a model's folder, or a model's name
    (training.planning.models).

    Raises UserError where it is none of them, for fp32, and for packs that are longer than the model's positions.
    """
    options, path = options or PlanOptions(), Path(config)
    if path.is_file():
        return _checked(_of_job(read_job(config, list(overrides)), options), path)
    folder = model_folder(path)
    model = known_model(config) if folder is None else ModelConfig.from_hf(folder)
    if model is None:
        raise unknown_model(config)
    name = config.lower() if folder is None else path.resolve().name
    return _checked(_of_model(name, model, overrides, options))


def _checked(work: Workload, file: Path | None = None) -> Workload:
    """Return the workload where a GPU can compute it."""
    if work.training.precision == "fp32":
        raise UserError(
            "training.precision = fp32: the GPU's flash attention computes in bf16",
            file=file,
            remedy="set training.precision=bf16",
        )
    if work.capacity > work.model.max_position_embeddings:
        raise UserError(
            f"packs of {work.capacity} tokens: {work.name} has {work.model.max_position_embeddings} positions",
            file=file,
            remedy=f"set --capacity to {work.model.max_position_embeddings} or less, or max_position_embeddings higher",
        )
    return work


def _of_model(name: str, model: ModelConfig, overrides: Sequence[str], options: PlanOptions) -> Workload:
    source = Source({"training": {"precision": "bf16"}}, {}, Path(name))
    for text in overrides:
        source._override(text)
    training = Builder(source.origin).build(_Preset, source.data).training
    has_layout = "parallel" in source.data["training"]
    return _assumed(name, model, training, options, has_layout)


def job_workload(job: TrainingJob, model: ModelConfig, options: PlanOptions | None = None) -> Workload:
    """Return the workload of a job whose model is ``model``, whether or not its folder is there yet.

    Raises UserError for fp32, and for packs that are longer than the model's positions.
    """
    return _checked(_of_job(job, options or PlanOptions(), model))


def _of_job(job: TrainingJob, options: PlanOptions, model: ModelConfig | None = None) -> Workload:
    options = replace(options, batch_samples=options.batch_samples or job.data.batch_samples)
    options = replace(options, steps=options.steps or job.data.steps)
    name = job.model.name
    note: tuple[str, ...] = ()
    if model is None:
        name, model, note = _model(job)
    if not (job.data.folder / "packs.plan").is_file():
        work = _assumed(name, model, job.training, options, True)
        missing = f"no packs in {job.data.folder} yet"
        return replace(work, sources=(*note, missing, *work.sources))
    from nemo_openmath.data.batches.packed_data import PackedData

    assert options.batch_samples is not None
    epochs = job.data.epochs if options.steps is None else None
    data = PackedData.open(
        job.data.folder,
        batch_samples=options.batch_samples,
        epochs=epochs,
        steps=options.steps,
        seed=job.data.seed,
        validation_share=job.data.validation_share,
    )
    plan = data.plan
    lengths = np.concatenate([folder.lengths() for folder in plan.samples.folders])[np.asarray(plan.entries)]
    lengths = lengths.astype(np.int64)
    folders = plan.samples.folders
    target_share = sum(folder.num_target_tokens for folder in folders) / sum(folder.num_tokens for folder in folders)
    capacity, fill, source = plan.capacity, plan.fill, f"measured in the packs of {job.data.folder}"
    if options.capacity is not None and options.capacity != plan.capacity:
        capacity, fill = options.capacity, FILL
        if lengths.max() > capacity:
            raise UserError(
                f"the longest sample has {lengths.max()} tokens", remedy=f"set --capacity to {lengths.max()} or more"
            )
    samples = _Samples(capacity, fill, lengths, target_share, source)
    work = _mean_step(name, model, job.training, options, True, samples)
    return replace(work, steps=data.num_steps, sources=(*note, *work.sources))


def _model(job: TrainingJob) -> tuple[str, ModelConfig, tuple[str, ...]]:
    """Return name and configuration of the job's model, and a note where they are the preset of its folder's name,
    because the folder is not there yet."""
    changes, name = job.model_changes, job.model.name
    if (folder := model_folder(job.model)) is not None:
        return name, ModelConfig.from_hf(folder).with_changes(**changes), ()
    if (model := known_model(name)) is not None:
        return name, model.with_changes(**changes), (f"model: {name} as we know it, no folder yet",)
    raise UserError("no model's config.json", file=job.model, remedy="set model to a Hugging Face folder")


def _assumed(
    name: str, model: ModelConfig, training: TrainingConfig, options: PlanOptions, has_layout: bool
) -> Workload:
    capacity = options.capacity or min(CAPACITY, model.max_position_embeddings)
    ranks = (np.arange(1000) + 0.5) / 1000
    exponents = np.array([NormalDist(0, SIGMA).inv_cdf(float(rank)) for rank in ranks])
    lengths = np.minimum(MEDIAN_LENGTH * np.exp(exponents), capacity)
    source = (
        f"assumed: lengths log-normal, median {MEDIAN_LENGTH}, sigma {SIGMA}, cut to a pack; {TARGET_SHARE:.0%} targets"
    )
    samples = _Samples(capacity, FILL, lengths, TARGET_SHARE, source)
    return _mean_step(name, model, training, options, has_layout, samples)


@dataclass(frozen=True)
class _Samples:
    """What a step is estimated from."""

    capacity: int  # tokens of a pack
    fill: float  # of packs
    lengths: np.ndarray  # tokens of each sample
    target_share: float  # of the tokens
    source: str  # where these numbers come from


def _mean_step(
    name: str,
    model: ModelConfig,
    training: TrainingConfig,
    options: PlanOptions,
    has_layout: bool,
    samples: _Samples,
) -> Workload:
    """Return a mean step of such samples."""
    batch_samples, lengths = options.batch_samples or BATCH_SAMPLES, samples.lengths
    tokens = round(batch_samples * float(lengths.mean()))
    return Workload(
        name=name,
        model=model,
        training=training,
        capacity=samples.capacity,
        batch_samples=batch_samples,
        packs=max(1, -(-tokens // round(samples.capacity * samples.fill))),
        tokens=tokens,
        num_target_tokens=round(samples.target_share * tokens),
        sum_squared_lengths=round(batch_samples * float((lengths.astype(np.float64) ** 2).mean())),
        longest=int(lengths.max()),
        steps=options.steps,
        has_layout=has_layout,
        sources=(f"samples {samples.source}",),
    )
