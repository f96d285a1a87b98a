"""``openmath doctor --cluster``: a job on each partition of a cluster file looks at its nodes; here their reports are
waited for and compared.

The jobs come from the templates and the containers of the other jobs, so what is looked at is where the work runs.
Their scripts, logs and reports lie in ``OUTPUT-doctor``, beside the folder of the run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

import nemo_openmath
from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import ExitCode, UserError, of_the_system
from nemo_openmath.core.records import write_json
from nemo_openmath.core.waiting import Waiting
from nemo_openmath.launch.cluster import Cluster
from nemo_openmath.launch.doctor.check import check_machine
from nemo_openmath.launch.doctor.finding import FORMAT, Colour, Finding, Report
from nemo_openmath.launch.doctor.meeting import LIMIT_S, Meeting
from nemo_openmath.launch.doctor.probing import Probe, run_probes
from nemo_openmath.launch.doctor.system import System, ask
from nemo_openmath.launch.jobs import SlurmJob, script_path
from nemo_openmath.launch.scripts import write_scripts

log = logging.getLogger(__name__)

_MINUTES = 15  # of a job, beyond warn_seconds
_VOLATILE = ("free", "bytes", "read_mb_s", "write_mb_s", "skew_s", "offset_s", "delay_s")
_SLOW = 0.5  # of the median


@dataclass
class Visit:
    """A job that looks at nodes of a partition, and what came of it."""

    job: SlurmJob
    id: str = ""
    problem: str = ""
    """Why not all of its nodes reported."""
    reports: list[Report] = field(default_factory=list)

    @property
    def partition(self) -> str:
        """The partition's name."""
        return self.job.partition or "(default partition)"

    @property
    def exit_code(self) -> ExitCode:
        """``USER_ERROR`` where something is red, or nodes are missing."""
        red = self.problem or any(report.count(Colour.RED) for report in self.reports)
        return ExitCode.USER_ERROR if red else ExitCode.OK

    def to_json(self) -> dict[str, Any]:
        """Return the visit for ``--json``."""
        return {
            "partition": self.job.partition,
            "job": self.id,
            "nodes": self.job.nodes,
            "problem": self.problem,
            "reports": [report.to_json() for report in self.reports],
            "differences": [list(row) for row in differences(self.reports)],
        }


