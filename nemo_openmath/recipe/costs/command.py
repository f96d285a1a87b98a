"""What ``openmath plan RECIPE`` does: from its options to the answer."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import RenderableType

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch.cluster import load_cluster
from nemo_openmath.recipe.costs.as_json import costs_json, trainings_json
from nemo_openmath.recipe.costs.assumptions import assumption_lines, read_assumptions, unknown_records
from nemo_openmath.recipe.costs.counts import StageCounts, solved_problems, stage_counts
from nemo_openmath.recipe.costs.saving import FailureOptions, saving_costs
from nemo_openmath.recipe.costs.tables import show_costs, show_trainings
from nemo_openmath.recipe.costs.trainings import plan_training, training_stages
from nemo_openmath.recipe.costs.whole import CostOptions, recipe_costs, unknown_sources
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.training.planning.gpus import Gpu, gpu
from nemo_openmath.training.planning.layouts import HEADROOM
from nemo_openmath.training.planning.speed import DEFAULT_MFU
from nemo_openmath.training.planning.table import assumed_lines
from nemo_openmath.training.planning.workload import PlanOptions


@dataclass(frozen=True)
class PlanRequest:
    """What was asked on the command line."""

    recipe: Path
    overrides: tuple[str, ...]
    gpus: int | None
    gpu: str | None
    mfu: float
    headroom: float
    numbers: PlanOptions
    assumed: tuple[str, ...]
    problems: float | None
    failures: FailureOptions
    cluster: Path | None = None
    price: float | None = None
    as_json: bool = False

    @classmethod
    def of(cls, options: Namespace) -> PlanRequest:
        """Return the request of a parsed command line."""
        if options.price is not None and not options.price > 0:
            raise UserError(f"--price {options.price:g}", remedy="choose it above 0")
        if options.cluster is not None and options.gpus is not None:
            raise UserError("--gpus and --cluster", remedy="leave out --gpus: the cluster file says it, by stage")
        return cls(
            recipe=Path(options.config),
            overrides=tuple(options.overrides),
            gpus=options.gpus,
            gpu=options.gpu,
            mfu=DEFAULT_MFU if options.mfu is None else options.mfu,
            headroom=HEADROOM if options.headroom is None else options.headroom,
            numbers=PlanOptions(options.capacity, options.batch_samples, options.steps),
            assumed=tuple(options.assume),
            problems=options.problems,
            failures=FailureOptions.of(options),
            cluster=options.cluster,
            price=options.price,
            as_json=options.json,
        )


def plan_recipe(request: PlanRequest) -> RenderableType | str:
    """Return what a recipe costs: each training on so many GPUs, or all stages on a cluster. A text is JSON.

    Raises UserError.
    """
    recipe = load_recipe(request.recipe, request.overrides)
    if request.cluster is not None:
        return _whole(recipe, request, request.cluster)
    if request.gpus is None or request.gpu is None:
        raise UserError("how many GPUs, and which?", remedy="give --gpus N and --gpu KIND, or --cluster FILE")
    return _trainings(recipe, request, gpu(request.gpu), request.gpus)


def _trainings(recipe: Recipe, request: PlanRequest, kind: Gpu, gpus: int) -> RenderableType | str:
    names = training_stages(recipe)
    if not names:
        raise UserError("no stage of this recipe trains", file=recipe.path, remedy="give --cluster FILE to price it")
    counts = counted(recipe, request)
    plans, saving = [], []
    for name in names:
        plan = plan_training(
            recipe, name, kind, gpus, request.numbers, counts=counts, mfu=request.mfu, headroom=request.headroom
        )
        assert plan.plan.configured is not None
        nodes = -(-gpus // kind.per_node)
        settings = recipe.stages[name].stage.config.training.checkpoints
        plans.append(plan)
        saving.append(saving_costs(plan.plan.work, plan.plan.configured, nodes, settings, request.failures))
    if request.as_json:
        return trainings_json(plans, saving)
    return show_trainings(plans, saving, request.failures.lines())


def _whole(recipe: Recipe, request: PlanRequest, file: Path) -> RenderableType | str:
    cluster = load_cluster(file, list(recipe.stages))
    failures = request.failures
    if failures.write_speed is None and cluster.write_gb_per_second is not None:
        failures = replace(failures, write_speed=1e9 * cluster.write_gb_per_second)
    assumptions, counts = read_assumptions(recipe, request.assumed), counted(recipe, request)
    if unknown := unknown_sources(recipe, counts):
        raise unknown_records(recipe, unknown)
    options = CostOptions(assumptions, failures, request.numbers, request.mfu, request.headroom, request.gpu)
    costs = recipe_costs(recipe, cluster, counts, options)
    if request.as_json:
        return costs_json(costs, request.price)
    texts = [*assumption_lines(recipe, assumptions, request.assumed), *failures.lines()]
    if costs.trainings:
        samples = [text for plan in costs.trainings for text in plan.plan.work.sources if text.startswith("samples")]
        texts += [*dict.fromkeys(samples), *assumed_lines(costs.trainings[0].plan)]
    return show_costs(costs, texts, request.price)


def counted(recipe: Recipe, request: PlanRequest) -> dict[str, StageCounts]:
    """Return the counts of every stage, for so many problems as were asked for."""
    assumptions = read_assumptions(recipe, request.assumed)
    counts = stage_counts(recipe, assumptions)
    if request.problems is None:
        return counts
    solved = solved_problems(recipe, counts)
    if solved is None:
        raise unknown_records(recipe, unknown_sources(recipe, counts) or list(recipe.stages)[:1])
    if not request.problems > 0:
        raise UserError(f"--problems {request.problems:g}", remedy="choose it above 0")
    return stage_counts(recipe, assumptions, request.problems / solved)
