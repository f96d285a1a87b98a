#!/usr/bin/env python3
"""Merge models: linear, slerp, task arithmetic, TIES, DARE. With --sweep, one candidate per ratio of two models
(`openmath merge --sweep --benchmark` also evaluates them)."""

import argparse

from nemo_openmath.checkpoints.combine import merge, sweep
from nemo_openmath.checkpoints.script import ratios, run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sources", nargs="+", help="models to merge")
parser.add_argument("--output", required=True, help="folder to write")
parser.add_argument("--method", default="linear", choices=["linear", "slerp", "task_arithmetic", "ties", "dare"])
parser.add_argument("--weights", type=float, nargs="+", help="one per model, for example 0.3 0.7")
parser.add_argument("--base", help="the model all were trained from (task_arithmetic, ties, dare)")
parser.add_argument("--density", type=float, default=0.5, help="part of each difference that ties and dare keep")
parser.add_argument("--seed", type=int, default=0, help="of dare's choice")
parser.add_argument("--format", choices=["same", "hf", "megatron"], default="same")
parser.add_argument("--sweep", type=ratios, help="parts of the second model, for example 0,0.1,...,1")

if __name__ == "__main__":
    options = parser.parse_args()
    shared = {name: getattr(options, name) for name in ("base", "density", "seed", "format")}
    if options.sweep is None:
        run(merge, options.method, options.sources, options.output, weights=options.weights, **shared)
    else:
        run(sweep, options.sources, options.output, options.sweep, method=options.method, **shared)
