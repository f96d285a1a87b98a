"""``openmath sft``: a training by itself, from a job file."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import at_least, overrides, verb

SFT_EXAMPLE = """\
model: ./my-model            # a Hugging Face folder
output: ./my-training        # checkpoints/step-*, metrics.jsonl
data: {folder: ./packs, batch_samples: 1024, epochs: 6}   # packed by a sft.pack stage
training: {lr: 1e-4, warmup: 0.1, checkpoints: {every: 500, average_k: 4}}
"""
_SFT = f"a JOB.yaml (paths are relative to it):\n\n{textwrap.indent(SFT_EXAMPLE, '  ')}\n" + (
    "every setting of `training`: openmath recipe stages training.sft; commented: examples/sft-job.yaml"
)

_SAVED = "what was saved is kept, the same command goes on from there"


def add(groups: Any) -> None:
    sft = verb(
        groups, "sft", "train on packed data with this machine's processes (a job file, YAML)", _sft, interrupted=_SAVED
    )
    sft.epilog = f"{sft.epilog}\n\n{_SFT}"
    sft.add_argument("job", type=Path, metavar="JOB.yaml", help="model, data, output, training: see below")
    overrides(sft, "training.lr=1e-4 training.parallel.tp=2")
    sft.add_argument("--processes", type=at_least(1), default=1, help="ranks; tp x pp x cp of them form a replica")
    sft.add_argument(
        "--certify",
        action="store_true",
        help="hold the first step's loss against a loss certificate, before the weights change (training.certify=true)",
    )
    sft.add_argument("--threads", type=at_least(1), default=1, help="of each process, on CPU")


def _sft(options: argparse.Namespace) -> None:
    from nemo_openmath.core.outputs import refuse_foreign_folder
    from nemo_openmath.core.progress import Progress
    from nemo_openmath.core.records.manifest import refuse_inside_stage
    from nemo_openmath.training.job import read_job
    from nemo_openmath.training.launch import launch
    from nemo_openmath.training.metrics import show

    if options.certify:
        options.overrides.append("training.certify=true")
    output = read_job(options.job, options.overrides).output
    if output.resolve() != options.job.resolve().parent:  # not the training of a stage, that goes on
        refuse_inside_stage(output)
        refuse_foreign_folder(
            output, "the folder of a training", ("checkpoints", "metrics.jsonl", "stacks", "certificate.json*")
        )

    def run(on_line: Callable[[str], None]) -> None:
        launch(options.processes, options.job, overrides=options.overrides, threads=options.threads, on_line=on_line)

    if not sys.stdout.isatty():  # a log: every line
        run(print)
    else:
        with Progress("sft") as progress:
            run(lambda line: show(line, progress))
    last = max(output.glob("checkpoints/step-*"))
    print(f"trained: {last}\nnext: openmath convert megatron-to-hf {last} {output}-hf")
