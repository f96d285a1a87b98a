"""The solver as a function in the shape of Kaggle's evaluation API of AIMO.

    contest = KaggleContest(open_my_service, problems=50)
    kaggle_evaluation.aimo_2_inference_server.AIMO2InferenceServer(contest.listener()).serve()

The server calls ``predict`` with an id and a problem, each a series or a frame of one row, of polars or pandas; neither
is imported here. The answer comes back in a frame of the same kind; for plain values it is a number. ``predict`` never
raises, and returns by the deadline whatever hangs: then the answer is ``default``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from nemo_openmath.competition.serving.service import SolveService

log = logging.getLogger(__name__)

MARGIN = 1.0  # seconds, at most a twentieth, between the solver's deadline and that of the call


class KaggleContest:
    """One contest: an event loop in a thread of its own, and a service with its time bank.

    - ``open_service``: opens the service in that loop; how long it takes counts for no problem.
    - ``problems``: how many there will be, for a bank with a total.
    - ``default``: the answer where there is none.
    """

    def __init__(
        self,
        open_service: Callable[[], AbstractAsyncContextManager[SolveService]],
        *,
        problems: int = 50,
        default: int = 0,
    ):
        self._default, self._to_come = default, problems
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="contest", daemon=True)
        self._thread.start()
        self._opened = open_service()
        self._service: SolveService = self._do(self._opened.__aenter__()).result()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def predict(self, id_: Any, problem: Any) -> Any:
        """Return the answer to a problem, as the evaluation API wants it."""
        answer = self._default
        try:
            answer = self._answer(str(first_value(id_)), str(first_value(problem)))
        except Exception:
            log.exception("no answer; %d is submitted", self._default)
        return like(id_, answer)

    def listener(self) -> Callable[[Any, Any], Any]:
        """Return ``predict`` as the server takes it: a plain function of that name, for it refuses methods."""

        def predict(id_: Any, problem: Any) -> Any:
            return self.predict(id_, problem)

        return predict

    def _answer(self, question: str, problem: str) -> int:
        began, self._to_come = time.monotonic(), max(0, self._to_come - 1)
        allowed = self._service.bank.allowance(self._to_come)
        seconds = allowed - min(MARGIN, allowed / 20)
        work = self._do(self._service.solve(problem, seconds=seconds, question=question, others=self._to_come))
        try:
            body = work.result(timeout=max(0.0, allowed - (time.monotonic() - began)))
        except TimeoutError:
            work.cancel()
            log.warning("%s: the solver did not answer in %.1f s; %d is submitted", question, allowed, self._default)
            return self._default
        return self._default if body["answer"] is None else int(body["answer"])

    def close(self) -> None:
        """Close the service, cancel what still runs, and end the loop."""
        try:
            self._do(self._opened.__aexit__(None, None, None)).result(timeout=30)
        finally:
            with contextlib.suppress(TimeoutError):
                self._do(_cancel_all()).result(timeout=5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
            if not self._loop.is_running():
                self._loop.close()


async def _cancel_all() -> None:
    """Cancel all tasks of the loop but this one, and wait for them."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def first_value(value: Any) -> Any:
    """Return what a frame, a series or a list of one value holds; any other value as it is."""
    while hasattr(value, "iloc"):  # pandas: a row of a frame is a series
        value = value.iloc[0]
    if isinstance(value, list | tuple):
        return value[0]
    return value.item() if hasattr(value, "item") else value  # polars, numpy


def like(id_: Any, answer: int) -> Any:
    """Return the answer in a frame of the kind of ``id_``, beside its id; where that is no frame, the answer alone."""
    try:
        frame = id_ if hasattr(id_, "columns") else id_.to_frame() if hasattr(id_, "to_frame") else None
        return answer if frame is None else type(frame)({"id": [first_value(id_)], "answer": [answer]})
    except Exception:
        log.exception("no frame could be made; the number is returned alone")
        return answer
