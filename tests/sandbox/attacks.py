"""The attacks of `attacks.txt`. Each bounds itself (seconds, a few GB, some hundred tries) and aims at this host only.

An attack starts at a line ``=== group: name -> statuses it may end with`` (without the arrow: completed or error). It
is a program that prints BREACH when it got what it was after, or lines ``try EXPRESSION``, each of which must raise;
names such as ``bait`` are those of `world.World`, which also looks from outside. One that may end in a timeout has
little time; another that must be killed sleeps for ``patience``, longer than its time, before it says BREACH.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

_TRY = """
import os, sys, ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*a):
    r = libc.syscall(*[ctypes.c_long(x) if isinstance(x, int) else x for x in a])
    if r < 0: raise OSError(ctypes.get_errno(), 'refused')
    return r
def check(reached):
    if not reached: raise PermissionError('no effect')
def exposed(folder, where=None):  # entries that lead to none of the places which sessions may read
    base = os.path.abspath(where or folder)
    full = [os.path.join(base, name) for name in os.listdir(folder)]
    return [p for p in full if not any((place + '/').startswith(p + '/') for place in (*places, os.environ['HOME']))]
{setup}
for line in {lines!r}:
    try:
        got = eval(line)
    except OSError as error:
        print('held', line, error)
    except (ImportError, KeyError, ValueError) as error:
        print('held', line, type(error).__name__)
    else:
        print('BREACH', line, repr(got)[:300])
"""


@dataclass(frozen=True)
class Attack:
    """``ends``: the statuses it may end with."""

    group: str
    name: str
    code: str
    ends: frozenset[str]


def _parse(text: str) -> Attack:
    head, _, body = text.partition("\n")
    title, _, ends = head.partition(" -> ")
    group, _, name = title.partition(": ")
    tries = [line[4:] for line in body.splitlines() if line.startswith("try ")]
    if tries:
        setup = "\n".join(line[6:] for line in body.splitlines() if line.startswith("setup "))
        if platform.machine() != "x86_64":  # raw system calls are written with its numbers
            tries = [line for line in tries if "call(" not in line]
        body = _TRY.format(setup=setup, lines=tries)
    return Attack(group, name, body, frozenset(ends.split() or ("completed", "error")))


ATTACKS = [
    _parse(text) for text in Path(__file__).with_name("attacks.txt").read_text("utf-8").split("=== ") if text.strip()
]
