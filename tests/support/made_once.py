"""Folders that are dear to make: once a session, whatever number of processes the tests run in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` that ``make`` has filled; a process that comes meanwhile waits for it.

    All processes of pytest-xdist get the same folder: who changes what is in it does so in a copy."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, whole = root / name, root / f"{name}.whole"
    with FileLock(root / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that did not finish it
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file below ``folder`` with its size and the time of its last change."""
    stats = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*") if not path.is_dir()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
