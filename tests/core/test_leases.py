"""Locks where the system really refuses ``flock``: a filter of the kernel answers ENOLCK, as a Lustre without locks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_openmath.core import leases
from nemo_openmath.core.leases import LeaseAsker
from nemo_openmath.sandbox import seccomp

# Refuses flock to this process and its children, then holds what it is told to.
NO_FLOCK = """
import ctypes, struct, sys, time
from pathlib import Path
from nemo_openmath.core import locks
from nemo_openmath.sandbox import seccomp
from nemo_openmath.sandbox.libc import libc
libc.prctl(38, 1, 0, 0, 0)
flock = {"x86_64": 73, "aarch64": 32}[seccomp.architecture().name]
code = b"".join(struct.pack("<HBBI", *words) for words in
    [(0x20, 0, 0, 0), (0x15, 0, 1, flock), (6, 0, 0, 0x00050000 | 37), (6, 0, 0, 0x7FFF0000)])
seccomp.restrict(seccomp.architecture(), code)
locks._TRY_S = 0.0
folder, what = Path(sys.argv[1]), sys.argv[2]
"""
RUN = """
from nemo_openmath.recipe import lock
lock._PATIENCE[True] = lock._LEASE_PATIENCE[True] = 0.2
stage, shard, shards = (what.split() + ["0", "1"])[:3] if what != "run" else (None, 0, 1)
try:
    with lock.run_lock(folder, stage, int(shard), int(shards)):
        print("held", flush=True)
        sys.stdin.readline()
except Exception as error:
    print(error, flush=True)
"""
TRAINING = """
from nemo_openmath.training import run_lock
run_lock.PATIENCE_SECONDS = 0.2
try:
    lock = run_lock.RunLock.take(folder, 2)
    lock.check()
    print("held", flush=True)
    sys.stdin.readline()
except Exception as error:
    print(error, flush=True)
"""


def _start(code: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", NO_FLOCK + code, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.skipif(not seccomp.available(), reason="no filter of system calls here")
def test_where_flock_is_refused_a_lease_takes_its_place(tmp_path: Path) -> None:
    """Two jobs of an array share a run; a whole run, the same job and a second training are refused; a killed holder
    holds nothing."""
    first = _start(RUN, tmp_path, "solve 0 2")
    assert _first_line(first) == "held"
    second = _start(RUN, tmp_path, "solve 1 2")
    assert _first_line(second) == "held"
    # one after the other: each that asks is seen by the next
    whole, same = (_first_line(_start(RUN, tmp_path, what)) for what in ("run", "solve 0 2"))
    assert "(stage solve, shard 1 of 2, since " in whole or f"process {first.pid} on " in whole
    assert f"process {first.pid} on " in same
    training = _start(TRAINING, tmp_path / "t", "")
    assert _first_line(training) == "held"
    assert f"the training of process {training.pid} on " in _first_line(_start(TRAINING, tmp_path / "t", ""))
    for process in (first, second, training):
        process.kill()
        process.wait()
    again = [_start(RUN, tmp_path, "run"), _start(TRAINING, tmp_path / "t", "")]
    assert [_first_line(process) for process in again] == ["held", "held"]
    for process in again:
        process.communicate("\n")


def test_a_holder_elsewhere_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its file changes it lives, whatever its clock says; who is taken for dead all the same notices it."""
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    lost: list[Path] = []
    holder = LeaseAsker(tmp_path / "lock", "a", lost=lost.append).take()
    assert holder is not None
    monkeypatch.setattr(leases, "is_alive", lambda _: None)  # as on another machine
    monkeypatch.setattr(leases, "EXPIRY_S", 0.0)
    asker = LeaseAsker(tmp_path / "lock", "b")
    assert asker.take() is None
    [file] = (tmp_path / "lock.leases").iterdir()
    before = file.read_bytes()
    while file.read_bytes() == before:
        time.sleep(0.001)
    assert asker.take() is None  # its file has changed
    holder._end.set()  # it stops for a while
    holder._thread.join()
    while (lease := asker.take()) is None:
        pass
    holder._end.clear()
    holder._renew()
    assert holder.lost
    assert len(lost) == 1
    lease.release()
    assert not list((tmp_path / "lock.leases").iterdir())
