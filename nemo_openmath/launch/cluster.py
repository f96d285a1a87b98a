"""The cluster file: where jobs run, in what container, and how much each kind of stage gets.

    partition: batch
    roles:
      cpu: {partition: cpu}          # jobs without GPUs
      server: {container: {runtime: pyxis, image: /images/vllm.sqsh, mounts: ["/data:/data"]}}
    container: {runtime: pyxis, image: /images/openmath.sqsh, mounts: ["/data:/data"]}
    servers:
      default: {gpus: 8, replicas: 8}                        # a server in each job that generates
      DeepSeek-R1: {nodes: 2, gpus: 8, jobs: 4, time: "1-0"} # a pool of four servers of two nodes
    default: {cpus: 16, time: "04:00:00"}
    kinds: {training.sft: {nodes: 8, gpus: 8}, rollout.generate: {array: 32}}
    stages: {base_cot: {array: 4}}

What a stage's job gets is written in three layers: ``default``, its kind, its name; the last one that says it counts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from nemo_openmath.core.bounds import Bounds, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_openmath.core.build import Builder, Key
from nemo_openmath.core.config import Source
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.launch.container import Container
from nemo_openmath.launch.model_server import ModelServer
from nemo_openmath.launch.notify import Notify
from nemo_openmath.launch.values import check_amounts, one_line, sbatch_option, time_limit

WarnSeconds = Annotated[int, Bounds(0, 65535)]  # what sbatch accepts
TEMPLATES = Path(__file__).parent / "templates"
"""The sbatch templates of the package."""
GpuKind = Literal[  # those of training.planning.gpus.GPUS
    "h100",
    "h100-pcie",
    "h100-nvl",
    "h200",
    "h200-nvl",
    "b200",
    "gb200",
    "a100",
    "a100-40gb",
    "a100-pcie",
    "a100-pcie-40gb",
    "l40s",
    "l4",
]


@dataclass(frozen=True)
class Role:
    """What jobs of one role have in place of, or beside, what the cluster file says for all."""

    partition: str | None = None
    """The partition. ``null`` is that of the cluster."""
    account: str | None = None
    """The account. ``null`` is that of the cluster."""
    sbatch: tuple[str, ...] = ()
    """Further options, beside those of the cluster."""
    container: Container | None = None
    """The container. ``null`` is that of the cluster; ``{runtime: none}`` is none."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables, beside those of the cluster."""
    modules: tuple[str, ...] | None = None
    """Modules. ``null`` is those of the cluster."""
    venv: str | None = None
    """Virtual environment. ``null`` is that of the cluster."""
    setup: tuple[str, ...] = ()
    """Further lines of shell, behind those of the cluster."""

    def __post_init__(self) -> None:
        for value in (self.partition, self.account):
            one_line(value or "")


@dataclass(frozen=True)
class Roles:
    """What jobs of each role have. Jobs with GPUs that neither train nor serve have what the cluster file says for
    all."""

    cpu: Role = field(default_factory=Role)
    """Jobs without GPUs."""
    training: Role = field(default_factory=Role)
    """Trainings."""
    server: Role = field(default_factory=Role)
    """Jobs of pools, and the servers inside other jobs."""


RoleName = Literal["cpu", "gpu", "training", "server"]


