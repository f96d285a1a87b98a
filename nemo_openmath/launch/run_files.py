"""The files of a launched run below ``RUN/sbatch``: what was planned, what was submitted, what the jobs wrote.

Reading needs neither Slurm nor the recipe, and a line that a kill cut is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import DamagedFile, UserError

SBATCH, JOBS, SUBMITTED, JOURNAL, LOGS, SERVERS = "sbatch", "jobs.json", "submitted.jsonl", "journal", "logs", "servers"
Task = tuple[str, int | None]
"""A job's name, and its number in the array; None for a job that is no array."""


@dataclass(frozen=True)
class PlannedJob:
    """A job of ``jobs.json``."""

    name: str
    kind: str
    work: str
    """``stage``, ``training``, ``server`` or ``report``."""
    stages: tuple[str, ...]
    after: tuple[str, ...]
    """The jobs that must succeed before it."""
    array: int
    """How many tasks it has; 1 is no array."""
    running: int | None
    nodes: int
    gpus: int
    """GPUs of each node."""
    time: str | None
    """Its time limit as sbatch takes it."""
    servers: tuple[str, ...] = ()
    """The jobs that serve the models it asks."""

    @property
    def tasks(self) -> list[Task]:
        """Return its parts that Slurm starts one by one."""
        return [(self.name, None)] if self.array == 1 else [(self.name, i) for i in range(self.array)]

    @property
    def makes_stages(self) -> bool:
        """Return whether it makes stages; a server and the report make none."""
        return self.work in ("stage", "training")

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> PlannedJob:
        """Return the job that an entry of ``jobs.json`` describes."""
        return cls(
            name=data["name"],
            kind=data.get("kind") or "",
            work=data.get("work") or "stage",
            stages=tuple(data.get("stages") or ()),
            after=tuple(data.get("after") or ()),
            array=data.get("array") or 1,
            running=data.get("running"),
            nodes=data.get("nodes") or 1,
            gpus=data.get("gpus") or 0,
            time=data.get("time"),
            servers=tuple(data.get("servers") or ()),
        )


@dataclass
class Attempt:
    """One start of a job, as its journal tells it."""

    number: int
    id: str
    start: float | None
    nodes: str = ""
    log: str = ""
    ready: float | None = None
    """When its model server answered."""
    asked: str | None = None
    """Why it was asked to leave."""
    end: float | None = None
    code: int | None = None
    decision: str = ""
    """``done``, ``queued again``, ``handed on`` or ``failed``; empty while it runs, or where it was killed."""
    reason: str = ""
    costs: int = 0
    """The retries that its end cost."""
    suspects: list[str] = field(default_factory=list)
    """Nodes that it suspected."""
    ran: dict[str, Any] = field(default_factory=dict)
    """The code that it ran: its event ``code``."""


@dataclass(frozen=True)
class RunFiles:
    """What the files of a launched run say."""

    output: Path
    jobs: dict[str, PlannedJob]
    """In the order in which they were submitted."""
    submitted: dict[Task, list[tuple[str, float]]]
    """(job id, time) of each submission, the oldest first."""
    attempts: dict[Task, list[Attempt]]
    """What the journals say, the oldest first."""
    logs: dict[str, float]
    """Name of each file in ``logs`` -> when it was written to last."""
    launched: dict[str, Any]
    """``code.json``: the code at launch; empty where there is none."""
    planned: float = 0.0
    """When ``jobs.json`` was written."""

    @property
    def sbatch(self) -> Path:
        return self.output / SBATCH

    def job_id(self, task: Task) -> str | None:
        """Return the id under which Slurm knows the newest submission of a task, ``12_3`` for one of an array."""
        name, number = task
        own, whole = self.submitted.get(task, []), self.submitted.get((name, None), [])
        if number is None:
            return own[-1][0] if own else None
        # A task that was handed on is an array of one task.
        newest = max([(time, i, id) for i, (id, time) in enumerate([*whole, *own])], default=None)
        return f"{newest[2]}_{number}" if newest is not None else None

    def submitted_at(self, task: Task) -> float | None:
        """Return when a task was submitted last."""
        times = [time for key in {task, (task[0], None)} for _, time in self.submitted.get(key, [])]
        return max(times, default=None)

    def finished_at(self, job: PlannedJob) -> float:
        """Return when the oldest of what a job makes was finished; 0 where some of it is not."""
        if not job.makes_stages:
            return 0.0
        try:
            return min((self.output / s / "manifest.json").stat().st_mtime for s in job.stages) if job.stages else 0.0
        except OSError:
            return 0.0

    def retries_spent(self, job: PlannedJob) -> int:
        """Return how many retries a job, of an array the task that spent most, has spent since the run was submitted
        last."""
        try:
            since = float((self.sbatch / "since").read_text())
        except (OSError, ValueError):
            since = 0.0
        return max((_spent(self.attempts.get(task, []), since) for task in job.tasks), default=0)

    def finished_before(self) -> list[str]:
        """Return the stages that were finished before the launch and have no job."""
        of_jobs = {stage for job in self.jobs.values() for stage in job.stages}
        folders = (path.parent.name for path in sorted(self.output.glob("*/manifest.json")))
        return [name for name in folders if name not in of_jobs]

    def job(self, name: str) -> PlannedJob:
        """Return the job of a stage, or of that name. Raises UserError with the nearest name."""
        if name in self.jobs:
            return self.jobs[name]
        if (
            shared := next((j for j in self.jobs.values() if name in j.stages and j.work != "server"), None)
        ) is not None:
            return shared
        stages = [stage for job in self.jobs.values() for stage in job.stages]
        if (self.output / name / "manifest.json").is_file():
            raise UserError(f"stage {name!r} was finished before the launch", file=self.output, remedy="it has no job")
        known = list(dict.fromkeys([*self.jobs, *stages]))
        raise UserError(f"no job or stage {name!r} in this run", file=self.output, remedy=nearest(name, known))


