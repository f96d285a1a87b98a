"""What a recipe costs, as text and tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nemo_openmath.recipe.costs.saving import SavingCosts
from nemo_openmath.recipe.costs.trainings import TrainingPlan
from nemo_openmath.training.planning.gpus import GIB
from nemo_openmath.training.planning.layouts import Estimate, Plan
from nemo_openmath.training.planning.table import assumed_lines, describe


def show_trainings(plans: Sequence[TrainingPlan], saving: Sequence[SavingCosts], sources: Sequence[str]) -> Group:
    """Return the trainings of a recipe: each stage's own layout beside the offered one, and how often to save."""
    return Group(
        lines(_head(plans[0].plan), *_sources(plans), *assumed_lines(plans[0].plan), *sources),
        _layouts(plans),
        *(_advice(plan) for plan in plans),
        saving_table([p.stage for p in plans], saving),
    )


def lines(*texts: str) -> Text:
    """Return lines of text."""
    return Text("\n".join(texts))


def _head(plan: Plan) -> str:
    return f"{plan.gpus} x {plan.gpu.name} ({plan.gpu.memory // GIB} GiB, {plan.gpu.peak / 1e12:,.0f} TFLOP/s)"


def _sources(plans: Sequence[TrainingPlan]) -> list[str]:
    texts = []
    for plan in plans:
        work = plan.plan.work
        steps = "" if work.steps is None else f", {work.steps:,} steps"
        texts.append(
            f"{work.name}: {work.model.num_parameters / 1e9:.1f}B parameters; {work.batch_samples:,} samples and "
            f"{work.tokens:,} tokens a step{steps}"
        )
        texts += [text for text in work.sources if text not in texts and not text.startswith("no packs")]
    return texts


def _layouts(plans: Sequence[TrainingPlan]) -> Table:
    table = Table(title="Layouts of the trainings", title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("stage")
    table.add_column("layout", overflow="fold")
    for name in ("GiB", "step s", "MFU", "GPU-hours", "days"):
        table.add_column(name, justify="right")
    for plan in plans:
        own, offered = plan.plan.configured, plan.plan.offered
        assert own is not None
        table.add_row(plan.stage, f"its own: {describe(own.layout)}", *_numbers(plan.plan, own))
        if own.layout != offered.layout:
            table.add_row("", f"offered: {describe(offered.layout)}", *_numbers(plan.plan, offered))
    return table


def _numbers(plan: Plan, choice: Estimate) -> list[str]:
    steps = plan.work.steps
    mark = "" if plan.has_headroom(choice) else " !" if choice.memory.total <= plan.gpu.memory else " no"
    hours = f"{choice.gpu_hours(steps):,.0f}" if steps else f"{choice.gpu_hours(1000):,.0f}/1000"
    days = f"{steps * choice.time.total / 86400:.1f}" if steps else ""
    return [f"{choice.memory.total / GIB:.1f}{mark}", f"{choice.time.total:.1f}", f"{choice.mfu:.0%}", hours, days]


def _advice(plan: TrainingPlan) -> Text:
    """The line that says that a layout costs more than it must, with what to change."""
    own, offered, fastest = plan.plan.configured, plan.plan.offered, plan.plan.fits[0]
    if (change := plan.advice) is None or own is None:
        return lines(f"{plan.stage}: its own layout is as good as the offered one")
    steps = plan.plan.work.steps
    unit = "GPU-hours" if steps else "GPU-hours for 1,000 steps"
    if own.memory.total > plan.plan.gpu.memory:
        problem = f"its own layout does not fit: {own.memory.total / GIB:.1f} GiB"
    else:
        share = change.own_hours / change.offered_hours - 1
        problem = f"its own layout costs {share:.0%} more: {change.own_hours:,.0f} against {change.offered_hours:,.0f}"
        problem += f" {unit}"
    if fastest is not offered:
        problem += f" (the fastest that fits, with less memory left: {fastest.gpu_hours(steps or 1000):,.0f})"
    return lines(f"{plan.stage}: {problem}. Change", *(f"  {word}" for word in change.settings))


def saving_table(stages: Sequence[str], costs: Sequence[SavingCosts]) -> Table:
    """Return how often each training saves and should save, and what is lost either way."""
    caption = "lost: share of the time, to saving and to what failures undo"
    table = Table(title="Checkpoints", title_justify="left", padding=(0, 1, 0, 0), caption=caption)
    table.add_column("stage")
    for name in ("GB each", "stops s", "written s", "failures/week", "every", "lost", "best", "lost", "GB/hour"):
        table.add_column(name, justify="right")
    for stage, cost in zip(stages, costs, strict=True):
        model = cost.failures
        table.add_row(
            stage,
            f"{cost.size / 1e9:,.0f}",
            f"{model.stall:.1f}",
            f"{model.writing or model.stall:.0f}",
            f"{7 * 86400 / model.mtbf:.2f}",
            f"{cost.every:,}" if cost.every else "never",
            f"{cost.own_lost:.2%}",
            f"{cost.best:,}",
            f"{cost.lost(cost.best):.2%}",
            f"{cost.bytes_per_hour / 1e9:,.0f}",
        )
    return table