def visit_nodes(
    cluster: Cluster, file: Path, output: Path, *, partition: str | None, nodes: int, wait_s: float
) -> list[Visit]:
    """Submit a job on each partition of a cluster file, wait for the reports, and return them.

    ``partition``: only this one; ``nodes``: of each partition, at most; ``wait_s``: for all of them together. Jobs that
    have not ended by then are cancelled. Raises UserError where no job can be submitted from here.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on this machine", remedy="run it where Slurm is, or without --cluster")
    output = output.resolve()
    folder = output.with_name(f"{output.name}-doctor")
    visits = [Visit(job) for job in plan_visits(cluster, partition, nodes)]
    try:
        for visit in visits:
            shutil.rmtree(folder / visit.job.name, ignore_errors=True)
            (folder / visit.job.name).mkdir(parents=True)
        shutil.rmtree(folder / "sbatch" / "journal", ignore_errors=True)  # of the call before
    except OSError as error:
        raise of_the_system(error, folder) or error from error
    jobs = [visit.job for visit in visits]
    write_scripts(jobs, cluster, file, folder, code=_code(cluster), values={"looked_at": output})
    for visit in visits:
        _submit(visit, folder)
    try:
        _wait(visits, folder, wait_s)
    finally:
        if unfinished := [visit.id for visit in visits if visit.id and len(visit.reports) < visit.job.nodes]:
            ask(["scancel", *unfinished])
    return visits


def plan_visits(cluster: Cluster, partition: str | None, nodes: int) -> list[SlurmJob]:
    """Return the jobs that look at the nodes: one for each partition and container that stages, trainings or servers
    use, with as many GPUs as the largest of them asks for. Servers' own images need not hold this package: their nodes
    are looked at in the image of the other jobs.

    Raises UserError where the file names no partition ``partition``.
    """
    layers = [("default", cluster.default), *cluster.kinds.items(), *cluster.stages.items()]
    jobs: dict[tuple[Any, ...], SlurmJob] = {}

    def add(role: Any, gpus: int, other_partition: str | None = None) -> None:
        place = cluster.place(role)
        place = replace(place, partition=other_partition or place.partition)
        key = (place.partition, place.container)
        before = jobs.get(key)
        if before is None or before.gpus < gpus:
            jobs[key] = SlurmJob(
                name="",
                kind="doctor",
                work="doctor",
                stages=(),
                after=(),
                place=place,
                gpus=gpus,
                cpus=1,
                memory=None if before is None else before.memory,
                time=str(cluster.warn_seconds // 60 + _MINUTES),
            )

    add("cpu", 0)
    for name, layer in layers:
        trains = name.startswith("training.")
        gpus = (layer.gpus if layer.gpus is not None else cluster.default.gpus) or 0
        if name != "default" or gpus:
            add("training" if trains else "gpu" if gpus else "cpu", gpus, layer.partition)
    for server in cluster.servers.values():
        add("gpu", server.gpus, server.partition or cluster.place("server").partition)

    if partition is not None:
        known = list(dict.fromkeys(job.partition or "" for job in jobs.values()))
        if partition not in known:
            raise UserError(f"the cluster file names no partition {partition!r}", remedy=nearest(partition, known))
        jobs = {key: job for key, job in jobs.items() if job.partition == partition}
    return list(_named(jobs.values(), nodes))


def _named(jobs: Any, nodes: int) -> Iterator[SlurmJob]:
    names: list[str] = []
    for job in jobs:
        plain = f"doctor.{job.partition or 'default'}"
        names.append(plain)
        same = names.count(plain)
        name = plain if same == 1 else f"{plain}.{same}"
        yield replace(job, name=name, nodes=max(1, min(nodes, _nodes_of(job.partition, nodes))))


def _nodes_of(partition: str | None, nodes: int) -> int:
    """How many nodes a partition has that can be used; ``nodes`` where that is not known."""
    words = ["sinfo", "--noheader", "--states=idle,mixed,allocated", "--format=%D"]
    answer = ask([*words, *([f"--partition={partition}"] if partition else [])])
    if answer is None or answer.code:
        return nodes
    return sum(int(line) for line in answer.text.split() if line.isdigit())


def _code(cluster: Cluster) -> Path | None:
    """The folder with this package, for jobs that run on the node itself; None where they have their own."""
    top = Path(nemo_openmath.__file__).resolve().parents[1]
    return top if cluster.copies_code and top.name not in ("site-packages", "dist-packages") else None


def _submit(visit: Visit, folder: Path) -> None:
    words = ["sbatch", "--parsable", str(script_path(folder, visit.job.name))]
    outside = ("SLURM_CONF", "SLURM_CLUSTERS")  # what else is of a job in which this runs would contradict that one
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in outside}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        visit.problem = " ".join((done.stderr or done.stdout).split())
        return
    visit.id = done.stdout.strip().partition(";")[0]
    log.info("%s: job %s on %d nodes", visit.partition, visit.id, visit.job.nodes)


def _wait(visits: Sequence[Visit], folder: Path, wait_s: float) -> None:
    deadline, waiting = time.monotonic() + wait_s, Waiting()
    while True:
        states = _states([visit.id for visit in visits if visit.id])
        for visit in visits:
            visit.reports = _read(folder / visit.job.name)
        missing = [v for v in visits if not v.problem and len(v.reports) < v.job.nodes]
        late = time.monotonic() > deadline
        for visit in missing:
            count = f"{len(visit.reports)} of {visit.job.nodes} nodes reported"
            if states is not None and visit.id not in states:
                visit.reports = _read(folder / visit.job.name)  # the last may have come in between
                if len(visit.reports) < visit.job.nodes:
                    visit.problem = f"job {visit.id} has ended, and {count}: {_last_words(folder, visit)}"
            elif late:
                state = (states or {}).get(visit.id, "its state is not known")
                visit.problem = f"job {visit.id}: {count} within {wait_s:g} s ({state}); it is cancelled"
        if not missing or late:
            return
        names = ", ".join(f"{visit.partition} (job {visit.id})" for visit in missing)
        waiting.still(f"nodes of {names}", wait_s, "--wait")
        time.sleep(1)


def _states(ids: Sequence[str]) -> dict[str, str] | None:
    """Job -> its state and the reason, of those that have not ended; None where Slurm does not answer."""
    if not ids:
        return {}
    answer = ask(["squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}", "--format=%i|%T|%r"], 10.0)
    if answer is None or answer.code:
        gone = answer is not None and "Invalid job id" in answer.text
        return {} if gone else None
    rows = [line.strip().split("|") for line in answer.text.splitlines() if line.count("|") == 2]
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
    return {
        id: ", ".join([state.lower(), *([why] if why != "None" else [])])
        for id, state, why in rows
        if state not in ended
    }


def _last_words(folder: Path, visit: Visit) -> str:
    """What a job's log says of its end, and where the log is."""
    log_file = next(iter(sorted((folder / "sbatch" / "logs").glob(f"*-{visit.id}.out"))), None)
    if log_file is None:
        return f"it has no log in {folder / 'sbatch' / 'logs'}"
    lines = log_file.read_text(errors="replace").splitlines()
    errors = [line for line in lines if re.search("error|not found|denied|no such", line, re.IGNORECASE)]
    told = [line for line in errors if "Exited with exit code" not in line and "_failed" not in line]
    rest = [line for line in lines if not line.startswith("--- ") and "failed (exit code" not in line]
    words = (told or rest or lines or ["it says nothing"])[-1].strip()[:200]
    remedy = "; install the package in the image or environment of jobs" if "openmath: No such file" in words else ""
    return f"{words} (the whole log: {log_file}){remedy}"


