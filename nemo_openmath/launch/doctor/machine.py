"""Processors, memory, limits of processes, folders that everything writes to, and the language."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nemo_openmath.inference.free_memory import free_memory, show
from nemo_openmath.launch.doctor.finding import Finding, FindingGroup
from nemo_openmath.launch.doctor.probing import Probe
from nemo_openmath.launch.doctor.system import System

GROUP = FindingGroup("machine")
GIB = 1 << 30


def look_at_processors(system: System) -> Iterator[Finding]:
    """Yield how many processors there are, how many this process may use, and how much of their time."""
    yield processors(os.cpu_count() or 1, len(os.sched_getaffinity(0)), cgroup_processors(system))


def cgroup_processors(system: System) -> float | None:
    """Return the processors' worth of time that the control groups above this process allow; None: no limit."""
    least: float | None = None
    for line in system.text("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        base = "sys/fs/cgroup" if not controllers else "sys/fs/cgroup/cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for folder in [group, *group.parents]:
            quota = _quota(system, f"{base}/{folder}", unified=not controllers)
            if quota is not None and (least is None or quota < least):
                least = quota
    return least


def _quota(system: System, folder: str, *, unified: bool) -> float | None:
    if unified:
        words = system.text(f"{folder}/cpu.max").split()
    else:
        words = [system.text(f"{folder}/cpu.cfs_quota_us"), system.text(f"{folder}/cpu.cfs_period_us")]
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    return None


def processors(present: int, allowed: int, quota: float | None) -> Finding:
    """Return the finding about the processors of a machine, those that a process may use, and a limit of their time."""
    text = f"{present}" if allowed == present else f"{allowed} of {present} may be used"
    if quota is not None and quota < allowed:
        text += f", and the time of {quota:g}: threads are counted by the former, and wait"
        remedy = f"export OMP_NUM_THREADS={max(1, int(quota))}, or give whole processors (--cpus-per-task)"
        return GROUP.yellow("processors", text, remedy, present=present, allowed=allowed, quota=quota)
    return GROUP.green("processors", text, present=present, allowed=allowed)


def look_at_memory(system: System) -> Iterator[Finding]:
    """Yield how much memory is free, /dev/shm, and huge pages."""
    free = free_memory(system.root)
    text = f"{show(free.available)} free {free.where}"
    if free.available < 4 * GIB:
        yield GROUP.yellow("memory", text, "4 GiB are little even for the miniature: close programs, or ask for more")
    else:
        yield GROUP.green("memory", text)
    yield shared_memory(_size("/dev/shm"), system.num_gpu_devices)
    pages = system.text("sys/kernel/mm/transparent_hugepage/enabled")
    if "[" in pages:
        mode = pages.partition("[")[2].partition("]")[0]
        yield GROUP.green("huge pages", mode, transparent=mode)


def shared_memory(size: int | None, num_gpus: int) -> Finding:
    """Return the finding about the size of /dev/shm in bytes; None where it is not there."""
    remedy = "--ipc=host or --shm-size=16g for docker and podman; a larger tmpfs on the node"
    if size is None:
        text = "not there: workers and NCCL share memory through it"
        return GROUP.red("/dev/shm", text, remedy) if num_gpus else GROUP.yellow("/dev/shm", text, remedy)
    least = GIB * max(1, num_gpus)
    if size < least and num_gpus:
        text = f"{show(size)} for {num_gpus} GPUs: NCCL and servers fail with a bus error"
        return GROUP.red("/dev/shm", text, remedy)
    if size < least:
        return GROUP.yellow("/dev/shm", f"{show(size)}: little for workers that share memory", remedy)
    return GROUP.green("/dev/shm", show(size))


def _size(folder: str) -> int | None:
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    return state.f_blocks * state.f_frsize


def look_at_limits(system: System) -> Iterator[Finding]:
    """Yield the limits of processes: open files, locked memory, stack, processes, address space, size of files."""
    infiniband = bool(system.names("sys/class/infiniband"))
    names = {
        "open files": resource.RLIMIT_NOFILE,
        "locked memory": resource.RLIMIT_MEMLOCK,
        "stack": resource.RLIMIT_STACK,
        "processes": resource.RLIMIT_NPROC,
        "address space": resource.RLIMIT_AS,
        "size of files": resource.RLIMIT_FSIZE,
    }
    for name, number in names.items():
        yield limit(name, *resource.getrlimit(number), infiniband=infiniband)


def limit(name: str, soft: int, hard: int, *, infiniband: bool) -> Finding:
    """Return the finding about a limit of processes. ``infiniband``: whether RDMA may lock memory here."""
    shown = _limit(name, soft) if soft == hard else f"{_limit(name, soft)}, up to {_limit(name, hard)}"
    infinite = soft == resource.RLIM_INFINITY
    if name == "open files" and not infinite and soft < 4096:
        remedy = "ulimit -n 65536, in `setup` of a cluster file too; LimitNOFILE= of slurmd where it may not rise"
        text = f"{shown}: a stage holds hundreds of connections and files"
        return (GROUP.yellow if hard >= 4096 or hard < 0 else GROUP.red)(name, text, remedy, soft=soft)
    if name == "locked memory" and infiniband and not infinite:
        remedy = "LimitMEMLOCK=infinity of slurmd, or --ulimit memlock=-1 of docker: RDMA registers memory"
        return GROUP.red(name, f"{shown}, and InfiniBand is here", remedy, soft=soft)
    if name == "stack" and not infinite and soft < 8 << 20:
        return GROUP.yellow(name, f"{shown}: deep recursion crashes", "ulimit -s 8192", soft=soft)
    if name == "address space" and not infinite:
        text = f"{shown}: torch and CUDA map far more than they use"
        return (GROUP.red if soft < 16 * GIB else GROUP.yellow)(name, text, "ulimit -v unlimited", soft=soft)
    if name == "size of files" and not infinite:
        return GROUP.red(name, f"{shown}: weights and checkpoints are larger", "ulimit -f unlimited", soft=soft)
    if name == "processes" and not infinite and soft < 4096:
        return GROUP.yellow(name, f"{shown}: threads count too", "ulimit -u 65536", soft=soft)
    return GROUP.green(name, shown, soft=soft)


def _limit(name: str, value: int) -> str:
    if value == resource.RLIM_INFINITY:
        return "unlimited"
    return show(value) if name in ("locked memory", "stack", "address space", "size of files") else f"{value:,}"


def look_at_folders(system: System) -> Iterator[Finding]:
    """Yield whether HOME, the folder of temporary files and the cache of Hugging Face can be written."""
    environment = system.environment
    home = environment.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        text = f"{home or 'not set'}: cannot be written"
        yield GROUP.yellow("HOME", text, "export HOME=/tmp/home, or HF_HOME and XDG_CACHE_HOME; what is cached is lost")
    else:
        yield GROUP.green("HOME", home)
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield GROUP.red("temporary files", f"no folder can be written: {error}", "export TMPDIR to one that can")
    else:
        text = f"{folder}, {show(free)} free"
        if free < GIB:
            yield GROUP.yellow("temporary files", text, "free some space, or export TMPDIR to a larger file system")
        else:
            yield GROUP.green("temporary files", text)
    cache = Path(
        environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or f"{home}/.cache", "huggingface")
    )
    there = next((folder for folder in (cache, *cache.parents) if folder.exists()), Path("/"))
    offline = [
        name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if environment.get(name, "0") not in ("", "0")
    ]
    text = f"{cache}{', offline by ' + ' and '.join(offline) if offline else ''}"
    if os.access(there, os.W_OK):
        yield GROUP.green("Hugging Face cache", text, offline=bool(offline))
    else:
        yield GROUP.yellow("Hugging Face cache", f"{text}: cannot be written", "export HF_HOME to a folder that can")


