"""Output folders that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_openmath.core.errors import OpenMathError, UserError, no_space
from nemo_openmath.core.records.manifest import refuse_inside_stage, sync

_HOST = socket.gethostname()
log = logging.getLogger(__name__)


@contextmanager
def building(destination: Path, *, into_existing: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``destination``, which gets its name when the block ends well.

    Then it is flushed to disk and renamed; else it is removed. ``into_existing``: the folder exists and its owner marks
    it as finished (a stage's output): the files are moved into it. Raises UserError where the folder exists, cannot be
    written, or the disk is full.
    """
    destination = Path(os.path.realpath(destination))  # a link to an empty folder stays one
    if not into_existing:
        refuse_inside_stage(destination)
        _refuse_taken(destination)
    parent = destination if into_existing else destination.parent
    partial = parent / f".{destination.name}.{_HOST}-{os.getpid()}.partial"
    _remove_remains(parent, destination.name, everyones=into_existing)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        if into_existing:
            for path in partial.iterdir():
                _replace(path, destination / path.name)
            partial.rmdir()
        else:
            _refuse_taken(destination)  # by another process, in the meantime
            partial.rename(destination)
        sync(parent)
    except OSError as error:
        if (ours := _of_the_disk(error, destination, partial)) is not None:
            raise ours from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if os.path.exists(partial):
            log.warning("%s could not be removed: remove it", partial)


def _refuse_taken(destination: Path) -> None:
    """Raise UserError where a finished folder cannot get the name ``destination``."""
    if os.path.exists(destination) and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError("exists already", file=destination, remedy="remove it or choose another name")
    if destination.is_dir() and os.path.ismount(destination):
        raise UserError("is a mount point, which cannot be renamed", file=destination, remedy="name a folder inside it")


def _of_the_disk(error: OSError, destination: Path, partial: Path) -> OpenMathError | None:
    """Return the error of a full disk, or of a folder that cannot be written; None for what else the system says."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return no_space(destination, error.strerror or str(error), "nothing was left behind")
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    ours = any(name.startswith(str(partial)) or partial.is_relative_to(name) for name in names)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG) and ours:
        remedy = "choose a folder that can be written"
        return UserError(f"cannot be written ({error.strerror})", file=destination, remedy=remedy)
    return None


def _remove_remains(parent: Path, name: str, *, everyones: bool) -> None:
    """Remove what killed writers of ``name`` left: those of this machine whose process is gone, or everyone's."""
    for path in parent.glob(f".{glob.escape(name)}.*.partial"):
        host, _, pid = path.name.removeprefix(f".{name}.").removesuffix(".partial").rpartition("-")
        ours = host == _HOST and pid.isdigit()
        if everyones or (ours and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists())):
            shutil.rmtree(path, ignore_errors=True)


def _replace(path: Path, destination: Path) -> None:
    if destination.is_dir():
        shutil.rmtree(destination)
    path.rename(destination)
