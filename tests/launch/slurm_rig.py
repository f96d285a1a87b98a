"""A real Slurm on this machine: munged, slurmctld and one slurmd per pretended node, in a folder of their own.

No systemd, no cgroups, no privileges beyond the folder (Debian 12: apt install slurm-wlm munge).
"""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")

_CONFIG = """\
ClusterName=rig
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=3
OverTimeLimit=0
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


class SlurmNotStarted(RuntimeError):
    """Raised where Slurm is installed and does not run here."""


@contextmanager
def slurm(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[dict[str, str]]:
    """A running Slurm; yields the environment for its commands. All jobs and daemons end with it.

    Raises SlurmNotStarted where a daemon or a node does not start.
    """
    ports = _free_ports(nodes + 1)
    host = socket.gethostname().split(".")[0]
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    text = _CONFIG.format(host=host, user=pwd.getpwuid(os.getuid()).pw_name, folder=folder, port=ports[0])
    for i in range(1, nodes + 1):
        text += f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={cpus} Sockets=1 "
        text += f"CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN\n"
    text += f"PartitionName=batch Nodes=n[1-{nodes}] Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=10\n"
    text += f"PartitionName=urgent Nodes=n[1-{nodes}] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF\n"
    text += f"PartitionName=short Nodes=n[1-{nodes}] DefaultTime=2 MaxTime=60 State=UP PriorityTier=1\n"
    config = folder / "slurm.conf"
    config.write_text(text)
    version = subprocess.run(["slurmd", "-V"], check=True, capture_output=True, text=True).stdout  # "slurm-wlm 22.05.8"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) >= (23, 2):
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")  # earlier ones use none for these plugins
    environment = {**os.environ, "SLURM_CONF": str(config)}
    munged = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge/seed"]
    try:
        _start(environment, folder, *munged)
        _start(environment, folder, "slurmctld", "-f", str(config))
        for i in range(1, nodes + 1):
            (folder / f"spool.n{i}").mkdir()
            _start(environment, folder, "slurmd", "-N", f"n{i}", "-f", str(config))
        _wait_for_nodes(nodes, environment)
        yield environment
    finally:
        subprocess.run(["scancel", f"--user={pwd.getpwuid(os.getuid()).pw_name}"], env=environment, check=False)
        pid_files = [*folder.glob("slurmd.*.pid"), folder / "slurmctld.pid", folder / "munged.pid"]
        _stop([int(path.read_text()) for path in pid_files if path.exists()])


def states(environment: dict[str, str], run: Path) -> dict[str, str]:
    """Stage (and array task) -> state of its newest job, as scontrol knows it, of finished jobs too."""
    lines = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if f" WorkDir={run} " in line:
            name, task = re.search(r" JobName=(.*?) UserId=", line), re.search(r" ArrayTaskId=(\S+)", line)
            state = re.search(r" JobState=(\S+)", line)
            assert name is not None
            assert state is not None
            stage = name[1].removeprefix(f"{run.name}.") + (f".{task[1]}" if task else "")
            found[stage] = state[1]
    return found


def wait_for(environment: dict[str, str], run: Path, seconds: float) -> dict[str, str]:
    """States of a run's jobs, once none is pending or running."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = states(environment, run)
        if now and not any(s in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") for s in now.values()):
            return now
        time.sleep(0.3)
    raise AssertionError(f"{run}: still going: {now}")


def missing_programs() -> list[str]:
    return [name for name in NEEDED if shutil.which(name) is None]


def _wait_for_nodes(nodes: int, environment: dict[str, str]) -> None:
    for _ in range(900):
        idle = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "batch", "-t", "idle", "-o", "%N"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if len(idle.stdout.split()) == nodes:
            return
        time.sleep(0.1)
    raise SlurmNotStarted("the nodes did not become idle")


def _stop(pids: list[int]) -> None:
    """Ask all to end, and kill those that are there after three seconds: nothing of them is needed again."""
    for sign in [signal.SIGTERM, *[0] * 30, signal.SIGKILL]:
        for pid in list(pids):
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                pids.remove(pid)
        if not pids:
            return
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Ports below those that the kernel gives to connections: one of these would be taken again at any moment."""
    ports: list[int] = []
    for port in random.sample(range(10_000, 20_000), 1000):
        with socket.socket() as s:
            try:
                s.bind(("0.0.0.0", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise SlurmNotStarted("no free ports")


def _start(environment: dict[str, str], folder: Path, *command: str) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        logs = [path.read_text(errors="replace")[-1000:] for path in folder.glob(f"{command[0]}*.log")]
        raise SlurmNotStarted(f"{' '.join(command)}: {done.stderr.strip()} {' '.join(logs)}")
