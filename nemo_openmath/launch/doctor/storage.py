"""The file system of a run's folder: what it is, whether it has the locks and the names that a run needs, its clock,
its speed, and its space.

Everything is tried in a hidden folder of its own, which is removed again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.errors import SystemFailure
from nemo_openmath.core.locks import open_lock_file, try_lock
from nemo_openmath.inference.free_memory import show
from nemo_openmath.launch.doctor.finding import Finding, FindingGroup
from nemo_openmath.launch.doctor.probing import Probe
from nemo_openmath.launch.doctor.system import System

GROUP = FindingGroup("storage")
SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "wekafs", "ceph", "panfs", "pvfs2", "glusterfs", "cifs", "smb3")
"""Types of file systems that several machines see; names that begin with fuse. may be such."""
_SKEW_S = 1.0
_CHUNK = 8 << 20
_MOST = 256 << 20  # bytes
_SECONDS = 1.2  # of writing, and of reading


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    place: str
    kind: str
    source: str
    options: tuple[str, ...]


def mounts(text: str) -> list[Mount]:
    """Read /proc/self/mountinfo."""
    lines = []
    for line in text.splitlines():
        own, _, rest = line.partition(" - ")
        left, right = own.split(), rest.split()
        if len(left) >= 6 and len(right) >= 2:
            options = (*left[5].split(","), *(right[2].split(",") if len(right) > 2 else ()))
            lines.append(Mount(_unescaped(left[4]), right[0], _unescaped(right[1]), options))
    return lines


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_of(path: str, of: list[Mount]) -> Mount | None:
    """Return the mount that holds a path: the deepest, and of those at one place the last."""
    holding = [m for m in of if path == m.place or path.startswith(m.place.rstrip("/") + "/")]
    return max(reversed(holding), key=lambda m: len(m.place), default=None)


def nearest_folder(path: Path) -> Path:
    """Return the folder itself, or the deepest one above it that exists."""
    path = Path(os.path.abspath(path))
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def look_at_kind(system: System) -> Iterator[Finding]:
    """Yield what kind of file system it is, and how it is mounted."""
    folder = nearest_folder(system.output)
    mount = mount_of(os.path.realpath(folder), mounts(system.text("proc/self/mountinfo")))
    if mount is None:
        yield GROUP.yellow("file system", f"{folder}: no mount is known", "look at /proc/self/mountinfo")
    else:
        yield kind(str(folder), mount, cluster=system.on_cluster)


def kind(folder: str, mount: Mount, *, cluster: bool) -> Finding:
    """Return the finding about the file system of a folder. ``cluster``: whether other nodes must see it."""
    text = f"{folder}: {mount.kind} ({mount.source} at {mount.place})"
    values = {"kind": mount.kind, "source": mount.source}
    if "ro" in mount.options:
        return GROUP.red("file system", f"{text}, mounted read-only", "choose another --output", **values)
    if mount.kind == "lustre" and "localflock" in mount.options:
        remedy = "mount it with -o flock: else nothing stops two nodes from running one stage"
        return GROUP.yellow("file system", f"{text}, locks are of one node (localflock)", remedy, **values)
    if mount.kind in ("nfs", "nfs4") and ({"nolock", "local_lock=all", "local_lock=flock"} & set(mount.options)):
        remedy = "mount it without nolock and local_lock: else nothing stops two nodes from running one stage"
        return GROUP.yellow("file system", f"{text}, locks are of one node", remedy, **values)
    if mount.kind in ("tmpfs", "ramfs", "overlay"):
        lost = "with this node or container"
        remedy = "choose an --output on a disk, and mount it into the container"
        return GROUP.yellow("file system", f"{text}: what lies there is lost {lost}", remedy, **values)
    if cluster and mount.kind not in SHARED and not mount.kind.startswith("fuse"):
        remedy = "choose an --output that all nodes see, unless this is one that a single node exports to itself"
        return GROUP.yellow("file system", f"{text}: a disk of this node", remedy, **values)
    return GROUP.green("file system", text, **values)


@contextlib.contextmanager
def _scratch(system: System) -> Iterator[Path]:
    """A folder on the file system, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=".openmath-doctor-", dir=nearest_folder(system.output)) as folder:
        yield Path(folder)


def _in_child(work: Callable[[], object]) -> int:
    """Call ``work`` in another process; return its value, from 0 to 255."""
    child = os.fork()
    if child == 0:
        try:
            code = int(work())  # type: ignore[call-overload]
        except BaseException:
            code = 255
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def look_at_semantics(system: System) -> Iterator[Finding]:
    """Yield whether locks, renaming, hard links and listings do what a run relies on."""
    try:
        with _scratch(system) as folder:
            yield locks(_lock_states(folder))
            yield from _names(folder)
            yield from _clock(folder, system)
    except PermissionError as error:
        yield GROUP.red("writing", f"{error.filename}: {error.strerror}", "choose an --output that this user may write")
    except OSError as error:
        yield GROUP.red("writing", f"{error.filename or ''}: {error.strerror}", "free some space, or mend the mount")
    except SystemFailure as error:
        yield GROUP.red("writing", str(error).partition(";")[0], "free some space, or mend the mount")


