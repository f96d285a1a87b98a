"""What a block gives back, and what stays from block to block."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_openmath.core.errors import UserError
from nemo_openmath.sandbox import Execution, Limits, LocalSandbox, SandboxError, Status, exec_file, process
from nemo_openmath.sandbox.local import LocalSession, shape_of
from tests.sandbox.waiting import AMPLE, HELD, begun, time_is_over
from tests.support.waiting import until

LIMITS = replace(AMPLE, memory_mb=512, output_chars=1000)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox():
    async with LocalSandbox(limits=LIMITS, spares=2) as made:
        yield made


async def run_blocks(sandbox: LocalSandbox, *codes: str, limits: Limits = LIMITS):
    async with await sandbox.session(limits) as session:
        return [await session.execute(code) for code in codes]


async def test_a_notebook(sandbox) -> None:
    define, value, hidden, both, none, exits, name = await run_blocks(
        sandbox,
        "from sympy import *\nx = symbols('x')\ndef f(n):\n    return factor(x**n - 1)",
        "f(2)",
        "f(2);",
        "print('first')\n'second'",
        "print()",
        "exit()\n1/0",
        "import sys; __name__, len(input.__name__), sys.argv",
    )
    assert (define.stdout, value.stdout, hidden.stdout) == ("", "(x - 1)*(x + 1)\n", "")
    assert both.stdout == "first\n'second'\n"
    assert none.stdout == "\n"
    assert (exits.status, exits.output) == (Status.COMPLETED, "")
    assert name.stdout == "('__main__', 5, [''])\n"


async def test_tracebacks_name_the_users_lines_only(sandbox) -> None:
    define, raised, chained, syntax, memory, deep, evil = await run_blocks(
        sandbox,
        "import sympy\ndef f(x):\n    return sympy.sqrt(x) + sympy.Integer('x')\n",
        "y = 1\nf(2)",
        "try:\n    {}['key']\nexcept KeyError as e:\n    raise ValueError('no') from e",
        "x = (1,\ny = 2",
        "b = bytearray(1 << 40)",
        "def g(n): return g(n + 1)\ng(0)",
        "class E(Exception):\n    def __str__(self): raise self\nraise E",
    )
    assert (define.status, raised.status) == (Status.COMPLETED, Status.ERROR)
    lines = raised.stderr.splitlines()
    assert lines[:5] == [
        "Traceback (most recent call last):",
        '  File "<block 2>", line 2, in <module>',
        "    f(2)",
        '  File "<block 1>", line 3, in f',
        "    return sympy.sqrt(x) + sympy.Integer('x')",
    ]
    assert lines[5].startswith("ValueError: ")
    assert "KeyError: 'key'" in chained.stderr
    assert chained.stderr.endswith("ValueError: no\n")
    assert "nemo_openmath" not in chained.stderr
    assert syntax.stderr.startswith('  File "<block 4>", line 1\n')
    assert (memory.status, deep.status, evil.status) == (Status.MEMORY, Status.ERROR, Status.ERROR)
    assert "RecursionError" in deep.stderr
    assert len(deep.stderr) < 2000


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("    x = 2\n    x + 1", "3\n"),
        ("\tx = 2\n\tif x:\n\t\tprint(x)\n", "2\n"),
        ("\n  \n    # why\n  # and how\n    x = 2\n\n    x", "2\n"),
        ("# not indented\n    x = 2\n    # no more\n    x", "2\n"),
        ('    x = """a\n    b\n  c"""\n    x', "'a\\n    b\\n  c'\n"),
        ("    def f():\n        return 1\n    f()\n", "1\n"),
        ("    x = 2\nprint(x)", "2\n"),
        ("    x = [1,\n2]\n    x;", ""),
        ("  from __future__ import annotations\r\n  print(1)\r\n", "1\n"),
        ("    # a comment alone", ""),
    ],
)
async def test_a_block_that_is_indented_as_a_whole_runs(sandbox, code: str, stdout: str) -> None:
    (result,) = await run_blocks(sandbox, code)
    assert (result.status, result.stdout, result.stderr) == (Status.COMPLETED, stdout, "")


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        ("    x = 1\n    y = 0\n    x / y", 3, "ZeroDivisionError"),
        ("    x = 1\n    y = = 0", 2, "SyntaxError: invalid syntax"),
        ("    x = 1\n    for i in x:\n    y = 0", 3, "after 'for' statement on line 2"),
        ("    x = 1\n  y = 0", 2, "IndentationError"),
        ("    x = 1\nelse:\n    x = 2", 2, "SyntaxError"),
        ("x = 1\n    y = 0", 2, "IndentationError: unexpected indent"),
        ("    return 1", 1, "'return' outside function"),
    ],
)
async def test_mistakes_in_an_indented_block_name_its_lines(sandbox, code: str, line: int, said: str) -> None:
    (result,) = await run_blocks(sandbox, code)
    assert result.status is Status.ERROR
    assert f'File "<block 1>", line {line}' in result.stderr
    assert said in result.stderr


async def test_integers_of_any_length_are_printed_and_read(sandbox) -> None:
    printed, shown, formatted, read = await run_blocks(
        sandbox,
        "print(7**6000)",
        "7**6000",
        "import math, sympy\nlen(str(math.factorial(3000))), len(f'{10**5000}'), len(str(sympy.Integer(10)**5000))",
        f"x = {'9' * 5000}\nint('8' * 5000) < x",
        limits=replace(LIMITS, output_chars=10_000),
    )
    with_limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(0)
        assert printed.stdout == shown.stdout == f"{7**6000}\n"
    finally:
        sys.set_int_max_str_digits(with_limit)
    assert (formatted.stdout, read.stdout) == ("(9131, 5001, 5001)\n", "True\n")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill from outside waits for the interrupt inside, however late it comes."""
    monkeypatch.setattr(process, "GRACE_S", 120.0)


