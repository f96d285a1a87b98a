"""Times, memory, arrays, partitions and accounts, held against what Slurm says where it is at hand."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_openmath.core.build import Key, nearest
from nemo_openmath.core.records import Mode
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.launch import SlurmJob
from nemo_openmath.launch.slurm_limits import NodeKind, SlurmLimits, SlurmPartition
from nemo_openmath.launch.values import memory_mb, time_limit
from nemo_openmath.recipe.launch_check.findings import Finding, Note, Unseen, some
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch
from nemo_openmath.training.planning.gpus import GPUS

IDLE_CORES = 8
"""Cores of a job without code above which most do nothing."""


class _Grouped:
    """Mistakes of the same line of the cluster file, told once for all stages that make them."""

    def __init__(self, launch: PlannedLaunch):
        self._launch = launch
        self._stages: dict[tuple[Key, str, str], list[str]] = {}

    def add(self, stage: str, setting: Key, problem: str, remedy: str) -> None:
        self._stages.setdefault((setting, problem, remedy), []).append(stage)

    def errors(self) -> Iterator[Finding]:
        for (setting, problem, remedy), stages in self._stages.items():
            yield self._launch.error(setting, f"{problem} ({some(stages)})", remedy)


def partitions(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look whether partitions and accounts are there, and have nodes with what the jobs ask for."""
    if (slurm := launch.slurm) is None:
        yield Unseen("partitions, accounts and their limits: no Slurm answers here")
        return
    wrong = _Grouped(launch)
    idle: dict[str, list[str]] = {}
    for job in launch.jobs:
        partition = slurm.partition(job.partition)
        if partition is None:
            problem = (
                f"no partition {job.partition!r} here" if job.partition else "the cluster has no default partition"
            )
            wrong.add(
                job.name, launch.layer(job, "partition"), problem, nearest(job.partition or "", list(slurm.partitions))
            )
            continue
        if not partition.is_up:
            yield Note(f"partition {partition.name} is not up now: jobs wait")
        _nodes(launch, job, partition, wrong)
        _gpu_type(launch, job, partition, wrong)
        if not job.gpus and partition.nodes and all(kind.gpus for kind in partition.nodes):
            idle.setdefault(partition.name, []).append(job.name)
        account = job.place.account
        if account and partition.accounts and account not in partition.accounts:
            problem = f"{account} may not use partition {partition.name}"
            wrong.add(
                job.name,
                launch.of_role(launch.role(job), "account"),
                problem,
                f"one of {', '.join(partition.accounts)}",
            )
        if account and slurm.accounts is not None and account not in slurm.accounts:
            key = launch.of_role(launch.role(job), "account")
            wrong.add(job.name, key, f"this user has no account {account!r}", nearest(account, sorted(slurm.accounts)))
    yield from wrong.errors()
    for name, stages in idle.items():
        yield Note(
            f"{len(stages)} jobs without a GPU wait for partition {name}, whose nodes have GPUs ({some(stages)}); some "
            "sites refuse such jobs: give them a partition of their own"
        )


def _nodes(launch: PlannedLaunch, job: SlurmJob, partition: SlurmPartition, wrong: _Grouped) -> None:
    """Hold what a job asks for of each node against the nodes of its partition."""
    tasks = job.tasks
    cpus, memory = job.cpus * tasks, memory_mb(job.memory) if job.memory is not None else 0
    most = min(partition.max_nodes, sum(kind.count for kind in partition.nodes) or float("inf"))
    if job.nodes > most:
        problem = f"{job.nodes} nodes, and partition {partition.name} gives {most:.0f}"
        wrong.add(job.name, launch.layer(job, "nodes"), problem, "ask for fewer, or name another partition")
    if not partition.nodes or any(_suits(kind, job.gpus, cpus, memory) for kind in partition.nodes):
        return
    best = max(partition.nodes, key=lambda kind: (kind.gpus >= job.gpus, kind.cpus >= cpus, kind.memory_mb >= memory))
    for name, wanted, there, unit in (
        ("gpus", job.gpus, best.gpus, "GPUs"),
        ("cpus", cpus, best.cpus, f"CPUs ({job.cpus} of each of {tasks} tasks)" if tasks > 1 else "CPUs"),
        ("memory", memory, best.memory_mb, "MB of memory"),
    ):
        if wanted > there:
            problem = f"{wanted} {unit} of a node, and the nodes of partition {partition.name} have {there}"
            wrong.add(job.name, launch.layer(job, name), problem, "ask for less, or name another partition")


def _gpu_type(launch: PlannedLaunch, job: SlurmJob, partition: SlurmPartition, wrong: _Grouped) -> None:
    """Hold the kind of GPUs that memory is checked with against what the site calls its own."""
    gpu = launch.gpu_of(job)
    there = {name for kind in partition.nodes for name in GPUS if name in kind.gpu_type.lower()}
    if job.gpus and gpu is not None and there and gpu.name not in there:
        problem = f"{gpu.name}, and the GPUs of partition {partition.name} are {', '.join(sorted(there))}"
        wrong.add(job.name, launch.layer(job, "gpu"), problem, f"write gpu: {sorted(there)[0]}")


def _suits(kind: NodeKind, gpus: int, cpus: int, memory: int) -> bool:
    return kind.gpus >= gpus and kind.cpus >= cpus and kind.memory_mb >= memory


