"""The one place where a process decides how the package's log messages look.

Modules write to ``logging.getLogger(__name__)`` and never to a callback or to ``print``. The process that owns the
console calls :func:`configure_logging` once: the ``openmath`` command, or a rank of a training. Without that call the
library is as silent as any: Python shows warnings and nothing below them.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

LOGGER = "nemo_openmath"


class ConsoleHandler(logging.Handler):
    """Write each message as a bare line to what ``sys.stderr`` (or ``sys.stdout``) is when the message comes, so that
    a progress bar which takes these streams over stays below the lines."""

    def __init__(self, stream: Literal["stderr", "stdout"] = "stderr") -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``; an error while writing is handled as :mod:`logging` does, and is never raised."""
        try:
            print(self.format(record), file=getattr(sys, self._stream), flush=True)
        except Exception:
            self.handleError(record)


_configured: logging.Handler | None = None


def configure_logging(level: int = logging.INFO, *, handler: logging.Handler | None = None, rank: int = 0) -> None:
    """Show messages of the loggers under ``nemo_openmath`` from ``level`` on.

    ``handler`` defaults to bare lines on standard error. Called again, it replaces the handler of the call before.
    Of several ranks only rank 0 speaks, because all have the same to say; the others show errors alone. Loggers of
    other libraries stay as they are.
    """
    global _configured
    logger = logging.getLogger(LOGGER)
    if _configured is not None:
        logger.removeHandler(_configured)
    _configured = handler or ConsoleHandler()
    _configured.setLevel(level if rank == 0 else logging.ERROR)
    logger.setLevel(level)
    logger.addHandler(_configured)
