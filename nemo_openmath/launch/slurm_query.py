"""What Slurm says of a run's jobs, asked for in one call, in words that a person reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.launch.values import time_limit

_FIELDS = ("%i", "%T", "%r", "%M", "%l", "%L", "%S", "%V", "%N", "%Z")
_SEPARATOR = "\x1f"
_PENDING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")

_REASONS = {
    "None": "to be looked at by the scheduler",
    "Priority": "others have a higher priority",
    "Resources": "waits for free nodes",
    "BeginTime": "waits for its begin time (after a requeue Slurm waits up to two minutes)",
    "JobHeldUser": "held: scontrol release lets it go",
    "JobHeldAdmin": "held by the administrator",
    "Licenses": "waits for a license",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs to run now",
    "PartitionTimeLimit": "asks for more time than the partition gives: it will never start",
    "PartitionNodeLimit": "asks for more nodes than the partition gives: it will never start",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node is as it asks: it will never start",
    "JobArrayTaskLimit": "as many tasks of its array run as may (running)",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as your QOS lets run",
    "QOSMaxSubmitJobPerUserLimit": "you have as many jobs as your QOS lets queue",
    "QOSGrpGRES": "your group has the GPUs that its QOS gives",
    "QOSMaxGRESPerUser": "you have the GPUs that your QOS gives",
    "QOSMaxCpuPerUserLimit": "you have the processors that your QOS gives",
    "AssocGrpGRES": "your account has the GPUs that it is given",
    "AssocMaxJobsLimit": "your account has as many jobs as may run",
    "AssocGrpCPUMinutesLimit": "your account has used the processor hours that it is given",
    "AssocGrpGRESMinutes": "your account has used the GPU hours that it is given",
    "Reservation": "waits for its reservation",
    "JobLaunchFailure": "a node could not start it",
    "launch failed requeued held": "a node could not start it, and Slurm holds it: scontrol release lets it go",
    "Prolog": "its nodes are being prepared",
    "Cleaning": "its earlier attempt is being cleaned up",
}


@dataclass(frozen=True)
class SlurmState:
    """What Slurm says of one job, or one task of an array."""

    id: str
    state: str
    reason: str
    elapsed: float
    limit: float
    """Infinity for none."""
    start: float | None
    """When it began, or is expected to begin."""
    submitted: float | None
    nodes: str
    folder: str

    @property
    def pending(self) -> bool:
        return self.state in _PENDING

    @property
    def active(self) -> bool:
        """Whether it holds nodes."""
        return self.state in _RUNNING


def has_slurm() -> bool:
    """Return whether Slurm's commands are on this machine."""
    return shutil.which("squeue") is not None


def jobs_of(output: Path, ids: Collection[str], owner: int) -> dict[str, SlurmState]:
    """Return what Slurm knows of the jobs with these ids, and of others whose folder is ``output``: id, ``12_3`` for a
    task of an array, -> state. Jobs that ended some minutes ago are known, too.

    ``owner``: the number of the user whose jobs they are. Raises OpenMathError where Slurm does not answer.
    """
    command = ["squeue", "--array", "--states=all", "--noheader", f"--user={owner}"]
    try:
        done = subprocess.run(
            [*command, f"--format={_SEPARATOR.join(_FIELDS)}"],
            capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"}, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OpenMathError("squeue did not answer within 60 s") from None
    if done.returncode:
        raise OpenMathError(f"squeue failed ({done.stderr.strip().rpartition(chr(10))[2][:200]})")
    bases = {id.partition("_")[0] for id in ids}
    states = {}
    for line in done.stdout.split("\n"):
        values = line.split(_SEPARATOR)
        if len(values) != len(_FIELDS):
            continue
        id, state, reason, elapsed, limit, _, start, submitted, nodes, folder = values
        if id.partition("_")[0] in bases or folder == str(output):
            states[id] = SlurmState(
                id, state, reason, _seconds(elapsed, 0.0), _seconds(limit, float("inf")), _moment(start),
                _moment(submitted), "" if nodes == "(null)" else nodes, folder,
            )  # fmt: skip
    return states


def accounted(ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return (state, exit code) of ended jobs from Slurm's accounting; nothing where there is none."""
    if not ids or shutil.which("sacct") is None:
        return {}
    command = ["sacct", "-X", "-n", "-P", "--format=JobID,State,ExitCode", f"--jobs={','.join(sorted(ids))}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return {}
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return {row[0]: (row[1].split()[0], row[2]) for row in rows if len(row) == 3 and row[1]}


def cancel(ids: Collection[str]) -> None:
    """Ask Slurm to cancel these jobs, and no others. Raises OpenMathError where it refuses."""
    done = subprocess.run(["scancel", *sorted(ids)], capture_output=True, text=True, check=False, timeout=120)
    problem = " ".join(done.stderr.split())
    if done.returncode and "already completing or completed" not in problem and "Invalid job id" not in problem:
        raise OpenMathError(f"scancel failed: {problem}")


def why_pending(reason: str) -> str:
    """Return Slurm's reason for a job that waits, in words."""
    text = reason.strip("()")
    if text in _REASONS:
        return _REASONS[text]
    if text.startswith("ReqNodeNotAvail"):
        nodes = text.partition("UnavailableNodes:")[2]
        return _REASONS["ReqNodeNotAvail"] + (f" ({nodes})" if nodes else "")
    if match := re.fullmatch(r"(QOS|Assoc)(.*?)(Limit)?", text):
        whose = "your QOS" if match[1] == "QOS" else "your account"
        return f"a limit of {whose} is reached ({text})"
    return text


@cache
def _seconds(text: str, otherwise: float) -> float:
    try:
        return time_limit(text) if text not in ("0:00", "00:00") else 0.0
    except ValueError:
        return otherwise


def _moment(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
