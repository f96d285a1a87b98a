"""What another machine has just written to a shared folder.

A network file system shows what a node has cached: names of a folder for up to a minute (NFS, ``acdirmax``), and also
that a name is not there. A node that has itself changed the folder asks the server again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from nemo_openmath.core.waiting import Waiting

log = logging.getLogger(__name__)
PATIENCE_S = 90.0
LOOK_S = 2.0


def until_seen(missing: Callable[[], str], folder: Path, patience_s: float | None = None) -> str:
    """Return "" once ``missing`` does, which says what is not to be seen yet below ``folder``; else what is still
    missing after ``patience_s`` (``PATIENCE_S``). Before each further look, the folder is changed."""
    limit_s = PATIENCE_S if patience_s is None else patience_s
    end = time.monotonic() + limit_s
    waiting = Waiting(say=log.info, first_s=0)
    while (what := missing()) and (left_s := end - time.monotonic()) > 0:
        waiting.still(f"{folder} to be seen here ({what})", limit_s, waited_s=limit_s - left_s)
        time.sleep(LOOK_S)
        touch(folder)
    return what


def touch(folder: Path) -> None:
    """Change a folder, so that what this machine has cached of it is not used any more."""
    path = folder / f".look-{uuid.uuid4().hex}.tmp"
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        path.unlink()


def size_of(path: Path) -> int | None:
    """Return the size of a file, and None where there is none. The file is opened: its server is then asked, and not
    the cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
