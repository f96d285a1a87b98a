"""What a person sees while a stage runs: a bar on a terminal, lines in the log elsewhere, and a small file that
``openmath jobs status`` reads."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

FOLDER = ".progress"
"""The folder of a run with a file for each process that works on a stage: ``STAGE.SHARD-of-SHARDS.json`` holds
``done``, ``total`` (null: not known), ``failed``, ``planted`` (controls, in no other number), ``rate`` (a second)
and ``time``."""


class Progress:
    """The progress of one stage.

    ``every``: seconds between lines of the log where there is no terminal, and between writings of the file ``record``.
    """

    def __init__(self, stage: str, *, console: Console | None = None, every: float = 15.0, record: Path | None = None):
        self.stage = stage
        self._record = record
        self._console = console or Console(file=sys.stderr)
        self._every = every
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._total: int | None = None
        self._count = self._before = 0
        self.failed = 0
        self.planted = 0
        """Controls that were done, which are in no other number."""
        self._start = self._begun = self._printed = self._recorded = time.monotonic()
        self._note = ""

    def begin(self, total: int | None, done: int = 0) -> None:
        """Start counting towards ``total`` (None: not known). ``done``: what earlier attempts did of it."""
        self._total, self._count, self._before, self._begun = total, done, done, time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total, completed=done)
        self._write()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more. ``note``: rates and the like, shown behind the bar."""
        self._count += count
        self._note = self._note if note is None else note
        if time.monotonic() - self._recorded > self._every:
            self._write()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._count, note=self._note)
        elif time.monotonic() - self._printed > self._every:
            self._printed = time.monotonic()
            seconds = self._printed - self._start
            of = "" if self._total is None else f" of {self._total}"
            apart = f", {self.failed} failed" if self.failed else ""
            apart += f", {self.planted} controls besides" if self.planted else ""
            left = self._remaining(self._printed - self._begun)
            self.log(f"{self._count}{of}{apart} after {seconds:.0f} s{left}  {self._note}".rstrip())

    def _remaining(self, seconds: float) -> str:
        """Say how long the rest takes at the speed of the ``seconds`` since it began; nothing where it is not known."""
        done = self._count - self._before
        if self._total is None or done <= 0 or self._count >= self._total:
            return ""
        return f", about {seconds / done * (self._total - self._count):.0f} s left"

    def _write(self) -> None:
        """Write the file that others read. It is no part of the work: a full disk must not end that."""
        self._recorded = time.monotonic()
        if self._record is None:
            return
        seconds = self._recorded - self._start
        rate = (self._count - self._before) / seconds if seconds > 0 else 0.0
        note: dict[str, float | None] = {"done": self._count, "total": self._total, "failed": self.failed}
        note |= {"planted": self.planted, "rate": rate, "time": time.time()}
        temporary = self._record.with_suffix(".tmp")
        try:
            self._record.parent.mkdir(exist_ok=True)
            temporary.write_bytes(orjson.dumps(note))
            temporary.replace(self._record)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def log(self, message: str) -> None:
        """Log a line about the stage, behind its name."""
        log.info("%s: %s", self.stage, message)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=None, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._count or self._total is not None:
            self._write()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
