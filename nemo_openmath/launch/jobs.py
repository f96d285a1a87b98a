"""From stages and a cluster to jobs: what each runs, on what, after which others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nemo_openmath.core.errors import UserError
from nemo_openmath.launch.cluster import Cluster, JobPlace, Resources, RoleName
from nemo_openmath.launch.model_server import ModelServer
from nemo_openmath.launch.serving import (
    AskedModel,
    PoolAddress,
    ServedModel,
    entry_of,
    refuse_misspelt_entries,
)
from nemo_openmath.launch.values import sum_of_memory


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
    models: tuple[AskedModel, ...] = ()
    """The models that it generates with."""
    gates: tuple[str, ...] = ()
    """The decisions of a loop before it: where one ends the loop, it is not needed."""


@dataclass(frozen=True)
class SlurmJob:
    """One sbatch script."""

    name: str
    """The name of its first stage; ``server.MODEL`` of a pool of servers."""
    kind: str
    """The kind of its stage, or what else it does."""
    work: Literal["stage", "training", "server", "report", "doctor"]
    """The name of the template."""
    stages: tuple[str, ...]
    """What it runs, in order; of a pool, the stages that ask it."""
    after: tuple[str, ...]
    """The jobs that must have succeeded before."""
    place: JobPlace
    nodes: int = 1
    gpus: int = 0
    """GPUs of each node."""
    tasks: int = 1
    """Tasks of each node."""
    cpus: int = 1
    """Processors of each task."""
    memory: str | None = None
    """Memory of each node."""
    time: str | None = None
    array: int = 1
    """How many jobs share the stage, or the serving; 1 is no array."""
    running: int | None = None
    """How many of them may run at a time."""
    servers: tuple[ServedModel, ...] = ()
    """The servers that it starts."""
    asks: tuple[PoolAddress, ...] = ()
    """The pools that it asks. The first job of each must have begun before."""
    client_jobs: tuple[str, ...] = ()
    """Of a pool: the jobs that ask it."""
    gates: tuple[str, ...] = ()
    """The decisions that make all its stages needless where they end a loop: the job ends at once then."""

    @property
    def stage(self) -> str:
        """The first stage, after which the job is named."""
        return self.stages[0]

    @property
    def partition(self) -> str | None:
        """The partition; None is that of the site."""
        return self.place.partition

    @property
    def asks_servers(self) -> bool:
        """Whether its stages are told of servers."""
        return self.work == "stage" and bool(self.servers or self.asks)

    def gpu_option(self, cluster: Cluster) -> str | None:
        """Return how sbatch is asked for the GPUs; None where it is not asked."""
        if not self.gpus or cluster.gpus_option == "none":
            return None
        if cluster.gpus_option == "--gres":
            return f"--gres=gpu:{self.gpus}"
        return f"{cluster.gpus_option}={self.gpus // self.tasks if 'task' in cluster.gpus_option else self.gpus}"


def plan_jobs(
    stages: Sequence[StageInfo], cluster: Cluster, *, finished: frozenset[str] = frozenset()
) -> list[SlurmJob]:
    """Return the jobs, in order, of the stages that are not finished, or that depend on one that is not.

    The jobs of a pool stand before the first stage that asks it. Raises UserError for what cannot run as it is asked.
    """
    refuse_misspelt_entries(cluster, [model for stage in stages for model in stage.models])
    todo: list[StageInfo] = []
    names: set[str] = set()
    for stage in stages:
        waits = tuple(name for name in stage.after if name in names)
        if stage.name not in finished or waits:
            names.add(stage.name)
            todo.append(replace(stage, after=waits))
    return _JobPlanner(todo, cluster).jobs()


class _JobPlanner:
    """The jobs of the stages that are to be done."""

    def __init__(self, todo: Sequence[StageInfo], cluster: Cluster):
        self._todo, self._cluster = todo, cluster
        self._jobs: dict[str, SlurmJob] = {}
        self._job_of: dict[str, str] = {}  # stage -> its job
        self._ancestors: dict[str, frozenset[str]] = {}  # stage -> all stages before it
        self._phases: dict[str, frozenset[str]] = {}  # pool -> the long stages before those that ask it
        self._labels: dict[str, str] = {}  # folder of a model -> its name in those of files and jobs
        for stage in todo:
            self._ancestors[stage.name] = frozenset(stage.after).union(*(self._ancestors[n] for n in stage.after))
        self._by_name = {stage.name: stage for stage in todo}

    def jobs(self) -> list[SlurmJob]:
        for stage in self._todo:
            got = self._cluster.resources(stage.name, stage.kind)
            if (shared := self._shared(stage, got)) is not None:
                self._jobs[shared.name] = replace(shared, stages=(*shared.stages, stage.name))
                self._job_of[stage.name] = shared.name
                continue
            job = self._job(stage, got)
            self._jobs[job.name] = job
            self._job_of[stage.name] = job.name
        return [replace(job, client_jobs=self._clients(job), gates=self._gates(job)) for job in self._jobs.values()]

    def _gates(self, job: SlurmJob) -> tuple[str, ...]:
        gates = [self._by_name[name].gates for name in job.stages]
        return tuple(gate for gate in gates[0] if all(gate in others for others in gates)) if gates else ()

    def _clients(self, pool: SlurmJob) -> tuple[str, ...]:
        if pool.work != "server":
            return ()
        return tuple(name for name, job in self._jobs.items() if any(ask.job == pool.name for ask in job.asks))

    def _job(self, stage: StageInfo, got: Resources) -> SlurmJob:
        _check_shape(stage, got)
        after = tuple(dict.fromkeys(self._job_of[name] for name in stage.after))
        servers, asks = self._models(stage, after)
        nodes = max([got.nodes or 1, *(s.settings.nodes for s in servers)])
        gpus = (got.gpus or 0) + sum(s.settings.gpus for s in servers)
        role: RoleName = "training" if stage.trains else "gpu" if gpus else "cpu"
        place = self._cluster.place(role)
        return SlurmJob(
            name=stage.name,
            kind=stage.kind,
            work="training" if stage.trains else "stage",
            stages=(stage.name,),
            after=after,
            place=replace(place, partition=got.partition or place.partition),
            nodes=nodes,
            gpus=gpus,
            tasks=max(gpus, 1) if stage.trains else 1,
            cpus=(got.cpus or 1) + sum(s.settings.cpus for s in servers),
            memory=sum_of_memory([got.memory, *(s.settings.memory for s in servers)]),
            time=got.time,
            array=got.array or 1,
            running=got.running,
            servers=servers,
            asks=asks,
        )

    # -- small stages share a job ------------------------------------------------------------------------------------

    def _shared(self, stage: StageInfo, got: Resources) -> SlurmJob | None:
        """Return the job that a small stage joins: the last one of which all that the stage reads is in it, or is
        waited for by it."""
        if not self._is_small(stage, got):
            return None
        for job in reversed(self._jobs.values()):
            first = self._by_name.get(job.name)
            if first is None or job.work != "stage" or not self._is_small(first, self._resources(first)):
                continue
            before = frozenset(job.stages).union(*(self._ancestors[name] for name in job.stages))
            if self._resources(first) == got and set(stage.after) <= before:
                return job
        return None

    def _resources(self, stage: StageInfo) -> Resources:
        return self._cluster.resources(stage.name, stage.kind)

    def _is_small(self, stage: StageInfo, got: Resources) -> bool:
        large = stage.trains or got.gpus or (got.array or 1) > 1 or self._entries(stage)
        return bool(got.small) and not large

    # -- models --------------------------------------------------------------------------------------------------------

    def _entries(self, stage: StageInfo) -> list[tuple[AskedModel, ModelServer]]:
        """The models that the cluster serves to a stage."""
        pairs = [(model, entry_of(self._cluster, model)) for model in stage.models]
        return [(model, entry) for model, entry in pairs if entry is not None]

    def _models(
        self, stage: StageInfo, after: tuple[str, ...]
    ) -> tuple[tuple[ServedModel, ...], tuple[PoolAddress, ...]]:
        """The servers that the stage's job starts, and the pools that it asks, whose jobs are planned by then."""
        served = [self._served(model, entry) for model, entry in self._entries(stage)]
        asks = tuple(self._pool(stage, server, after) for server in served if server.settings.jobs)
        local = tuple(server for server in served if not server.settings.jobs)
        if len(local) > 1:
            if any(server.settings.nodes > 1 for server in local) or self._cluster.gpus_option == "--gpus-per-task":
                labels = ", ".join(server.label for server in local)
                raise UserError(
                    f"stage {stage.name!r} asks {len(local)} models ({labels}), whose servers do not fit into one job",
                    remedy="write jobs: 1 or more for them under servers:",
                )
            offsets = [sum(s.settings.gpus for s in local[:i]) for i in range(len(local))]
            local = tuple(replace(s, gpu_offset=n) for s, n in zip(local, offsets, strict=True))
        return local, asks

    def _served(self, model: AskedModel, settings: ModelServer) -> ServedModel:
        folder = settings.model or model.folder
        if folder is None:
            raise UserError(f"servers.{model.key}: which model?", remedy="write model: and the folder of the weights")
        place = self._cluster.place("server")
        container, partition = settings.container or place.container, settings.partition or place.partition
        return ServedModel(
            model=model,
            folder=folder,
            label=self._label(folder, model.key),
            settings=settings,
            place=replace(place, container=container, partition=partition),
        )

    def _label(self, folder: str, key: str) -> str:
        """A model's name in those of files and jobs: its key, with a number where two folders have one name."""
        if folder not in self._labels:
            plain = re.sub(r"[^A-Za-z0-9_.-]", "-", key)
            same = sum(re.sub(r"~\d+$", "", label) == plain for label in self._labels.values())
            self._labels[folder] = f"{plain}~{same + 1}" if same else plain
        return self._labels[folder]

    # -- pools -----------------------------------------------------------------------------------------------------

    def _pool(self, stage: StageInfo, server: ServedModel, after: tuple[str, ...]) -> PoolAddress:
        """Plan the pool that a stage asks, unless it is planned already, and return where it is found.

        Servers hold GPUs while they wait for their clients. So stages share a pool only where no training and no
        generation with another model lies between them; a later stage has a pool of its own, which begins when that
        stage can.
        """
        between = frozenset(name for name in self._ancestors[stage.name] if self._is_long(name, server.label))
        number = 1
        while True:
            name = f"server.{server.label}" + (f".{number}" if number > 1 else "")
            job = self._jobs.get(name)
            if job is None:
                self._jobs[name] = self._server_job(name, server, after, stage)
                break
            if self._phases[name] == between:
                self._jobs[name] = replace(job, stages=tuple(dict.fromkeys([*job.stages, stage.name])))
                break
            number += 1
        self._phases[name] = between
        return PoolAddress(server, name)

    def _is_long(self, name: str, label: str) -> bool:
        stage = self._by_name[name]
        others = (self._label(s.model or m.folder or "", m.key) != label for m, s in self._entries(stage))
        return stage.trains or any(others)

    def _server_job(self, name: str, server: ServedModel, after: tuple[str, ...], stage: StageInfo) -> SlurmJob:
        settings = server.settings
        return SlurmJob(
            name=name,
            kind=f"a pool that serves {server.folder}",
            work="server",
            stages=(stage.name,),
            after=after,
            place=server.place,
            nodes=settings.nodes,
            gpus=settings.gpus,
            tasks=settings.tasks,
            cpus=max(1, settings.cpus // settings.tasks),
            memory=settings.memory,
            time=settings.time or self._cluster.default.time,
            array=settings.jobs,
            servers=(server,),
        )


def _check_shape(stage: StageInfo, got: Resources) -> None:
    if (got.array or 1) > 1 and not stage.splits:
        problem = f"stage {stage.name!r} ({stage.kind}) cannot be split into an array of {got.array} jobs"
        raise UserError(problem, remedy="leave out array")
    if (got.nodes or 1) > 1 and not stage.trains:
        problem = f"stage {stage.name!r} ({stage.kind}) runs on one node, not on {got.nodes}"
        raise UserError(problem, remedy="give it array: to use more machines")


def addresses(job: SlurmJob, output: Path) -> Mapping[str, Mapping[str, object]]:
    """Return what ``recipe run --servers`` is told of the servers of a job: by the name under which its stages ask."""
    return {
        **{s.model.asked: s.address(output / "sbatch" / "servers" / s.own_folder(job.name)) for s in job.servers},
        **{a.server.model.asked: a.server.address(output / "sbatch" / "servers" / a.folder) for a in job.asks},
    }


def script_path(output: Path, job: str) -> Path:
    """Return where the sbatch script of a job lies."""
    return output / "sbatch" / f"{job}.sh"
