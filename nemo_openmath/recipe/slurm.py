"""A recipe on a cluster: what a launcher must know of its stages, and their jobs written or submitted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.launch import AskedModel, StageInfo, load_cluster, plan_jobs, submit, write_scripts
from nemo_openmath.launch.actions import refuse_queued
from nemo_openmath.launch.code_snapshot import write_code
from nemo_openmath.launch.report_job import report_job
from nemo_openmath.launch.run_files import read_run
from nemo_openmath.launch.slurm_limits import slurm_limits
from nemo_openmath.launch.view_graph import GRAPH, graph_lines, graph_svg
from nemo_openmath.launch.view_status import planned_nodes
from nemo_openmath.recipe import identity
from nemo_openmath.recipe.file import Recipe, load_recipe
from nemo_openmath.recipe.launch_check.checks import check_launch, check_unplanned
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch
from nemo_openmath.recipe.preflight import caught, check_output
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
    check: bool = False,
    only: Sequence[str] = (),
) -> None:
    """Check what the stages that are not finished will need, write their scripts and submit them; print what was done.

    - ``check``: print what was found, and write nothing.
    - ``dry_run``: print it, write the scripts all the same, and submit nothing.
    - ``only``: these stages alone, where it names some; what they read must be finished.

    Raises UserError where the recipe, the cluster file or anything that a stage will need is wrong.
    """
    recipe = load_recipe(path, overrides)
    refused = caught(partial(check_output, output, [path, *recipe.extends]))
    refused += caught(partial(identity.check, recipe, output)) + caught(partial(refuse_queued, output))
    if refused and not check:
        raise refused[0]
    only = [recipe.entry(name).name for name in only]
    finished = finished_stages(recipe, output) if not refused else frozenset()
    names = StageSelection(until=until).names(recipe)
    todo = [name for name in names if name not in finished and (not only or name in only)]
    if not todo:
        print("every stage is finished")
        return
    try:
        launch = plan_launch(recipe, cluster_file, output, until, finished, only)
    except UserError as error:
        if not check:
            raise
        findings = check_unplanned(recipe, todo, output, error)
    else:
        findings = check_launch(launch)
    refused += [] if refused else Run(recipe, output).lost_work(todo)
    for refusal in refused:
        findings.add("recipe", refusal)
    if check or dry_run or findings.is_bad:
        print("\n".join(findings.lines()))
    if findings.is_bad and not dry_run:
        findings.refuse()
    if check:
        return
    snapshot, _ = write_snapshots(recipe, overrides, cluster_file, output, {"until": until})
    code = write_code(output.resolve() / "sbatch", copy=launch.cluster.copies_code)
    script = write_scripts(launch.jobs, launch.cluster, snapshot, output, code=code)
    print(f"{len(launch.jobs)} jobs: {script.parent}")
    nodes = planned_nodes(read_run(output))
    (script.parent / GRAPH).write_text(graph_svg(nodes, f"Jobs of {recipe.name}"))
    if dry_run:
        print("\n".join(graph_lines(nodes)))
        print(f"read them, then submit them: bash {shlex.quote(str(script))}")
        return
    identity.write(load_recipe(snapshot), (), output)
    print(submit(script), end="")
    print(f"follow them: openmath jobs watch {shlex.quote(str(output))}")


def plan_launch(
    recipe: Recipe,
    cluster_file: Path,
    output: Path,
    until: str | None = None,
    finished: frozenset[str] = frozenset(),
    only: Sequence[str] = (),
) -> PlannedLaunch:
    """Return the jobs of the stages that are not ``finished``, and where their numbers were written. Raises UserError
    for a cluster file that is wrong, or does not suit the recipe."""
    cluster = load_cluster(cluster_file, list(recipe.stages))
    infos = _chosen(stage_infos(recipe, output.resolve(), until), only, finished, recipe)
    jobs = plan_jobs(infos, cluster, finished=finished)
    jobs += [report_job(jobs, cluster)] if jobs else []
    return PlannedLaunch(recipe, cluster, Source.read(cluster_file).origin, jobs, output.resolve(), slurm_limits())


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
    launch_recipe(recipe, (), cluster, output, until=None if only else until, dry_run=dry_run, only=only)


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
    alone = (State.FINISHED, State.NEEDLESS)
    return frozenset(s.name for s in Run(recipe, output).status() if s.state in alone)


def _info(entry: StageEntry, recipe: Recipe, output: Path) -> StageInfo:
    engines = entry.stage.engines()
    return StageInfo(
        name=entry.name,
        kind=entry.stage.kind,
        after=tuple(dict.fromkeys(recipe.runs_after(entry))),
        gates=entry.gates,
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
