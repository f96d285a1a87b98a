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
    """What a launcher must know of a stage."""

    name: str
    kind: str
    after: tuple[str, ...] = ()
    """The stages that it reads."""
    splits: bool = False
    """Whether an array of jobs may share it."""
    trains: bool = False
    """Whether it is a training, whose ranks Slurm starts."""
    models: tuple[str, ...] = ()
    """Folders of the models that it generates with; ``teacher`` is the recipe's teacher."""


@dataclass(frozen=True)
class ServedModel:
    """A model server inside a job."""

    model: str
    """The model's folder."""
    name: str
    """The name under which clients ask for it."""
    command: str
    """Shell words that start the server."""
    container: Container
    overrides: tuple[str, ...]
    """How ``recipe run`` is told about the server; the job fills in ``$url``."""
    start_seconds: int
    """How long the job waits for it, in seconds."""


@dataclass(frozen=True)
class SlurmJob:
    """One sbatch script."""

    stage: str
    kind: str
    work: Literal["stage", "training"]
    """The name of the template."""
    after: tuple[str, ...]
    """The stages whose jobs must succeed before."""
    nodes: int
    gpus: int
    """GPUs of each node."""
    cpus: int
    """Processors of each task."""
    memory: str | None
    """Memory of each node."""
    time: str | None
    partition: str | None
    array: int
    """How many jobs share the stage; 1 is no array."""
    running: int | None
    """How many of them may run at a time."""
    server: ServedModel | None
    """The model server that the job starts."""


def plan_jobs(
    stages: Sequence[StageInfo],
    cluster: Cluster,
    *,
    finished: frozenset[str] = frozenset(),
    teacher_name: str | None = None,
) -> list[SlurmJob]:
    """Return the jobs, in order, of the stages that are not finished, or that depend on one that is not.

    ``teacher_name``: what the recipe's teacher is called by its server; None for the stand-in, which needs no server.
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
        problem = f"stage {stage.name!r} ({stage.kind}) cannot be split into an array of {array} jobs"
        raise UserError(problem, remedy="leave out array")
    if nodes > 1 and not stage.trains:
        problem = f"stage {stage.name!r} ({stage.kind}) runs on one node, not on {nodes}"
        raise UserError(problem, remedy="give it array: to use more machines")
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
    """Return where the sbatch script of a stage lies."""
    return output / "sbatch" / f"{stage}.sh"
