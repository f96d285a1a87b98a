"""Waiting for what others do, instead of for some time in which they should have done it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Raises AssertionError when it is still not so after ``seconds``, which only a hanging test waits for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)
