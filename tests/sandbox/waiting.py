"""Blocks that are known to run, and that end when they are told to."""

from __future__ import annotations

import asyncio

from nemo_openmath.core.sandbox import Session
from nemo_openmath.sandbox import Execution, Limits, channel
from nemo_openmath.sandbox.local import LocalSession
from tests.support.waiting import until

AMPLE = Limits(wall_s=300, cpu_s=300)  # on the slowest machine
# A block that prints, and ends when a file `go` is in its folder.
HELD = "import os, time\nprint('held')\nwhile not os.path.exists('go'): time.sleep(0.005)\n"


async def begun(session: Session, code: str, inside: LocalSession | None = None) -> asyncio.Task[Execution]:
    """An execution of ``code`` that has printed something. ``inside``: the session itself, where ``session`` is that of
    a service."""
    process = (inside or session)._process
    channel.HEADER.pack_into(process._memory, 0, 0, 0)
    task = asyncio.create_task(session.execute(code))
    await until(lambda: task.done() or channel.HEADER.unpack_from(process._memory)[0])
    assert not task.done(), task.result()
    return task


def time_is_over(session: LocalSession) -> None:
    """As if the block that runs had begun long ago; the timers in its own process do not notice."""
    session._process._started -= 10**6
