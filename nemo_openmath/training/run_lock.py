"""One training at a time in an output folder.

Rank 0 holds a lock (``flock``) on ``OUTPUT/.training.lock`` for as long as it lives. Any death releases the lock, kill
-9 and a lost machine too. The file says who holds it. A second training in the folder is refused. A training that
comes while the first is stopping (SIGTERM, SIGUSR1), as a job that was queued again may, waits for it and goes on from
what it saved.

Network file systems: NFS passes the lock on to all nodes. Where there are no locks (Lustre mounted without ``-o
flock``), rank 0 holds a lease instead (:mod:`nemo_openmath.core.leases`). With ``localflock`` there are locks that no
other node sees; there the folder goes to whoever came last. A training that has lost the folder ends at its next save,
before it writes: the file no longer bears its mark.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_openmath.core import leases
from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.leases import Lease, LeaseAsker
from nemo_openmath.core.locks import (
    is_alive,
    is_open_file,
    new_mark,
    open_lock_file,
    read_mark,
    try_lock,
    write_mark,
)
from nemo_openmath.core.waiting import Waiting

LOCK = ".training.lock"
PATIENCE_SECONDS = 3.0  # how long a holder that was just killed is waited for
STOPPING_SECONDS = 600.0  # how long a holder that is stopping is waited for
_LOOKS = 4
log = logging.getLogger(__name__)


class RunLock:
    """A held ``OUTPUT/.training.lock``."""

    def __init__(self, path: Path, descriptor: int, mark: dict[str, Any], lease: Lease | None = None):
        self.path, self._descriptor, self._mark, self._lease = path, descriptor, mark, lease
        if is_open_file(path, descriptor):
            self._write()

    @classmethod
    def take(cls, output: Path, ranks: int) -> RunLock:
        """Take the lock of ``output``, and wait for a holder that is stopping.

        ``ranks`` is written into the file, for people. Raises UserError that names the folder and its holder, or why
        the folder cannot be written.
        """
        mark = new_mark(id=uuid.uuid4().hex, ranks=ranks, stopping=False)
        path, start, waiting = output / LOCK, time.monotonic(), Waiting(say=log.info, first_s=0)
        asker, patience_s = LeaseAsker(path, "a training", lost=lambda _: None), PATIENCE_SECONDS
        while True:
            descriptor, lease = open_lock_file(path), None
            free = try_lock(descriptor)
            if free is None:
                lease = asker.take()
                free = lease is not None
                if is_alive(asker.holder) is None:  # on another machine, of which its file alone tells
                    patience_s = leases.PATIENCE_S
            if free and is_open_file(path, descriptor):  # not deleted in between
                return cls(path, descriptor, mark, lease)
            os.close(descriptor)
            if lease is not None:
                lease.release()
            if free:
                continue
            holder, waited = read_mark(path), time.monotonic() - start
            stopping = holder.get("stopping") is True
            if waited > (STOPPING_SECONDS if stopping else patience_s):
                raise _refusal(output, holder)
            if stopping:
                waiting.still(f"{_name(holder)}, which is stopping in {output}", STOPPING_SECONDS, waited_s=waited)
            time.sleep(0.1)

    def stopping(self) -> None:
        """Tell those who want the folder that it will soon be free. Safe in a signal handler."""
        if read_mark(self.path).get("id") == self._mark["id"]:
            self._mark["stopping"] = True
            with contextlib.suppress(OpenMathError, OSError):  # a full disk must not end the training
                self._write()

    def check(self) -> None:
        """Raise UserError when another training has taken the folder over all the same."""
        holder = read_mark(self.path)
        for _ in range(_LOOKS):  # it may be being written, or its server be away for a moment
            if holder.get("id") or not self.path.exists():
                break
            time.sleep(0.5)
            holder = read_mark(self.path)
        if holder.get("id") != self._mark["id"] or (self._lease is not None and self._lease.lost):
            problem = f"{_name(holder)} has taken this folder over; nothing more is saved"
            raise UserError(problem, file=self.path.parent, remedy="run one training at a time in a folder")

    def release(self) -> None:
        """Let go of the lock."""
        os.close(self._descriptor)
        if self._lease is not None:
            self._lease.release()

    def _write(self) -> None:
        write_mark(self._descriptor, self._mark, self.path)


@contextmanager
def locked(output: Path) -> Iterator[RunLock | None]:
    """Hold the lock of ``output`` within; all ranks enter together. Yields the lock in rank 0, which decides for all,
    and None in the others."""
    import torch.distributed as dist  # takes seconds to import

    from nemo_openmath.training.agreement import on_main

    lock: RunLock | None = None

    def take() -> None:
        nonlocal lock
        lock = RunLock.take(output, dist.get_world_size())

    on_main(take)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def refuse_locked(output: Path) -> None:
    """Raise UserError when a training runs in ``output`` and is not stopping: refuses early, and without processes,
    what :func:`locked` would refuse."""
    path = output / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        holder = read_mark(path)
        if try_lock(descriptor) is False and not holder.get("stopping"):
            raise _refusal(output, holder)
    finally:
        os.close(descriptor)


def _name(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another training"
    return "the training of process {pid} on {host} ({ranks} ranks, since {since})".format_map(
        {"host": "?", "ranks": "?", "since": "?", **holder}
    )


def _refusal(output: Path, holder: dict[str, Any]) -> UserError:
    problem = f"{_name(holder)} is running in this folder"
    return UserError(problem, file=output, remedy="wait for it, stop it, or choose another output folder")
