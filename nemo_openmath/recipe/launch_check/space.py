"""Free space for what the stages write."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.evaluation.reports.formats import bytes_text
from nemo_openmath.recipe.costs.storage import disk_bytes
from nemo_openmath.recipe.launch_check.findings import Finding, Note
from nemo_openmath.recipe.launch_check.planned import PlannedLaunch

_FULL = 0.9  # of the free space: a file system slows down beyond it


def disk(launch: PlannedLaunch) -> Iterator[Finding]:
    """Hold what the stages write, as far as their settings say it, against the free space of the run's file system."""
    estimates = disk_bytes(launch.recipe)
    there_already = {name: _tree_bytes(launch.output / name) for name in launch.names}
    needed = {name: left for name in launch.names if (left := estimates.get(name, 0) - there_already[name]) > 0}
    there = next((path for path in (launch.output, *launch.output.parents) if path.is_dir()), launch.output)
    total, free = sum(needed.values()), shutil.disk_usage(there).free
    largest = sorted(needed, key=lambda name: -needed[name])[:3]
    parts = ", ".join(f"{name} {bytes_text(needed[name])}" for name in largest)
    text = f"{bytes_text(free)} free, and the stages write some {bytes_text(total)} ({parts}, ...)"
    if total > free:
        remedy = "free some, give another --output, or keep fewer checkpoints (training.checkpoints)"
        yield UserError(text, file=there, remedy=remedy)
    elif total > _FULL * free:
        yield Note(f"{there}: {text}")


def _tree_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where there is none."""
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
