"""Children that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PARENT = "OPENMATH_PARENT"
_PR_SET_PDEATHSIG = 1


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment for a child that calls :func:`die_with_parent`."""
    return {**os.environ, _PARENT: str(os.getpid()), **more}


def die_with_parent() -> None:
    """Ask the kernel (Linux) for SIGTERM when the parent dies, however it dies.

    A child that was started with :func:`child_environment` calls this first of all. One that was started otherwise
    lives its own life.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    _ask(ctypes.CDLL(None, use_errno=True), int(parent), signal.SIGTERM)


def killed_with(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when ``parent``, its parent, dies. Workers of a pool else wait for
    ever for work that nobody sends."""
    if sys.platform.startswith("linux"):
        _ask(ctypes.CDLL(None, use_errno=True), parent, signal.SIGKILL)


def killed_with_parent() -> Callable[[], None] | None:
    """Return a ``preexec_fn`` for a child of any program: the kernel (Linux) kills the child when this process dies."""
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()  # loaded before the fork
    return lambda: _ask(libc, parent, signal.SIGKILL)


def _ask(libc: ctypes.CDLL, parent: int, number: signal.Signals) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), number)
