"""What a person sees while a stage runs: a bar on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)


class Progress:
    """The progress of one stage. ``every``: seconds between lines of the log where there is no terminal."""

    def __init__(self, stage: str, *, console: Console | None = None, every: float = 15.0):
        self.stage = stage
        self._console = console or Console(file=sys.stderr)
        self._every = every
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._total: int | None = None
        self._count = self._before = 0
        self.failed = 0
        self._start = self._printed = time.monotonic()
        self._note = ""

    def begin(self, total: int | None, done: int = 0) -> None:
        """Start counting towards ``total`` (None: not known). ``done``: what earlier attempts did of it."""
        self._total, self._count, self._before = total, done, done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total, completed=done)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` more. ``note``: rates and the like, shown behind the bar."""
        self._count += count
        self._note = self._note if note is None else note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._count, note=self._note)
        elif time.monotonic() - self._printed > self._every:
            self._printed = time.monotonic()
            seconds = self._printed - self._start
            of = "" if self._total is None else f" of {self._total}"
            failed = f", {self.failed} failed" if self.failed else ""
            self.log(
                f"{self._count}{of}{failed} after {seconds:.0f} s{self._remaining(seconds)}  {self._note}".rstrip()
            )

    def _remaining(self, seconds: float) -> str:
        """Say how long the rest takes at the speed so far; nothing where that is not known."""
        done = self._count - self._before
        if self._total is None or done <= 0 or self._count >= self._total:
            return ""
        return f", about {seconds / done * (self._total - self._count):.0f} s left"

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
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
