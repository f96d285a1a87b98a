"""``openmath plan``: memory, time and GPU-hours of a training or of a whole recipe, and the layouts that fit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, overrides, verb


def add(groups: Any) -> None:
    plan = verb(
        groups,
        "plan",
        "memory, time and GPU-hours of a training, of each training of a recipe, or of a whole recipe on a cluster",
        _plan,
        interrupted=AGAIN,
    )
    plan.add_argument(
        "config", metavar="CONFIG", help="recipe or training job file (YAML), a model's folder, or one as qwen2.5-14b"
    )
    overrides(plan, "training.parallel.tp=8 training.recompute=full; of a recipe stages.train1.training.recompute=none")
    plan.add_argument("--gpus", type=int, metavar="N", help="of the training; needed without --cluster")
    plan.add_argument(
        "--gpu", metavar="KIND", help="h100, l40s, or as nvidia-smi names it; default: what --cluster says"
    )
    plan.add_argument("--mfu", type=float, help="share of its peak that one GPU computes at; default 0.4, assumed")
    plan.add_argument("--headroom", type=float, help="share of a GPU's memory to leave free; default 0.1")
    plan.add_argument("--capacity", type=int, metavar="TOKENS", help="of a pack; default: the job's packs, or 32768")
    plan.add_argument("--batch-samples", type=int, metavar="N", help="of a step; default: the job's, or 1024")
    plan.add_argument("--steps", type=int, metavar="N", help="of the training; default: the job's or the recipe's")
    plan.add_argument("--rows", type=int, default=15, metavar="N", help="layouts shown; 0: all (default 15)")
    plan.add_argument("--json", action="store_true", help="print JSON")
    whole = plan.add_argument_group("of a recipe")
    whole.add_argument("--cluster", type=Path, metavar="FILE", help="price every stage on this cluster")
    whole.add_argument("--price", type=float, metavar="P", help="of a GPU-hour")
    whole.add_argument("--assume", action="append", default=[], metavar="KEY=VALUE", help="such as tokens.cot=9000")
    whole.add_argument("--problems", type=float, metavar="N", help="that the first generation solves")
    plan.add_argument("--mtbf-hours", type=float, metavar="H", help="between failures of a node; default 6335")
    plan.add_argument("--write-speed", type=float, metavar="GB/S", help="of a job to the shared disk; default 2")
    plan.add_argument("--recovery-minutes", type=float, metavar="M", help="from a failure to training; default 10")


def _plan(options: argparse.Namespace) -> None:
    from nemo_openmath.core.errors import UserError
    from nemo_openmath.recipe.file import is_recipe

    if is_recipe(Path(options.config)):
        _recipe(options)
        return
    given = [f"--{name}" for name in ("cluster", "price", "problems", "assume") if getattr(options, name)]
    if given:
        raise UserError(f"{given[0]} is of a recipe", file=options.config, remedy="give a recipe, or leave it out")
    if options.gpus is None or options.gpu is None:
        raise UserError("how many GPUs, and which?", remedy="give --gpus N and --gpu KIND, such as --gpu h100")
    _training(options)


def _training(options: argparse.Namespace) -> None:
    import orjson

    from nemo_openmath.recipe.costs.as_json import saving_json
    from nemo_openmath.recipe.costs.saving import FailureOptions, saving_costs
    from nemo_openmath.recipe.costs.tables import beside
    from nemo_openmath.training.planning.as_json import plan_json
    from nemo_openmath.training.planning.gpus import gpu
    from nemo_openmath.training.planning.layouts import HEADROOM, make_plan
    from nemo_openmath.training.planning.speed import DEFAULT_MFU
    from nemo_openmath.training.planning.table import show
    from nemo_openmath.training.planning.workload import PlanOptions, read_workload

    numbers = PlanOptions(options.capacity, options.batch_samples, options.steps)
    work = read_workload(options.config, options.overrides, numbers)
    mfu = DEFAULT_MFU if options.mfu is None else options.mfu
    headroom = HEADROOM if options.headroom is None else options.headroom
    kind, failures = gpu(options.gpu), FailureOptions.of(options)
    plan, rows = make_plan(work, kind, options.gpus, mfu, headroom), max(0, options.rows)
    nodes = -(-options.gpus // kind.per_node)
    saving = saving_costs(work, plan.configured or plan.offered, nodes, work.training.checkpoints, failures)
    if options.json:
        content = {**plan_json(plan, rows), "checkpoint": saving_json(saving)}
        _print(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(beside(show(plan, rows), work.name, saving, failures))


def _recipe(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.costs.command import PlanRequest, plan_recipe

    register_all()
    _print(plan_recipe(PlanRequest.of(options)))


def _print(answer: Any) -> None:
    """Print tables no wider than 100 columns, also where no terminal says its width; a text as it is."""
    from rich.console import Console

    if isinstance(answer, str):
        print(answer)
        return
    console = Console(soft_wrap=False)
    Console(soft_wrap=False, width=min(100, console.width) if console.is_terminal else 100).print(answer)
