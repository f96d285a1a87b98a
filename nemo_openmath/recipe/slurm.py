"""A recipe on a cluster: what a launcher must know of its stages, and their jobs written or submitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch import StageInfo, load_cluster, plan_jobs, submit, write_scripts
from nemo_openmath.launch.code_snapshot import write_code
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.recipe.preflight import check_output
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.snapshot import write_snapshots
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import State
from nemo_openmath.training.stage import Sft


def launch_recipe(
    path: Path, overrides: Sequence[str], cluster_file: Path, output: Path, *, until: str | None, dry_run: bool
) -> None:
    """Write the scripts of the stages that are not finished and submit them, unless ``dry_run``; print what was done.

    Raises UserError where the recipe, the cluster file or a file that a stage reads is wrong.
    """
    recipe = load_recipe(path, overrides)
    check_output(output, [path, *recipe.extends])
    identity.check(recipe, output)
    cluster = load_cluster(cluster_file, list(recipe.stages))
    jobs = plan_jobs(
        stage_infos(recipe, output.resolve(), until),
        cluster,
        finished=finished_stages(recipe, output),
        teacher_name=None if recipe.teacher.is_stand_in else recipe.teacher.model,
    )
    if not jobs:
        print("every stage is finished")
        return
    try:
        recipe.check_files([job.stage for job in jobs])
    except UserError as error:
        if not dry_run:
            raise
        print(f"not ready to run: {error}")
    snapshot, _ = write_snapshots(recipe, overrides, cluster_file, output, {"until": until})
    code = write_code(output.resolve() / "sbatch", copy=cluster.copies_code)
    script = write_scripts(jobs, cluster, snapshot, output, code=code)
    print(f"{len(jobs)} jobs: {script.parent}")
    if dry_run:
        print(f"read them, then submit them: bash {script}")
    else:
        print(submit(script), end="")


def stage_infos(recipe: Recipe, output: Path, until: str | None = None) -> list[StageInfo]:
    """Return what the launcher must know of the stages, in order, up to and including ``until``."""
    return [_info(recipe.stages[name], recipe, output) for name in StageSelection(until=until).names(recipe)]


def finished_stages(recipe: Recipe, output: Path) -> frozenset[str]:
    """Return the stages that ``recipe run`` would leave alone."""
    return frozenset(s.name for s in Run(recipe, output).status() if s.state is State.FINISHED)


def _info(entry: StageEntry, recipe: Recipe, output: Path) -> StageInfo:
    engines = entry.stage.engines()
    read = [name for names in entry.inputs.values() for name in names if isinstance(name, str)]
    models = [name for name in engines if name in recipe.stages]
    return StageInfo(
        name=entry.name,
        kind=entry.stage.kind,
        after=tuple(dict.fromkeys([*read, *models])),
        splits=entry.stage.splits,
        trains=isinstance(entry.stage, Sft),
        # the very text that RecipeServices asks its engine for: servers know models by name
        models=tuple(name if name == "teacher" else _folder(name, recipe, output) for name in engines),
    )


def _folder(name: str, recipe: Recipe, output: Path) -> str:
    return str(output / name if name in recipe.stages else recipe.relative(name).resolve())
