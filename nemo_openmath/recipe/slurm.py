"""A recipe on a cluster: what a launcher must know of its stages, and their jobs written or submitted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch import AskedModel, Cluster, StageInfo, load_cluster, plan_jobs, submit, write_scripts
from nemo_openmath.launch.actions import refuse_queued
from nemo_openmath.launch.code_snapshot import write_code
from nemo_openmath.launch.report_job import report_job
from nemo_openmath.launch.run_files import read_run
from nemo_openmath.launch.view_graph import GRAPH, graph_lines, graph_svg
from nemo_openmath.launch.view_status import planned_nodes
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.recipe.preflight import check_output
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.snapshot import CLUSTER, RECIPE, write_snapshots
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import State
from nemo_openmath.training.stage import Sft


def launch_recipe(
    path: Path,
    overrides: Sequence[str],
    cluster_file: Path,
    output: Path,
    *,
    until: str | None,
    dry_run: bool,
    only: Sequence[str] = (),
) -> None:
    """Write the scripts of the stages that are not finished and submit them, unless ``dry_run``; print what was done.

    ``only``: these stages alone, where it names some; what they read must be finished.

    Raises UserError where the recipe, the cluster file or a file that a stage reads is wrong.
    """
    recipe = load_recipe(path, overrides)
    check_output(output, [path, *recipe.extends])
    identity.check(recipe, output)
    refuse_queued(output)
    cluster = load_cluster(cluster_file, list(recipe.stages))
    check_secrets(cluster)
    finished = finished_stages(recipe, output)
    jobs = plan_jobs(
        _chosen(stage_infos(recipe, output.resolve(), until), only, finished, recipe),
        cluster,
        finished=finished,
    )
    if not jobs:
        print("every stage is finished")
        return
    try:
        recipe.check_files([name for job in jobs if job.work != "server" for name in job.stages])
    except UserError as error:
        if not dry_run:
            raise
        print(f"not ready to run: {error}")
    snapshot, _ = write_snapshots(recipe, overrides, cluster_file, output, {"until": until})
    code = write_code(output.resolve() / "sbatch", copy=cluster.copies_code)
    jobs.append(report_job(jobs, cluster))
    script = write_scripts(jobs, cluster, snapshot, output, code=code)
    print(f"{len(jobs)} jobs: {script.parent}")
    nodes = planned_nodes(read_run(output))
    (script.parent / GRAPH).write_text(graph_svg(nodes, f"Jobs of {recipe.name}"))
    if dry_run:
        print("\n".join(graph_lines(nodes)))
        print(f"read them, then submit them: bash {script}")
        return
    identity.write(load_recipe(snapshot), (), output)
    print(submit(script), end="")
    print(f"follow them: openmath jobs watch {output}")


def resume_run(output: Path, only: Sequence[str] = (), *, dry_run: bool = False) -> None:
    """Submit what is not finished of a launched run again, from what lies in its folder alone: the snapshots of its
    recipe, overrides and cluster file. Raises UserError where nothing was launched there, or jobs are still queued."""
    read_run(output)
    recipe, cluster = (output / "sbatch" / name for name in (RECIPE, CLUSTER))
    for path in (recipe, cluster):
        if not path.is_file():
            raise UserError("is not there: the run cannot go on without it", file=path, remedy="launch it again")
    snapshot = load_recipe(recipe).source
    until = snapshot.snapshot.more.get("until") if snapshot is not None and snapshot.snapshot is not None else None
    launch_recipe(recipe, (), cluster, output, until=until, dry_run=dry_run, only=only)


def _chosen(
    infos: Sequence[StageInfo], only: Sequence[str], finished: frozenset[str], recipe: Recipe
) -> Sequence[StageInfo]:
    """The stages of ``infos`` that ``only`` names; all where it names none."""
    names = {recipe.entry(name).name for name in only}
    if not names:
        return infos
    for info in infos:
        missing = [name for name in info.after if name not in finished and name not in names]
        if info.name in names and missing:
            problem = f"stage {info.name!r} reads {', '.join(missing)}, not finished"
            raise UserError(problem, remedy="submit it, too: leave out --stage, or name both")
    return [info for info in infos if info.name in names]


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
        models=tuple(model for name in engines if (model := _asked_model(name, recipe, output)) is not None),
    )


def _asked_model(name: str, recipe: Recipe, output: Path) -> AskedModel | None:
    """Return how a model is asked for; None of the stand-in for the teacher, which the stage starts itself."""
    if name == "teacher":
        teacher = recipe.teacher
        if teacher.is_stand_in:
            return None
        folder = None if teacher.tokenizer is None else str(recipe.relative(teacher.tokenizer).resolve())
        urls = teacher.urls if teacher.url is None else (teacher.url,)
        return AskedModel(name, folder, teacher.model, urls=None if teacher.urls_file else urls)
    made = name if name in recipe.stages else None
    folder = str(output / name if made else recipe.relative(name).resolve())
    student = recipe.student
    elsewhere = student.kind == "http" and student.urls_file is None
    # the name that the embedded engine has for the model: it stands in the records, whose ids depend on it
    served_name = student.model if student.kind == "http" and student.model else Path(folder).name
    return AskedModel(name, folder, served_name, made, student.urls if elsewhere else None)


def check_secrets(cluster: Cluster) -> None:
    """Raise UserError for variables that the cluster file calls secrets and that are not set here."""
    if missing := [name for name in cluster.secrets if not os.environ.get(name)]:
        raise UserError(
            f"secrets of the cluster file that are not set: {', '.join(missing)}",
            remedy=f"export {missing[0]}=... in this shell: sbatch hands it on, and no file holds it",
        )
