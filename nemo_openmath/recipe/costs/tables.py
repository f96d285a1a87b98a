"""What a recipe costs, as text and tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nemo_openmath.recipe.costs.saving import FailureOptions, SavingCosts
from nemo_openmath.recipe.costs.trainings import TrainingPlan
from nemo_openmath.recipe.costs.whole import GenerationCosts, RecipeCosts
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
    caption = "!: leaves less than the headroom free; no: does not fit"
    table = Table(title="Layouts of the trainings", title_justify="left", padding=(0, 1, 0, 0), caption=caption)
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


def beside(plan: RenderableType, name: str, cost: SavingCosts, failures: FailureOptions) -> Group:
    """Return the plan of one training, and below it how often to save."""
    return Group(plan, lines(*failures.lines()), saving_table([name], [cost]))


def saving_table(stages: Sequence[str], costs: Sequence[SavingCosts]) -> Table:
    """Return how often each training saves and should save, and what is lost either way."""
    caption = "lost: share of the time, to saving and to what failures undo; busy: share in which one is written"
    table = Table(title="Checkpoints", title_justify="left", padding=(0, 1, 0, 0), caption=caption)
    table.add_column("stage")
    for name in ("GB each", "stops s", "written s", "failures/week", "every", "lost", "best", "lost", "GB/h", "busy"):
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
            f"{cost.own_lost:.2%}" if cost.own_lost is not None else "-",
            f"{cost.best:,}",
            f"{cost.lost(cost.best):.2%}",
            f"{cost.bytes_per_hour / 1e9:,.0f}",
            f"{cost.busy:.1%}",
        )
    return table


def show_costs(costs: RecipeCosts, sources: Sequence[str], price: float | None) -> Group:
    """Return what a whole recipe costs: its stages, what its models generate, its trainings, the sum of all."""
    parts: list[RenderableType] = [lines(*sources), _stages(costs)]
    if generations := [part for stage in costs.stages for part in stage.generations]:
        parts.append(_generations(generations))
    if costs.trainings:
        parts += [_layouts(costs.trainings), *(_advice(plan) for plan in costs.trainings)]
        parts.append(saving_table([plan.stage for plan in costs.trainings], costs.saving))
    return Group(*parts, lines(*_sums(costs, price)))


def _stages(costs: RecipeCosts) -> Table:
    caption = "*: the whole takes as long as these; +N: a job reaches its time limit so often, and goes on"
    table = Table(title=f"{costs.name}: stages", title_justify="left", padding=(0, 1, 0, 0), caption=caption)
    table.add_column("stage")
    for name in ("jobs", "nodes x GPUs", "records", "GPU-hours", "node-h", "core-h", "hours", "disk GB"):
        table.add_column(name, justify="right")
    for stage in costs.stages:
        mark = " *" if stage.stage in costs.path else ""
        jobs = f"{stage.jobs}" + (f" ({stage.running})" if stage.running < stage.jobs else "")
        shape = f"{stage.nodes} x {stage.gpus}" if stage.gpus else ""
        records = "" if stage.records is None else f"{stage.records:,.0f}"
        gpu_hours = _hours(stage.gpu_hours)
        if stage.elsewhere_hours:
            gpu_hours = f"({_hours(stage.elsewhere_hours)})"
        again = f" +{stage.again}" if stage.again else ""
        hours = [gpu_hours, _hours(stage.node_hours), _hours(stage.core_hours), _hours(stage.seconds / 3600) + again]
        if stage.unpriced:
            hours = ["?", "?", "?", "?"]
        table.add_row(stage.stage + mark, jobs, shape, records, *hours, f"{stage.disk.peak / 1e9:,.1f}")
    return table


def _hours(hours: float) -> str:
    return "" if not hours else f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else "<0.1"


def _generations(parts: Sequence[GenerationCosts]) -> Table:
    caption = "server: in each job, of a pool, or elsewhere (its GPU-hours stand in brackets above); !: given"
    table = Table(title="Generation", title_justify="left", padding=(0, 1, 0, 0), caption=caption)
    table.add_column("stage")
    table.add_column("model", overflow="ellipsis", no_wrap=True)
    table.add_column("server")
    for name in ("x GPUs", "at once", "tok/s/GPU", "answers", "tokens", "prompt"):
        table.add_column(name, justify="right")
    for part in parts:
        table.add_row(
            part.stage,
            part.model if part.engine == "teacher" or "/" in part.engine else f"{part.engine}: {part.model}",
            part.where,
            f"{part.servers} x {part.server_gpus}",
            f"{part.in_flight:,.0f}",
            f"{part.tokens_per_gpu:,.0f}" + (" !" if part.given else ""),
            f"{part.answers:,.0f}",
            f"{part.answer_tokens:,.0f}",
            f"{part.prompt_tokens:,.0f}",
        )
    return table


def _sums(costs: RecipeCosts, price: float | None) -> list[str]:
    """The sentences that sum up."""
    stages = costs.stages
    trained = sum(s.gpu_hours for s in stages if s.kind == "training.sft")
    least = "at least " if any(stage.unpriced for stage in stages) else ""
    texts = [
        f"GPU-hours: {least}{costs.gpu_hours:,.0f} ({trained:,.0f} training, {costs.gpu_hours - trained:,.0f} "
        "generation); "
        f"node-hours with GPUs: {sum(s.node_hours for s in stages):,.0f}; "
        f"core-hours without: {sum(s.core_hours for s in stages):,.0f}"
    ]
    if costs.elsewhere_hours:
        texts.append(f"and {costs.elsewhere_hours:,.0f} GPU-hours of servers that are not in the cluster file")
    if price is not None:
        total = costs.gpu_hours + costs.elsewhere_hours
        texts.append(f"price: {price * total:,.0f} for {total:,.0f} GPU-hours at {price:g} each (--price)")
    lasting, peak = sum(s.disk.lasting for s in stages), sum(s.disk.peak for s in stages)
    texts.append(
        f"disk: {lasting / 1e12:,.2f} TB in the end, {peak / 1e12:,.2f} TB at most, models and data not counted"
    )
    texts.append(f"time: {least}{costs.seconds / 86400:.1f} days along {' > '.join(_long(costs))}")
    generations = [part for stage in stages for part in stage.generations if part.controls]
    if generations:
        hours = sum(part.gpu_seconds * part.controls / part.answers for part in generations) / 3600
        words = ", ".join(f"{part.controls:,.0f} in {part.stage}" for part in generations)
        texts.append(f"controls: answers to planted cases, {words}; {_hours(hours)} of the GPU-hours")
    texts.append("not in it: waiting for machines, servers that wait for a client, answers that end late")
    texts += [f"not priced: {s.stage}: {s.unpriced}" for s in stages if s.unpriced]
    texts += [f"without its second model: {s.stage}: {s.beside}" for s in stages if s.beside]
    return texts


def _long(costs: RecipeCosts) -> list[str]:
    """The stages of the path that take a hundredth of it or more."""
    seconds = {stage.stage: stage.seconds for stage in costs.stages}
    return [name for name in costs.path if seconds[name] >= 0.01 * costs.seconds]
