"""The file wall: Landlock (``linux/landlock.h``), which any process may put on itself.

Denied unless listed: reading, writing, creating, removing, executing. On newer kernels also TCP (ABI 4), ioctl on
devices (5), signals and abstract unix sockets across the wall (6). Landlock says nothing about metadata: ``stat`` of a
path whose folders are searchable still answers, and ``chmod``/``chown``/``utime`` are seccomp's to deny.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

from nemo_openmath.sandbox.libc import libc, syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14


def abi() -> int:
    """Return Landlock's version in this kernel; 0 where it is missing or switched off."""
    return max(0, libc.syscall(_CREATE_RULESET, None, 0, 1))


def outer_layer(version: int, readable: Iterable[str], listed: Iterable[str], base: str) -> int:
    """Return a ruleset for all sessions, to `enforce` besides the one of their own. Raises OSError.

    Of folders whose content must stay hidden in part (a rule holds for all below it), it lets only these ``readable``
    parts be read. ``listed``: folders whose names may be read; ``base``: the sessions' folders.
    """
    ruleset, file_rights = _create(version)
    for place in (*readable, "/dev/null", base):
        rights = file_rights & ~_EXECUTE if place == base else _READ_FILE | _READ_DIR
        rights |= (_WRITE_FILE | _TRUNCATE) & file_rights if place == "/dev/null" else 0
        _allow_path(ruleset, rights if os.path.isdir(place) else rights & ~_READ_DIR, place)
    for place in listed:
        _allow_path(ruleset, _READ_DIR, place)
    return ruleset


def enforce(ruleset: int) -> None:
    """Wall in the calling thread, for good: from now on this ruleset must allow, too. Needs no_new_privs."""
    syscall(_RESTRICT_SELF, ruleset, 0)


def restrict(version: int, readable: Iterable[tuple[int, bool]], folder: str) -> None:
    """Wall in the calling thread, for good. Needs no_new_privs. Raises OSError.

    ``readable``: (O_PATH descriptor, is a folder) of what may be read; ``folder``: where it may also write.
    """
    ruleset, file_rights = _create(version)
    try:
        for descriptor, is_folder in readable:
            _allow(ruleset, _READ_FILE | _READ_DIR if is_folder else _READ_FILE, descriptor)
        _allow_path(ruleset, (_READ_FILE | _WRITE_FILE | _TRUNCATE) & file_rights, "/dev/null")
        _allow_path(ruleset, file_rights & ~_EXECUTE, folder)
        enforce(ruleset)
    finally:
        os.close(ruleset)


def _create(version: int) -> tuple[int, int]:
    """Return a ruleset and the rights to files that this kernel's Landlock knows."""
    file_rights = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    attributes = struct.pack("=QQQ", file_rights, 0b11, 0b11)  # files; TCP bind, connect; abstract sockets, signals
    return syscall(_CREATE_RULESET, attributes, 8 if version < 4 else 16 if version < 6 else 24, 0), file_rights


def _allow_path(ruleset: int, rights: int, path: str) -> None:
    descriptor = os.open(path, os.O_PATH)
    try:
        _allow(ruleset, rights, descriptor)
    finally:
        os.close(descriptor)


def _allow(ruleset: int, rights: int, descriptor: int) -> None:
    try:
        syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
    except OSError as error:
        raise OSError(error.errno or errno.EINVAL, f"Landlock rule refused: {error.strerror}") from error
