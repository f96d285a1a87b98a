"""Locks on files (``flock``) that name their holder: any death releases them, kill -9 and a lost machine too.

NFS passes the locks on to all nodes. Lustre mounted without ``-o flock`` has none: there
:mod:`nemo_openmath.core.leases` takes their place. With ``localflock`` it has locks that no other node sees, which
nobody can tell from real ones.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import of_the_system

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_TRIES, _TRY_S = 3, 0.5


def open_lock_file(path: Path) -> int:
    """Open a lock's file, made where it is missing, and return its descriptor. Raises the error that a user
    understands."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise of_the_system(error, path.parent) or error from None


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Try to take the lock. Return whether it was free and is held now; None where the file system has no locks. Raises
    OSError for anything else."""
    for attempt in range(_TRIES):
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno not in _NO_LOCKS:
                raise
            if error.errno == errno.ENOLCK and attempt < _TRIES - 1:  # NFS: its lock service may be away for a moment
                time.sleep(_TRY_S)
                continue
            return None
    raise AssertionError("the loop returns or raises")


def is_open_file(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` is still the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def new_mark(**more: Any) -> dict[str, Any]:
    """Return who holds a lock: process, host, since when."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, **more}


def read_mark(path: Path) -> dict[str, Any]:
    """Return the holder's mark; empty where there is none, or while it is being written."""
    try:
        mark = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def write_mark(descriptor: int, mark: dict[str, Any], path: Path) -> None:
    """Write the mark into the lock's file. Raises the error that a user understands (a full disk)."""
    text = json.dumps(mark).encode()
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
    except OSError as error:
        raise of_the_system(error, path) or error from None


def is_alive(mark: dict[str, Any]) -> bool | None:
    """Return whether the process of a mark is there; None where it is another machine's."""
    if mark.get("host") != socket.gethostname() or not isinstance(mark.get("pid"), int):
        return None
    try:
        state = Path(f"/proc/{mark['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
