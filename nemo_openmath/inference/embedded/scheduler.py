"""The thread that decodes: it takes requests from any thread and does turn after turn of the batch."""

from __future__ import annotations

import queue
import threading

import torch

from nemo_openmath.core import activity
from nemo_openmath.core.clock import Clock, SystemClock
from nemo_openmath.inference.embedded.batch import ContinuousBatch
from nemo_openmath.inference.embedded.requests import EngineRequest


class Scheduler:
    """Runs the requests of a batch. ``submit``, ``cancel`` and ``close`` may be called from any thread.

    ``threads``: of each operation of torch. ``clock``: of deadlines; it is read once a turn.
    """

    def __init__(self, batch: ContinuousBatch, threads: int, clock: Clock | None = None):
        self.clock = clock or SystemClock()
        self.statistics = batch.statistics
        self._batch, self._threads = batch, threads
        self._inbox: queue.SimpleQueue[EngineRequest | None] = queue.SimpleQueue()
        self._some_cancelled = False
        self._closed = False
        self._gate = threading.Lock()  # no request may enter the line after it has been emptied for good
        self._thread = threading.Thread(target=self._run, name="embedded-engine", daemon=True)
        self._thread.start()

    # -- from any thread -------------------------------------------------------------------------------------------

    def submit(self, request: EngineRequest) -> None:
        """Put a request in line. Raises RuntimeError where the engine is closed."""
        with self._gate:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._inbox.put(request)

    def cancel(self, request: EngineRequest) -> None:
        """End a request as cancelled; its slot is free at the next turn."""
        request.cancelled = True
        self._some_cancelled = True

    def close(self) -> None:
        """End every pending request as cancelled and stop the thread."""
        with self._gate:
            self._closed = True
        self._inbox.put(None)
        self._thread.join()
        self._batch.store.clear()  # memory goes now, whoever still holds the engine
        del self._batch

    @property
    def alive(self) -> bool:
        return not self._closed

    # -- in the decoding thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        batch = self._batch
        try:
            with torch.inference_mode():
                while self._receive():
                    if some_cancelled := self._some_cancelled:  # another thread may set it: write only what was read
                        self._some_cancelled = False
                    batch.turn(self.clock.now(), some_cancelled=some_cancelled)
                    activity.happened()
                self._receive_rest()
                batch.cancel_all()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            with self._gate:
                self._closed = True
            self._receive_rest()
            for request in [*batch.running, *batch.waiting]:
                request.on_done(error)

    def _receive(self) -> bool:
        """Move new requests to the batch; sleep while there is nothing to do. False: close."""
        idle = self._batch.idle
        while True:
            try:
                request = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if request is None:
                return False
            self._batch.add(request)
            if request.cancelled:  # on its way here
                self._some_cancelled = True
            idle = False

    def _receive_rest(self) -> None:
        while not self._inbox.empty():
            if (request := self._inbox.get()) is not None:
                self._batch.add(request)
