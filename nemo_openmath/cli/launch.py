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
    launch.add_argument("--dry-run", action="store_true", help="write DIR/sbatch/*.sh and submit nothing")


def _launch(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.core.errors import UserError
    from nemo_openmath.launch import load_cluster, plan_jobs, submit, write_scripts
    from nemo_openmath.recipe import identity
    from nemo_openmath.recipe.file import load_recipe
    from nemo_openmath.recipe.preflight import check_output
    from nemo_openmath.recipe.slurm import finished_stages, stage_infos

    register_all()
    check_output(options.output)
    recipe = load_recipe(options.recipe, options.overrides)
    identity.check(recipe, options.output)
    cluster = load_cluster(options.cluster, list(recipe.stages))
    stages = stage_infos(recipe, options.output.resolve(), options.until)
    jobs = plan_jobs(
        stages,
        cluster,
        finished=finished_stages(recipe, options.output),
        teacher_name=None if recipe.teacher.is_stand_in else recipe.teacher.model,
    )
    if not jobs:
        print("every stage is finished")
        return
    try:
        recipe.check_files([job.stage for job in jobs])
    except UserError as error:
        if not options.dry_run:
            raise
        print(f"not ready to run: {error}")
    script = write_scripts(jobs, cluster, options.recipe, options.output, options.overrides)
    print(f"{len(jobs)} jobs: {script.parent}")
    if options.dry_run:
        print(f"read them, then submit them: bash {script}")
    else:
        print(submit(script), end="")
