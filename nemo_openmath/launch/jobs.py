"""From stages and a cluster to jobs: what each runs, on what, after which others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch.cluster import Cluster, Container, ModelServer, Resources


@dataclass(frozen=True)
class StageInfo:
    """What a launcher must know of a stage. ``after``: stages it reads. ``splits``: whether an array of jobs may share
    it. ``models``: folders of the models that it generates with, ``teacher`` for the recipe's teacher."""

    name: str
    kind: str
    after: tuple[str, ...] = ()
    splits: bool = False
    trains: bool = False
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServedModel:
    """A model server inside a job. ``overrides``: how ``recipe run`` is told about it; the job fills in ``$url``."""

    model: str
    name: str
    command: str
    container: Container
    overrides: tuple[str, ...]
    start_seconds: int


@dataclass(frozen=True)
class SlurmJob:
    """One sbatch script. ``work``: the template's name, ``stage`` or ``training``."""

    stage: str
    kind: str
    work: Literal["stage", "training"]
    after: tuple[str, ...]
    nodes: int
    gpus: int
    cpus: int
    memory: str | None
    time: str | None
    partition: str | None
    array: int
    running: int | None
    server: ServedModel | None


def plan_jobs(
    stages: Sequence[StageInfo],
    cluster: Cluster,
    *,
    finished: frozenset[str] = frozenset(),
    teacher_name: str | None = None,
) -> list[SlurmJob]:
    """Jobs of the stages that are not finished, or that depend on one that is not, in order.

    ``teacher_name``: what the recipe's teacher is called by its server; None: the stand-in, which needs no server.
    """
    jobs: list[SlurmJob] = []
    submitted: set[str] = set()
    for stage in stages:
        waits = tuple(name for name in stage.after if name in submitted)
        if stage.name in finished and not waits:
            continue
        submitted.add(stage.name)
        jobs.append(_job(stage, waits, cluster, teacher_name))
    return jobs


def _job(stage: StageInfo, after: tuple[str, ...], cluster: Cluster, teacher_name: str | None) -> SlurmJob:
    got = cluster.resources(stage.name, stage.kind)
    array, nodes = got.array or 1, got.nodes or 1
    if array > 1 and not stage.splits:
        raise UserError(f"stage {stage.name!r} ({stage.kind}) cannot be split into an array of {array} jobs",
                        remedy="leave out array")  # fmt: skip
    if nodes > 1 and not stage.trains:
        raise UserError(f"stage {stage.name!r} ({stage.kind}) runs on one node, not on {nodes}",
                        remedy="give it array: to use more machines")  # fmt: skip
    return SlurmJob(
        stage=stage.name,
        kind=stage.kind,
        work="training" if stage.trains else "stage",
        after=after,
        nodes=nodes,
        gpus=got.gpus or 0,
        cpus=got.cpus or 1,
        memory=got.memory,
        time=got.time,
        partition=got.partition or cluster.partition,
        array=array,
        running=got.running,
        server=_server(stage, got, cluster, teacher_name),
    )


def _server(stage: StageInfo, got: Resources, cluster: Cluster, teacher_name: str | None) -> ServedModel | None:
    """The server that the stage's job starts; None where the recipe's own engine does the work."""
    wanted: list[tuple[ModelServer, str, str, tuple[str, ...]]] = []
    for model in stage.models:
        if model == "teacher" and cluster.teacher is not None and teacher_name is not None:
            folder = str(cluster.teacher.model)
            wanted.append((cluster.teacher, folder, teacher_name, ("teacher.url=$url",)))
        elif model != "teacher" and cluster.server is not None:
            wanted.append((cluster.server, model, model, ("student.kind=http", "student.urls=[$url]")))
    if not wanted:
        return None
    if len(wanted) > 1:
        raise UserError(
            f"stage {stage.name!r} generates with {len(wanted)} models, and its job serves one",
            remedy="serve the teacher elsewhere (teacher.url of the recipe) and leave it out of the cluster file",
        )
    server, folder, name, overrides = wanted[0]
    container = server.container or cluster.container
    return ServedModel(folder, name, got.server or server.command, container, overrides, server.start_seconds)


def script_path(output: Path, stage: str) -> Path:
    """Where the sbatch script of a stage lies."""
    return output / "sbatch" / f"{stage}.sh"
