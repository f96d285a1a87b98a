#!/usr/bin/env python3
"""Merge models: linear, slerp, task arithmetic, TIES, DARE. With --sweep, one candidate per ratio of two models
(`openmath merge --sweep --benchmark` also evaluates them)."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from nemo_openmath.checkpoints.merge.combine import Candidate, merge, sweep
from nemo_openmath.checkpoints.script import ratios, run, weights_and_sources
from nemo_openmath.core.errors import UserError

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sources", nargs="*", help="models to merge")
parser.add_argument("--output", required=True, help="folder to write")
parser.add_argument("--method", default="linear", choices=["linear", "slerp", "task_arithmetic", "ties", "dare"])
parser.add_argument("--weights", nargs="+", metavar="W", help="one per model, for example 0.3 0.7")
parser.add_argument("--base", help="the model all were trained from (task_arithmetic, ties, dare)")
parser.add_argument("--density", type=float, default=0.5, help="part of each difference that ties and dare keep")
parser.add_argument("--seed", type=int, default=0, help="of dare's choice")
parser.add_argument("--format", choices=["same", "hf", "megatron"], default="same")
parser.add_argument("--sweep", type=ratios, help="parts of the second model, for example 0,0.1,...,1")


def work(options: argparse.Namespace) -> Path | Iterator[Candidate]:
    weights, sources = weights_and_sources(options.weights, options.sources)
    shared = {name: getattr(options, name) for name in ("base", "density", "seed", "format")}
    if options.sweep is None:
        return merge(options.method, sources, options.output, weights=weights, **shared)
    if weights is not None:
        raise UserError("a sweep sets the weights itself", remedy="leave --weights out")
    return sweep(sources, options.output, options.sweep, method=options.method, **shared)


if __name__ == "__main__":
    run(work, parser.parse_args())
