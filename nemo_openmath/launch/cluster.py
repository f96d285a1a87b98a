"""The cluster file: where jobs run, in what container, and how much each kind of stage gets.

    partition: batch
    container: {runtime: pyxis, image: /images/openmath.sqsh, mounts: ["/data:/data"]}
    default: {cpus: 16, time: "04:00:00"}
    kinds: {training.sft: {nodes: 8, gpus: 8}, rollout.generate: {gpus: 8, array: 32}}
    stages: {base_cot: {array: 4}}

What a stage's job gets is written in three layers: ``default``, its kind, its name; the last one that says it counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from nemo_openmath.core.bounds import Bounds, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_openmath.core.build import Builder
from nemo_openmath.core.config import Source
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.launch.values import memory, one_line, sbatch_option, time_limit

WarnSeconds = Annotated[int, Bounds(0, 65535)]  # what sbatch accepts
TEMPLATES = Path(__file__).parent / "templates"
"""The sbatch templates of the package."""
GpuKind = Literal["h100", "h200", "a100", "l4"]  # those of training.planning.gpus.GPUS


@dataclass(frozen=True)
class Container:
    """Where the commands of a job run."""

    runtime: Literal["none", "pyxis", "apptainer"] = "none"
    """What runs the container: ``pyxis`` (srun's plugin) or ``apptainer``. ``none`` runs on the node itself."""
    image: str = ""
    """The image: a squashfs file, or what the runtime takes in its place."""
    mounts: tuple[str, ...] = ()
    """Folders of the node inside the container, each as ``HOST:CONTAINER``."""
    arguments: tuple[str, ...] = ()
    """Further words for srun (pyxis) or for ``apptainer exec``."""

    def __post_init__(self) -> None:
        if self.runtime != "none" and not self.image:
            raise ValueError(f"a {self.runtime} container needs an image")
        if self.runtime == "none" and (self.image or self.mounts or self.arguments):
            raise ValueError("image, mounts and arguments need runtime: pyxis or apptainer")


@dataclass(frozen=True)
class ModelServer:
    """What serves a model inside the jobs that generate with it."""

    command: str
    """Shell words that start the server. They use "$MODEL" (the model's folder), "$NAME" (what clients call it) and
    "$PORT"; GET /health must answer."""
    model: str | None = None
    """Folder of the teacher's weights. Those of other models are known from the recipe."""
    container: Container | None = None
    """The server's own container, such as the image of vLLM. ``null`` is the container of the jobs."""
    start_seconds: PositiveInt = 3600
    """How long a job waits for /health before it fails, in seconds."""

    def __post_init__(self) -> None:
        for word in ("$MODEL", "$PORT"):
            if word not in self.command and word.replace("$", "${") not in self.command:
                raise ValueError(f'the command of a server must use "{word}"')


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
    server: str | None = None
    """Another command for the server of this stage."""

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus", "array", "running"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: write 1 or more")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus is {self.gpus}: write 0 or more")
        if self.time is not None:
            time_limit(self.time)
        if self.memory is not None:
            memory(self.memory)
        one_line(self.partition or "")

    def under(self, above: Resources) -> Resources:
        """Return these resources, with whatever ``above`` says in their place."""
        set_here = {f.name: getattr(above, f.name) for f in fields(above) if getattr(above, f.name) is not None}
        return replace(self, **set_here)


@dataclass(frozen=True)
class Cluster:
    """A cluster: where jobs run, in what container, and how much each gets."""

    templates: Path | None = None
    """Folder of the sbatch templates, relative to this file. ``null`` is those of the package."""
    partition: str | None = None
    """The partition of every job."""
    account: str | None = None
    """The account of every job."""
    sbatch: tuple[str, ...] = ()
    """Further options of every job, such as ``--qos=high``."""
    container: Container = field(default_factory=Container)
    """Where the commands of every job run."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that are exported in every job."""
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
    run_retries: NonNegativeInt = 30
    """How often all jobs of a run together are queued again after a machine's fault."""
    suspect_after: PositiveInt = 2
    """After how many faults a node is avoided by the run where the fault may be another's. After a hang, or an error of
    hardware, it is avoided at once."""
    fruitless_leaves: PositiveInt = 5
    """How often in a row a job may be asked to leave, with nothing new saved in between, before it counts as failed."""
    hang_seconds: NonNegativeInt = 1800
    """How long a stage may go without a step or a token before it counts as hanging; 0: for ever."""
    max_array_size: PositiveInt = 1001
    """The MaxArraySize of the cluster (``scontrol show config``)."""
    server: ModelServer | None = None
    """What serves models inside the jobs that generate with them. ``null`` leaves it to the recipe's
    ``student``."""
    teacher: ModelServer | None = None
    """What serves the teacher inside the jobs that ask it. ``null`` leaves it to the recipe's ``teacher``."""
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


def load_cluster(path: str | Path, stages: Sequence[str]) -> Cluster:
    """Read and check a cluster file for a recipe with these stages. Raises UserError with file, line and remedy."""
    source = Source.read(path)
    builder = Builder(source.origin)
    cluster = builder.build(Cluster, source.data)
    for section, written, known in (
        ("kinds", cluster.kinds, list(stage_kinds())),
        ("stages", cluster.stages, list(stages)),
    ):
        for name in written:
            if name not in known:
                raise builder.choice((section, name), name, known)
    for name in cluster.environment:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise builder.error(("environment", name), "no name of a variable", "use letters, digits and _")
    for i, option in enumerate(cluster.sbatch):
        try:
            sbatch_option(option)
        except ValueError as error:
            raise builder.error(("sbatch", str(i)), str(error)) from error
    layers: dict[tuple[str, ...], Resources] = {("default",): cluster.default}
    layers |= {("kinds", name): layer for name, layer in cluster.kinds.items()}
    layers |= {("stages", name): layer for name, layer in cluster.stages.items()}
    for key, layer in layers.items():
        if layer.time is not None and time_limit(layer.time) <= cluster.warn_seconds:
            raise builder.error(
                (*key, "time"),
                f"{layer.time!r} is not above warn_seconds ({cluster.warn_seconds}): a job would be asked to save"
                " as it starts, and be queued again for ever",
                "give it more time, or lower warn_seconds",
            )
        if layer.array is not None and layer.array > cluster.max_array_size:
            raise builder.error(
                (*key, "array"),
                f"{layer.array} jobs are more than this cluster's arrays may have (max_array_size: "
                f"{cluster.max_array_size})",
                f"write {cluster.max_array_size} or less, or set max_array_size to what `scontrol show config` says",
            )
    if cluster.teacher is not None and cluster.teacher.model is None:
        raise builder.error(("teacher",), "which model?", "write model: and the folder of the teacher's weights")
    return replace(cluster, templates=_templates(cluster, builder))


def _templates(cluster: Cluster, builder: Builder) -> Path:
    """The folder of the sbatch templates. A relative one is relative to the file that says it, which the cluster file
    may extend."""
    if cluster.templates is None:
        return TEMPLATES
    origin = builder.origin(("templates",))
    folder = Path(origin.file).parent / cluster.templates
    if not (folder / "job.sh.j2").is_file():
        remedy = f"leave it out for those of the package, or copy {TEMPLATES} there"
        raise builder.error(("templates",), f"no templates in {folder.resolve()} (job.sh.j2 is missing)", remedy)
    return folder
