"""Locks for file systems that have none: a file a holder, renewed while the holder lives.

A Lustre that is mounted without ``-o flock``, and some network file systems, refuse ``flock`` (ENOLCK, ENOSYS,
EOPNOTSUPP). There a lock ``X`` is the folder ``X.leases`` with a file for each process that holds it or asks for it.
Who wants it writes its own file first and lists the others after that: of two who ask at the same time at least one
sees the other, and goes back.

A holder rewrites its file every ``RENEW_S`` seconds. It is dead

- on the same machine, where its process is gone,
- elsewhere, where its file has not changed while somebody watched it for ``EXPIRY_S`` seconds. Clocks of other machines
  are not compared.

What is held by a dead process is removed. A process that was only suspended for so long finds its file gone, and ends
before it writes anything more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import ExitCode, of_the_system
from nemo_openmath.core.locks import is_alive, new_mark

RENEW_S, EXPIRY_S = 10.0, 60.0
PATIENCE_S = EXPIRY_S + 2 * RENEW_S  # whoever waits for so long has seen whether a holder elsewhere is dead
_SIZE = 512  # bytes of a file, always: a reader never finds one that is cut
log = logging.getLogger(__name__)


def _end(path: Path) -> None:
    log.error("%s is gone: another process took this one for dead, and has the folder; it ends", path)
    os._exit(ExitCode.FAILURE)


class Lease:
    """A held lease, which is renewed until :meth:`release`. ``lost`` is called once another process has taken it."""

    def __init__(self, path: Path, mark: dict[str, Any], lost: Callable[[Path], None]):
        self.lost = False
        """Whether another process took this one for dead."""
        self._path, self._mark, self._on_loss, self._end = path, mark, lost, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go of the lock."""
        self._end.set()
        self._thread.join(1.0)
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _renew(self) -> None:
        while not self._end.wait(RENEW_S):
            self._mark["renewed"] += 1
            try:
                _write(self._path, self._mark, os.O_WRONLY)
            except FileNotFoundError:
                if not self._end.is_set():
                    self.lost = True
                    self._on_loss(self._path)
                return
            except OSError as error:  # a full disk: what is written in place needs no room; a server that is away
                log.warning("%s could not be renewed (%s)", self._path, error.strerror)


class LeaseAsker:
    """One process's tries to take a lock of this kind; it remembers what it has seen of the holders meanwhile."""

    def __init__(self, lock: Path, what: str, *, shared: bool = False, lost: Callable[[Path], None] = _end):
        self._folder, self._shared, self._lost = lock.with_name(f"{lock.name}.leases"), shared, lost
        self._what = what
        self._seen: dict[str, tuple[bytes, float]] = {}  # name -> content, and since when it is unchanged
        self.holder: dict[str, Any] = {}
        """Who held it at the last try, when that was in vain."""

    def take(self) -> Lease | None:
        """Return the lock, held; None where another process holds it, or asks for it at the same time. Raises the error
        that a user understands."""
        mark = new_mark(what=self._what, start=_start(os.getpid()), numbers=_numbers(), renewed=0)
        own = self._folder / f"{'shared' if self._shared else 'alone'}-{uuid.uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(own, mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            others = [name for name in sorted(os.listdir(self._folder)) if name != own.name]
        except OSError as error:
            raise of_the_system(error, self._folder) or error from None
        for name in others:
            if self._shared and name.startswith("shared-"):
                continue
            if (holder := self._living(name)) is not None:
                self.holder = holder
                own.unlink(missing_ok=True)
                return None
        return Lease(own, mark, self._lost)

    def _living(self, name: str) -> dict[str, Any] | None:
        """Return the mark of a holder that may be alive; None, and its file removed, where it is dead."""
        path = self._folder / name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        mark = _parsed(content)
        alive = is_alive(mark) if mark.get("numbers") == _numbers() else None
        if alive and mark.get("start") not in (None, _start(mark["pid"])):
            alive = False  # another process has its number now
        now = time.monotonic()
        before, since = self._seen.setdefault(name, (content, now))
        if before != content:
            self._seen[name] = content, now
        elif alive is None and now - since > EXPIRY_S:
            alive = False
        if alive is not False:
            return mark
        log.info("%s: its holder is dead (%s on %s); removed", path, mark.get("pid", "?"), mark.get("host", "?"))
        path.unlink(missing_ok=True)
        return None


def _write(path: Path, mark: dict[str, Any], flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, json.dumps(mark).encode().ljust(_SIZE - 1) + b"\n", 0)
    finally:
        os.close(descriptor)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        mark = json.loads(content)
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) else {}


def _numbers() -> str:
    """Return which processes the numbers of this one's world name: a container may have its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> int | None:
    """Return when a process of this machine began, in its ticks: with its number, that is unique."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
