"""All attacks against one live sandbox each: as the user who runs the tests and as nobody; with namespaces, without, on
a kernel without Landlock."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.sandbox import unprivileged
from tests.sandbox.attacks import ATTACKS
from tests.sandbox.world import World

HARMLESS = {
    "bait file", "system files", "links and nodes", "TCP, UDP, unix", "fork bomb", "other installed packages",
    "deleted mapped files", "files of a thread's own table",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "option"),
    [
        ("same", ""),
        ("nobody", "--no-namespaces"),
        ("nobody", "--old-kernel"),
        pytest.param("nobody", "", marks=pytest.mark.manual),
        pytest.param("same", "--no-namespaces", marks=pytest.mark.manual),
        pytest.param("same", "--old-kernel", marks=pytest.mark.manual),
    ],
)
def test_every_attack_is_held(user: str, option: str) -> None:
    arguments = ["-m", "tests.sandbox.world", *([option] if option else [])]
    if user == "nobody":
        if not unprivileged.possible():
            pytest.skip("needs root, to step down from")
        ran = unprivileged.run(*arguments)
    else:
        ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=900, check=False)
    if "would lack" in ran.stderr:
        pytest.skip("namespaces are forbidden here, and Landlock was taken away")
    assert ran.stdout, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["attacks"] == len(ATTACKS)
    assert (report["uid"] == 65534) == (user == "nobody")
    assert [line for line in report["problems"] if not line.startswith("layers")] == []  # namespaces may be forbidden


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.name in HARMLESS], ids=lambda a: a.name)
def test_the_attacks_succeed_outside_the_sandbox(attack) -> None:
    """An attack that fails everywhere proves nothing."""
    world = World()
    try:
        prologue = "".join(f"{name} = {value!r}\n" for name, value in world.names.items()) + "patience = 0\n"
        command = [sys.executable, "-c", prologue + attack.code]
        ran = subprocess.run(command, cwd=world.outside, capture_output=True, text=True, timeout=300, check=False)
    finally:
        world.close()
    assert "BREACH" in ran.stdout, ran.stderr
