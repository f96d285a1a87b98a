"""Memory that a spare session owns before it is used."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from nemo_openmath.sandbox import LocalSandbox, pages
from tests.sandbox.waiting import AMPLE

_COUNTED = """
import resource as _resource
_before = _resource.getrusage(_resource.RUSAGE_SELF).ru_minflt
import sympy
_x = sympy.symbols('x')
sympy.solve(_x**2 - 7*_x + 12, _x)
print(_resource.getrusage(_resource.RUSAGE_SELF).ru_minflt - _before)
"""
# Of 64 private pages, the work writes to 3, 4 and 40; a fork then takes what was found and counts its faults: 64 where
# nothing is owned, and always some of the interpreter.
_ALONE = """
import ctypes, mmap, os, resource
from nemo_openmath.sandbox import pages
memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(64):
    memory[page * mmap.PAGESIZE] = 1
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
def write(numbers):
    for number in numbers:
        memory[number * mmap.PAGESIZE] = 2
found = pages.written_by(lambda: write((3, 4, 40)))
inside = [((a - start) // mmap.PAGESIZE, n // mmap.PAGESIZE) for a, n in found if start <= a < start + len(memory)]
print(inside, memory[3 * mmap.PAGESIZE])
print(pages.written_by(lambda: 1 / 0))
pid = os.fork()
if pid == 0:
    pages.own([(start, len(memory)), (start + (1 << 40), 4096)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    write(range(64))
    os._exit(int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before > 40))
print(os.waitpid(pid, 0)[1])
"""


def _supported() -> bool:
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        try:
            memory.madvise(pages._MADV_POPULATE_WRITE)
        except OSError:
            return False
    return os.access("/proc/self/pagemap", os.R_OK)


pytestmark = pytest.mark.skipif(not _supported(), reason="needs Linux 5.14 and /proc/self/pagemap")


def test_what_a_work_writes_is_found_and_can_be_owned_ahead() -> None:
    answer = subprocess.run([sys.executable, "-c", _ALONE], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["[(3, 2), (40, 1)] 1", "[]", "0"]


async def test_a_spare_session_owns_what_sympy_writes_and_one_made_on_demand_does_not() -> None:
    async with (
        LocalSandbox(limits=replace(AMPLE, memory_mb=512), spares=1) as sandbox,
        await sandbox.session() as spare,
        await sandbox.session(replace(AMPLE, memory_mb=500)) as made,
    ):
        ahead, on_demand = [int((await session.execute(_COUNTED)).stdout) for session in (spare, made)]
    assert ahead < on_demand / 4
