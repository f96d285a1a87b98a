"""All attacks, against one live sandbox each: as root or whoever runs the tests, and as nobody; with namespaces and
without."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.sandbox import unprivileged
from tests.sandbox.attacks import ATTACKS
from tests.sandbox.world import World, run_all


@pytest.mark.slow
@pytest.mark.parametrize("namespaces", [True, False])
async def test_every_attack_is_held(namespaces: bool) -> None:
    results, damage = await run_all(namespaces=namespaces)
    problems = [f"{result.attack.group}, {result.attack.name}: {p}" for result in results for p in result.problems]
    if namespaces:
        damage = [line for line in damage if not line.startswith("layers")]  # not every machine allows them
    assert problems + damage == []


@pytest.mark.slow
@pytest.mark.skipif(not unprivileged.possible(), reason="needs root, to step down from")
@pytest.mark.parametrize("arguments", [(), ("--no-namespaces",)])
def test_every_attack_is_held_without_privileges(arguments: tuple[str, ...]) -> None:
    ran = unprivileged.run("-m", "tests.sandbox.world", *arguments)
    assert ran.stdout, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["uid"] == 65534
    assert [line for line in report["problems"] if not line.startswith("layers")] == []


HARMLESS = {"bait file", "system files", "links and nodes", "TCP, UDP, unix", "fork bomb"}


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.name in HARMLESS], ids=lambda a: a.name)
def test_the_attacks_succeed_outside_the_sandbox(attack) -> None:
    """An attack that fails everywhere proves nothing."""
    world = World()
    try:
        prologue = "".join(f"{name} = {value!r}\n" for name, value in world.names.items())
        ran = subprocess.run(
            [sys.executable, "-c", prologue + attack.code],
            cwd=world.outside,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        world.close()
    assert "BREACH" in ran.stdout
