"""A launch as it is planned: the recipe, the cluster file and the jobs, and where each number of them was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from nemo_openmath.core.build import Key, Origin
from nemo_openmath.core.errors import UserError
from nemo_openmath.launch import Cluster, SlurmJob
from nemo_openmath.launch.cluster import Resources, RoleName
from nemo_openmath.launch.container import Container
from nemo_openmath.launch.model_server import ModelServer
from nemo_openmath.launch.serving import DEFAULT, ServedModel
from nemo_openmath.launch.slurm_limits import SlurmLimits
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.training.planning.gpus import GPUS, Gpu
from nemo_openmath.training.stage import Sft


@dataclass(frozen=True)
class PlannedStage:
    """A stage and the job that runs it."""

    entry: StageEntry
    job: SlurmJob

    @property
    def name(self) -> str:
        """Return the name of the stage."""
        return self.entry.name


@dataclass(frozen=True)
class PlannedServer:
    """A server of a model, and the stages that ask it."""

    served: ServedModel
    key: Key
    """Where the cluster file says it: ``servers``, the name of its entry."""
    stages: tuple[str, ...]

    @property
    def settings(self) -> ModelServer:
        """Return what the cluster file says of it."""
        return self.served.settings


@dataclass(frozen=True)
class PlannedLaunch:
    """What is about to be submitted."""

    recipe: Recipe
    cluster: Cluster
    origin: Callable[[Key], Origin]
    """Where the value of a setting of the cluster file was written."""
    jobs: list[SlurmJob]
    output: Path
    """The folder of the run, absolute."""
    slurm: SlurmLimits | None = None
    """What this cluster's Slurm says of itself; None where none answers here."""

    @cached_property
    def stages(self) -> list[PlannedStage]:
        """Return the stages that will run, in order."""
        jobs = [job for job in self.jobs if job.work in ("stage", "training")]
        return [PlannedStage(self.recipe.stages[name], job) for job in jobs for name in job.stages]

    @cached_property
    def names(self) -> list[str]:
        """Return the names of the stages that will run."""
        return [stage.name for stage in self.stages]

    @cached_property
    def servers(self) -> list[PlannedServer]:
        """Return the servers that jobs start, one for each name under which stages ask for a model."""
        asking: dict[tuple[str, str], tuple[ServedModel, list[str]]] = {}
        for stage in self.stages:
            for served in (*stage.job.servers, *(ask.server for ask in stage.job.asks)):
                asking.setdefault((served.folder, served.model.asked), (served, []))[1].append(stage.name)
        return [PlannedServer(served, self._entry(served), tuple(names)) for served, names in asking.values()]

    def _entry(self, served: ServedModel) -> Key:
        return "servers", served.model.key if served.model.key in self.cluster.servers else DEFAULT

    def trainings(self) -> Iterator[tuple[SlurmJob, StageEntry, Sft]]:
        """Yield the stages that train, with their jobs."""
        for planned in self.stages:
            if isinstance(planned.entry.stage, Sft):
                yield planned.job, planned.entry, planned.entry.stage

    # -- where it is written ------------------------------------------------------------------------------------------

    def error(self, key: Key, problem: str, remedy: str) -> UserError:
        """Return an error that names a setting of the cluster file and the line where it was written."""
        return self.origin(key).error(".".join(key), problem, remedy)

    def layer(self, job: SlurmJob, *names: str) -> Key:
        """Return the setting of the cluster file that says, last of all, one of these numbers of a job."""
        if job.work == "server":
            return self._of_server(job, names)
        cluster, stage = self.cluster, self.recipe.stages[job.stages[0]] if job.stages else None
        layers: list[tuple[Key, Resources | None]] = [(("default",), cluster.default)]
        if stage is not None:
            kind = stage.stage.kind
            layers += [
                (("kinds", kind), cluster.kinds.get(kind)),
                (("stages", stage.name), cluster.stages.get(stage.name)),
            ]
        written = [(*key, n) for key, layer in layers if layer for n in names if getattr(layer, n, None) is not None]
        if written:
            return written[-1]
        if "partition" in names:
            return self.of_role(self.role(job), "partition")
        return self._of_server(job, names) if job.servers else ("default",)

    def _of_server(self, job: SlurmJob, names: tuple[str, ...]) -> Key:
        entry = self._entry(job.servers[0])
        known = {field.name for field in fields(ModelServer)}
        renamed = ["jobs" if name == "array" else name for name in names]
        if renamed == ["partition"] and job.servers[0].settings.partition is None:
            return self.of_role("server", "partition")
        return (*entry, next((name for name in renamed if name in known), ""))[: 3 if set(renamed) & known else 2]

    def role(self, job: SlurmJob) -> RoleName:
        """Return the role whose settings a job has."""
        if job.work in ("training", "server"):
            return "training" if job.work == "training" else "server"
        return "gpu" if job.gpus else "cpu"

    def of_role(self, role: RoleName, setting: str, name: str | None = None) -> Key:
        """Return the setting of a role, or of the whole cluster where the role leaves it: of ``environment`` that of a
        variable ``name``."""
        value = None if role == "gpu" else getattr(getattr(self.cluster.roles, role), setting)
        own = name in value if name is not None and value is not None else value is not None
        key: Key = ("roles", role, setting) if own else (setting,)
        return key if name is None else (*key, name)

    # -- where it runs ------------------------------------------------------------------------------------------------

    def containers(self) -> Iterator[tuple[Key, Container, list[Path]]]:
        """Yield the containers of the jobs and of the servers: the setting that says each, and the paths that its
        commands read and write."""
        used: dict[Key, tuple[Container, list[Path]]] = {}
        for stage in self.stages:
            key = self.of_role(self.role(stage.job), "container")
            paths = used.setdefault(key, (stage.job.place.container, [self.output]))[1]
            paths += self.recipe.files(stage.entry)
            if "teacher" in stage.entry.stage.engines() and self.recipe.teacher.tokenizer is not None:
                paths.append(self.recipe.relative(self.recipe.teacher.tokenizer))
        for server in self.servers:
            key = self.server_container(server)
            used.setdefault(key, (server.served.place.container, []))[1].append(Path(server.served.folder))
        for key, (container, paths) in used.items():
            yield key, container, list(dict.fromkeys(paths))

    def server_container(self, server: PlannedServer) -> Key:
        """Return the setting that says the container of a server."""
        return (*server.key, "container") if server.settings.container else self.of_role("server", "container")

    def gpu_of(self, job: SlurmJob | None = None) -> Gpu | None:
        """Return the kind of a job's GPUs, or of those of servers; None where the cluster file does not say."""
        kind = self.cluster.default.gpu
        if job is not None and job.work in ("stage", "training"):
            stage = self.recipe.stages[job.stages[0]]
            kind = self.cluster.resources(stage.name, stage.stage.kind).gpu
        return GPUS[kind] if kind is not None else None
