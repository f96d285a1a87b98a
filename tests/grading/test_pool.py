"""The pool: limits hold, abuse costs one pair, nothing depends on order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from nemo_openmath.grading import Grade, GradingPool, Verdict, compare
from tests.grading.pairs import PAIRS


def sample(size: int, seed: int = 0) -> list[tuple[str, str]]:
    return [(a, b) for _, a, b, _, _ in random.Random(seed).sample(PAIRS, size)]


def test_same_verdicts_as_in_process_in_any_order() -> None:
    pairs = sample(120)
    expected = {pair: compare(*pair) for pair in pairs}
    with GradingPool(workers=2) as pool:
        for seed in range(3):
            shuffled = random.Random(seed).sample(pairs, len(pairs))
            assert pool.grade_batch(shuffled) == [expected[pair] for pair in shuffled]
    with GradingPool() as pool:
        assert [g.verdict for g in pool.grade_batch(pairs * 2)] == [expected[pair].verdict for pair in pairs * 2]


async def test_async_interface_leaves_the_loop_free() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async with GradingPool(workers=1) as pool:
        ticker = asyncio.create_task(tick())
        pairs = sample(100, seed=1)
        grades = await pool.grade_many(pairs)
        single = await asyncio.gather(*(pool.grade(*pair) for pair in pairs[:20]))
        ticker.cancel()
    assert single == grades[:20]
    assert grades == [compare(*pair) for pair in pairs]
    assert ticks > 3


def test_plain_numbers_need_no_worker() -> None:
    with GradingPool(workers=1) as pool:
        os.kill(pool._workers[0].process.pid, signal.SIGSTOP)  # a worker that would never answer
        grades = pool.grade_batch([("7", "07"), ("7", "8"), ("1/2", "0.5"), (None, "1"), ("x+1", "x+1")])
        assert [g.verdict.value for g in grades] == ["equal", "not_equal", "equal", "not_equal", "equal"]
        os.kill(pool._workers[0].process.pid, signal.SIGCONT)


class Patience(float):
    """Next to none with the first worker, without end with those that replace it."""

    pool: GradingPool

    def __rmul__(self, limit: float) -> float:
        return 1000.0 if self.pool.restarts else 0.2


def test_a_hung_worker_costs_one_pair_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(rf"\sqrt{{{n * n}}}", str(n)) for n in range(2, 12)]
    with GradingPool(workers=1, time_limit=60.0) as pool:
        assert all(g.is_equal for g in pool.grade_batch(pairs[:2]))
        os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
        Patience.pool = pool
        monkeypatch.setattr("nemo_openmath.grading.pool.WALL_FACTOR", Patience())
        grades = pool.grade_batch(pairs[2:])
        assert [g.verdict for g in grades] == [Verdict.TIMEOUT] + [Verdict.EQUAL] * 7
        assert pool.restarts == 1
        assert pool.grade_batch([pairs[2]])[0].verdict is Verdict.TIMEOUT  # cached by the pair


def test_a_c_call_that_never_returns_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = "import nemo_openmath.grading.worker as w; w.compare = lambda *a, **k: sum(range(10**12)); w.main()"
    monkeypatch.setattr("nemo_openmath.grading.pool.PROGRAM", stuck)
    with GradingPool(workers=1, time_limit=0.3) as pool:
        assert [g.reason for g in pool.grade_batch([("x", "y"), ("y", "z")])] == ["time limit"] * 2
        assert pool.restarts == 2


def test_a_worker_killed_from_outside_costs_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once over a pair it may be somebody's doing, and the pair is graded again; twice it is the pair's."""
    marks = f"""
import os, signal, pathlib
import nemo_openmath.grading.worker as w
real = w.compare
def compare(a, b, **k):
    mark = pathlib.Path({str(tmp_path)!r}) / a
    if a == "once" and not mark.exists() or a == "always":
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(a, b, **k)
w.compare = compare
w.main()
"""
    monkeypatch.setattr("nemo_openmath.grading.pool.PROGRAM", marks)
    with GradingPool(workers=1) as pool:
        grades = pool.grade_batch([("x", "y"), ("once", "x+1"), ("always", "x"), (r"\sqrt{9}", "3")])
        calm = compare("once", "x+1")
        assert grades[1] == calm
        assert grades[2] == Grade(Verdict.TIMEOUT, "memory limit")
        assert grades[3].is_equal
        assert pool.restarts == 3


def test_a_memory_bomb_costs_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = (
        "import nemo_openmath.grading.worker as w; real = w.compare\n"
        "w.compare = lambda a, b, **k: len([bytearray(1 << 20) for _ in range(1 << 14)]) if a == 'bomb' "
        "else real(a, b, **k)\nw.main()"
    )
    monkeypatch.setattr("nemo_openmath.grading.pool.PROGRAM", bomb)
    with GradingPool(workers=1, time_limit=20, memory_mb=512) as pool:
        grades = pool.grade_batch([("bomb", "x"), (r"\sqrt{9}", "3"), ("bomb", "y"), (r"\sqrt{16}", "4")])
        assert [g.reason for g in grades[::2]] == ["memory limit"] * 2
        assert all(g.is_equal for g in grades[1::2])
        assert pool.restarts == 0  # the worker limits itself


def test_a_killed_worker_is_replaced() -> None:
    with GradingPool(workers=1) as pool:
        assert pool.grade_batch([(r"\sqrt{4}", "2")])[0].is_equal
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        pool._workers[0].process.wait()
        grades = pool.grade_batch([(r"\sqrt{9}", "3"), (r"\sqrt{16}", "4")])
        assert Verdict.EQUAL in [g.verdict for g in grades]
        assert pool.grade_batch([(r"\sqrt{25}", "5")])[0].is_equal
        assert pool.restarts == 1


@pytest.mark.parametrize(
    ("abuse", "reason"),
    [
        ("while True: pass", "time limit"),
        ("x = bytearray(1 << 33)", "memory limit"),
        ("raise ValueError", "the grader failed"),
    ],
)
def test_limits_inside_the_worker(abuse: str, reason: str) -> None:
    """The worker's own alarms, with a comparison that misbehaves, in a process of its own."""
    code = (
        "import resource, signal, nemo_openmath.grading.worker as w\n"
        f"def bad(*a, **k):\n    {abuse}\n"
        "w.compare = bad\n"
        "signal.signal(signal.SIGPROF, w._ring)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "print(w.guarded('a', 'b', None, 0.3).reason)\n"
    )
    import subprocess

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert run.stdout.startswith(reason)


def test_workers_are_fresh_interpreters() -> None:
    with GradingPool(workers=1) as pool:
        assert pool.grade_batch([(r"\sqrt{4}", "2")]) == [Grade(Verdict.EQUAL, "same value")]
        maps = Path(f"/proc/{pool._workers[0].process.pid}/maps").read_text()
        assert "libtorch" not in maps
        process = pool._workers[0].process
    assert process.poll() is not None


def test_take_modulo() -> None:
    with GradingPool(workers=1, take_modulo=1000) as pool:
        grades = pool.grade_batch([("1104", "104"), ("105", "104"), ("104", "104"), (None, "104")])
    assert [g.is_equal for g in grades] == [True, False, True, False]
