"""An extra layer where the system allows it: the zygote in namespaces of its own, and all its sessions with it.

No network interface at all, no other process to be seen or signalled, no System V IPC, and a pid namespace whose
first process is the zygote: when it ends, the kernel ends every session. Containers and hardened machines often forbid
user namespaces; the required walls do not depend on them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import NoReturn

from nemo_openmath.sandbox import folders
from nemo_openmath.sandbox.libc import libc
from nemo_openmath.sandbox.walls import die_with_parent

_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_NEWIPC, _NEWUTS, _NEWCGROUP = 0x08000000, 0x04000000, 0x02000000
_NEWNS = 0x00020000
_EXTRA = _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP


def enter(base: str, mounts: bool) -> bool:
    """Move on in new namespaces; False where the system forbids them, or ``mounts`` inside of them.

    To be called once, early, by a process with one thread. The caller goes on as the first process of the pid
    namespace; what was the caller stays behind, waits for it, removes ``base`` and ends.
    """
    for flags in (_EXTRA, _NEWUSER | _EXTRA):  # root of the machine needs no user namespace
        if _possible(flags | (_NEWNS if mounts else 0)):
            break
    else:
        return False
    _unshare(flags)
    child = os.fork()
    if child:
        _stay_behind(child, base)
    die_with_parent(0)  # the parent is outside of the pid namespace: its number reads 0 in here
    return True


def _possible(flags: int) -> bool:
    """Return whether the system allows it. A child tries, because a half-granted namespace cannot be left again."""
    child = os.fork()
    if child == 0:
        try:
            _unshare(flags)
            inner = os.fork()
            if inner == 0:
                os._exit(0)
            os._exit(os.waitpid(inner, 0)[1] != 0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _unshare(flags: int) -> None:
    user, group = os.getuid(), os.getgid()
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    if flags & _NEWUSER:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")


def _stay_behind(child: int, base: str) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        folders.remove(base)  # usually gone already
    os._exit(abs(os.waitstatus_to_exitcode(status)) & 0xFF)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
