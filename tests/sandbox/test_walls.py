"""The filter says what its tables say, on both architectures; no start without a wall."""

from __future__ import annotations

import errno
import platform
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.core.errors import UserError
from nemo_openmath.sandbox import LocalSandbox, seccomp

ALLOW, DENY, NO_SUCH_CALL, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
PID = 4321
X86_64, AARCH64 = seccomp._ARCHITECTURES["x86_64"], seccomp._ARCHITECTURES["aarch64"]
PROGRAMS = {arch: list(struct.iter_unpack("<HBBI", seccomp.program(arch, PID))) for arch in (X86_64, AARCH64)}


def verdict(arch: seccomp.Architecture, number: int, *arguments: int, audit: int | None = None) -> int:
    """Classic BPF, as `Documentation/networking/filter.rst` defines it."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, arch.audit if audit is None else audit, 0, *padded)
    accumulator, at = 0, 0
    while True:
        code, jump_true, jump_false, k = PROGRAMS[arch][at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:
            accumulator &= k
        elif code == 0x15:
            at += jump_true if accumulator == k else jump_false
        elif code == 0x06:
            return k
        else:
            raise AssertionError(hex(code))


CASES = [  # name, arguments, allowed
    ("prlimit64", (0, 7, 0), True), ("prlimit64", (0, 7, 1), False), ("prlimit64", (0, 7, 1 << 32), False),
    ("kill", (PID, 9), True), ("kill", (1, 9), False), ("kill", (2**64 - 1, 9), False), ("tgkill", (PID, PID, 6), True),
    ("tgkill", (PID + 1, PID, 6), False), ("clone", (0x3D0F00,), True), ("clone", (0x1200011,), False),
    ("clone", (17,), False), ("clone", (0x3D0F00 | 0x10000000,), False), ("clone", (0x3D0F00 | 0x80,), False),
    ("openat", (0, 0, 0o2), True), ("openat", (0, 0, 0o1102), True), ("openat", (0, 0, 0o1000), False),
    ("mmap", (0, 4096, 3, 0x22), True), ("mmap", (0, 4096, 3, 0x40022), False), ("socketpair", (1, 1, 0), True),
    ("socketpair", (2, 1, 0), False), ("sendto", (3, 1, 1, 0, 0, 0), True), ("sendto", (3, 1, 1, 0, 1 << 40, 9), False),
    ("sendto", (3, 1, 1, 0, 64, 16), False), ("fcntl", (3, 1030), True), ("fcntl", (3, 8), False),
    ("ioctl", (0, 0x5401), True), ("ioctl", (0, 0x5412), False),
    ("clone", (0x3D0F00 & ~0x400,), False), ("clone", (0x3D0F00 & ~0x200,), False),  # files, folders of its own
    ("clone", (0x3D0F00 & ~0x10000,), False), ("close_range", (3, 9, 0), True), ("close_range", (3, 9, 4), True),
    ("close_range", (3, 9, 2), False), ("close_range", (3, 9, 6), False),
]  # fmt: skip


@pytest.mark.parametrize("arch", [X86_64, AARCH64], ids=lambda arch: arch.name)
def test_the_filter_lets_through_what_it_should_and_nothing_else(arch: seccomp.Architecture) -> None:
    plain = set(seccomp._table(seccomp._NUMBERS, arch.column).values())
    guarded = seccomp._table(seccomp._GUARDED_NUMBERS, arch.column)
    assert not plain & set(guarded.values())
    for number in range(700):
        if number not in guarded.values():
            wanted = ALLOW if number in plain else NO_SUCH_CALL if number == 435 else DENY
            assert verdict(arch, number) == wanted, number
            assert verdict(arch, number | 0x40000000) == DENY  # x32
            assert verdict(arch, number, audit=0x40000003) == KILL  # i386
    for name, arguments, allowed in CASES:
        assert (verdict(arch, guarded[name], *arguments) == ALLOW) == allowed, (name, arguments)


def test_forbidden_calls_are_not_in_the_tables() -> None:
    """Independently of the names used there: by number, from the kernel's headers."""
    x86 = {57, 58, 59, 322, 41, 42, 43, 46, 47, 49, 50, 101, 310, 311, 105, 157, 160, 165, 272, 308, 317, 319, 424,
           434, 438, 29, 90, 91, 92, 86, 88, 265, 133, 259, 321, 298, 425, 426, 323, 155, 161, 200}  # fmt: skip
    arm = {221, 281, 198, 200, 201, 202, 203, 211, 117, 270, 271, 146, 167, 164, 40, 97, 268, 277, 279, 424, 434, 438,
           194, 52, 53, 36, 37, 33, 280, 241, 425, 282, 41, 51, 130, 138, 140, 122}  # fmt: skip
    for arch, numbers in ((X86_64, x86), (AARCH64, arm)):
        assert {number for number in numbers if verdict(arch, number) == ALLOW} == set()


@given(number=st.integers(0, 2**32 - 1), arguments=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_the_filter_ends_with_a_known_verdict(number: int, arguments: list[int]) -> None:
    for arch in PROGRAMS:
        assert verdict(arch, number, *arguments) in {ALLOW, DENY, NO_SUCH_CALL}


WITHOUT_LANDLOCK = """
import asyncio, sys
from nemo_openmath.sandbox import LocalSandbox
from tests.sandbox import old_kernel
old_kernel.pretend()
async def main():
    options = {"unsafe": "unsafe" in sys.argv, "namespaces": "namespaces" in sys.argv}
    async with LocalSandbox(packages=(), spares=0, **options) as sandbox, await sandbox.session() as session:
        result = await session.execute("import os\\nprint(6 * 7)\\nos.fork()")
        print(result.stdout.strip(), result.unsafe, "PermissionError" in result.stderr, sandbox.layers)
asyncio.run(main())
"""


def without_landlock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_LANDLOCK, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_no_start_without_a_file_wall_unless_unsafe_is_said() -> None:
    refused = without_landlock()
    assert refused.returncode != 0
    assert "UserError: the sandbox would lack a file wall" in refused.stderr
    assert refused.stdout == ""
    ran = without_landlock("unsafe")
    assert ran.stdout == "42 True True ('no_new_privs', 'rlimits', 'seccomp')\n", ran.stderr  # the rest still holds


def test_a_mount_namespace_stands_in_for_landlock() -> None:
    ran = without_landlock("namespaces")
    if "would lack" in ran.stderr:
        pytest.skip("namespaces are forbidden here")
    assert ran.stdout.startswith("42 False True"), ran.stderr
    assert "'mount namespace'" in ran.stdout


async def test_no_start_on_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="no system-call table for riscv64"):
        await LocalSandbox(unsafe=True).start()


async def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match="No module named 'no_such_package'"):
        await LocalSandbox(packages=["no_such_package"]).start()