def pools(launch: PlannedLaunch) -> Iterator[Finding]:
    """Look whether a pool of servers leaves room for who asks it: it waits for its clients, and they for a node."""
    wrong = _Grouped(launch)
    by_name = {job.name: job for job in launch.jobs}
    for pool in (job for job in launch.jobs if job.work == "server"):
        partition = launch.slurm.partition(pool.partition) if launch.slurm is not None else None
        if partition is None or not partition.nodes:
            continue
        count, held = sum(kind.count for kind in partition.nodes), pool.array * pool.nodes
        for client in (by_name[name] for name in pool.client_jobs):
            same = launch.slurm is not None and launch.slurm.partition(client.partition) is partition
            if same and held + client.nodes > count and not any(_both(kind, pool, client) for kind in partition.nodes):
                problem = (
                    f"{held} nodes of {count} in partition {partition.name}, with no room for the jobs that ask them"
                )
                remedy = "write fewer jobs, or give roles.cpu another partition"
                wrong.add(client.name, launch.layer(pool, "array"), problem, remedy)
    yield from wrong.errors()


def _both(kind: NodeKind, server: SlurmJob, client: SlurmJob) -> bool:
    """Whether a node has room for a server and for a job that asks it."""
    jobs, memories = (server, client), [memory_mb(job.memory) for job in (server, client) if job.memory is not None]
    alone = any(option.startswith("--exclusive") for job in jobs for option in job.place.sbatch) or 0 in memories
    return not alone and _suits(
        kind, sum(job.gpus for job in jobs), sum(job.cpus * job.tasks for job in jobs), sum(memories)
    )


def times(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold time limits against those of the partitions and against ``warn_seconds``."""
    warn, wrong = launch.cluster.warn_seconds, _Grouped(launch)
    unknown: list[str] = []
    for job in launch.jobs:
        partition = launch.slurm.partition(job.partition) if launch.slurm is not None else None
        setting = launch.layer(job, "time")
        if job.time is not None:
            if partition is not None and time_limit(job.time) > partition.max_seconds:
                longest = _text(partition.max_seconds)
                problem = f"{job.time}, and partition {partition.name} gives {longest} at most"
                wrong.add(job.name, setting, problem, f'write time: "{longest}", or name another partition')
            continue
        if partition is None:
            unknown.append(job.name)
            continue
        seconds = partition.max_seconds if partition.default_seconds is None else partition.default_seconds
        if seconds <= warn:
            problem = f"jobs get {_text(seconds)} of partition {partition.name}, not above warn_seconds ({warn})"
            wrong.add(job.name, setting, problem, "write a time, or lower warn_seconds")
    yield from wrong.errors()
    if unknown:
        yield Unseen(f"the time limit of {some(unknown)}, which the cluster file leaves to the partition")


def arrays(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold arrays against Slurm's limit and against the partitions of the recipe's work."""
    most, wrong, parts = _max_array(launch.slurm), _Grouped(launch), launch.recipe.partitions
    uneven: dict[int, list[str]] = {}
    for job in launch.jobs:
        if job.array > 1 and most is not None and job.array > most:
            problem = f"{job.array} jobs, and Slurm's MaxArraySize here is {most}"
            wrong.add(job.name, launch.layer(job, "array"), problem, f"write {most} or fewer")
        if job.work == "stage" and job.array > 1 and parts % job.array:
            uneven.setdefault(job.array, []).append(job.name)
    yield from wrong.errors()
    largest = max((job.array for job in launch.jobs if job.work == "stage"), default=1)
    if largest > parts:
        yield Note(
            f"the recipe divides its work into {parts} partitions, and arrays have up to {largest} jobs: they read "
            f"more than their share; write partitions: {largest}, or a multiple of all arrays"
        )
        return
    for size, stages in uneven.items():
        yield Note(
            f"arrays of {size} jobs do not divide the recipe's {parts} partitions evenly: some jobs have more to do "
            f"({some(stages)})"
        )


def cores(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold the cores of jobs that generate against the programs that run beside them: all of them with code, none
    without."""
    workers = launch.recipe.sandbox.workers if launch.recipe.sandbox.url is None else None
    few: dict[int, list[str]] = {}
    idle: dict[int, list[str]] = {}
    for planned in launch.stages:
        stage, job = planned.entry.stage, planned.job
        if not isinstance(stage, Generate):
            continue
        if stage.config.mode == Mode.TIR and workers is not None and job.cpus < workers:
            few.setdefault(job.cpus, []).append(planned.name)
        if stage.config.mode == Mode.COT and not job.servers and not job.gpus and job.cpus > IDLE_CORES:
            idle.setdefault(job.cpus, []).append(planned.name)
    for cpus, names in few.items():
        yield Note(
            f"{some(names)}: {workers} programs at a time (sandbox.workers) share {cpus} cores; write cpus: "
            f"{(workers or 0) + 2} under kinds: {{rollout.generate: ...}}, or a lower sandbox.workers"
        )
    for cpus, names in idle.items():
        yield Note(
            f"{some(names)}: {cpus} cores, and CoT runs no programs: the rest idles while a server answers; write "
            f"{names[0]}: {{cpus: 2}} under stages"
        )


def _max_array(slurm: SlurmLimits | None) -> int | None:
    return slurm.max_array_size if slurm is not None else None


def _text(seconds: float) -> str:
    """Write seconds as Slurm does: ``1-00:00:00``."""
    if seconds == float("inf"):
        return "UNLIMITED"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hour:02}:{minute:02}:{second:02}"