def _lock_states(folder: Path) -> dict[str, bool | None]:
    """Kind of lock -> whether a second process is kept out; None where the file system has no such locks."""
    return {"flock": _keeps_out(folder / "flock", _flock), "fcntl": _keeps_out(folder / "fcntl", _fcntl)}


def _keeps_out(path: Path, take: Callable[[int], bool | None]) -> bool | None:
    descriptor = open_lock_file(path)
    try:
        if take(descriptor) is None:
            return None
        return _in_child(lambda: take(open_lock_file(path)) is False) == 1
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool | None:
    return try_lock(descriptor)


def _fcntl(descriptor: int) -> bool | None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def locks(states: dict[str, bool | None]) -> Finding:
    """Return the finding about locks. A run uses ``flock``."""
    remedy = "mount Lustre with -o flock, NFS with its lock service: else nothing stops two runs of one folder"
    if states["flock"] is None:
        return GROUP.yellow("locks", "the file system has no flock", remedy, **states)
    if not states["flock"]:
        return GROUP.red("locks", "a second process gets a lock that is held", remedy, **states)
    text = "flock and fcntl keep a second process of this node out"
    return GROUP.green("locks", text if states["fcntl"] else "flock keeps a second process of this node out", **states)


def _names(folder: Path) -> Iterator[Finding]:
    """Yield whether a rename replaces a file in one step, O_EXCL, hard links, and what another process lists."""
    old, new = folder / "old", folder / "new"
    old.write_text("old")
    new.write_text("new")
    with old.open() as reader:
        new.replace(old)
        whole = old.read_text() == "new" and reader.read() == "old" and not new.exists()
    try:
        os.close(os.open(old, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        whole = False
    except FileExistsError:
        pass
    if whole:
        yield GROUP.green("rename", "replaces a file in one step, and readers keep the old one")
    else:
        yield GROUP.red("rename", "does not replace a file in one step", "choose another file system for --output")
    try:
        os.link(old, folder / "link")
    except OSError as error:
        remedy = "checkpoints that share files are copied in place of being linked"
        yield GROUP.yellow("hard links", f"none ({error.strerror})", remedy)
    else:
        yield GROUP.green("hard links", "there")
    os.listdir(folder)  # it is in this process's cache now
    _in_child((folder / "of another process").touch)
    if "of another process" in os.listdir(folder):
        yield GROUP.green("listing", "shows at once what another process of this node made")
    else:
        yield GROUP.red(
            "listing", "does not show what another process of this node made", "mount it with shorter caches"
        )


def _clock(folder: Path, system: System) -> Iterator[Finding]:
    before = time.time()
    path = folder / "clock"
    path.write_text("x")
    after, stamp = time.time(), path.stat()
    yield clock(stamp.st_mtime_ns / 1e9, before, after)
    stamps = set()
    for number in range(20):
        path.write_text(str(number))
        stamps.add(path.stat().st_mtime_ns)
        time.sleep(0.002)
    if all(value % 1_000_000_000 == 0 for value in stamps):
        remedy = "none is needed: what changed is told by content; files of one second have no order"
        yield GROUP.yellow("times of files", "whole seconds", remedy)
    else:
        yield GROUP.green("times of files", "finer than a second")


def clock(stamp: float, before: float, after: float) -> Finding:
    """Return the finding about a file's time, written between two readings of this machine's clock, in seconds."""
    skew = stamp - after if stamp > after else min(0.0, stamp - before)
    if abs(skew) > _SKEW_S:
        text = f"the file system is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine"
        return GROUP.yellow(
            "clock", text, "run chrony or ntpd on both; heartbeats are judged by these times", skew_s=skew
        )
    return GROUP.green("clock", "this machine and the file system agree within a second", skew_s=round(skew, 3))


def look_at_speed(system: System) -> Iterator[Finding]:
    """Yield how fast one process writes, with fsync, and reads what is not in memory any more."""
    folder = nearest_folder(system.output)
    free = shutil.disk_usage(folder).free
    most = min(_MOST, free // 10) // _CHUNK * _CHUNK
    if not most:
        return  # said of the space
    try:
        with _scratch(system) as scratch:
            yield speed(*_measure(scratch / "speed", most))
    except OSError as error:
        remedy = "ulimit -f unlimited" if error.errno == errno.EFBIG else "choose an --output that can be written"
        yield GROUP.red("speed", f"cannot be measured: {error.strerror}", remedy)


def _measure(path: Path, most: int) -> tuple[int, float, float, bool]:
    """Return (bytes, seconds of writing, seconds of reading, whether the reading was from the disk)."""
    data = os.urandom(_CHUNK)  # what compresses well would be written too fast
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size, begun = 0, time.monotonic()
        while size < most and time.monotonic() - begun < _SECONDS:
            size += os.write(descriptor, data)
            os.fsync(descriptor)
        wrote = time.monotonic() - begun
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        cached = _is_cached(path, size)
        os.lseek(descriptor, 0, os.SEEK_SET)
        read, begun = 0, time.monotonic()
        while read < size and time.monotonic() - begun < _SECONDS:
            read += len(os.read(descriptor, _CHUNK))
        seconds = time.monotonic() - begun
        return size, wrote, seconds * size / max(1, read), not cached
    finally:
        os.close(descriptor)


def _is_cached(path: Path, size: int) -> bool:
    """Whether the page cache still holds the file after it was asked to let go: then it lies in memory."""
    kinds = mount_of(os.path.realpath(path), mounts(Path("/proc/self/mountinfo").read_text()))
    return kinds is not None and kinds.kind in ("tmpfs", "ramfs")


def speed(size: int, writing_s: float, reading_s: float, from_disk: bool) -> Finding:
    """Return the finding about a file of ``size`` bytes that was written and read in so many seconds."""
    write, read = (size / max(seconds, 1e-6) / 1e6 for seconds in (writing_s, reading_s))
    text = f"one process writes {write:,.0f} MB/s with fsync each {_CHUNK >> 20} MiB"
    text += f", reads {read:,.0f} MB/s" if from_disk else ", and reads from memory"
    values = {"write_mb_s": round(write), "read_mb_s": round(read) if from_disk else None, "bytes": size}
    if write < 20:
        remedy = "a checkpoint of 14B parameters is 200 GB: choose a faster file system, or fewer checkpoints"
        return GROUP.yellow("speed", text, remedy, **values)
    return GROUP.green("speed", text, **values)


def look_at_space(system: System) -> Iterator[Finding]:
    """Yield free bytes and files, and the user's quota where one is told."""
    folder = nearest_folder(system.output)
    state = os.statvfs(folder)
    yield space(state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize)
    if state.f_files and state.f_favail < 100_000:
        yield GROUP.yellow("files", f"{state.f_favail:,} more may be made", "remove some, or ask for a larger share")
    yield from quota(system, folder)


def space(free: int, size: int) -> Finding:
    """Return the finding about a file system's free bytes."""
    text = f"{show(free)} free of {show(size)}"
    remedy = "free some space, or choose another --output"
    if free < 1 << 30:
        return GROUP.red("space", text, remedy, free=free)
    if free < 20 << 30:
        return GROUP.yellow("space", f"{text}: enough for the miniature alone", remedy, free=free)
    return GROUP.green("space", text, free=free)


def quota(system: System, folder: Path) -> Iterator[Finding]:
    """Yield the user's quota, by ``lfs`` on Lustre and by ``quota`` elsewhere; nothing where none is told."""
    mount = mount_of(os.path.realpath(folder), mounts(system.text("proc/self/mountinfo")))
    if mount is not None and mount.kind == "lustre":
        answer = system.ask(["lfs", "quota", "-q", "-u", str(os.getuid()), mount.place])
    else:
        answer = system.ask(["quota", "-w", "-p"])
    if answer is None or answer.code or mount is None:
        yield GROUP.not_here("quota", "none is told")
        return
    for words in (line.replace("*", " ").split() for line in answer.text.splitlines()):
        if len(words) >= 4 and words[0] in (mount.place, mount.source) and all(w.isdigit() for w in words[1:4]):
            used, soft, hard = (int(word) << 10 for word in words[1:4])
            most = soft or hard
            if not most:
                break
            text = f"{show(used)} of {show(most)} used"
            if used > 0.9 * most:
                yield GROUP.yellow("quota", text, "remove what is not needed, or ask for more")
            else:
                yield GROUP.green("quota", text)
            return
    yield GROUP.not_here("quota", "none is told")


_AWAY = "the file system does not answer: see its server, and `mount`"
PROBES = (
    Probe("storage", "file system", look_at_kind, 8.0, _AWAY),
    Probe("storage", "semantics", look_at_semantics, 8.0, _AWAY),
    Probe("storage", "speed", look_at_speed, 15.0, _AWAY),
    Probe("storage", "space", look_at_space, 12.0, _AWAY),
)
