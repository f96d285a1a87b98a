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
_AHEAD = 4  # tasks that another process has been given: this one may be busy when it has done one
_UNDER_WAY = 8  # tasks for each process, those included whose results wait for their turn


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def pool_of(workers: int, start: Callable[..., None], *args: Any) -> ProcessPoolExecutor:
    """Start processes that call ``start(*args)`` first and die with this one, however it dies."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(os.getpid(), start, args))


def ordered(make: Callable[..., Callable[[T], R]], tasks: Iterable[T], *args: Any, workers: int) -> Iterator[R]:
    """Yield the result of each task, in the tasks' order, whatever the number of processes.

    ``make(*args)``, called once in each process, returns the function that does a task. This process is one of the
    ``workers``: it does tasks while the others start, which takes them half a second, and where it would have to wait
    for them. A few tasks a process are under way at most, so memory does not grow with their number. Raises
    OpenMathError where a process is killed.
    """
    function = make(*args)
    tasks = iter(tasks)
    few = list(islice(tasks, _FEW))
    if workers <= 1 or len(few) < _FEW:
        yield from map(function, chain(few, tasks))
        return
    pool = pool_of(workers - 1, _remember, make, args)
    waiting: deque[Future[R]] = deque()
    try:
        starts = [pool.submit(_started) for _ in range(workers - 1)]
        for task in chain(few, tasks):
            while waiting and (waiting[0].done() or len(waiting) >= _UNDER_WAY * workers):
                yield waiting.popleft().result()
            ready = sum(start.done() for start in starts)
            if sum(not future.done() for future in waiting) < _AHEAD * ready:
                waiting.append(pool.submit(_work, task))
            else:
                waiting.append(Future())
                waiting[-1].set_result(function(task))
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


def _started() -> None:
    """Nothing: a process that has done it is ready for tasks."""


def _work(task: Any) -> Any:
    return _function(task)
