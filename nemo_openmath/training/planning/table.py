"""A plan as text and tables for a terminal."""

from __future__ import annotations

from dataclasses import fields, replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nemo_openmath.training.planning.gpus import GIB
from nemo_openmath.training.planning.layouts import Estimate, Plan, estimate, with_exchange
from nemo_openmath.training.planning.memory import (
    COMMUNICATORS,
    FIXED_RESERVE,
    FRAGMENTATION,
    RECOMPUTE,
    Layout,
    Memory,
    host_memory,
    rank_tokens,
)
from nemo_openmath.training.planning.speed import LINK_EFFICIENCY

KINDS = {
    "weights": "weights",
    "gradients": "gradients (fp32)",
    "optimizer": "optimizer states",
    "activations": "activations",
    "logits": "logits and loss",
    "backward": "backward pass, beyond logits",
    "reserve": "reserve (assumed)",
}
assert set(KINDS) == {field.name for field in fields(Memory)}


def show(plan: Plan, rows: int) -> RenderableType:
    """Return the whole answer, with ``rows`` layouts at most (0: all)."""
    chosen = plan.configured or plan.offered
    return Group(_workload(plan), _memory(plan, chosen), _host(plan, chosen), _time(plan, chosen), _layouts(plan, rows))


def _workload(plan: Plan) -> Text:
    work, gpu = plan.work, plan.gpu
    return Text(
        "\n".join(
            (
                f"{work.name}: {work.model.num_parameters:,} parameters, {work.training.precision}; {plan.gpus} x "
                f"{gpu.name} ({gpu.memory // GIB} GiB, {gpu.peak / 1e12:,.0f} TFLOP/s)",
                f"a step: {work.batch_samples:,} samples, {work.packs:,} packs of {work.capacity:,}, "
                f"{work.tokens:,} tokens",
                f"        {work.num_target_tokens:,} target tokens, {work.flops:.3g} model FLOPs",
                *work.sources,
                *assumed_lines(plan),
            )
        )
    )


def assumed_lines(plan: Plan) -> tuple[str, ...]:
    """Return what every estimate of a plan assumes."""
    reserve = FIXED_RESERVE + (COMMUNICATORS if plan.gpus > 1 else 0)
    return (
        f"assumed: one GPU computes at {plan.mfu:.0%} of its peak (--mfu)",
        f"assumed: links at {LINK_EFFICIENCY:.0%} of theirs, nothing hidden behind computing",
        f"assumed: reserve of {reserve // GIB} GiB and {FRAGMENTATION:.0%} of what a step allocates",
        f"offered are layouts that leave {plan.headroom:.0%} of the memory free (--headroom); no GPU has run one",
    )


def _memory(plan: Plan, chosen: Estimate) -> Table:
    whose = "the configuration's layout" if plan.configured else "the offered layout"
    tokens = rank_tokens(chosen.layout.parallel, plan.work.capacity)
    title = f"GiB per GPU, {whose} (*); {tokens:,} tokens of a pack on each"
    table = Table(title=title, title_justify="left", min_width=len(title), caption=describe(chosen.layout))
    table.add_column("recompute")
    by_mode = {}
    for mode in RECOMPUTE:
        table.add_column(mode + (" *" if mode == chosen.layout.recompute else ""), justify="right")
        layout = with_exchange(plan.work, replace(chosen.layout, recompute=mode), plan.gpu)
        by_mode[mode] = estimate(plan.work, layout, plan.gpu, plan.mfu).memory
    for kind, name in KINDS.items():
        table.add_row(name, *(_gib(getattr(memory, kind)) for memory in by_mode.values()))
    table.add_section()
    table.add_row("total", *(_gib(memory.total) for memory in by_mode.values()))
    fits = ("yes" if memory.total <= plan.gpu.memory else "no" for memory in by_mode.values())
    table.add_row(f"fits {plan.gpu.memory // GIB}", *fits)
    return table


def _host(plan: Plan, chosen: Estimate) -> Text:
    host = host_memory(plan.work.model, chosen.layout, plan.work.training.precision)
    needs = f"{_gib(host.saving)} GiB while a checkpoint is written, {_gib(host.loading)} GiB while one is loaded"
    return Text(f"host memory of a rank for checkpoints: {needs}")