def _read(folder: Path) -> list[Report]:
    """The reports that are there, by the names of the nodes."""
    reports = []
    for path in sorted(folder.glob("*.json")):
        try:
            reports.append(Report.from_json(orjson.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: no report: %s", path, error)
    return reports


def write_report(folder: Path, system: System) -> None:
    """Look at this node and write ``folder/NODE.json``; in a job of several nodes they meet first."""
    report = check_machine(system)
    if (meeting := Meeting.of_job(folder, system)) is not None:
        probe = Probe("other nodes", "reached", lambda _: meeting.findings(), LIMIT_S + 30, "see the job's log")
        report = replace(report, findings=[*report.findings, *run_probes([probe], system)])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{report.host}.json", report.to_json())


# -- comparing nodes ---------------------------------------------------------------------------------------------------


def differences(reports: Sequence[Report]) -> Iterator[tuple[str, str, dict[str, list[str]]]]:
    """Yield (group and name of a finding, name of a value, value -> nodes) where nodes of a partition differ, and the
    nodes that write much slower than the others."""
    values: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        for finding in report.findings:
            for key, value in finding.values.items():
                values.setdefault((f"{finding.group}: {finding.name}", key), {})[report.host] = value
    for (name, key), of in values.items():
        if key in ("write_mb_s", "read_mb_s"):
            numbers = {host: value for host, value in of.items() if isinstance(value, int | float)}
            median = statistics.median(numbers.values()) if numbers else 0
            if slow := [host for host, value in numbers.items() if value < _SLOW * median]:
                yield name, key, {f"{min(numbers[host] for host in slow):,} of {median:,.0f}": slow}
            continue
        if key in _VOLATILE:
            continue
        hosts: dict[str, list[str]] = {}
        for report in reports:
            hosts.setdefault(json.dumps(of.get(report.host)), []).append(report.host)
        if len(hosts) > 1:
            yield name, key, hosts


def findings_of(reports: Sequence[Report], colour: Colour) -> list[tuple[Finding, list[str]]]:
    """Return the findings of a colour, each with its nodes. What is equal on several nodes is one."""
    merged: dict[tuple[str, str, str], tuple[Finding, list[str]]] = {}
    for report in reports:
        for finding in report.findings:
            if finding.colour is colour:
                key = (finding.group, finding.name, finding.text)
                merged.setdefault(key, (finding, []))[1].append(report.host)
    return list(merged.values())


def visits_json(visits: Sequence[Visit]) -> dict[str, Any]:
    """Return what ``--json`` prints for a cluster."""
    code = max((visit.exit_code for visit in visits), default=ExitCode.OK)
    return {"format": FORMAT, "exit_code": int(code), "partitions": [visit.to_json() for visit in visits]}
