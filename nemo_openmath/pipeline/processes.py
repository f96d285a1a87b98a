"""Children that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PARENT = "OPENMATH_PARENT"
_PR_SET_PDEATHSIG = 1


def child_environment(**more: str) -> dict[str, str]:
    """Environment for a child that calls :func:`die_with_parent`."""
    return {**os.environ, _PARENT: str(os.getpid()), **more}


def die_with_parent() -> None:
    """Ask the kernel (Linux) for SIGTERM when the parent dies, however it dies. Called first thing by a child that was
    started with :func:`child_environment`; started otherwise, it lives its own life."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
