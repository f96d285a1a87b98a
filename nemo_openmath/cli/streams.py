"""Standard output and error whose reader may leave (``| head``), and Ctrl-C that answers at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TextIO


class Patient:
    """A text stream that goes on where its reader has gone, because the work is not for the reader alone. What is
    written then is lost."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.has_reader = True

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._to_nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._to_nowhere()

    def _to_nowhere(self) -> None:
        self.has_reader = False
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def has_reader() -> bool:
    """Return whether somebody still reads standard output, as far as what was written has shown."""
    return getattr(sys.stdout, "has_reader", True)


def be_patient() -> None:
    """Make this process's standard output and error patient."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Patient):
            setattr(sys, name, Patient(stream))


def run_async(work: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine as ``asyncio.run`` does. Ctrl-C is answered at once; a second one does not wait for anything."""
    import asyncio

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(work)
        heard = False

        def hear(_number: int, _frame: object) -> None:
            nonlocal heard
            if heard:
                os._exit(130)
            heard = True
            os.write(2, b"\nstopping; Ctrl-C again ends at once\n")
            loop.call_soon_threadsafe(task.cancel)

        takes = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        before = signal.signal(signal.SIGINT, hear) if takes else None
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            if not heard:
                raise
            raise KeyboardInterrupt from None
        finally:
            if heard:  # what is still being ended may be asked again
                runner.close()
            if takes:
                signal.signal(signal.SIGINT, before)
