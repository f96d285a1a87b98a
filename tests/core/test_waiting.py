"""Whoever waits says for what, since when and until when; no test here waits itself."""

from __future__ import annotations

from datetime import datetime, timedelta

from nemo_openmath.core.waiting import Waiting


class Time:
    """A clock that is set by hand; it shows noon at 0 seconds."""

    seconds = 0.0

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, 12) + timedelta(seconds=self.seconds)


def test_a_wait_is_said_soon_then_now_and_then_and_its_end_too() -> None:
    time, lines = Time(), list[str]()
    waiting = Waiting(say=lines.append, clock=time.clock, now=time.now, first_s=5, every_s=60)
    for second in range(130):
        time.seconds = float(second)
        waiting.still("http://a:1 (cannot connect)", 600.0, "patience_s")
    assert lines == [
        "waiting for http://a:1 (cannot connect), since 12:00:00 (5 s); gives up at 12:10:00, in 595 s (patience_s)",
        "waiting for http://a:1 (cannot connect), since 12:00:00 (65 s); gives up at 12:10:00, in 535 s (patience_s)",
        "waiting for http://a:1 (cannot connect), since 12:00:00 (125 s); gives up at 12:10:00, in 475 s (patience_s)",
    ]
    waiting.over("http://a:1")
    assert lines[3:] == ["http://a:1 is there, after 129 s"]


def test_a_short_wait_is_not_worth_a_word() -> None:
    time, lines = Time(), list[str]()
    waiting = Waiting(say=lines.append, clock=time.clock, now=time.now, first_s=5)
    for begin in (0.0, 10.0):  # two short ones are no long one
        for seconds in (0.0, 4.9):
            time.seconds = begin + seconds
            waiting.still("x", None)
        waiting.over("x")
    assert lines == []


def test_only_what_is_used_up_of_the_limit_counts() -> None:
    time, lines = Time(), list[str]()
    waiting = Waiting(say=lines.append, clock=time.clock, now=time.now, first_s=0)
    time.seconds = 100.0
    waiting.still("x", 60.0, waited_s=20.0)  # it was there in between
    assert lines == ["waiting for x, since 12:01:40 (0 s); gives up at 12:02:20, in 40 s"]
