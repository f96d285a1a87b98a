"""Everything that stands between a session's process and the machine, put up by the process itself after the fork.

Required: no_new_privs, seccomp and a file wall: Landlock or, on kernels without it, a mount namespace. A missing one is
named by :func:`missing_walls`; the zygote then refuses to start unless the user asked for an unsafe one.
"""

from __future__ import annotations

import os
import resource
import signal
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_openmath.sandbox import landlock, seccomp
from nemo_openmath.sandbox.libc import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl, syscall

LANDLOCK, MOUNTS = "Landlock", "mount namespace"
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fixed when a session's process is made: its kernel limits and its share of memory for output."""

    memory_mb: int
    open_files: int
    file_mb: int
    capacity: int
    """Bytes of output kept per stream."""


def missing_walls(file_wall: str | None) -> list[str]:
    """Return what is required and not there, with what would bring it."""
    missing = []
    if not seccomp.available():
        missing.append("seccomp (a kernel with CONFIG_SECCOMP_FILTER)")
    if file_wall is None:
        missing.append(
            "a file wall (Landlock, that is Linux 5.13 with 'landlock' among the security modules, or namespaces)"
        )
    return missing


def readable_places(packages: Iterable[str]) -> list[str]:
    """Return the files and folders that Python itself needs to read lazily: the standard library, the packages, shared
    libraries, time zones.

    Of site-packages only what is preloaded (see `hidden_folders`), and nothing of a home, working or service folder.
    """
    places = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)}
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    places |= {"/lib64", "/usr/lib64", f"/lib/{multiarch}", f"/usr/lib/{multiarch}", "/etc/ld.so.cache"}
    places |= {"/usr/share/zoneinfo", "/dev/zero", "/dev/random", "/dev/urandom"}
    for name in packages:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and os.path.basename(origin).startswith("__init__."):
            folder = os.path.dirname(origin)
            places |= {folder, f"{folder}.libs"}  # manylinux wheels keep their shared libraries beside the package
        elif origin:
            places.add(origin)
    real = {os.path.realpath(place) for place in places if os.path.exists(place)}
    return sorted(place for place in real if place not in ("/", "/lib", "/usr/lib", "/usr"))


def hidden_folders(places: Iterable[str]) -> list[str]:
    """Return the folders below the places that must not be read: an interpreter's packages beside its library."""
    candidates = {os.path.realpath(folder) for folder in site.getsitepackages([sys.prefix, sys.base_prefix])}
    known = set(places)
    return sorted(f for f in candidates if os.path.isdir(f) and f not in known and any(_is_in(f, p) for p in known))


def without(places: Iterable[str], hidden: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return (readable, listed): the same places with the hidden folders left out, and the folders that thus fell
    apart."""
    readable, listed, pending = [], [], list(places)
    while pending:
        place = pending.pop()
        if place in hidden:
            continue
        if any(_is_in(folder, place) for folder in hidden):
            listed.append(place)
            pending += [entry.path for entry in os.scandir(place) if not entry.is_symlink()]
        else:
            readable.append(place)
    return readable, listed


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(folder + "/")


def open_places(places: Iterable[str]) -> list[tuple[int, bool]]:
    """Return O_PATH descriptors of the places, opened once and used by every session."""
    return [(os.open(place, os.O_PATH | os.O_CLOEXEC), os.path.isdir(place)) for place in places]


def die_with_parent(parent: int) -> None:
    """Ask for SIGKILL for this process when the thread that forked it ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def address_space() -> int:
    """Return the bytes of this process's address space."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def set_limits(shape: Shape, preloaded: int) -> None:
    """Set the kernel limits, soft and hard. seccomp then takes away every call that could change them.

    ``preloaded``: bytes of address space that a session has before it runs anything.
    """
    for kind, value in (
        (resource.RLIMIT_AS, preloaded + (shape.memory_mb << 20)),
        (resource.RLIMIT_FSIZE, shape.file_mb << 20),
        (resource.RLIMIT_NOFILE, shape.open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def forbid_queued_signals() -> None:
    """Forbid signals that are queued. The kernel counts them per user: a session could use up what all processes of the
    user share, and no timer could be made any more. Those made before this stay; other signals still arrive,
    unqueued."""
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))


def drop_capabilities(arch: seccomp.Architecture) -> None:
    """Give up every capability, so that a session of root is root in name only; no_new_privs makes it final."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    syscall(_CAPSET[arch.name], header, bytes(24))


def close_in(
    arch: seccomp.Architecture, file_wall: str | None, outer: int, places: Iterable[tuple[int, bool]], folder: str
) -> None:
    """Put up the walls that cannot be taken down, as the last step. What is missing was asked to be, or we would not be
    here.

    ``outer``: Landlock's ruleset for all sessions, or -1.
    """
    drop_capabilities(arch)
    if file_wall == LANDLOCK:
        if outer >= 0:
            landlock.enforce(outer)
        landlock.restrict(landlock.abi(), places, folder)
    if seccomp.available():
        seccomp.restrict(arch, seccomp.program(arch, os.getpid()))
