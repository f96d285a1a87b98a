"""How far the stages of a running job are, by the files that they write."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from nemo_openmath.core.progress import FOLDER
from nemo_openmath.launch.run_files import PlannedJob, RunFiles, listed

_TAIL = 1 << 16  # bytes of a file's end that are read
_STEP = re.compile(rb"step (\d+)/(\d+)")


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is."""

    stage: str
    done: int
    total: int | None
    """None where nobody knows how much there is."""
    failed: int = 0
    unit: str = "units"
    """What is counted: ``units`` of work, or ``steps`` of a training."""
    per_second: float = 0.0
    """The speed of this attempt, all tasks together; 0 where it is not known."""
    time: float = 0.0
    """When something was counted last."""

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at this speed; None where that is not known."""
        if self.total is None or self.per_second <= 0 or self.done > self.total:
            return None
        return (self.total - self.done) / self.per_second


def read_progress(run: RunFiles, job: PlannedJob, active: Sequence[int | None], now: float) -> StageProgress | None:
    """Return how far a job is: of several stages, in the first that is not finished. ``active``: the tasks that run."""
    stage = next((s for s in job.stages if not (run.output / s / "manifest.json").is_file()), None)
    if stage is None:
        return None
    if job.work == "training":
        return _training(run, job, stage, now)
    notes, folder = [], run.output / FOLDER
    for shard in range(job.array):
        try:
            with open(f"{folder}/{stage}.{shard:05d}-of-{job.array:05d}.json", "rb") as file:
                note = orjson.loads(file.read())
            fresh = (shard if job.array > 1 else None) in active
            notes.append((note["done"], note["total"], note["failed"], note["rate"] if fresh else 0.0, note["time"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not notes:
        return None
    totals = [total for _, total, *_ in notes]
    whole = len(notes) >= job.array and None not in totals
    return StageProgress(
        stage,
        sum(done for done, *_ in notes),
        sum(total or 0 for total in totals) if whole else None,
        sum(failed for _, _, failed, *_ in notes),
        per_second=sum(rate for *_, rate, _ in notes),
        time=max(time for *_, time in notes),
    )


def silence(run: RunFiles, job: PlannedJob, active: Sequence[int | None], now: float) -> float:
    """Return for how many seconds the process of the active tasks that is silent longest has given no sign of life: its
    file in ``STAGE/.heartbeat`` is rewritten every few seconds. 0 where there is none."""
    ages = []
    for stage in job.stages:
        for file in listed(run.output / stage / ".heartbeat"):
            number = file.name.partition("-of-")[0]
            if job.array == 1 or (number.isdigit() and int(number) in active):
                with contextlib.suppress(OSError):  # it ends
                    ages.append(now - file.stat().st_mtime)
    return max(ages, default=0.0)


def _training(run: RunFiles, job: PlannedJob, stage: str, now: float) -> StageProgress | None:
    rows = []
    for line in _tail(run.output / stage / "metrics.jsonl").split(b"\n"):
        try:
            row = orjson.loads(line)
            rows.append((int(row["step"]), float(row["seconds"])))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            continue
    if not rows:
        return None
    seconds = [seconds for _, seconds in rows[-20:]]
    total = _steps(run.output / stage / "job.yaml") or _logged_steps(run, job)
    speed = len(seconds) / sum(seconds) if sum(seconds) else 0.0
    try:
        time = (run.output / stage / "metrics.jsonl").stat().st_mtime
    except OSError:  # removed in between
        time = now
    return StageProgress(stage, rows[-1][0], total, 0, "steps", speed, time)


def _steps(path: Path) -> int | None:
    """The steps that a job file asks for; None where it says epochs."""
    try:
        steps = orjson.loads(path.read_bytes())["data"]["steps"]  # JSON, as recipe run writes it
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def _logged_steps(run: RunFiles, job: PlannedJob) -> int | None:
    """The number of steps that the newest log names."""
    prefix = f"{run.output.name}.{job.name}-"
    logs = sorted((time, name) for name, time in run.logs.items() if name.startswith(prefix))
    matches = _STEP.findall(_tail(run.sbatch / "logs" / logs[-1][1])) if logs else []
    return int(matches[-1][1]) if matches else None


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read()
    except OSError:
        return b""
