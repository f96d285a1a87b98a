"""``openmath plan``: memory, time and GPU-hours of a training, and the layouts that fit."""

from __future__ import annotations

import argparse
from typing import Any

from nemo_openmath.cli.common import AGAIN, overrides, verb


def add(groups: Any) -> None:
    plan = verb(
        groups,
        "plan",
        "memory, time and GPU-hours of a training; the layouts that fit, best first",
        _plan,
        interrupted=AGAIN,
    )
    plan.add_argument("config", metavar="CONFIG", help="training job file (YAML), or a model such as qwen2.5-14b")
    overrides(plan, "training.parallel.tp=8 training.recompute=full")
    plan.add_argument("--gpus", type=int, required=True, metavar="N")
    plan.add_argument("--gpu", required=True, metavar="KIND", help="h100, h200, a100 or l4")
    plan.add_argument("--mfu", type=float, help="share of its peak that one GPU computes at; default 0.4, assumed")
    plan.add_argument("--capacity", type=int, metavar="TOKENS", help="of a pack; default: the job's packs, or 32768")
    plan.add_argument("--batch-samples", type=int, metavar="N", help="of a step; default: the job's, or 1024")
    plan.add_argument("--steps", type=int, metavar="N", help="of the training; default: the job's")
    plan.add_argument("--rows", type=int, default=15, metavar="N", help="layouts shown; 0: all (default 15)")


def _plan(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_openmath.training.planning.gpus import gpu
    from nemo_openmath.training.planning.layouts import make_plan
    from nemo_openmath.training.planning.speed import DEFAULT_MFU
    from nemo_openmath.training.planning.table import show
    from nemo_openmath.training.planning.workload import PlanOptions, read_workload

    numbers = PlanOptions(options.capacity, options.batch_samples, options.steps)
    work = read_workload(options.config, options.overrides, numbers)
    mfu = DEFAULT_MFU if options.mfu is None else options.mfu
    plan = make_plan(work, gpu(options.gpu), options.gpus, mfu)
    Console(soft_wrap=False).print(show(plan, max(0, options.rows)))
