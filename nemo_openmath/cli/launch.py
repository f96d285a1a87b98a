"""``openmath launch``: a recipe's stages as Slurm jobs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import overrides, verb


def add(groups: Any) -> None:
    launch = verb(groups, "launch", "run a recipe on Slurm: one job a stage, in the order of what they read", _launch)
    launch.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    overrides(launch, "stages.train1.training.lr=1e-4")
    launch.add_argument("--cluster", type=Path, required=True, metavar="FILE", help="see launcher_scripts/")
    launch.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run, on all nodes")
    launch.add_argument("--until", metavar="STAGE", help="stop after this stage")
    what = launch.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="list all that is missing or wrong; write nothing")
    what.add_argument("--dry-run", action="store_true", help="write DIR/sbatch/*.sh and submit nothing")


def _launch(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.slurm import launch_recipe

    register_all()
    launch_recipe(
        options.recipe,
        options.overrides,
        options.cluster,
        options.output,
        until=options.until,
        dry_run=options.dry_run,
        check=options.check,
    )
