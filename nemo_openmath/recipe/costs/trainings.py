"""A training stage of a recipe as a workload: its memory, its time, and the layouts that fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.stage import PackSamples
from nemo_openmath.recipe.costs.assumptions import read_assumptions
from nemo_openmath.recipe.costs.counts import StageCounts, stage_counts
from nemo_openmath.recipe.costs.models import model_of
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.training.config import DataConfig, TrainingJob
from nemo_openmath.training.planning.gpus import Gpu
from nemo_openmath.training.planning.layouts import HEADROOM, Estimate, Plan, make_plan, own_layout
from nemo_openmath.training.planning.memory import Layout
from nemo_openmath.training.planning.speed import DEFAULT_MFU
from nemo_openmath.training.planning.workload import PlanOptions, Workload, job_workload
from nemo_openmath.training.stage import Sft


def training_stages(recipe: Recipe) -> list[str]:
    """Return the names of the stages that train a model, in order."""
    return [name for name, entry in recipe.stages.items() if isinstance(entry.stage, Sft)]


def training_memory(recipe: Recipe, name: str, gpu: Gpu, world: int) -> Estimate:
    """Return what the layout of a training stage needs on ``world`` GPUs: ``.memory.total`` bytes of each, to be held
    against ``gpu.memory``, and the seconds of a step.

    Raises UserError where the layout divides neither the GPUs nor the model, and where the model is not known.
    """
    return own_layout(training_workload(recipe, name), gpu, world, DEFAULT_MFU)


def training_workload(
    recipe: Recipe,
    name: str,
    options: PlanOptions | None = None,
    *,
    counts: Mapping[str, StageCounts] | None = None,
    output: Path | None = None,
) -> Workload:
    """Return the workload of a training stage.

    - model: its folder, else the sizes that we know by its name
    - packs: those of ``output``, a run's folder, where they are there; else of the capacity that ``sft.pack`` says,
      with assumed lengths
    - steps: those of the stage, or its epochs over as many rows as its packs hold (``counts``)

    ``options`` are laid over these. Raises UserError for a model that is not known.
    """
    entry, options = recipe.entry(name), options or PlanOptions()
    assert isinstance(entry.stage, Sft)
    config = entry.stage.config
    model = model_of(recipe, name)
    if model.config is None:
        raise entry.error(
            f"the sizes of {model.name} are not known, and there is no folder with config.json",
            "put the model's config.json there",
            "from.model",
        )
    packs = entry.inputs["packs"][0]
    folder = packs if isinstance(packs, Path) else (output or Path("no-run")) / packs
    job = TrainingJob(
        model=Path(model.name),
        data=DataConfig(folder, config.batch_samples, config.epochs, config.steps, entry.seed),
        output=Path(name),
        training=config.training,
    )
    if not (folder / "packs.plan").is_file():
        options = _with_packs(recipe, name, options, counts)
    try:
        work = job_workload(job, model.config, options)
    except UserError as error:
        remedy = error.remedy.replace("training.precision", f"stages.{name}.training.precision")
        raise entry.error(error.problem, remedy) from None
    return replace(work, name=f"{name}: {model.name}")


def _with_packs(
    recipe: Recipe, name: str, options: PlanOptions, counts: Mapping[str, StageCounts] | None
) -> PlanOptions:
    """Fill in what the packs that are not there yet would say."""
    entry = recipe.stages[name]
    config, packs = entry.stage.config, entry.inputs["packs"][0]
    maker = recipe.stages[packs].stage if isinstance(packs, str) else None
    capacity = maker.config.capacity if isinstance(maker, PackSamples) else None
    if counts is None:
        counts = stage_counts(recipe, read_assumptions(recipe))
    rows = counts[name].read
    steps = config.steps
    if steps is None and rows is not None:
        steps = max(1, math.ceil(config.epochs * rows / (options.batch_samples or config.batch_samples)))
    return PlanOptions(
        capacity=options.capacity or capacity,
        batch_samples=options.batch_samples,
        steps=options.steps or steps,
    )


@dataclass(frozen=True)
class TrainingPlan:
    """A training stage, the layouts that fit, and what to change where its own costs more than the offered one."""

    stage: str
    plan: Plan
    advice: LayoutAdvice | None


def plan_training(
    recipe: Recipe,
    name: str,
    gpu: Gpu,
    gpus: int,
    options: PlanOptions,
    *,
    counts: Mapping[str, StageCounts],
    mfu: float = DEFAULT_MFU,
    headroom: float = HEADROOM,
    said_by: str = "--gpus",
) -> TrainingPlan:
    """Return the plan of a training stage on ``gpus`` GPUs; ``said_by`` is what says how many.

    Raises UserError where nothing fits, where the stage's own layout divides neither the GPUs nor the model, and where
    the model is not known.
    """
    work = training_workload(recipe, name, options, counts=counts)
    try:
        plan = make_plan(work, gpu, gpus, mfu, headroom)
    except UserError as error:
        problem, remedy = error.problem, error.remedy.replace("training.parallel", f"stages.{name}.training.parallel")
        problem, remedy = (re.sub(r"--gpus\b", said_by, text) for text in (problem, remedy))
        raise recipe.stages[name].error(problem, remedy) from None
    return TrainingPlan(name, plan, advice(recipe, name, plan))


@dataclass(frozen=True)
class LayoutAdvice:
    """What to change in a recipe for the layout that a plan offers."""

    own_hours: float
    """GPU-hours at the recipe's own layout."""
    offered_hours: float
    settings: tuple[str, ...]
    """Overrides, as they are written on a command line."""


def advice(recipe: Recipe, name: str, plan: Plan) -> LayoutAdvice | None:
    """Return what to change where the layout of a training stage costs more than the offered one, or does not fit; None
    where it is as good."""
    own, offered = plan.configured, plan.offered
    if own is None or (not plan.surcharge and own.memory.total <= plan.gpu.memory):
        return None
    steps = plan.work.steps or 1000
    return LayoutAdvice(own.gpu_hours(steps), offered.gpu_hours(steps), _settings(recipe, name, offered.layout))


def _settings(recipe: Recipe, name: str, layout: Layout) -> tuple[str, ...]:
    entry, parallel = recipe.stages[name], layout.parallel
    before = entry.stage.config.training
    at = f"stages.{name}.training"
    words = [
        f"{at}.parallel.{field}={_yaml(getattr(parallel, field))}"
        for field in ("tp", "pp", "vpp", "cp", "sequence_parallel")
        if getattr(parallel, field) != getattr(before.parallel, field)
    ]
    for field in ("recompute", "distributed_optimizer"):
        if getattr(layout, field) != getattr(before, field):
            words.append(f"{at}.{field}={_yaml(getattr(layout, field))}")
    packs = entry.inputs["packs"][0]
    maker = recipe.stages[packs].stage if isinstance(packs, str) else None
    if isinstance(maker, PackSamples) and maker.config.pad_multiple % parallel.sample_multiple:
        words.append(f"stages.{packs}.pad_multiple={parallel.sample_multiple}")
    return tuple(words)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
