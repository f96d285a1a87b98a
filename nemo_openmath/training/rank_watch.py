"""A training that hangs: every rank finds it out by itself, writes its stacks, and ends; who did not is suspected.

No message travels between ranks, for it would hang, too. Each rank has

- ``OUTPUT/.heartbeat/rank-N``: step, phase and a counter, rewritten every ``watchdog.TICK_S`` seconds by a thread of
  its own,
- a limit for each phase of a step (:func:`phase_limit_s`). When it is over, the rank writes ``OUTPUT/stacks/
  rank-N-TIME.txt`` and says so in its heartbeat.

A rank that was stopped or has died writes neither. Therefore all others wait a moment for each other; then the lowest
of those that wrote their stacks reads all heartbeats and writes ``OUTPUT/suspect-ranks.json``: a list of ``{"rank",
"node", "why"}``. All end with exit code 76 (``ExitCode.HUNG``).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.records import write_json
from nemo_openmath.core.watchdog import BACKSTOP, BACKSTOP_S, Watchdog, stamp, write_stacks

HEARTBEATS, STACKS, SUSPECTS = ".heartbeat", "stacks", "suspect-ranks.json"
LEAST_S = 1800.0  # the limit of a phase where the settings state none, at least
SLOWEST = 10.0  # and so many times the slowest step so far
SLOWEST_STATED = 2.0  # a stated limit is never below so many steps
LONG, LONG_S = 4.0, 900.0  # the first step has so many times the limit; loading and saving, too, and so long at least
_ORDER = ("start", "read", "compute", "forward_backward", "gradient", "optimizer", "between", "validation", "save")
_SIZE = 512  # bytes of a heartbeat, always: a reader never finds one that is cut


def phase_limit_s(phase: str, stated_s: float | None, slowest_s: float, *, first: bool) -> float:
    """Return the seconds after which a phase has hung.

    ``stated_s``: ``training.hang_seconds``. ``slowest_s``: of this process's steps, its first one left out. ``first``:
    no step is done yet, and what is compiled and connected in the first one counts.
    """
    limit = max(LEAST_S, SLOWEST * slowest_s) if stated_s is None else max(stated_s, SLOWEST_STATED * slowest_s)
    if phase in ("start", "save"):
        return max(LONG * limit, LONG_S)
    return LONG * limit if first else limit


def collective_timeout_s(stated_s: float | None) -> float:
    """Return the timeout of the process group: behind every limit, so that a hang leaves its stacks first."""
    return BACKSTOP * phase_limit_s("start", stated_s, 0.0, first=True) + BACKSTOP_S


@dataclass
class Heartbeat:
    """What a rank's file says."""

    rank: int
    node: str
    attempt: str  # the same for all ranks of a start, another one at the next start
    step: int = 0
    phase: str = "start"
    beats: int = 0  # rises with each writing
    time: float = 0.0  # of day, for people
    stacks: str = ""  # the file of this rank's stacks, once it has hung

    def write(self, folder: Path) -> None:
        """Write the file in place, in a folder that is made where it is missing. Raises OSError."""
        now = replace(self, beats=self.beats + 1, time=round(time.time(), 3))
        text = json.dumps(asdict(now)).encode().ljust(_SIZE - 1) + b"\n"
        path = _path(folder, self.rank)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, text, 0)
        finally:
            os.close(descriptor)
        self.beats = now.beats

    @classmethod
    def read(cls, folder: Path, rank: int, attempt: str) -> Heartbeat | None:
        """Return what a rank wrote in this attempt; None where it wrote nothing."""
        try:
            heartbeat = cls(**json.loads(_path(folder, rank).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return heartbeat if heartbeat.attempt == attempt else None


class RankWatch:
    """Watches this rank: whoever works calls :meth:`enter` when a phase begins."""

    def __init__(self, output: Path, rank: int, ranks: int, hang_seconds: float | None):
        self.output, self.rank, self.ranks, self._stated_s = output, rank, ranks, hang_seconds
        self._heartbeat = Heartbeat(rank, node_name(), _attempt())
        self._slowest_s, self._steps_done = 0.0, 0
        self._watchdog = Watchdog(self._hung, self._write_heartbeat)

    def __enter__(self) -> RankWatch:
        self._write_heartbeat()
        self._watchdog.start(self._limit_s())
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.stop()

    def enter(self, phase: str, step: int | None = None) -> None:
        """Say that a phase begins, of the step that is under way or of ``step``: the rank advances."""
        self._heartbeat.phase = phase
        if step is not None:
            self._heartbeat.step = step
        self._watchdog.beat(self._limit_s())
        if not self._heartbeat.beats:  # the disk was full
            self._write_heartbeat()

    def step_done(self, seconds: float) -> None:
        """Take note of how long a step took, without validation and save."""
        self._steps_done += 1
        if self._steps_done > 1:
            self._slowest_s = max(self._slowest_s, seconds)
        self.enter("between")

    def _limit_s(self) -> float:
        return phase_limit_s(self._heartbeat.phase, self._stated_s, self._slowest_s, first=self._steps_done == 0)

    def _write_heartbeat(self) -> None:
        with contextlib.suppress(OSError):  # a full disk is no hang
            self._heartbeat.write(self.output / HEARTBEATS)

    def _hung(self, idle_s: float) -> None:
        """Write the stacks, find out whom to suspect, and end the process."""
        limit_s = self._limit_s()
        now = self._heartbeat
        what = f"rank {self.rank} on {now.node}: nothing advanced for {idle_s:.0f} s in step {now.step} ({now.phase})"
        path = self.output / STACKS / f"rank-{self.rank}-{stamp()}.txt"
        place = write_stacks(path, f"{what}, of {self.ranks} ranks; limit {limit_s:.0f} s")
        now.stacks = path.name
        self._write_heartbeat()
        print(f"{what}; stacks: {place}", file=sys.stderr, flush=True)
        suspects = self._suspects(limit_s / 8 + 3 * self._watchdog.tick_s())
        names = "; ".join(f"rank {s['rank']} on {s['node'] or 'an unknown node'} ({s['why']})" for s in suspects[:4])
        more = f" and {len(suspects) - 4} more" if len(suspects) > 4 else ""
        verdict = f"suspected: {names}{more}" if suspects else "no rank is suspected more than the others"
        print(f"rank {self.rank}: hung in step {now.step} ({now.phase}); {verdict}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(ExitCode.HUNG)

    def _suspects(self, patience_s: float) -> list[dict[str, Any]]:
        """Return whom the lowest rank that wrote its stacks suspects. ``patience_s``: how long the ranks wait for each
        other."""
        path, folder = self.output / SUSPECTS, self.output / HEARTBEATS
        if self.ranks == 1:
            return []
        earlier = _content(path)
        self._rest(patience_s / 2)
        before = self._read_all(folder) if self._is_lowest(folder) else [None] * self.ranks
        self._rest(patience_s / 2)
        if self._is_lowest(folder):
            result = suspects(before, self._read_all(folder))
            with contextlib.suppress(OSError):
                write_json(path, result)
            return result
        end = time.monotonic() + patience_s + 2.0
        while (now := _content(path)) == earlier and time.monotonic() < end:
            self._rest(min(1.0, patience_s / 10))
        return list(json.loads(now[1])) if now != earlier else []

    def _rest(self, seconds: float) -> None:
        """Wait, and go on with the heartbeat: whoever looks at it from outside must not end the process now."""
        end, tick_s = time.monotonic() + seconds, self._watchdog.tick_s()
        while (left_s := end - time.monotonic()) > 0:
            time.sleep(min(left_s, tick_s))
            self._write_heartbeat()

    def _is_lowest(self, folder: Path) -> bool:
        """Return whether no lower rank has written its stacks."""
        lower = (Heartbeat.read(folder, rank, self._heartbeat.attempt) for rank in range(self.rank))
        return not any(heartbeat is not None and heartbeat.stacks for heartbeat in lower)

    def _read_all(self, folder: Path) -> list[Heartbeat | None]:
        return [Heartbeat.read(folder, rank, self._heartbeat.attempt) for rank in range(self.ranks)]


def suspects(before: Sequence[Heartbeat | None], after: Sequence[Heartbeat | None]) -> list[dict[str, Any]]:
    """Return the ranks that may be why all others hang, from two readings of their heartbeats, more than a writing
    apart.

    A rank without stacks is suspected: its heartbeat stopped, or it does not hang as the others do. Where all wrote
    their stacks, those that were behind the others are, if they are fewer than half.
    """
    result = [
        {"rank": rank, "node": heartbeat.node if heartbeat else "", "why": _why(old, heartbeat)}
        for rank, (old, heartbeat) in enumerate(zip(before, after, strict=True))
        if heartbeat is None or not heartbeat.stacks
    ]
    if result:
        return result
    places = {h.rank: (h.step, _ORDER.index(h.phase) if h.phase in _ORDER else 0) for h in after if h is not None}
    last = min(places.values())
    behind = [h for h in after if h is not None and places[h.rank] == last]
    if 2 * len(behind) >= len(after):
        return []
    return [{"rank": h.rank, "node": h.node, "why": f"behind: in step {h.step}, {h.phase}"} for h in behind]


def _why(before: Heartbeat | None, after: Heartbeat | None) -> str:
    if after is None:
        return "it wrote no heartbeat in this attempt"
    where = f"in step {after.step}, {after.phase}"
    if before is None or before.beats != after.beats:
        return f"it is alive {where}, and did not hang with the others"
    return f"its heartbeat stopped, last seen {where}"


def _content(path: Path) -> tuple[int, bytes]:
    """Return which file there is, and what it holds: it is replaced as a whole."""
    try:
        with path.open("rb") as file:  # opened anew: a network file system then asks its server
            return os.fstat(file.fileno()).st_ino, file.read()
    except OSError:
        return 0, b"[]"


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}"


def node_name() -> str:
    """Return what Slurm calls this machine, or else its own name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _attempt() -> str:
    names = ("MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    return " ".join(os.environ.get(name, "-") for name in names)
