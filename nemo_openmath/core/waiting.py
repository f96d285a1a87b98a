"""Say that something is waited for: what, since when, and when it is given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta

log = logging.getLogger(__name__)

FIRST_S, EVERY_S = 5.0, 60.0


class Waiting:
    """One wait, or many of one kind at the same time, said in few words.

    Whoever waits calls :meth:`still` as often as it likes: the first line comes after ``first_s`` seconds, the next
    ones ``every_s`` apart. ``clock``: monotonic seconds; ``now``: the time of day; ``say``: takes each line.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], object] = log.warning,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
        first_s: float = FIRST_S,
        every_s: float = EVERY_S,
    ):
        self._say, self._clock, self._now = say, clock, now
        self._first_s, self._every_s = first_s, every_s
        self._since: float | None = None
        self._said: float | None = None

    def still(self, what: str, limit_s: float | None, setting: str = "", *, waited_s: float | None = None) -> None:
        """Say, where it is due, that ``what`` is still waited for.

        - ``what``: with its address and its last words.
        - ``limit_s``: seconds after which the wait is given up, by the setting of the name ``setting``; None: never.
        - ``waited_s``: how much of the limit is used up; by default the time since the wait began.
        """
        now = self._clock()
        if self._since is None:
            self._since = now
        due = self._since + self._first_s if self._said is None else self._said + self._every_s
        if now < due:
            return
        self._said = now
        seconds = now - self._since
        began = self._now() - timedelta(seconds=seconds)
        line = f"waiting for {what}, since {began:%H:%M:%S} ({seconds:.0f} s)"
        if limit_s is None:
            self._say(f"{line}; it is not given up")
            return
        left = max(0.0, limit_s - (seconds if waited_s is None else waited_s))
        ends = self._now() + timedelta(seconds=left)
        self._say(f"{line}; gives up at {ends:%H:%M:%S}, in {left:.0f} s" + (f" ({setting})" if setting else ""))

    def over(self, what: str = "") -> None:
        """End a wait that ended well. It is said only where it was said that there was one."""
        if self._said is not None and self._since is not None:
            self._say(f"{what or 'it'} is there, after {self._clock() - self._since:.0f} s")
        self._since = self._said = None
