"""Decisions that all ranks take alike, though their file systems may differ for a while.

A network file system shows a node what it has cached: for up to a minute after another node has written a file, one
rank sees it and another does not. A rank that decides for itself then goes another way than its peers, and all wait for
each other without end. Therefore

- what is decided by a look at a folder is decided by rank 0 (:func:`on_main`),
- what every rank has to read is compared before anything is made of it (:func:`alike`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.core.errors import MachineFailure, OpenMathError, of_the_system
from nemo_openmath.core.shared_files import PATIENCE_S
from nemo_openmath.training.rank_watch import node_name

T = TypeVar("T")
LOOK_S = 1.0
log = logging.getLogger(__name__)


def on_main(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Return in all ranks what ``action`` returns in rank 0, which alone runs it. What it raises is raised in all of
    them."""
    outcome: list[Any] = [None, None]
    defect: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome = [action(), None]
        except Exception as error:
            known = _known(error)
            defect = None if known is not None else error
            outcome = [None, known or OpenMathError(f"rank 0 failed: {type(error).__name__}: {error}")]
    dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise defect or outcome[1]
    return outcome[0]


def alike(action: Callable[[], T], view: Callable[[T], Any], what: str) -> T:
    """Return what ``action``, which reads files, returns in this rank, once it has the same ``view`` in all ranks.

    A rank that sees other files than rank 0, or none, looks again until its caches are renewed. Raises, in all ranks,
    the error that all of them have; MachineFailure where they still differ after ``PATIENCE_S``. ``what`` is read, in
    words.
    """
    end = time.monotonic() + PATIENCE_S
    while True:
        value: T
        value, seen, error = _try(action, view)
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, (seen, error, node_name()))
        if all(problem is not None for _, problem, _ in of_ranks):
            raise of_ranks[0][1]
        first = of_ranks[0]
        others = [rank for rank, (theirs, _, _) in enumerate(of_ranks) if theirs != first[0]]
        if not others:
            return value
        rank = others[0] if first[1] is None else 0
        _, problem, node = of_ranks[rank]
        text = f"rank {rank} on {node} does not see {what} as others do" + (f" ({problem})" if problem else "")
        if on_main(lambda: time.monotonic() > end):
            raise MachineFailure(f"{text}, after {PATIENCE_S:.0f} s; check the shared file system")
        if dist.get_rank() == 0:
            log.info(f"{text}; looking again")
        time.sleep(LOOK_S)


def verify_together(folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Check sizes and digests of a step folder: each rank reads its share of the files. Raises DamagedFile, in all
    ranks, for a file that rank 0 finds wrong, too: another node may have an old view of the folder."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    of_ranks: list[Any] = [None] * ranks
    dist.all_gather_object(of_ranks, step_folders.wrong_files(folder, rank, ranks), group=group)
    suspected = sorted({name for names in of_ranks for name in names})
    on_main(lambda: step_folders.verify(folder, suspected), group)


def _try(action: Callable[[], Any], view: Callable[[Any], Any]) -> tuple[Any, Any, OpenMathError | None]:
    """What an action returned, its view, and the error that it raised. A defect is raised."""
    try:
        value = action()
        return value, view(value), None
    except (OpenMathError, OSError) as error:
        return None, None, _known(error) or OpenMathError(str(error))


def _known(error: Exception) -> OpenMathError | None:
    if isinstance(error, OSError):
        return of_the_system(error)
    return error if isinstance(error, OpenMathError) else None