async def run_out(session: LocalSession, code: str) -> Execution:
    """A block that prints and does not end, with the shortest time that lets it print."""
    for doublings in range(10):
        result = await session.execute(code, replace(LIMITS, wall_s=0.25 * 2**doublings))
        if result.stdout:
            return result
    raise AssertionError(result)


@pytest.mark.usefixtures("patient")
async def test_a_timeout_keeps_the_output_and_the_state_of_completed_blocks(sandbox) -> None:
    async with await sandbox.session() as session:
        await session.execute("x = 41")
        late = await run_out(session, "x += x < 42\nprint('partial')\nwhile True: len('x')")
        assert (late.status, late.stdout, late.state_lost) == (Status.TIMEOUT, "partial\n", False)
        assert "TimeoutError: the code ran longer than " in late.stderr
        assert (await session.execute("x")).stdout == "42\n"
        asleep = await run_out(session, "import time\nx += x < 43\nprint('partial')\ntime.sleep(1000)")
        assert (asleep.status, asleep.state_lost) == (Status.TIMEOUT, False)
        assert (await session.execute("x")).stdout == "43\n"


async def test_a_killed_block_keeps_the_output_and_says_that_state_is_lost(sandbox) -> None:
    stubborn = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nprint('partial')\n"
    async with await sandbox.session() as session:
        await session.execute("x = 41")
        running = await begun(session, f"{stubborn}while True: pass")
        time_is_over(session)
        late = await running
        assert (late.status, late.stdout, late.state_lost) == (Status.TIMEOUT, "partial\n", True)
        assert "TimeoutError: the code ran longer than 300 s" in late.stderr
        assert "variables, imports and files of earlier blocks are lost" in late.stderr
        assert "NameError" in (await session.execute("x")).stderr
        dead = await session.execute("print('last words', flush=True)\nimport os; os._exit(7)")
        assert (dead.status, dead.stdout, dead.state_lost) == (Status.KILLED, "last words\n", True)
        assert "exited with code 7" in dead.stderr
        again = await session.execute("1 + 1")
        assert (again.stdout, again.state_lost) == ("2\n", False)


@pytest.mark.usefixtures("patient")
async def test_cpu_time_is_limited_apart_from_wall_time(sandbox) -> None:
    limits = Limits(wall_s=300, cpu_s=0.2)
    asleep, busy, kept = await run_blocks(
        sandbox, "import time; time.sleep(0.5); x = 1", "while True: pass", "x", limits=limits
    )
    assert asleep.status == Status.COMPLETED
    assert busy.status == Status.TIMEOUT
    assert "more than 0.2 s of CPU" in busy.stderr
    assert kept.stdout == "1\n"


async def test_the_codes_own_alarm_is_its_own(sandbox) -> None:
    code = (
        "import signal, time\ndef handler(*_): raise RuntimeError('mine')\nsignal.signal(signal.SIGALRM, handler)\n"
        "try:\n    signal.setitimer(signal.ITIMER_REAL, 0.05)\n    while True: time.sleep(1)\n"
        "except RuntimeError as e: print(e)"
    )
    assert [result.stdout for result in await run_blocks(sandbox, code)] == ["mine\n"]


