"""Work is shared out among processes; results come in order, memory is bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, TypeVar

from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.core.processes import killed_with

T = TypeVar("T")
R = TypeVar("R")

DIED = "a worker process was killed (out of memory?); finished work is kept: run again, with fewer workers"
_FEW = 4  # tasks that are done in this process: starting others takes longer


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def pool_of(workers: int, start: Callable[..., None], *args: Any) -> ProcessPoolExecutor:
    """Start processes that call ``start(*args)`` first and die with this one, however it dies."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(os.getpid(), start, args))


def ordered(make: Callable[..., Callable[[T], R]], tasks: Iterable[T], *args: Any, workers: int) -> Iterator[R]:
    """Yield the result of each task, in the tasks' order, whatever the number of processes.

    ``make(*args)``, called once in each process, returns the function that does a task. Two tasks a process are under
    way at most, so memory does not grow with their number. With one worker, or only a few tasks, it all happens in this
    process. Raises OpenMathError where a process is killed.
    """
    tasks = iter(tasks)
    few = list(islice(tasks, _FEW))
    if workers <= 1 or len(few) < _FEW:
        yield from map(make(*args), chain(few, tasks))
        return
    pool = pool_of(workers, _remember, make, args)
    waiting: deque[Future[R]] = deque()
    try:
        for task in chain(few, tasks):
            waiting.append(pool.submit(_work, task))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        pool.shutdown()  # nothing is left to do; their CPU time counts as ours from here on
    except BrokenProcessPool as error:
        raise OpenMathError(DIED) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(parent: int, start: Callable[..., None], args: tuple[Any, ...]) -> None:
    killed_with(parent)
    start(*args)


_function: Callable[[Any], Any]  # of a worker process


def _remember(make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...]) -> None:
    global _function
    _function = make(*args)


def _work(task: Any) -> Any:
    return _function(task)
