"""By hand: `OPENMATH_SOAK=100000 pytest -m manual tests/sandbox/test_soak.py -s`."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter

import psutil
import pytest

from nemo_openmath.sandbox import LocalSandbox
from tests.sandbox.attacks import ATTACKS
from tests.sandbox.world import LIMITS, World, limits_of
from tests.support.waiting import until


def held(sandbox: LocalSandbox) -> dict[str, int]:
    """Resources of the client and the zygote, and files left in the sandbox's folder."""
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    zygote = psutil.Process(sandbox._zygote._popen.pid)
    if "namespaces" in sandbox.layers:
        zygote = zygote.children()[0]
    return {
        "processes": len(family),
        "client descriptors": me.num_fds(),
        "zygote descriptors": zygote.num_fds(),
        "client MB": me.memory_info().rss >> 20,
        "folders": len(os.listdir(sandbox._zygote._base)),
    }


@pytest.mark.manual
async def test_soak() -> None:
    """Many executions over 64 sessions, one in a hundred an attack, sessions closed and opened all the time: nothing
    leaks, and every request is answered exactly once (each answer repeats its request's number)."""
    total, places = int(os.environ.get("OPENMATH_SOAK", "3000")), 64
    world, seen, attacks = World(), Counter[str](), 0
    prologue = "".join(f"{name} = {value!r}\n" for name, value in world.names.items())
    numbers = iter(range(total))
    start = time.monotonic()
    try:
        async with LocalSandbox(limits=LIMITS, spares=4) as sandbox:

            async def work(seed: int) -> None:
                nonlocal attacks
                chance = random.Random(seed)
                while (number := next(numbers, None)) is not None:
                    async with await sandbox.session() as session:
                        for _ in range(chance.randint(1, 40)):
                            if chance.random() < 0.01:
                                attack = chance.choice(ATTACKS)
                                result = await session.execute(prologue + attack.code, limits_of(attack))
                                assert "BREACH" not in result.output, attack
                                assert world.secret not in result.output
                                attacks += 1
                                break  # the session is the attacker's now
                            result = await session.execute(f"n = {number}\nprint(n * 2)\nn")
                            assert result.stdout == f"{2 * number}\n{number}\n", result
                            seen[str(number)] += 1
                            if (number := next(numbers, None)) is None:
                                return

            await asyncio.gather(*(work(seed) for seed in range(8)))
            await until(lambda: sandbox._refilling is None or sandbox._refilling.done())
            middle = held(sandbox)
            numbers = iter(range(total))
            seen.clear()
            await asyncio.gather(*(work(seed) for seed in range(places)))
            await until(lambda: sandbox._refilling is None or sandbox._refilling.done())
            after = held(sandbox)
            assert max(seen.values()) == 1
        assert world.damage() == []
    finally:
        world.close()
    seconds = time.monotonic() - start
    print(f"\n2 x {total} executions, {attacks} attacks, {seconds:.0f} s; before {middle}, after {after}")
    for name, value in after.items():
        assert value <= middle[name] + (60 if name == "client MB" else 3), (name, middle, after)
    assert psutil.Process().children() == []
