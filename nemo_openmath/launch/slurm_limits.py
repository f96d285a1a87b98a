"""What this machine's Slurm says of itself: partitions, their nodes, arrays and accounts."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from nemo_openmath.launch.values import time_limit

ANSWER_SECONDS = 5


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    count: int
    cpus: int
    memory_mb: int
    gpus: int
    gpu_type: str = ""
    """What the site calls its GPUs; empty where it does not say."""


@dataclass(frozen=True)
class SlurmPartition:
    """What jobs of a partition may have."""

    name: str
    is_default: bool
    is_up: bool
    max_seconds: float
    """The longest time limit; infinity where there is none."""
    default_seconds: float | None
    """The time limit of jobs that ask for none; None where it is the longest."""
    max_nodes: float
    """The most nodes of a job; infinity where there is no limit."""
    accounts: tuple[str, ...] | None
    """The accounts that may use it; None: all."""
    nodes: tuple[NodeKind, ...]


@dataclass(frozen=True)
class SlurmLimits:
    """The limits of a cluster."""

    partitions: dict[str, SlurmPartition]
    max_array_size: int | None
    accounts: frozenset[str] | None
    """The accounts of this user; None where no accounting answers."""

    def partition(self, name: str | None) -> SlurmPartition | None:
        """Return the partition of that name, or the one of jobs that name none; None where there is none. Of several
        names (``a,b``), of which Slurm takes the first that is free, it is what the most generous of them gives."""
        if name is not None:
            several = [self.partitions.get(part) for part in name.split(",")]
            known = [partition for partition in several if partition is not None]
            return _together(name, known) if len(known) == len(several) else None
        return next((partition for partition in self.partitions.values() if partition.is_default), None)


def slurm_limits() -> SlurmLimits | None:
    """Return what ``scontrol``, ``sinfo`` and ``sacctmgr`` say; None where Slurm is not installed here or does not
    answer within some seconds."""
    shown = _answer("scontrol", "--oneliner", "show", "partition")
    if shown is None:
        return None
    config = _answer("scontrol", "show", "config") or ""
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    nodes: dict[str, list[NodeKind]] = {}
    for name, kind in _node_kinds(_answer("sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%m|%G") or ""):
        nodes.setdefault(name, []).append(kind)
    partitions = {}
    for line in shown.splitlines():
        row = dict(word.partition("=")[::2] for word in line.split())
        if title := row.get("PartitionName"):
            partitions[title] = _partition(title, row, tuple(nodes.get(title, ())))
    rows = _answer("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}",
                   "format=account")  # fmt: skip
    accounts = frozenset(rows.split()) if rows and rows.strip() else None
    return SlurmLimits(partitions, int(size[1]) if size else None, accounts)


def _together(name: str, partitions: list[SlurmPartition]) -> SlurmPartition:
    if len(partitions) == 1:
        return partitions[0]
    defaults = [p.max_seconds if p.default_seconds is None else p.default_seconds for p in partitions]
    return SlurmPartition(
        name=name,
        is_default=False,
        is_up=any(p.is_up for p in partitions),
        max_seconds=max(p.max_seconds for p in partitions),
        default_seconds=min(defaults),
        max_nodes=max(p.max_nodes for p in partitions),
        accounts=None,
        nodes=tuple(kind for p in partitions for kind in p.nodes),
    )


def _seconds(text: str) -> float:
    """The seconds of a limit; infinity for what is no time of ours."""
    try:
        return time_limit(text)
    except ValueError:
        return float("inf")


def _partition(name: str, row: dict[str, str], nodes: tuple[NodeKind, ...]) -> SlurmPartition:
    most, accounts = row.get("MaxNodes", "UNLIMITED"), row.get("AllowAccounts", "ALL")
    return SlurmPartition(
        name=name,
        is_default=row.get("Default") == "YES",
        is_up=row.get("State", "UP") == "UP",
        max_seconds=_seconds(row.get("MaxTime", "UNLIMITED")),
        default_seconds=None if row.get("DefaultTime", "NONE") == "NONE" else _seconds(row["DefaultTime"]),
        max_nodes=int(most) if most.isdigit() else float("inf"),
        accounts=None if accounts == "ALL" else tuple(accounts.split(",")),
        nodes=nodes,
    )


def _node_kinds(text: str) -> Iterator[tuple[str, NodeKind]]:
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 5 and all(field.rstrip("+").isdigit() for field in fields[1:4]):
            count, cpus, memory = (int(field.rstrip("+")) for field in fields[1:4])
            yield fields[0], NodeKind(count, cpus, memory, gpus_of(fields[4]), gpu_type_of(fields[4]))


def gpus_of(gres: str) -> int:
    """Return the GPUs of a node's generic resources: 8 of ``gpu:h100:8(S:0-1),nvme:1``."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def gpu_type_of(gres: str) -> str:
    """Return what a node calls its GPUs: h100 of ``gpu:h100:8(S:0-1)``; empty where it does not say."""
    match = re.search(r"(?:^|,)gpu:([^:,()]+):\d", gres)
    return match[1] if match else ""


def _answer(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
