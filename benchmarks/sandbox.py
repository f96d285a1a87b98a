"""Speed and memory of the sandbox, beside an IPython kernel per session where `ipykernel` is installed.

    python benchmarks/sandbox.py [--sessions 8] [--blocks 200] [--idle 50]

The same programs on the same machine: small arithmetic, sympy solve, numpy, a brute-force loop. The peer isolates
nothing and imports sympy anew in every session; it stands for the servers that keep one IPython shell per session.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from nemo_openmath.sandbox import LocalSandbox, Sandbox
from nemo_openmath.sandbox.service import RemoteSandbox

SYMPY = "import sympy\nx = sympy.symbols('x')\nprint(sympy.solve(x**2 - 5*x + 6, x))"
PROGRAMS = {
    "arithmetic": "print(17 * 23 + 4)",
    "sympy": SYMPY,
    "numpy": "import numpy as np\nprint(np.linalg.det(np.eye(20) * 2))",
    "brute force": "print(sum(1 for a in range(1, 120) for b in range(a, 120) if (a * a + b * b) % 49 == 0))",
}
Execute = Callable[[str], Awaitable[str]]
Open = Callable[[], Awaitable[tuple[Execute, Callable[[], Awaitable[None]]]]]


async def measure(open_session: Open, sessions: int, blocks: int) -> dict[str, float]:
    """Milliseconds (medians) and executions per second over ``sessions`` at the same time."""
    first = []
    for _ in range(5):
        await asyncio.sleep(0.3)  # let the spare be made: a session is not opened every millisecond
        start = time.perf_counter()
        execute, close = await open_session()
        await execute(SYMPY)
        first.append(time.perf_counter() - start)
        await close()
    results = {"session start to first sympy result, ms": statistics.median(first) * 1e3}
    execute, close = await open_session()
    for name, code in PROGRAMS.items():
        await execute(code)
        times = []
        for _ in range(max(5, blocks // 4)):
            start = time.perf_counter()
            await execute(code)
            times.append(time.perf_counter() - start)
        results[f"next block, {name}, ms"] = statistics.median(times) * 1e3
    await close()
    opened = [await open_session() for _ in range(sessions)]

    async def work(execute: Execute) -> None:
        for _ in range(blocks):
            await execute(PROGRAMS["arithmetic"])

    start = time.perf_counter()
    await asyncio.gather(*(work(execute) for execute, _ in opened))
    results[f"executions per second, {sessions} sessions"] = sessions * blocks / (time.perf_counter() - start)
    for _, close in opened:
        await close()
    return results


async def ours(sessions: int, blocks: int, idle: int) -> dict[str, float]:
    start = time.perf_counter()
    async with LocalSandbox() as sandbox:
        ready = time.perf_counter() - start

        results = await measure(opener(sandbox), sessions, blocks)
        held = [await sandbox.session() for _ in range(idle)]
        results["private memory of a fresh session, MB"] = statistics.median(map(private_mb, held))
        for session in held:
            await session.execute(SYMPY)
        results["private memory after sympy, MB"] = statistics.median(map(private_mb, held))
        results["sandbox start (once), ms"] = ready * 1e3
        for session in held:
            await session.close()
    return results


def opener(sandbox: Sandbox) -> Open:
    async def open_session() -> tuple[Execute, Callable[[], Awaitable[None]]]:
        session = await sandbox.session()

        async def execute(code: str) -> str:
            result = await session.execute(code)
            assert result.status == "completed", result
            return result.stdout

        return execute, session.close

    return open_session


async def service(sessions: int, blocks: int) -> dict[str, float]:
    """The same through `openmath sandbox serve`, a process of its own, over loopback TCP."""
    command = [sys.executable, "-m", "nemo_openmath.cli.main", "sandbox", "serve", "--port", "0"]
    with tempfile.TemporaryFile() as log:  # it logs every execution
        process = await asyncio.create_subprocess_exec(*command, stderr=log)
        try:
            while b"\n" not in (line := os.pread(log.fileno(), 4096, 0)):  # noqa: ASYNC110  (another process's file)
                await asyncio.sleep(0.05)
            async with RemoteSandbox(json.loads(line.partition(b"\n")[0])["url"]) as sandbox:
                return await measure(opener(sandbox), sessions, blocks)
        finally:
            process.terminate()
            await process.wait()


def private_mb(session: object) -> float:
    """Private pages of a session's process (smaps_rollup), in MB of 2**20 bytes."""
    pid = session._process._pid  # type: ignore[attr-defined]
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


async def peer(sessions: int, blocks: int) -> dict[str, float]:
    """An IPython kernel per session, through jupyter_client."""
    from jupyter_client.manager import start_new_async_kernel

    async def open_session() -> tuple[Execute, Callable[[], Awaitable[None]]]:
        manager, client = await start_new_async_kernel(env={**os.environ, "OMP_NUM_THREADS": "1"})

        async def execute(code: str) -> str:
            reply = await client.execute_interactive(code, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok", reply
            return ""

        async def close() -> None:
            client.stop_channels()
            await manager.shutdown_kernel(now=True)

        return execute, close

    return await measure(open_session, sessions, blocks)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=8, help="live sessions in the throughput test")
    parser.add_argument("--blocks", type=int, default=200, help="executions of each")
    parser.add_argument("--idle", type=int, default=50, help="sessions held for the memory test")
    options = parser.parse_args()
    mine = await ours(options.sessions, options.blocks, options.idle)
    served = await service(options.sessions, options.blocks)
    other: dict[str, float] = {}
    if importlib.util.find_spec("ipykernel") and importlib.util.find_spec("jupyter_client"):
        other = await peer(options.sessions, max(10, options.blocks // 10))
    machine = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    print(f"| {machine} | ours | ours, over HTTP | IPython kernel | ratio |")
    print("|---|---|---|---|---|")
    for name, value in mine.items():
        theirs = other.get(name)
        ratio = "" if theirs is None else f"{(value / theirs if 'per second' in name else theirs / value):.1f}"
        over_http = f"{served[name]:.2f}" if name in served else ""
        print(f"| {name} | {value:.2f} | {over_http} | {'' if theirs is None else f'{theirs:.2f}'} | {ratio} |")


if __name__ == "__main__":
    asyncio.run(main())
