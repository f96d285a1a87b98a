"""kill -9 of every part: clear statuses, a sandbox that heals, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nemo_openmath.sandbox import LocalSandbox, SandboxError, Status, supervisor
from tests.sandbox.waiting import AMPLE, begun
from tests.support.waiting import until

LIMITS = AMPLE


@pytest.fixture
async def sandbox():
    files, children = len(os.listdir("/proc/self/fd")), psutil.Process().children()
    async with LocalSandbox(limits=LIMITS, workers=2, spares=1, packages=()) as made:
        yield made
    assert len(os.listdir("/proc/self/fd")) <= files
    assert psutil.Process().children() == children


async def test_a_killed_session_says_so_and_goes_on(sandbox: LocalSandbox) -> None:
    async with await sandbox.session() as session:
        await session.execute("x = 1")
        running = await begun(session, "print('so far')\nimport time; time.sleep(600)")
        os.kill(session._process._pid, signal.SIGKILL)
        killed = await running
        assert (killed.status, killed.stdout, killed.state_lost) == (Status.KILLED, "so far\n", True)
        assert "SIGKILL" in killed.stderr
        await session.execute("x = 2")
        os.kill(session._process._pid, signal.SIGKILL)  # between two blocks
        await until(lambda: not session._process.alive)
        after = await session.execute("'x' in globals()")
        assert (after.status, after.stdout, after.state_lost) == (Status.COMPLETED, "False\n", True)
        assert "earlier blocks are lost" in after.stderr


@pytest.mark.parametrize("part", ["outer", "inner"])
async def test_a_killed_zygote_takes_its_sessions_along_and_is_replaced(sandbox: LocalSandbox, part: str) -> None:
    outer = psutil.Process(sandbox._zygote._popen.pid)
    inner = outer.children()[0] if "namespaces" in sandbox.layers else outer
    base = Path(sandbox._zygote._base)
    async with await sandbox.session() as busy, await sandbox.session() as idle:
        await idle.execute("open('f', 'w').write('x')")
        pids = [inner.pid, outer.pid, busy._process._pid, idle._process._pid]
        running = await begun(busy, "print('running')\nwhile True: pass")
        os.kill(inner.pid if part == "inner" else outer.pid, signal.SIGKILL)
        killed = await running
        assert (killed.status, killed.state_lost) == (Status.KILLED, True)
        assert "zygote died" in killed.stderr
        again = await asyncio.gather(busy.execute("1 + 1"), idle.execute("2 + 2"))
        assert [result.stdout for result in again] == ["2\n", "4\n"]
        assert again[1].state_lost
        await until(lambda: not any(map(psutil.pid_exists, pids)))
    assert not base.exists()


CLIENT = """
import asyncio
from nemo_openmath.sandbox import LocalSandbox, Limits
async def main():
    sandbox = LocalSandbox(packages=(), spares=2, limits=Limits(wall_s=600, cpu_s=600))
    await sandbox.start()
    session = await sandbox.session()
    print((await session.execute("import os; open('f', 'w').write('x'); print(os.getcwd())")).stdout, flush=True)
    await session.execute("while True: pass")
asyncio.run(main())
"""


async def test_nothing_outlives_a_killed_client() -> None:
    client = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert client.stdout is not None
    folder = Path(client.stdout.readline().strip())
    assert folder.exists()
    await until(lambda: len(psutil.Process(client.pid).children(recursive=True)) >= 4)
    family = [process.pid for process in psutil.Process(client.pid).children(recursive=True)]
    client.kill()
    client.wait()
    client.stdout.close()
    await until(lambda: not any(map(psutil.pid_exists, family)))
    assert not folder.parent.exists()


async def test_a_session_cannot_keep_others_from_being_made(sandbox: LocalSandbox) -> None:
    """The kernel counts queued signals per user, and a new session's timers need some."""
    code = (
        "import os, signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, {40})\n"
        "sent = 0\nwhile sent < 200_000:\n    os.kill(os.getpid(), 40); sent += 1\nprint(sent)\ntime.sleep(600)"
    )
    async with await sandbox.session() as hostile:
        running = await begun(hostile, code)
        for _ in range(3):  # more than the spares
            async with await sandbox.session() as other:
                assert (await other.execute("1 + 1")).stdout == "2\n"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_many_short_blocks_cannot_fill_the_disk(sandbox: LocalSandbox) -> None:
    """None of them lasts long enough to be measured while it runs."""
    async with await sandbox.session(replace(LIMITS, file_mb=4)) as session:
        await session.execute("n = 0")
        for _ in range(5000):  # a fast machine writes many before it is looked at
            result = await session.execute("n += 1\nopen(f'{n}', 'wb').write(bytes(1 << 20))")
            if result.status == Status.KILLED:
                break
        assert "more than 4 MB" in result.stderr


async def test_a_sandbox_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program waits for the end of its socket, and never says that it is ready."""
    program = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)"
    monkeypatch.setattr(supervisor, "_PROGRAM", program)
    monkeypatch.setattr(supervisor, "_START_TIMEOUT_S", 0.1)
    with pytest.raises(SandboxError, match=r"the sandbox did not start within 0\.1 s; is the machine") as error:
        await LocalSandbox(packages=()).start()
    assert error.value.retryable
