"""The file wall of kernels without Landlock: a mount namespace that holds Python, the private folder and nothing else.

The zygote moves into a small read-only root once; each session then hides the folders of the others.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from nemo_openmath.sandbox.libc import libc

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _MOVE = 1, 2, 4, 8, 32, 4096, 8192
_REC, _PRIVATE, _DETACH, _NEWNS = 16384, 1 << 18, 2, 0x20000
# statvfs's names for what a remount must keep in a user namespace, and mount's
_LOCKED = {2: _NOSUID, 4: _NODEV, 8: _NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_STAGE, _EMPTY = "/.session", "size=1m,mode=755"


def enter_root(machine: str, places: Iterable[str], hidden: Iterable[str], base: str) -> None:
    """Move into a mount namespace whose root has ``places`` (sorted), read-only and without what is in ``hidden``, and
    ``base``, the sessions' folders. Needs to be root, or first in a user namespace. Raises OSError."""
    root = f"{base}/.root"
    os.mkdir(root)
    if libc.unshare(_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("none", root, "tmpfs", _NOSUID | _NODEV, "size=4m,mode=755")
    for name in ("lib", "lib64"):  # /lib -> usr/lib on merged systems; the loader's cache names both
        if os.path.islink(f"/{name}") and not os.readlink(f"/{name}").startswith("/"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
    empty: list[str] = []
    for place in (*places, "/dev/null"):
        target = root + place
        if os.path.isdir(place):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(place, target, None, _BIND | _REC)
        if not place.startswith("/dev/"):
            locked = sum(flag for seen, flag in _LOCKED.items() if os.statvfs(target).f_flag & seen)
            _mount(None, target, None, _BIND | _REMOUNT | _RDONLY | locked)
        for folder in hidden:
            if folder.startswith(place + "/"):  # packages are mounted into it after this
                _mount("none", root + folder, "tmpfs", _NOSUID | _NODEV, _EMPTY)
                empty.append(root + folder)
    for target in empty:
        _mount(None, target, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV, _EMPTY)
    os.makedirs(root + base)
    os.mkdir(root + _STAGE)
    _mount(base, root + base, None, _BIND)
    _mount(None, root, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV, "size=4m,mode=755")
    os.chdir(root)
    if libc.syscall(ctypes.c_long(_PIVOT_ROOT[machine]), b".", b"."):
        raise OSError(ctypes.get_errno(), "pivot_root")
    if libc.umount2(b".", _DETACH):
        raise OSError(ctypes.get_errno(), "umount of the old root")
    os.chdir("/")


def hide_others(folder: str, base: str) -> None:
    """Hide everything below ``base`` but the session's own ``folder``. Raises OSError. Called inside a session."""
    if libc.unshare(_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount(folder, _STAGE, None, _BIND)
    _mount("none", base, "tmpfs", _NOSUID | _NODEV, "size=64k,mode=755")
    os.mkdir(folder)
    _mount(_STAGE, folder, None, _MOVE)
    _mount(None, base, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV, "size=64k,mode=755")
    os.chdir(folder)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [value.encode() if value is not None else None for value in (source, target, kind)]
    if libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"mount of {source} on {target}: {os.strerror(code)}")
