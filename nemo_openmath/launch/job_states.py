"""How a job, a task of an array and a whole run stand: the words and what belongs to them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from nemo_openmath.launch.progress_files import StageProgress
from nemo_openmath.launch.run_files import PlannedJob, RunFiles


class JobState(StrEnum):
    """How a job stands."""

    PLANNED = "not submitted"
    QUEUED = "queued"
    AGAIN = "queued again"
    STARTING = "starting"  # a server that does not answer yet
    RUNNING = "running"
    READY = "ready"  # a server that answers
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    GONE = "gone"  # killed from outside, and nobody wrote an end


WAITING = (JobState.PLANNED, JobState.QUEUED, JobState.AGAIN)
ACTIVE = (JobState.STARTING, JobState.RUNNING, JobState.READY)
BAD = (JobState.FAILED, JobState.GONE, JobState.CANCELLED)
QUEUED = (JobState.QUEUED, JobState.AGAIN, *ACTIVE)


@dataclass(frozen=True)
class TaskState:
    """How a job that is no array, or a task of one, stands."""

    number: int | None
    state: JobState
    id: str | None = None
    attempt: int = 0
    nodes: str = ""
    reason: str = ""
    since: float | None = None
    """When the state began."""
    start: float | None = None
    """When the newest attempt began; of one that waits, when Slurm expects it to begin."""
    left: float = math.inf
    """Seconds until its time limit."""
    log: str = ""
    """Path of its newest log, relative to the run."""


@dataclass(frozen=True)
class JobView:
    """How a job stands, all its tasks together."""

    job: PlannedJob
    state: JobState
    tasks: tuple[TaskState, ...]
    reason: str = ""
    progress: StageProgress | None = None
    addresses: tuple[str, ...] = ()
    """Of a server: where it answers."""
    silent: float = 0.0
    """Seconds without a sign of life of a process that runs."""
    retries_spent: int = 0
    """Since the run was submitted last, of the task that spent most."""
    other_code: str = ""
    """How the code that it ran differs from that of the launch."""

    @property
    def counts(self) -> Counter[JobState]:
        """Return how many tasks stand how."""
        return Counter(task.state for task in self.tasks)

    @property
    def newest(self) -> TaskState:
        """Return the task that says most: one that failed, one that runs, else the last."""
        order = (*BAD, *ACTIVE, JobState.AGAIN, JobState.QUEUED, JobState.DONE, JobState.PLANNED)
        return min(self.tasks, key=lambda task: (order.index(task.state), -(task.start or 0)))


@dataclass(frozen=True)
class RunState:
    """How a launched run stands."""

    run: RunFiles
    jobs: dict[str, JobView]
    time: float
    slurm: str
    """Why Slurm was not asked; empty where it was."""

    @property
    def stages(self) -> list[JobView]:
        """Return the jobs that make stages: no servers, no report."""
        return [view for view in self.jobs.values() if view.job.makes_stages]

    @property
    def verdict(self) -> str:
        """Return how the stages stand, all together: ``running``, ``done``, ``failed``, ``gone``, ``cancelled`` or
        ``not submitted``. The job that writes the report does not count."""
        if any(task.state in QUEUED for view in self.stages for task in view.tasks):
            return str(JobState.RUNNING)
        bad = (state for state in BAD if any(view.state is state for view in self.stages))
        done = all(view.state is JobState.DONE for view in self.stages)
        return str(next(bad, JobState.DONE if done else JobState.PLANNED))

    @property
    def alive(self) -> bool:
        """Whether a job is queued or runs."""
        return any(task.state in QUEUED for view in self.jobs.values() for task in view.tasks)
