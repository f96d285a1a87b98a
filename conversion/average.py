#!/usr/bin/env python3
"""Average checkpoints (Hugging Face or Megatron), accumulated in fp32, streamed."""

import argparse
from pathlib import Path

from nemo_openmath.checkpoints.merge.combine import average
from nemo_openmath.checkpoints.script import numbers, run, weights_and_sources

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sources", nargs="*", help="checkpoints, or with --steps or --count the folder of a training")
parser.add_argument("--output", required=True, help="folder to write")
parser.add_argument("--weights", nargs="+", metavar="W", help="one per checkpoint; equal when left out")
parser.add_argument("--steps", type=numbers(int), help="for example 7500,15000,22500,30000")
parser.add_argument("--count", type=int, help="this many equally spaced steps, ending with the last")
parser.add_argument("--format", choices=["same", "hf", "megatron"], default="same")


def work(options: argparse.Namespace) -> Path:
    weights, sources = weights_and_sources(options.weights, options.sources)
    chosen = {"steps": options.steps, "count": options.count, "format": options.format}
    return average(sources, options.output, weights=weights, **chosen)


if __name__ == "__main__":
    run(work, parser.parse_args())
