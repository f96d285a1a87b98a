"""A real Slurm on this machine: munged, slurmctld and one slurmd per pretended node, in a folder of their own.

No systemd, no cgroups, no privileges beyond the folder (Debian 12: apt install slurm-wlm munge).
"""

from __future__ import annotations

import getpass
import os
import shutil
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
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
OverTimeLimit=0
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


@contextmanager
def slurm(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[dict[str, str]]:
    """A running Slurm; yields the environment for its commands. All jobs and daemons end with it."""
    ports = _free_ports(nodes + 1)
    host = socket.gethostname().split(".")[0]
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    text = _CONFIG.format(host=host, user=getpass.getuser(), folder=folder, port=ports[0])
    for i in range(1, nodes + 1):
        text += f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs={cpus} Sockets=1 "
        text += f"CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN\n"
    text += f"PartitionName=batch Nodes=n[1-{nodes}] Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=10\n"
    text += f"PartitionName=urgent Nodes=n[1-{nodes}] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF\n"
    text += f"PartitionName=short Nodes=n[1-{nodes}] DefaultTime=2 MaxTime=60 State=UP PriorityTier=1\n"
    config = folder / "slurm.conf"
    config.write_text(text)
    environment = {**os.environ, "SLURM_CONF": str(config)}
    munged = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge/seed"]
    try:
        subprocess.run(munged, check=True)
        subprocess.run(["slurmctld", "-f", str(config)], check=True, env=environment)
        for i in range(1, nodes + 1):
            (folder / f"spool.n{i}").mkdir()
            subprocess.run(["slurmd", "-N", f"n{i}", "-f", str(config)], check=True, env=environment)
        _wait_for_nodes(nodes, environment)
        yield environment
    finally:
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, check=False)
        for pid_file in [*folder.glob("slurmd.*.pid"), folder / "slurmctld.pid", folder / "munged.pid"]:
            if pid_file.exists():
                _stop(int(pid_file.read_text()))


def missing_programs() -> list[str]:
    return [name for name in NEEDED if shutil.which(name) is None]


def _wait_for_nodes(nodes: int, environment: dict[str, str]) -> None:
    for _ in range(300):
        idle = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "batch", "-t", "idle", "-o", "%N"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if len(idle.stdout.split()) == nodes:
            return
        time.sleep(0.1)
    raise RuntimeError("the nodes did not become idle")


def _stop(pid: int) -> None:
    try:
        os.kill(pid, 15)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        return


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports
