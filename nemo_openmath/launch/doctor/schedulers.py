"""Slurm: its commands, its controller, what its configuration means for a run; and what runs containers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from nemo_openmath.launch.doctor.finding import Finding, FindingGroup
from nemo_openmath.launch.doctor.probing import Probe
from nemo_openmath.launch.doctor.system import System

GROUP = FindingGroup("Slurm")
CONTAINERS = FindingGroup("containers")
_COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")


def look_at_slurm(system: System) -> Iterator[Finding]:
    """Yield whether jobs can be submitted here, and what the cluster's configuration means for them."""
    answer = system.ask(["scontrol", "show", "config"], 10.0)
    if answer is None:
        inside = " (in a job: the container has none, and needs none)" if system.in_job else ""
        yield GROUP.not_here("Slurm", f"no scontrol{inside}")
        return
    if answer.code:
        text = f"its commands are here, and no controller answers: {answer.line}"
        yield GROUP.yellow("Slurm", text, "see `scontrol ping` and SLURM_CONF; without it, use recipe run")
        return
    missing = [command for command in _COMMANDS if system.ask([command, "--version"]) is None]
    config = parse_config(answer.text)
    release = config.get("SLURM_VERSION", "?")
    if missing:
        yield GROUP.red("Slurm", f"{release}, without {', '.join(missing)}", "install the client commands of Slurm")
    else:
        yield GROUP.green("Slurm", f"{release}, cluster {config.get('ClusterName', '?')}", version=release)
    yield from configuration(config)
    yield from _partitions(system)


def parse_config(text: str) -> dict[str, str]:
    """Read ``scontrol show config``."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def configuration(config: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what the configuration of a cluster means for a run."""
    values = {name: config.get(name, "?") for name in ("JobRequeue", "PreemptMode", "KillWait", "MaxArraySize")}
    size = int(number[0]) if (number := re.match(r"\d+", values["MaxArraySize"])) else 0
    if values["JobRequeue"] == "0":
        yield GROUP.green("requeue", "off by default; the scripts ask for it with --requeue", **values)
    else:
        yield GROUP.green("requeue", f"on; preemption {values['PreemptMode']}", **values)
    if "CANCEL" in values["PreemptMode"]:
        remedy = "ask for a QOS that requeues, or write shorter jobs; `openmath jobs resume` submits what was cancelled"
        yield GROUP.yellow("preemption", f"jobs are cancelled by it ({values['PreemptMode']})", remedy)
    yield GROUP.green("end of a job", f"{values['KillWait']} between SIGTERM and SIGKILL (KillWait)")
    if size and size < 64:
        remedy = "write smaller arrays, and max_array_size in the cluster file"
        yield GROUP.yellow("arrays", f"fewer than {size} jobs (MaxArraySize)", remedy)
    else:
        yield GROUP.green("arrays", f"indices below {size:,} (MaxArraySize)", max_array_size=size)


def _partitions(system: System) -> Iterator[Finding]:
    answer = system.ask(["sinfo", "--noheader", "--format=%R|%a|%D|%l|%c|%m|%G|%T"], 10.0)
    if answer is None or answer.code:
        text = answer.line if answer is not None else "no sinfo"
        yield GROUP.red("partitions", text, "see `sinfo`")
        return
    rows = [line.split("|") for line in answer.text.splitlines() if line.count("|") == 7]
    for name in dict.fromkeys(row[0] for row in rows):
        of = [row for row in rows if row[0] == name]
        usable = [
            row
            for row in of
            if row[1] == "up" and not row[7].rstrip("*~#!%$@^-").startswith(("down", "drain", "fail", "maint"))
        ]
        nodes = sum(int(row[2]) for row in of if row[2].isdigit())
        good = sum(int(row[2]) for row in usable if row[2].isdigit())
        gres = sorted({row[6] for row in of} - {"(null)"})
        text = f"{nodes} nodes x {of[0][4]} CPUs, {of[0][5]} MB, {' '.join(gres) or 'no GPU'}, limit {of[0][3]}"
        if not good:
            yield GROUP.yellow(f"partition {name}", f"{text}; none can be used now", "see `sinfo -R`")
        elif good < nodes:
            yield GROUP.green(f"partition {name}", f"{text}; {nodes - good} down or drained")
        else:
            yield GROUP.green(f"partition {name}", text)


def look_at_containers(system: System) -> Iterator[Finding]:
    """Yield which programs there are that run containers."""
    for name, words in (
        ("enroot", ["enroot", "version"]),
        ("Apptainer", ["apptainer", "--version"]),
        ("Singularity", ["singularity", "--version"]),
        ("podman", ["podman", "--version"]),
        ("docker", ["docker", "--version"]),
    ):
        answer = system.ask(words)
        if answer is None:
            yield CONTAINERS.not_here(name)
        elif answer.code:
            yield CONTAINERS.yellow(name, f"does not run: {answer.line}", f"mend it, or do without {name}")
        else:
            version = (re.search(r"\d[\w.+~-]*", answer.line) or [answer.line])[0]
            yield CONTAINERS.green(name, version, version=version)
    answer = system.ask(["srun", "--help"])
    if answer is not None and "--container-image" in answer.text:
        yield CONTAINERS.green("pyxis", "srun knows --container-image")
    else:
        yield CONTAINERS.not_here("pyxis", "no srun" if answer is None else "srun knows no --container-image")


PROBES = (
    Probe("Slurm", "Slurm", look_at_slurm, 25.0, "the controller hangs: see `scontrol ping`"),
    Probe("containers", "containers", look_at_containers, 12.0, "one of the programs hangs: call it by hand"),
)
