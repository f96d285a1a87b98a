"""Memory that is free on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Free:
    """Memory that may be taken."""

    available: int
    """Bytes."""
    where: str = "of this machine's memory"
    """What the bytes are part of, for messages."""


def free_memory(root: Path = Path("/")) -> Free:
    """Return what a process may still take: MemAvailable, or less where a cgroup (v1 or v2, or one above it) limits it.

    ``root``: the folder in which /proc and /sys lie.
    """
    available = 1 << 62
    for line in lines_of(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    free = Free(available)
    for line in lines_of(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in [group, *group.parents]:  # in a container the path may be one of the host: it is just not there
            remaining = _remaining(folder, limit, used, cache)
            if remaining is not None and remaining < free.available:
                free = Free(remaining, "of this job's or container's memory limit")
            if folder == base:
                break
    return free


def _remaining(folder: Path, limit: str, used: str, cache: str) -> int | None:
    try:
        most = int((folder / limit).read_text())
        now = int((folder / used).read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    reclaimable = 0
    for line in lines_of(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == cache:
            reclaimable = int(value)
    return max(0, most - now + reclaimable)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file of /proc or /sys; none where it is not there."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def show(count: int) -> str:
    """Write a count of bytes for people, in MiB or GiB."""
    if count < 1 << 30:
        return f"{max(0, count) / (1 << 20):.0f} MiB"
    return f"{count / (1 << 30):.1f} GiB"