@dataclass(frozen=True)
class JobPlace:
    """Where and how a job runs: what the cluster file says for all, and for its role."""

    partition: str | None
    account: str | None
    sbatch: tuple[str, ...]
    container: Container
    environment: dict[str, str]
    modules: tuple[str, ...]
    venv: str | None
    setup: tuple[str, ...]

    def shell(self) -> list[str]:
        """Return the lines of shell with which the job begins. A venv is of the node: containers have their own."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        lines = ["module purge", f"module load {shlex.join(self.modules)}"] if self.modules else []
        if self.venv is not None and self.container.runtime == "none":
            lines.append(f"source {shlex.quote(self.venv + '/bin/activate')}")
        lines += self.setup
        return [*exports, "set +u # not every site's scripts can do without", *lines, "set -u"] if lines else exports


@dataclass(frozen=True)
class Resources:
    """What one job gets. ``null`` leaves it to the layer below: a stage to its kind, a kind to ``default``."""

    nodes: PositiveInt | None = None
    """Nodes of the job. More than one is for trainings alone."""
    gpus: NonNegativeInt | None = None
    """GPUs of each node."""
    gpu: GpuKind | None = None
    """What GPUs they are: memory is checked before anything is submitted. ``null`` checks none."""
    cpus: PositiveInt | None = None
    """Processors of each task. A training has one task for each rank, other jobs have one."""
    memory: str | None = None
    """Memory of each node, as sbatch takes it: ``64G``."""
    time: str | None = None
    """Time limit, as sbatch takes it: ``04:00:00``."""
    array: PositiveInt | None = None
    """How many jobs share the stage."""
    running: PositiveInt | None = None
    """How many jobs of the array may run at a time."""
    partition: str | None = None
    """The partition, in place of that of the cluster."""
    small: bool | None = None
    """Whether the stage may share a job with small stages before it: without GPUs, array and servers, and with the same
    resources."""

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus", "array", "running"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: write 1 or more")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus is {self.gpus}: write 0 or more")
        check_amounts(self.time, self.memory, self.partition)

    def under(self, above: Resources) -> Resources:
        """Return these resources, with whatever ``above`` says in their place."""
        set_here = {f.name: getattr(above, f.name) for f in fields(above) if getattr(above, f.name) is not None}
        return replace(self, **set_here)


@dataclass(frozen=True)
class Cluster:
    """A cluster: where jobs run, in what container, and how much each gets."""

    templates: Path | None = None
    """Folder of changed sbatch templates, relative to this file; what it lacks, and ``null``, is the package's."""
    partition: str | None = None
    """The partition of every job."""
    account: str | None = None
    """The account of every job."""
    sbatch: tuple[str, ...] = ()
    """Further options of every job, such as ``--qos=high``."""
    container: Container = field(default_factory=Container)
    """Where the commands of every job run."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that are exported in every job. What the shell that submits has set for other programs does not reach
    the jobs: PYTHON*, LD_*, proxies, conda, NCCL_*, GLOO_* and the like are unset first. Values are taken as
    they stand: a line with ``$NAME`` belongs under ``setup``."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables that jobs need and no file may hold, such as HF_TOKEN. They must be set where
    ``openmath launch`` is called, and are handed on by sbatch."""
    network_interface: str | None = "auto"
    """The network interface of trainings and of servers on several nodes, for GLOO_SOCKET_IFNAME and
    NCCL_SOCKET_IFNAME where ``environment`` does not set them. ``auto`` is each node's own with the route to the
    first node; ``null`` leaves it to the libraries."""
    modules: tuple[str, ...] = ()
    """Environment modules that every job loads, behind ``module purge``."""
    venv: str | None = None
    """Folder of the virtual environment that jobs without a container activate."""
    setup: tuple[str, ...] = ()
    """Lines of shell that every job begins with."""
    code: Literal["snapshot", "installed"] | None = None
    """The code that jobs run: ``snapshot`` is a copy of the package as it is at launch, in ``sbatch/code`` of the run,
    so that an edit changes nothing that is queued. ``installed`` is what is installed where the job runs. ``null`` is
    ``snapshot`` without containers and ``installed`` with one, whose image has its own."""
    warn_seconds: WarnSeconds = 300
    """How long before its time limit a job is asked to save, in seconds."""
    write_gb_per_second: PositiveFloat | None = None
    """What a training writes to ``--output`` in a second, in GB: whether a checkpoint can be saved within
    ``warn_seconds``. ``null``: not known."""
    requeue: Literal["scontrol", "chain"] = "scontrol"
    """How a job that has saved, or whose machine failed, gets into the queue again: ``scontrol`` requeue, or, at sites
    that do not allow it, ``chain``: its script is submitted anew, and who waited for the job waits for the new one."""
    retries: NonNegativeInt = 3
    """How often a job (each task of an array) is queued again after a machine's fault. To be preempted, or to reach the
    time limit, costs none."""
    run_retries: NonNegativeInt = 100
    """How often all jobs of a run together are queued again after a machine's fault."""
    suspect_after: PositiveInt = 2
    """After how many faults a node is avoided by the run where the fault may be another's. After a hang, or an error of
    hardware, it is avoided at once."""
    fruitless_leaves: PositiveInt = 5
    """How often in a row a job may be asked to leave, with nothing new saved in between, before it counts as failed."""
    hang_seconds: NonNegativeInt = 1800
    """After so many seconds without a heartbeat the processes of a stage are killed: they are stopped, or stuck. 0:
    never. After how long a stage that hangs ends itself says the recipe (``hang_seconds``, ``training.hang_seconds``).
    """
    notify: Notify = field(default_factory=Notify)
    """Who is told when a job fails for good, and when the run has ended."""
    gpus_option: Literal["--gpus-per-node", "--gpus-per-task", "--gres", "none"] = "--gpus-per-node"
    """How GPUs are asked for. ``none`` where they come with the node."""
    max_array_size: PositiveInt = 1001
    """The MaxArraySize of the cluster (``scontrol show config``)."""
    roles: Roles = field(default_factory=Roles)
    """What jobs of a role (``cpu``, ``training``, ``server``) have in place of, or beside, what is said here."""
    servers: dict[str, ModelServer] = field(default_factory=dict)
    """What serves each model: by the name of the stage that makes it, by the last component of its folder, ``teacher``
    for the teacher, and ``default`` for every other model but the teacher. Models without an entry are asked where the
    recipe says (``student``, ``teacher.url``)."""
    default: Resources = field(default_factory=Resources)
    """What every job gets."""
    kinds: dict[str, Resources] = field(default_factory=dict)
    """What the jobs of a kind of stage get, by kind. Each may say what ``default`` may."""
    stages: dict[str, Resources] = field(default_factory=dict)
    """What the job of a stage gets, by the stage's name. Each may say what ``default`` may."""

    def __post_init__(self) -> None:
        for value in (self.partition, self.account):
            one_line(value or "")

    @property
    def copies_code(self) -> bool:
        """Whether jobs run a copy of the package as it is at launch."""
        return self.code == "snapshot" or (self.code is None and self.container.runtime == "none")

    def resources(self, stage: str, kind: str) -> Resources:
        """Return what the job of a stage gets."""
        empty = Resources()
        return self.default.under(self.kinds.get(kind, empty)).under(self.stages.get(stage, empty))

    def place(self, role: RoleName) -> JobPlace:
        """Return where and how jobs of a role run."""
        its = Role() if role == "gpu" else getattr(self.roles, role)
        return JobPlace(
            partition=its.partition or self.partition,
            account=its.account or self.account,
            sbatch=(*self.sbatch, *its.sbatch),
            container=its.container or self.container,
            environment={**self.environment, **its.environment},
            modules=self.modules if its.modules is None else its.modules,
            venv=its.venv or self.venv,
            setup=(*self.setup, *its.setup),
        )


