"""What the attacks aim at, and the look from outside at whether they got it.

Run by hand, `python -m tests.sandbox.world [--no-namespaces | --old-kernel]` prints the table of results.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nemo_openmath.sandbox as package
from nemo_openmath.sandbox import Execution, Limits, LocalSandbox, walls
from tests.sandbox import old_kernel
from tests.sandbox.attacks import ATTACKS, Attack

LIMITS = Limits(wall_s=300, cpu_s=300, memory_mb=512, output_chars=4000, file_mb=32)
SHORT_S, SHORTEST_S = 1.5, 0.6  # for attacks that may, or must, end in a timeout


@dataclass(frozen=True)
class Result:
    attack: Attack
    execution: Execution
    problems: tuple[str, ...]


class World:
    """Bait, listeners and a sentinel process of the same user as the sandbox."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="openmath-attacks-"))
        self.abstract = self.folder.name  # an abstract address is one for the whole machine
        os.environ["OPENMATH_TEST_SECRET"] = self.secret
        self.baits, self.outside = self.folder / "baits", self.folder / "outside"
        self.baits.mkdir(mode=0o700)
        self.outside.mkdir()
        self.outside.chmod(0o777)
        self.bait, self.outside_file = self.baits / "bait", self.outside / "file"
        for file in (self.bait, self.outside_file):
            file.write_text(self.secret)
        self.outside_file.chmod(0o666)
        self.sentinel = subprocess.Popen(["sleep", "86400"])
        self.listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        self.listeners[1].bind(("127.0.0.1", 0))
        for address in (str(self.folder / "unix"), f"\0{self.abstract}"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
            self.listeners.append(listener)
        (self.folder / "unix").chmod(0o777)
        for listener in self.listeners:
            listener.setblocking(False)
        self.before = self._outside_state()
        packages = Path(sys.base_prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
        self.names = {
            "bait": str(self.bait),
            "baits": str(self.baits),
            "outside": str(self.outside),
            "outside_file": str(self.outside_file),
            "home": str(Path.home()),
            "cwd": str(Path.cwd()),
            "service": str(Path(package.__file__).parent),
            "client": os.getpid(),
            "sentinel": self.sentinel.pid,
            "tcp": self.listeners[0].getsockname()[1],
            "udp": self.listeners[1].getsockname()[1],
            "unix": str(self.folder / "unix"),
            "abstract": self.abstract,
            "other": "1",
            "patience": 2 * LIMITS.wall_s,
            "installed": next(iter(sorted(map(str, packages.glob("*/__init__.py")))), str(packages / "none")),
            "places": [*walls.readable_places(()), sysconfig.get_path("purelib"), "/lib", "/lib64", "/.session"],
        }

    def close(self) -> None:
        self.sentinel.kill()
        self.sentinel.wait()
        for listener in self.listeners:
            listener.close()
        shutil.rmtree(self.folder)
        del os.environ["OPENMATH_TEST_SECRET"]

    async def run(self, sandbox: LocalSandbox, attack: Attack) -> Result:
        """The attack in a session of its own, then the same session, then a fresh one, then the world."""
        prologue = "".join(f"{name} = {value!r}\n" for name, value in self.names.items())
        problems = []
        async with await sandbox.session() as session:
            limits = limits_of(attack)
            execution = await session.execute(prologue + attack.code, limits)
            after = await session.execute("print(1 + 1)", replace(LIMITS, wall_s=SHORT_S))
            if not (after.stdout == "2\n" or after.state_lost or after.status != "completed"):
                problems.append(f"the next block gave {after}")
        async with await sandbox.session() as fresh:
            clean = await fresh.execute(
                "import builtins, os, random, sympy\n"
                "poisoned = hasattr(builtins, 'poison'), os.environ.get('POISON')\n"
                "x, found = sympy.symbols('x'), os.listdir('.')\n"
                "*poisoned, found, sympy.solve(x**2 - 5*x + 6, x), sum([1, 1]), random.random()",
                LIMITS,  # a busy machine is no breach
            )
            if clean.stdout != "(False, None, [], [2, 3], 2, 0.8444218515250481)\n":
                problems.append(f"a fresh session gave {clean}")
        if execution.status.value not in attack.ends:
            problems.append(
                f"ended {execution.status.value}, expected {sorted(attack.ends)}: {execution.output[-500:]}"
            )
        if "BREACH" in execution.output:
            problems += [line for line in execution.output.splitlines() if "BREACH" in line]
        if self.secret in execution.output + after.output:
            problems.append("the secret was read")
        if len(execution.stdout) > LIMITS.output_chars + 100 or len(execution.stderr) > LIMITS.output_chars + 300:
            problems.append("the output is too long")
        if execution.duration_s > limits.wall_s + 60:  # and no busy machine either
            problems.append(f"it took {execution.duration_s:.1f} s")
        return Result(attack, execution, tuple(problems))

    def damage(self) -> list[str]:
        """What is not as it was."""
        found = []
        if self._outside_state() != self.before:
            found.append(f"files outside changed: {self._outside_state()}")
        if self.sentinel.poll() is not None:
            found.append("the sentinel was killed")
        for listener in self.listeners:
            try:
                if listener.type == socket.SOCK_DGRAM:
                    found.append(f"a datagram came: {listener.recvfrom(100)}")
                else:
                    found.append(f"a connection came: {listener.accept()}")
            except BlockingIOError:
                continue
        return found

    def _outside_state(self) -> list[tuple[str, int, bytes]]:
        return [
            (str(path), path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in sorted([self.bait, *self.outside.rglob("*")])
        ]


def limits_of(attack: Attack) -> Limits:
    """`LIMITS`, with little time where the attack may end in a timeout."""
    if "timeout" not in attack.ends:
        return LIMITS
    seconds = SHORTEST_S if attack.ends == {"timeout"} else SHORT_S
    return replace(LIMITS, wall_s=seconds, cpu_s=seconds)


async def run_all(
    attacks: Sequence[Attack] = tuple(ATTACKS), namespaces: bool = True
) -> tuple[list[Result], list[str]]:
    """(results, problems of the world). Every attack runs against one live sandbox; nothing of it may stay behind."""
    world = World()
    try:
        async with LocalSandbox(limits=LIMITS, spares=2, workers=2, namespaces=namespaces) as sandbox:
            async with await sandbox.session() as victim:
                await victim.execute(f"open('secret', 'w').write({world.secret!r}); v = 41")
                queue = asyncio.Semaphore(2)

                async def run(attack: Attack) -> Result:
                    async with queue:
                        return await world.run(sandbox, attack)

                results = await asyncio.gather(*map(run, attacks))
                kept = await victim.execute("v + 1, open('secret').read()")
            damage = world.damage()
            if kept.stdout != f"(42, {world.secret!r})\n":
                damage.append(f"another session was touched: {kept}")
            if namespaces != ("namespaces" in sandbox.layers):
                damage.append(f"layers: {sandbox.layers}")
            print(f"layers: {', '.join(sandbox.layers)}")
        return list(results), damage
    finally:
        world.close()


def table(results: Sequence[Result]) -> str:
    """Markdown."""
    lines = ["| Attack | Outcome |", "|---|---|"]
    for result in results:
        outcome = "**BREACH** " + "; ".join(result.problems) if result.problems else f"held ({result.execution.status})"
        lines.append(f"| {result.attack.group}: {result.attack.name} | {outcome} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--old-kernel" in sys.argv:
        old_kernel.pretend()
    found, harm = asyncio.run(run_all(namespaces="--no-namespaces" not in sys.argv))
    print(table(found))
    problems = [f"{result.attack.name}: {problem}" for result in found for problem in result.problems] + harm
    print(json.dumps({"uid": os.getuid(), "attacks": len(found), "problems": problems}))
    sys.exit(bool(problems))