async def test_what_a_block_leaves_behind_does_not_harm_the_next(sandbox) -> None:
    alarm, disarmed, logged, _, closed, replaced = await run_blocks(
        sandbox,
        "import signal, logging, sys, io, time\ndef handler(*_): raise RuntimeError\n"
        "signal.signal(signal.SIGALRM, handler)\nsignal.setitimer(signal.ITIMER_REAL, 900)",
        "logging.basicConfig(format='%(message)s')\nlogging.warning('a long first message')\n"
        "signal.getitimer(signal.ITIMER_REAL)",
        "logging.warning('second')\nprint('out')",
        "sys.stdout.close()\nsys.stderr = None",
        "print('still here')\nsys.stdout = io.StringIO()\nprint('captured')",
        "print('again')",
    )
    assert (alarm.status, disarmed.stdout) == (Status.COMPLETED, "(0.0, 0.0)\n")
    assert (logged.stdout, logged.stderr) == ("out\n", "second\n")
    assert (closed.stdout, replaced.stdout) == ("still here\n", "again\n")
    assert not replaced.state_lost


@pytest.mark.parametrize("text", ["x", "é", "\U0001d54f", "\ud800"], ids=["1", "2", "4", "surrogate"])
async def test_output_is_cut_with_a_note(sandbox, text: str) -> None:
    n = LIMITS.output_chars
    code = f"import sys\nt = {text!r}\n"
    exact, over, errors, raw = await run_blocks(
        sandbox,
        f"{code}print(t * {n} if t.isprintable() else 'x' * {n}, end='')",
        f"{code}print(t * {n + 1}, end='')",
        f"{code}sys.stderr.write('x' * {n + 1});",
        f"sys.stdout.buffer.write(b'\\xff' * {8 * n}); print(len(sys.stdout.encoding))",
    )
    assert (len(exact.stdout), exact.truncated) == (n, False)
    assert over.truncated
    assert over.stdout.endswith(f"\n[output cut after {n} characters]\n")
    assert len(over.stdout) == n + len(f"\n[output cut after {n} characters]\n")
    assert errors.truncated
    assert raw.truncated


async def test_a_fresh_session_is_always_the_same(sandbox) -> None:
    code = (
        "import random, numpy as np, sympy, time, locale, os\n"
        "(random.random(), np.random.rand(), np.random.default_rng().random(), hash('x'), list({'a', 'b', 'c', 'd'}),"
        " sympy.core.random.rng.random(), time.tzname, locale.setlocale(locale.LC_ALL), sorted(os.environ)) == expected"
    )
    record = code.replace(" == expected", "")
    async with await sandbox.session() as a, await sandbox.session(replace(AMPLE, memory_mb=300)) as b:
        first, second = await a.execute(record), await b.execute(record)
        await a.execute("import random; random.seed(5)")
        await a.reset()
        third = await a.execute(record)
    async with LocalSandbox(limits=AMPLE, spares=1) as other, await other.session() as session:
        fourth = await session.execute(record)
    async with (
        LocalSandbox(limits=AMPLE, spares=1, seed=None) as free,
        await free.session() as a,
        await free.session() as b,
    ):
        unseeded = {(await session.execute(record)).stdout for session in (a, b)}
    assert first.status == Status.COMPLETED, first.stderr
    assert first.stdout == second.stdout == third.stdout == fourth.stdout
    assert len(unseeded | {first.stdout}) == 3


async def test_files_live_and_die_with_the_session() -> None:
    async with LocalSandbox(limits=LIMITS, spares=0, packages=()) as sandbox:
        session = await sandbox.session()
        where = (
            await session.execute("import os, tempfile; open('f', 'w').write('x'); print(os.getcwd())")
        ).stdout.strip()
        assert Path(where, "f").read_text() == "x"
        inside = await session.execute("import tempfile; print(os.path.dirname(tempfile.mkdtemp()), os.listdir('.'))")
        assert inside.stdout.startswith(where)
        await session.reset()
        assert not Path(where).exists()
        assert (await session.execute("import os; os.listdir('.')")).stdout == "[]\n"
        base = Path(where).parent
        await session.close()
        assert list(base.iterdir()) == []
    assert not base.exists()


async def test_nothing_runs_between_blocks() -> None:
    count = "import threading, time\nn = 0\ndef f():\n    global n\n    while True: n += 1\n"
    start = "threading.Thread(target=f, daemon=True).start()\nwhile not n: time.sleep(0.001)"
    async with LocalSandbox(limits=LIMITS, spares=0, packages=()) as sandbox, await sandbox.session() as session:
        await session.execute(count + start)
        stat = Path(f"/proc/{session._process._pid}/stat")

        def fields() -> list[str]:
            return stat.read_text().rpartition(")")[2].split()

        await until(lambda: fields()[0] == "T")
        before = fields()[11:13]  # CPU time, of the user and of the system
        await asyncio.sleep(0.1)
        assert fields()[11:13] == before
        assert int((await session.execute("n")).stdout) > 0


