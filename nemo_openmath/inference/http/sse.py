"""Server-sent events whose data is JSON, as servers really send them."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson

DONE = b"[DONE]"


async def events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
    """Yield the data of each event, parsed; None for ``[DONE]``. Raises ValueError for data that is not JSON.

    Lines end in \\n or \\r\\n, wherever the network cut them. Comments, other fields, events without data and a byte
    order mark are skipped. One event's data may stand on several ``data:`` lines and has no limit: it may be the
    log-probabilities of a whole answer.
    """
    unended: list[bytes] = []  # a line that has not ended yet
    data: list[bytes] = []  # an event that is not whole yet
    async for chunk in chunks:
        *lines, beginning = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join([*unended, lines[0]])
            unended.clear()
        unended.append(beginning)
        for line in lines:
            whole, event = _take(line, data)
            if whole:
                yield event
    whole, event = _take(b"".join(unended), data)  # the last line of all may lack its end
    if whole:
        yield event


def _take(line: bytes, data: list[bytes]) -> tuple[bool, Any]:
    """Add a line to the event's ``data``; return whether the event is whole, and what it says."""
    line = line.strip().removeprefix(codecs.BOM_UTF8)
    if not line and not any(data):
        data.clear()
        return False, None
    if not line:
        raise ValueError(f"an event is not JSON: {b' '.join(data)[:80]!r}")
    if not line.startswith(b"data:"):
        return False, None
    data.append(line[5:].strip())
    whole = b"\n".join(data)
    if whole == DONE:
        event = None
    else:
        try:
            event = orjson.loads(whole)
        except orjson.JSONDecodeError:  # it goes on in the next line
            return False, None
    data.clear()
    return True, event