def _time(plan: Plan, chosen: Estimate) -> Text:
    time, work = chosen.time, plan.work
    shares = f"computing {time.computing:.2f}, bubble {time.bubble:.2f}, communication {time.communication:.2f}"
    lines = [f"a step: {time.total:.2f} s ({shares}), {work.tokens / time.total:,.0f} tokens/s, MFU {chosen.mfu:.0%}"]
    if work.steps is None:
        lines.append(f"GPU-hours: {chosen.gpu_hours(1000):,.0f} for 1,000 steps (--steps)")
    else:
        days = work.steps * time.total / 86400
        lines.append(f"GPU-hours: {chosen.gpu_hours(work.steps):,.0f} for {work.steps:,} steps, {days:.1f} days")
    if (lighter := plan.without_recomputation) is not None:
        saved = 1 - lighter.time.total / time.total
        needs = f"{_gib(lighter.memory.total)} of {plan.gpu.memory // GIB} GiB"
        lines.append(f"recomputation is not needed: without it {needs}, and a step takes {saved:.0%} less")
    if plan.surcharge:
        best = plan.offered
        lines.append(f"this layout takes {plan.surcharge:.0%} longer than the offered one: {describe(best.layout)}")
    return Text("\n".join(lines))


def _layouts(plan: Plan, rows: int) -> Table:
    count = len(plan.fits)
    shown = plan.fits[:rows] if rows else plan.fits
    more = f", the best {len(shown)} (--rows 0: all)" if len(shown) < count else ""
    legend = "sp: sequence parallel; do: distributed optimizer\n>: offered; !: leaves less than the headroom free"
    legend += "; *: the configuration's" if plan.configured else ""
    legend += "; cp r: keys in a ring" if any(choice.layout.exchange == "ring" for choice in shown) else ""
    table = Table(title=f"Layouts that fit: {count}{more}", title_justify="left", caption=legend, padding=(0, 1, 0, 0))
    for name in ("tp", "pp", "vpp", "cp", "dp"):
        table.add_column(name, justify="right")
    table.add_column("sp")
    table.add_column("do")
    table.add_column("recompute")
    for name in ("GiB", "step s", "MFU", "GPU-hours" if plan.work.steps else "GPU-h/1000"):
        table.add_column(name, justify="right")
    if plan.offered not in shown:
        shown = (*shown, plan.offered)
    for choice in shown:
        layout, p = choice.layout, choice.layout.parallel
        is_configured = plan.configured is not None and layout == plan.configured.layout
        sizes = [str(size) for size in (p.tp, p.pp, p.vpp, p.cp, layout.data_parallel)]
        sizes[3] += " r" if layout.exchange == "ring" else ""
        flags = ["yes" if flag else "no" for flag in (p.sequence_parallel, layout.distributed_optimizer)]
        mark = "" if plan.has_headroom(choice) else " !"
        numbers = [_gib(choice.memory.total) + mark, f"{choice.time.total:.2f}", f"{choice.mfu:.1%}"]
        hours = f"{choice.gpu_hours(plan.work.steps or 1000):,.0f}"
        sizes[0] = ("> " if choice is plan.offered else "") + sizes[0]
        table.add_row(*sizes, *flags, layout.recompute + (" *" if is_configured else ""), *numbers, hours)
    return table


def describe(layout: Layout) -> str:
    """Return a layout in words: ``tp 8, cp 2, dp 4, sequence parallel, distributed optimizer, recompute full``."""
    p = layout.parallel
    sizes = (("tp", p.tp), ("pp", p.pp), ("vpp", p.vpp), ("cp", p.cp), ("dp", layout.data_parallel))
    words = [f"{name} {size}" for name, size in sizes if size > 1] or ["one process"]
    words += ["sequence parallel"] if p.sequence_parallel else []
    words += ["distributed optimizer"] if layout.distributed_optimizer else []
    words += ["keys in a ring"] if layout.exchange == "ring" else []
    words += ["TransformerEngine"] if layout.transformer_engine else []
    return ", ".join([*words, f"recompute {layout.recompute}"])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