def look_at_clock(system: System) -> Iterator[Finding]:
    """Yield whether something keeps this machine's clock right, where the system tells."""
    answer = system.ask(["timedatectl", "show", "--property=NTPSynchronized", "--value"], 3.0)
    if answer is None or answer.code or answer.line not in ("yes", "no"):
        yield GROUP.not_here("clock", "nothing tells whether it is kept right")
    elif answer.line == "no" and system.on_cluster:
        yield GROUP.yellow("clock", "is not synchronized", "run chrony or ntpd on all nodes")
    else:
        yield GROUP.green("clock", "is synchronized" if answer.line == "yes" else "is not synchronized")


def look_at_language(system: System) -> Iterator[Finding]:
    """Yield the kernel, and whether texts are UTF-8."""
    yield GROUP.green(
        "system", f"{platform.system()} {platform.release()}{_container(system)}", kernel=platform.release()
    )
    encodings = {sys.getfilesystemencoding().lower(), _preferred().lower()}
    if encodings != {"utf-8"}:
        text = f"texts are {' and '.join(sorted(encodings))}"
        yield GROUP.yellow("language", text, "export LC_ALL=C.UTF-8, or PYTHONUTF8=1")
    else:
        yield GROUP.green("language", system.environment.get("LC_ALL") or system.environment.get("LANG") or "UTF-8")


def _preferred() -> str:
    import locale

    return locale.getpreferredencoding(False)


def _container(system: System) -> str:
    """In which container this is, in words; "" in none."""
    environment = system.environment
    if environment.get("APPTAINER_NAME") or environment.get("SINGULARITY_NAME"):
        return ", in Apptainer"
    if (system.root / "run/.containerenv").exists():
        return ", in podman"
    if (system.root / ".dockerenv").exists():
        return ", in docker"
    return ", in enroot" if environment.get("ENROOT_ROOTFS") else ""


PROBES = (
    Probe("machine", "system", look_at_language),
    Probe("machine", "clock", look_at_clock),
    Probe("machine", "processors", look_at_processors),
    Probe("machine", "memory", look_at_memory),
    Probe("machine", "limits", look_at_limits),
    Probe("machine", "folders", look_at_folders, 8.0, "HOME or TMPDIR is on a file system that does not answer"),
)
