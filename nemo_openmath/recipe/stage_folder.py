"""The folder of a stage while it is being made: its plan, the shards that are done, the seconds that were spent.

``plan.json`` says what the folder is being made for: ``fingerprint``, the incremental settings under ``grows``, and
``made_nothing`` where the last attempt left nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core import shared_files
from nemo_openmath.core.errors import SystemFailure, UserError
from nemo_openmath.core.records import write_json
from nemo_openmath.core.records.manifest import MANIFEST, PLAN, sync
from nemo_openmath.core.records.store import partition_counts, partition_files, partition_in
from nemo_openmath.core.stage import CONTROLS, Stage, StageContext, UnitStage
from nemo_openmath.recipe.fingerprint import Fingerprints
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.stage_entries import StageEntry

SECONDS = "seconds.json"
_NOTHING = "made_nothing"
_SHARD = ".done-"


def write_plan(folder: Path, stage: Stage, fingerprint: str, partitions: int, *, made_nothing: bool = False) -> None:
    """Write down what the folder is being made for, and into how many parts the work is divided; 0 where the first job
    is to say that."""
    incremental = {name: getattr(stage.config, name) for name in stage.incremental}
    plan: dict[str, Any] = {"fingerprint": fingerprint, "grows": incremental}
    plan |= {"partitions": partitions} if partitions else {}
    write_json(folder / PLAN, plan | ({_NOTHING: True} if made_nothing else {}))


def is_planned(folder: Path, fingerprint: str) -> bool:
    """Return whether what lies there was begun for this fingerprint."""
    return _read_plan(folder).get("fingerprint") == fingerprint


def holds_smaller(entry: StageEntry, folder: Path, fingerprints: Fingerprints) -> bool:
    """Return whether what lies there is what the stage makes with smaller values of its incremental settings."""
    plan = _read_plan(folder)
    if "grows" not in plan or "fingerprint" not in plan:
        return False
    try:
        previous = entry.stage.previous_version(plan["grows"])
    except (ValueError, KeyError):  # a plan of other settings
        return False
    return previous is not None and fingerprints.of_version(entry, previous) == plan["fingerprint"]


def _read_plan(folder: Path) -> dict[str, Any]:
    """The plan; empty where there is none, or none that can be read."""
    try:
        plan = orjson.loads((folder / PLAN).read_bytes())
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}


def reopen(folder: Path) -> None:
    """Make a finished stage an unfinished one whose records stay."""
    for path in [folder / MANIFEST, *folder.glob(f"{_SHARD}*")]:
        path.unlink(missing_ok=True)


def left_nothing(folder: Path) -> bool:
    """Return whether the last attempt at the stage ended, and made nothing."""
    return bool(_read_plan(folder).get(_NOTHING))


def partitions_of(folder: Path, stage: Stage, asked: int, selection: StageSelection) -> int:
    """Return into how many parts the work of a stage is divided: as it was begun, whatever array goes on with it, or as
    is ``asked`` for, and then at least into one for each job. 0 where nothing has begun, and only preparations are
    made.

    Raises UserError where it was begun by another number of jobs and only such an array can go on with it, and where an
    array of an earlier version, which divided it otherwise, has begun it.
    """
    if not isinstance(stage, UnitStage):
        if (others := partition_counts(folder) - {selection.shards}) and not selection.prepare:
            how = f"an array of {others.pop()}" if others != {1} else "one job"
            raise UserError(f"begun as {how}", file=folder, remedy="go on as begun, or remove the folder")
        return selection.shards
    if (begun := _read_plan(folder).get("partitions")) is not None:
        if others := partition_counts(folder) - {int(begun)}:
            problem = f"begun with {begun} partitions, and holds some of {others.pop()}"
            raise UserError(problem, file=folder, remedy="remove the folder and run the stage again")
        return int(begun)
    if (counts := partition_counts(folder) - {1}) and not selection.prepare:
        problem = f"begun as an array of {counts.pop()} by an earlier version, which divided the work in another way"
        raise UserError(problem, file=folder, remedy="remove the folder, or finish it with that version")
    if partition_counts(folder):
        return 1
    return 0 if selection.prepare else max(asked, selection.shards)


def remove_foreign_failures(folder: Path, partitions: int) -> None:
    """Remove the files of units that failed in arrays of earlier versions, one a job: those of the parts of the work
    say what is missing now."""
    for path in folder.glob("failed-*-of-*.jsonl"):
        if partition_in(path)[1] != partitions:
            path.unlink()


def forget_failed_parts(folder: Path, parts: Iterable[int], partitions: int) -> None:
    """Forget that parts of the work were done of which units failed: they are about to be tried again, and until that
    has ended nobody may finish the stage without them."""
    failed = {number for number in parts if partition_files(folder, number, partitions)["failed"].exists()}
    marks = [path for path in folder.glob(f"{_SHARD}*.json") if not failed.isdisjoint(_read_mark(path)["parts"])]
    for path in marks:
        path.unlink(missing_ok=True)  # without locks another job may be quicker
    if marks:
        sync(folder)


def is_last_shard(folder: Path, context: StageContext) -> bool:
    """Note that the parts of the work of this job are done, with what it measured. Return whether all parts are, by
    jobs of arrays of any size. Their metrics are summed then: of each part, those of the job that ended last.

    Other jobs may have ended a moment ago on other machines. The marks of this array are opened by name, after this
    job's own was written: of two jobs the later one sees both. A mark says which files belong to it; they are waited
    for. Raises SystemFailure where they do not come.
    """
    if context.shards == 1:
        return True
    names = [f"{_SHARD}{number:05d}-of-{context.shards:05d}.json" for number in range(context.shards)]
    mark = {"parts": list(context.part_numbers()), "metrics": context.metrics, "files": _own_files(folder, context)}
    write_json(folder / names[context.shard], mark)
    marks = {path.name: path for path in [*(folder / name for name in names), *folder.glob(f"{_SHARD}*.json")]}
    done, total, files = set[int](), Counter[str](), dict[str, int]()
    present = [path for path in marks.values() if shared_files.size_of(path) is not None]
    for path in sorted(present, key=lambda path: (-path.stat().st_mtime_ns, path)):
        earlier = _read_mark(path)
        if not done.issuperset(parts := earlier["parts"]):
            done.update(parts)
            total.update({k: v for k, v in earlier["metrics"].items() if isinstance(v, int | float)})
            files.update(earlier["files"])
    if len(done) < context.partitions:
        return False
    if missing := shared_files.until_seen(lambda: _unseen(folder, files), folder):
        remedy = "check the shared file system, then run the same command again"
        raise SystemFailure(folder / missing, "another job has written it, and this machine does not see it", remedy)
    context.metrics.clear()
    context.metrics.update(total)
    return True


def _read_mark(path: Path) -> dict[str, Any]:
    mark: dict[str, Any] = {"parts": (), "metrics": {}, "files": {}}
    with contextlib.suppress(FileNotFoundError):  # forgotten in between
        mark |= orjson.loads(path.read_bytes())
    return mark


def _own_files(folder: Path, context: StageContext) -> dict[str, int]:
    """Return name -> bytes of the files of records that this job made, those of its controls among them."""
    paths = (
        path
        for place in (folder, folder / CONTROLS)
        for n in context.part_numbers()
        for path in partition_files(place, n, context.partitions).values()
    )
    present = (path for path in paths if path.exists() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.stat().st_size for path in present}


def _unseen(folder: Path, files: Mapping[str, int]) -> str:
    """Return a file that is not in the listing of its folder, or not whole, as this machine sees it; "" where none."""
    aside = folder / CONTROLS
    listed = {*os.listdir(folder), *(f"{CONTROLS}/{name}" for name in (os.listdir(aside) if aside.is_dir() else ()))}
    return next(
        (n for n, size in files.items() if n not in listed or (shared_files.size_of(folder / n) or 0) < size), ""
    )


@contextlib.contextmanager
def stopwatch(folder: Path) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds spent on a stage, earlier attempts included unless they were killed."""
    path = folder / SECONDS
    before = _noted_seconds(path)
    begun = time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - begun

    try:
        yield spent
    finally:
        with contextlib.suppress(OSError):  # a full disk must not hide the error that matters
            write_json(path, round(spent(), 3))


def seconds_of_work(folder: Path) -> float:
    """Return the seconds of work that lie in a folder: those noted, and those of a last attempt that was killed."""
    noted, plan = folder / SECONDS, folder / PLAN
    before = _noted_seconds(noted)
    begun = plan.stat().st_mtime if plan.exists() else time.time()
    if noted.exists() and noted.stat().st_mtime >= begun:
        return before
    return before + max(0.0, max(p.stat().st_mtime for p in [folder, *folder.rglob("*")]) - begun)


def _noted_seconds(path: Path) -> float:
    """The seconds of earlier attempts; 0 where none are noted, or the note is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return float(orjson.loads(path.read_bytes()))
    return 0.0
