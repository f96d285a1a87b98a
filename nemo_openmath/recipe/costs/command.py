"""What ``openmath plan RECIPE`` does: from its options to the answer."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from nemo_openmath.core.errors import UserError
from nemo_openmath.recipe.costs.assumptions import read_assumptions, unknown_records
from nemo_openmath.recipe.costs.counts import StageCounts, solved_problems, stage_counts
from nemo_openmath.recipe.costs.saving import FailureOptions, saving_costs
from nemo_openmath.recipe.costs.tables import show_trainings
from nemo_openmath.recipe.costs.trainings import plan_training, training_stages
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.training.planning.gpus import gpu
from nemo_openmath.training.planning.layouts import HEADROOM
from nemo_openmath.training.planning.speed import DEFAULT_MFU
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

    @classmethod
    def of(cls, options: Namespace) -> PlanRequest:
        """Return the request of a parsed command line."""
        speed = options.write_speed
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
            failures=FailureOptions(
                options.mtbf_hours, None if speed is None else 1e9 * speed, options.recovery_minutes
            ),
        )


def plan_recipe(request: PlanRequest) -> RenderableType:
    """Return what each training of a recipe costs on the GPUs that were asked for. Raises UserError."""
    recipe = load_recipe(request.recipe, request.overrides)
    if request.gpus is None or request.gpu is None:
        raise UserError("how many GPUs, and which?", remedy="give --gpus N and --gpu KIND, or --cluster FILE")
    names = training_stages(recipe)
    if not names:
        raise UserError("no stage of this recipe trains", file=recipe.path, remedy="give --cluster FILE to price it")
    counts = counted(recipe, request)
    kind, plans, saving = gpu(request.gpu), [], []
    for name in names:
        plan = plan_training(
            recipe, name, kind, request.gpus, request.numbers, counts=counts, mfu=request.mfu, headroom=request.headroom
        )
        assert plan.plan.configured is not None
        nodes = -(-request.gpus // kind.per_node)
        settings = recipe.stages[name].stage.config.training.checkpoints
        plans.append(plan)
        saving.append(saving_costs(plan.plan.work, plan.plan.configured, nodes, settings, request.failures))
    return show_trainings(plans, saving, request.failures.lines())


def counted(recipe: Recipe, request: PlanRequest) -> dict[str, StageCounts]:
    """Return the counts of every stage, for so many problems as were asked for."""
    assumptions = read_assumptions(recipe, request.assumed)
    counts = stage_counts(recipe, assumptions)
    if request.problems is None:
        return counts
    solved = solved_problems(recipe, counts)
    if solved is None:
        sources = [n for n, e in recipe.stages.items() if counts[n].left is None and e.stage.record is not None]
        raise unknown_records(recipe, sources[:1] or list(recipe.stages)[:1])
    if not request.problems > 0:
        raise UserError(f"--problems {request.problems:g}", remedy="choose it above 0")
    return stage_counts(recipe, assumptions, request.problems / solved)
