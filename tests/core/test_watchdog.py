"""Processes that hang in every way: they end by themselves, and leave their stacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_openmath.core.errors import ExitCode
from nemo_openmath.training.rank_watch import Heartbeat, collective_timeout_s, phase_limit_s, suspects

HOLDING = """
import ctypes
from nemo_openmath.core import watchdog
watchdog.BACKSTOP_S = 0.2
watch = watchdog.Watchdog(lambda _: print("its thread ran"))
watch.start(0.3)
ctypes.PyDLL(None).sleep(100)  # a call that does not let go of the interpreter
"""

STAGE = """
import asyncio, sys, threading, time
from dataclasses import dataclass
from pathlib import Path
from nemo_openmath.core import activity
from nemo_openmath.core.records import Drop
from nemo_openmath.core.stage import Result, UnitStage
from tests.support.services import stage_context

HANG_S = float(sys.argv[3])

@dataclass(frozen=True)
class Nothing:
    pass

class Waits(UnitStage[Nothing, int]):
    kind, Config, ports, concurrency = "test.waits", Nothing, {}, 8

    def units(self, context):
        for number in range(20):
            yield str(number), number

    async def process(self, unit, context):
        if unit == 5 and sys.argv[2] == "tokens":  # no unit ends for long, but tokens come
            for _ in range(6):
                await asyncio.sleep(HANG_S / 4)
                activity.happened()
        elif unit == 5 and sys.argv[2] == "answer":
            await self.answer()
        elif unit == 5 and sys.argv[2] == "blocked":
            threading.Lock().acquire() and threading.Event().wait()
        elif unit == 5 and sys.argv[2] == "computing":
            end = time.monotonic() + 1.5 * HANG_S
            while time.monotonic() < end:
                pass
        return Result(drops=[Drop("done")])

    async def answer(self):
        await asyncio.get_running_loop().create_future()

from nemo_openmath.core.stage import watch
context = stage_context({}, Path(sys.argv[1]))
context.hang_seconds = HANG_S
asyncio.run(Waits(Nothing()).run(context))
print("finished", len(list(context.output.glob("journal-*"))))
"""


def _run(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=120)


def test_a_process_that_holds_the_interpreter_ends() -> None:
    done = _run(HOLDING)
    assert (done.returncode, done.stdout) == (ExitCode.HUNG, "")
    assert "Timeout (" in done.stderr  # its stacks
    assert 'File "<string>", line 7 in <module>' in done.stderr


@pytest.mark.parametrize("what", ["answer", "blocked", "tokens", "computing"])
def test_a_stage_that_hangs_leaves_its_stacks(tmp_path: Path, what: str) -> None:
    advances = what in ("tokens", "computing")
    done = _run(STAGE, tmp_path, what, 3.0 if advances else 0.4)  # a busy machine gives a process no time for a while
    if advances:
        assert (done.returncode, done.stdout) == (0, "finished 1\n"), done.stderr
        assert not list((tmp_path / ".heartbeat").iterdir())
        return
    assert done.returncode == ExitCode.HUNG, done.stderr
    [heartbeat] = (tmp_path / ".heartbeat").iterdir()
    assert heartbeat.name == "00000-of-00001"  # as functions.sh looks for it
    [file] = (tmp_path / "stacks").iterdir()
    assert done.stderr.startswith("openmath: test: no unit, token or answer for ")
    assert str(file) in done.stderr
    text = file.read_text()
    assert ("in process" if what == "blocked" else "in answer\n") in text


def test_limits_cannot_be_wrong_by_accident() -> None:
    """Half an hour, or ten of the slowest steps; stated ones are never below two steps; the process group gives up
    last."""
    assert phase_limit_s("gradient", None, 20.0, first=False) == 1800
    assert phase_limit_s("gradient", None, 600.0, first=False) == 6000
    assert phase_limit_s("gradient", None, 0.0, first=True) == 7200
    assert phase_limit_s("save", None, 20.0, first=False) == 7200
    assert phase_limit_s("gradient", 60.0, 50.0, first=False) == 100
    assert phase_limit_s("start", 60.0, 0.0, first=True) == 900
    for stated in (None, 5.0, 3600.0):
        assert collective_timeout_s(stated) > phase_limit_s("start", stated, 0.0, first=True)


def test_who_is_suspected() -> None:
    def rank(number: int, beats: int = 7, **more: object) -> Heartbeat:
        heartbeat = {"step": 9, "phase": "gradient", "stacks": f"stacks/rank-{number}", **more}
        return Heartbeat(number, f"n{number}", "a", beats=beats, **heartbeat)  # type: ignore[arg-type]

    whole = [rank(n) for n in range(4)]
    assert suspects(whole, whole) == []
    stopped = [*whole[:2], rank(2, stacks=""), None]
    assert suspects(stopped, stopped) == [
        {"rank": 2, "node": "n2", "why": "its heartbeat stopped, last seen in step 9, gradient"},
        {"rank": 3, "node": "", "why": "it wrote no heartbeat in this attempt"},
    ]
    alive = [*whole[:3], rank(3, stacks="", phase="read")]
    later = [*whole[:3], rank(3, beats=9, stacks="", phase="read")]
    assert suspects(alive, later)[0]["why"] == "it is alive in step 9, read, and did not hang with the others"
    behind = [*whole[:3], rank(3, phase="forward_backward")]
    assert suspects(behind, behind) == [{"rank": 3, "node": "n3", "why": "behind: in step 9, forward_backward"}]