async def test_sessions_and_executions_wait_their_turn() -> None:
    async with LocalSandbox(limits=LIMITS, spares=0, sessions=2, workers=1, packages=()) as sandbox:
        one, two = await sandbox.session(), await sandbox.session()
        third = asyncio.create_task(sandbox.session())
        first = await begun(one, HELD)
        second = asyncio.create_task(two.execute("print('second')"))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert two._busy
        assert two._process._started == 0.0  # waiting for others takes nothing from a block's own time
        Path(one._process.folder, "go").touch()
        assert [(await task).status for task in (first, second)] == [Status.COMPLETED] * 2
        assert not third.done()
        await one.close()
        async with await third as session:
            assert (await session.execute("1")).stdout == "1\n"
        with pytest.raises(SandboxError, match="closed"):
            await one.execute("1")
        await two.close()


async def test_cancelling_kills_what_runs() -> None:
    async with (
        LocalSandbox(limits=LIMITS, spares=0, packages=()) as sandbox,
        await sandbox.session() as session,
    ):
        await session.execute("x = 1")
        pid = session._process._pid
        task = await begun(session, "print('running')\nwhile True: pass")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after = await session.execute("'x' in dir()")
        assert (after.stdout, after.state_lost) == ("False\n", True)
        assert not os.path.exists(f"/proc/{pid}")


async def test_limits_that_cannot_be_given_are_refused() -> None:
    async with LocalSandbox(limits=LIMITS, spares=0, packages=()) as sandbox:
        for wrong in (Limits(processes=1), Limits(wall_s=0), Limits(memory_mb=-1), Limits(open_files=2),
                      Limits(wall_s=float("nan")), Limits(cpu_s=float("inf")), Limits(memory_mb=10**15)):  # fmt: skip
            with pytest.raises(UserError, match="limits"):
                await sandbox.session(wrong)
        async with await sandbox.session() as session:
            with pytest.raises(UserError, match="output_chars"):
                await session.execute("1", Limits(output_chars=10**6))
            long = await session.execute("#" + "x" * (1 << 20))
            assert (long.status, long.stdout) == (Status.ERROR, "")
        with pytest.raises(SandboxError, match="could not be walled in: OverflowError"):  # the reason comes through
            await sandbox.process(replace(shape_of(LIMITS), memory_mb=1 << 60))
        assert (await run_blocks(sandbox, "1 + 1"))[0].stdout == "2\n"
    for wrong in ({"workers": 0}, {"sessions": 0}, {"spares": -1}):
        with pytest.raises(UserError, match="or more"):
            LocalSandbox(**wrong)


async def test_a_program_from_a_file(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("\ufeffimport numpy\nprint(numpy.arange(3).sum())\nraise SystemExit(3)")
    result = await asyncio.to_thread(exec_file, program, LIMITS)
    assert (result.status, result.stdout, result.unsafe) == (Status.ERROR, "3\n", False)
    with pytest.raises(UserError, match=r"nothing\.py: cannot read"):
        exec_file(tmp_path / "nothing.py")


names = st.sampled_from(["a", "b", "c"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), names, st.integers(-(10**20), 10**20)),
        st.tuples(st.just("add"), names, names),
        st.tuples(st.just("raise"), names, st.integers(0, 9)),
        st.tuples(st.just("function"), names, st.integers(0, 9)),
    ),
    max_size=12,
)


async def test_state_persists_like_that_of_one_program(sandbox) -> None:
    """Against `exec` of the same blocks in one namespace, errors included."""
    loop = asyncio.get_running_loop()

    @given(program=steps)
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def check(program) -> None:
        codes = [_code(*step) for step in program]
        expected: dict = {}
        for code in codes:
            try:
                exec(code, expected)
            except Exception:
                continue
        wanted = {name: _seen(expected[name]) for name in "abc" if name in expected}
        got = asyncio.run_coroutine_threadsafe(_run(sandbox, codes), loop).result(600)
        assert got == wanted

    await asyncio.to_thread(check)


async def _run(sandbox: LocalSandbox, codes: list[str]) -> dict[str, int]:
    async with await sandbox.session() as session:
        for code in codes:
            await session.execute(code)
        shown = await session.execute(
            "{n: (v() if callable(v) else v) for n in 'abc' if n in globals() for v in [globals()[n]]}"
        )
        return eval(shown.stdout)


def _code(kind: str, name: str, value) -> str:
    return {
        "set": f"{name} = {value}",
        "add": f"{name} = {name} + {value}",
        "raise": f"{name} = {value}\nraise ValueError\n{name} = 10",
        "function": f"def {name}(): return {value}",
    }[kind]


def _seen(value):
    return value() if callable(value) else value
