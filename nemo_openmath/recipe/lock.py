"""One run at a time in an output folder; jobs of a launcher (``--only``) side by side, one for each stage or shard.

A whole run holds ``OUTPUT/.run.lock`` alone. A job of one stage shares it with other such jobs and holds the stage's
lock in ``OUTPUT/.locks`` alone, or shares that too and holds its shard's and those of the parts of the work that it
does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from nemo_openmath.core import leases, shared_files
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.leases import LeaseAsker
from nemo_openmath.core.locks import (
    is_alive,
    is_open_file,
    new_mark,
    open_lock_file,
    read_mark,
    try_lock,
    write_mark,
)
from nemo_openmath.core.stage import StageContext
from nemo_openmath.core.waiting import Waiting

log = logging.getLogger(__name__)

RUN, STAGES = ".run.lock", ".locks"
_PATIENCE = {True: 0.5, None: 3.0, False: 30.0}  # seconds, for a holder that is alive, elsewhere, or just killed
_LEASE_PATIENCE = {**_PATIENCE, None: leases.PATIENCE_S}
_PLANNING_S = 600.0  # a thousand jobs may begin at once, and the last to end counts the records of all
_FIRST_S = 2.0  # a wait of so many seconds is logged


@contextlib.contextmanager
def run_lock(output: Path, stage: str | None, shard: int, shards: int) -> Iterator[None]:
    """Hold the locks that a run of ``output`` needs, or the run of one stage or shard of it.

    Raises UserError that names the process which holds one of them.
    """
    wanted = [(output / RUN, stage is not None)]
    if stage is not None:
        wanted.append((output / STAGES / f"{stage}.lock", shards > 1))
    if shards > 1:
        wanted.append((output / STAGES / f"{stage}-{shard:05d}-of-{shards:05d}.lock", False))
    what = "this run" if stage is None else f"stage {stage}" + (f", shard {shard} of {shards}" if shards > 1 else "")
    with contextlib.ExitStack() as held:
        for path, shared in wanted:
            held.callback(_take(output, path, shared, what))
        yield


@contextlib.contextmanager
def planning_lock(context: StageContext) -> Iterator[None]:
    """Hold the lock of a stage's plan, for a moment: the first job of an array says into how many parts the work is
    divided, and all others do as it said. Raises UserError that names the process which does not let go of it."""
    if context.shards == 1:  # it holds the lock of its stage, or of its run, alone
        yield
        return
    folder = context.output
    path = folder.parent / STAGES / f"{folder.name}-plan.lock"
    release = _take(folder.parent, path, False, f"the plan of stage {context.name}", _PLANNING_S)
    try:
        for place in (folder.parent, folder):  # what the job before has written there is to be seen
            shared_files.touch(place)
        yield
    finally:
        release()


@contextlib.contextmanager
def partition_locks(context: StageContext) -> Iterator[None]:
    """Hold the locks of the parts of the work that a job of an array does: arrays of two sizes share parts.

    Raises UserError that names the process which holds one of them.
    """
    folder = context.output
    with contextlib.ExitStack() as held:
        for number in context.part_numbers() if context.shards > 1 else ():
            what = f"part {number} of {context.partitions} of stage {context.name}"
            path = folder.parent / STAGES / f"{folder.name}-part-{number:05d}.lock"
            held.callback(_take(folder.parent, path, False, what))
        yield


@contextlib.contextmanager
def nobody_at_work(folder: Path, shards: int) -> Iterator[None]:
    """Hold the locks of all parts of a stage's work, for a job of an array that makes the folder anew: with the lock of
    its plan, no other job begins or goes on meanwhile. Raises UserError that names a process which is at work."""
    with contextlib.ExitStack() as held:
        for path in (folder.parent / STAGES).glob(f"{folder.name}-part-*.lock") if shards > 1 else ():
            held.callback(_take(folder.parent, path, False, f"stage {folder.name}, to make it anew"))
        yield


def _take(output: Path, path: Path, shared: bool, what: str, least_s: float = 0.0) -> Callable[[], None]:
    """Take a lock, and return what lets go of it. ``least_s``: it is waited for so long at least."""
    begun, waiting = time.monotonic(), Waiting(say=log.info, first_s=_FIRST_S)
    asker = LeaseAsker(path, what, shared=shared)
    while True:
        descriptor = open_lock_file(path)
        free = try_lock(descriptor, shared=shared)
        if free is None:
            os.close(descriptor)
            _tell_of_leases(output)
            if (lease := asker.take()) is not None:
                return lease.release
            patience_s = max(least_s, _LEASE_PATIENCE[is_alive(asker.holder)])
            _wait_for(asker.holder, output, patience_s, begun, waiting)
            continue
        if free and is_open_file(path, descriptor):  # not deleted in between
            if not shared:
                try:
                    write_mark(descriptor, new_mark(what=what), path)
                except BaseException:  # the disk is full
                    os.close(descriptor)
                    raise
            return partial(os.close, descriptor)
        os.close(descriptor)
        if not free:
            holder = _holder(output, path)
            _wait_for(holder, output, max(least_s, _PATIENCE[is_alive(holder)]), begun, waiting)


def _wait_for(holder: dict[str, Any], output: Path, patience_s: float, begun: float, waiting: Waiting) -> None:
    """Wait a moment for a holder. Raises UserError where it was waited for long enough, since ``begun``."""
    waited = time.monotonic() - begun
    if waited > patience_s:
        raise UserError(
            f"{_name(holder)} is at work in this folder",
            file=output,
            remedy="wait for it, stop it, or give another --output",
        )
    waiting.still(f"{_name(holder)} to let go of {output}", patience_s, waited_s=waited)
    time.sleep(random.uniform(0.02, 0.1))


@cache
def _tell_of_leases(output: Path) -> None:
    log.info("no file locks in %s: leases take their place", output)


def _holder(output: Path, path: Path) -> dict[str, Any]:
    """The mark of the process that holds a lock alone. Of a shared lock it is that of a process that holds another lock
    of the run."""
    for candidate in [path, *sorted((output / STAGES).glob("*.lock"))]:
        if _is_held_alone(candidate) and (mark := read_mark(candidate)):
            return mark
    return {}


def _is_held_alone(path: Path) -> bool:
    descriptor = open_lock_file(path)
    try:
        return try_lock(descriptor, shared=True) is False
    finally:
        os.close(descriptor)


def _name(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another run"
    known = {"what": "a run", "host": "?", "since": "?", **holder}
    return "process {pid} on {host} ({what}, since {since})".format_map(known)