def _spent(attempts: Sequence[Attempt], since: float) -> int:
    """The retries of these attempts, as functions.sh counts them: one that left no end, and had not been asked to
    leave, was lost with its node."""
    ends = sum(attempt.costs for attempt in attempts if (attempt.end or 0) >= since)
    earlier = (a for a in attempts[:-1] if a.end is None and a.asked is None)
    return ends + sum((attempt.start or 0) >= since for attempt in earlier)


def read_run(output: Path) -> RunFiles:
    """Read the files of a launched run. Raises UserError for a folder that holds none, and DamagedFile."""
    output = output.resolve()
    sbatch = output / SBATCH
    path = sbatch / JOBS
    try:
        plan = orjson.loads(path.read_bytes())
        jobs = [PlannedJob.read(data) for data in plan["jobs"]]
    except (FileNotFoundError, NotADirectoryError):
        raise _no_run(output) from None
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DamagedFile(path, f"cannot be read ({error})", "launch the run again") from None
    submitted: dict[Task, list[tuple[str, float]]] = {}
    for line in _lines(sbatch / SUBMITTED):
        if isinstance(line.get("job"), str) and "id" in line:
            task = None if line.get("task") is None else int(line["task"])
            submitted.setdefault((line["job"], task), []).append((str(line["id"]), float(line.get("time") or 0)))
    names = {job.name for job in jobs}
    attempts = {}
    for file in listed(sbatch / JOURNAL):
        if file.name.endswith(".jsonl") and (task_of := _task(file.name.removesuffix(".jsonl"), names)) is not None:
            attempts[task_of] = read_journal(file.path)
    logs = {file.name: file.stat().st_mtime for file in listed(sbatch / LOGS)}
    launched = next(iter(_documents(sbatch / "code.json")), {})
    return RunFiles(output, {job.name: job for job in jobs}, submitted, attempts, logs, launched, path.stat().st_mtime)


def read_journal(path: Path | str) -> list[Attempt]:
    """Return the attempts that a journal tells of, the oldest first."""
    attempts: list[Attempt] = []
    for event in _lines(path):
        kind, time = event.get("event"), float(event.get("time") or 0)
        if kind == "start" or not attempts:
            start = time if kind == "start" else None
            attempts.append(Attempt(len(attempts) + 1, str(event.get("id", "")), start))
        attempt = attempts[-1]
        if kind == "start":
            attempt.number = int(event.get("attempt") or attempt.number)
            attempt.nodes, attempt.log = str(event.get("nodes") or ""), str(event.get("log") or "")
        elif kind == "ready":
            attempt.ready = time
        elif kind == "asked":
            attempt.asked = str(event.get("why") or "")
        elif kind == "suspect":
            attempt.suspects.append(str(event.get("node") or ""))
        elif kind == "code":
            attempt.ran = event
        elif kind == "end":
            attempt.end, attempt.code = time, event.get("code")
            attempt.costs = int(event.get("costs") or 0)
            attempt.decision, attempt.reason = str(event.get("decision") or ""), str(event.get("reason") or "")
    return attempts


def addresses(run: RunFiles, server: str) -> list[str]:
    """Return the addresses of the model servers of a job that answer."""
    out = []
    for file in sorted((run.sbatch / SERVERS / server.removeprefix("server.")).glob("*.url")):
        try:
            out.append(file.read_text().strip())
        except OSError:  # it has just left
            continue
    return out


def _no_run(output: Path) -> UserError:
    if not output.is_dir():
        return UserError(
            "is a file" if output.exists() else "no such folder", file=output, remedy="give the --output of launch"
        )
    above = output.parent
    if output.name == SBATCH or (above / SBATCH / JOBS).is_file():
        return UserError("is a folder of a launched run", file=output, remedy=f"name the run: {above}")
    if (output / "run.json").is_file():
        remedy = "see openmath recipe status, or launch it"
        return UserError("this run was not launched: it has no sbatch/jobs.json", file=output, remedy=remedy)
    return UserError("no launched run here (no sbatch/jobs.json)", file=output, remedy="give the --output of launch")


def _task(stem: str, names: set[str]) -> Task | None:
    """The task of a journal's name. Names of servers have a dot, too."""
    if stem in names:
        return stem, None
    name, _, number = stem.rpartition(".")
    return (name, int(number)) if name in names and number.isdigit() else None


def _lines(path: Path | str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return
    for line in content.split(b"\n"):
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:  # torn by a kill, or the empty end
            continue
        if isinstance(event, dict):
            yield event


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return
    if isinstance(data, dict):
        yield data


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, by name; nothing where it is not there."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
