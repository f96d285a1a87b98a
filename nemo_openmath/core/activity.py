"""Signs of life of this process: tokens, answers, blocks of code that ended. A stage that sees none for long hangs.

Whoever waits for others says so here: engines, the sandbox, the grading pool. Both calls are cheap and may come from
any thread.
"""

from __future__ import annotations

import time


class _Activity:
    def __init__(self) -> None:
        self.last = time.monotonic()
        self.silence_s = 0.0


_activity = _Activity()


def happened() -> None:
    """Say that something that was waited for has come, or was given up."""
    _activity.last = time.monotonic()


def may_be_silent(seconds: float) -> None:
    """Say that nothing may be heard for so long, and all is well: the time limit of a request that is answered as a
    whole."""
    _activity.silence_s = max(_activity.silence_s, seconds)


def last() -> float:
    """Return when something happened last, in monotonic seconds."""
    return _activity.last


def longest_silence_s() -> float:
    """Return for how long nothing may be heard, by all that was said."""
    return _activity.silence_s
