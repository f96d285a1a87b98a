"""The last job of a run: it writes the report and says how the run ended, whatever became of the others."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_openmath.launch.cluster import Cluster
from nemo_openmath.launch.jobs import SlurmJob

NAME = "report"
_MINUTES = 30


def report_job(jobs: Sequence[SlurmJob], cluster: Cluster) -> SlurmJob:
    """Return the job that runs when all stages have ended. Pools of servers end by themselves behind their clients."""
    names = [job.name for job in jobs]
    short = cluster.warn_seconds < 60 * _MINUTES
    return SlurmJob(
        name=NAME if NAME not in names else f"{NAME}.run",  # a stage may be called so; no stage has a dot in its name
        kind="the report",
        work="report",
        stages=(),
        after=tuple(job.name for job in jobs if job.work != "server"),
        place=cluster.place("cpu"),
        memory=cluster.default.memory,
        time=f"00:{_MINUTES}:00" if short else cluster.default.time,
    )