def load_cluster(path: str | Path, stages: Sequence[str] | None) -> Cluster:
    """Read and check a cluster file for a recipe with these stages; None where it is for any. Raises UserError with
    file, line and remedy."""
    source = Source.read(path)
    builder = Builder(source.origin, taken_out=source.taken_out)
    _refuse_old_words(source, builder)
    cluster = builder.build(Cluster, source.data)
    for section, written, known in (
        ("kinds", cluster.kinds, list(stage_kinds())),
        ("stages", cluster.stages, list(cluster.stages if stages is None else stages)),
    ):
        for name in written:
            if name not in known:
                raise builder.choice((section, name), name, known)
    roles = {("roles", name): getattr(cluster.roles, name) for name in ("cpu", "training", "server")}
    for key, place in [((), cluster), *roles.items()]:
        _check_words(builder, key, place)
    layers: dict[Key, Resources] = {("default",): cluster.default}
    layers |= {("kinds", name): layer for name, layer in cluster.kinds.items()}
    layers |= {("stages", name): layer for name, layer in cluster.stages.items()}
    times = {(*key, "time"): layer.time for key, layer in layers.items()}
    times |= {("servers", name, "time"): server.time for name, server in cluster.servers.items()}
    for key, time in times.items():
        if time is not None and time_limit(time) <= cluster.warn_seconds:
            raise builder.error(
                key,
                f"{time!r} is not above warn_seconds ({cluster.warn_seconds}): a job would be asked to save"
                " as it starts, and be queued again for ever",
                "give it more time, or lower warn_seconds",
            )
    arrays = {(*key, "array"): layer.array for key, layer in layers.items()}
    arrays |= {("servers", name, "jobs"): server.jobs for name, server in cluster.servers.items()}
    for key, count in arrays.items():
        if count is not None and count > cluster.max_array_size:
            raise builder.error(
                key,
                f"{count} jobs are more than this cluster's arrays may have (max_array_size: {cluster.max_array_size})",
                f"write {cluster.max_array_size} or less, or set max_array_size to what `scontrol show config` says",
            )
    return replace(cluster, templates=_templates(cluster, builder))


def _check_words(builder: Builder, key: Key, place: Cluster | Role) -> None:
    """Raise UserError for names of variables and options of sbatch that are none."""
    variables = {(*key, "environment", name): name for name in place.environment}
    if isinstance(place, Cluster):
        variables |= {("secrets", str(i)): name for i, name in enumerate(place.secrets)}
    for at, name in variables.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise builder.error(at, "no name of a variable", "use letters, digits and _")
    for i, option in enumerate(place.sbatch):
        try:
            sbatch_option(option)
        except ValueError as error:
            raise builder.error((*key, "sbatch", str(i)), str(error)) from error


_OLD_WORDS = {
    "server": "write its command under servers: {default: {engine: command, command: ...}}, or an engine: there",
    "teacher": "write it under servers: {teacher: {engine: vllm, gpus: ...}}",
}


def _refuse_old_words(source: Source, builder: Builder) -> None:
    """Raise UserError for settings of servers that have other names now, which says these names."""
    layers: list[tuple[Key, Any]] = [((), source.data), (("default",), source.data.get("default"))]
    for section in ("kinds", "stages"):
        written = source.data.get(section)
        layers += (
            [((section, str(name)), layer) for name, layer in written.items()] if isinstance(written, dict) else []
        )
    for key, layer in layers:
        for name, remedy in _OLD_WORDS.items():
            if isinstance(layer, dict) and name in layer and (not key or name == "server"):
                raise builder.error((*key, name), "servers are set by model", remedy)


def _templates(cluster: Cluster, builder: Builder) -> Path:
    """The folder of the sbatch templates. A relative one is relative to the file that says it, which the cluster file
    may extend."""
    if cluster.templates is None:
        return TEMPLATES
    origin = builder.origin(("templates",))
    folder = Path(origin.file).parent / cluster.templates
    if not folder.is_dir():
        remedy = f"leave it out for those of the package, or copy {TEMPLATES} there"
        raise builder.error(("templates",), f"no folder {folder.resolve()}", remedy)
    return folder
