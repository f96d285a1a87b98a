"""Makes memory of a spare session its own before it is used.

A forked session shares its memory with the zygote until it writes there, and Python writes to whatever it looks at (the
reference counts). The first use of sympy writes to more than a thousand pages, each with a fault of its own; together
they cost several times what the work does. The zygote therefore tries once, in a fork that is thrown away, which pages
a usual block writes to; a spare session asks the kernel for its own copies of these in a few calls. The state of the
interpreter is not touched: a session made ahead and one made on demand run the same.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import struct
from collections.abc import Callable, Iterator

from nemo_openmath.sandbox.libc import libc

Range = tuple[int, int]  # address and length in bytes

_MADV_POPULATE_WRITE = 23  # Linux 5.14; earlier kernels refuse it, and the pages come one by one as before
_PRESENT, _OF_FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56  # entries of /proc/self/pagemap


def written_by(work: Callable[[], object]) -> list[Range]:
    """Return the ranges of this process's private memory that ``work`` writes to, found in a fork that is thrown away.

    Empty where the kernel does not tell or ``work`` fails. Single-threaded processes only.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            gc.disable()  # a collection writes to every object
            mappings = list(_private_mappings())
            work()
            with open(writing, "wb") as pipe:
                pipe.write(b"".join(struct.pack("=QQ", *piece) for piece in _own_pages(mappings)))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return [(start, length) for start, length in struct.iter_unpack("=QQ", data)]


def own(ranges: list[Range]) -> None:
    """Copy these ranges of a forked process now. What cannot be copied is left to be copied at the first write."""
    for start, length in ranges:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_POPULATE_WRITE)


def _private_mappings() -> Iterator[Range]:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            addresses, permissions, *_ = line.split(None, 2)
            if permissions == "rw-p":
                start, stop = (int(address, 16) for address in addresses.split("-"))
                yield start, stop - start


def _own_pages(mappings: list[Range]) -> Iterator[Range]:
    """Yield the runs of pages that this process shares with no other."""
    page = resource.getpagesize()
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for start, length in mappings:
            run = 0
            entries = os.pread(pagemap.fileno(), length // page * 8, start // page * 8)
            for number, (entry,) in enumerate(struct.iter_unpack("=Q", entries)):
                if entry & _PRESENT and entry & _EXCLUSIVE and not entry & _OF_FILE:
                    run += 1
                elif run:
                    yield start + (number - run) * page, run * page
                    run = 0
            if run:
                yield start + (len(entries) // 8 - run) * page, run * page
