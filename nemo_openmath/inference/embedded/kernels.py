"""Compiles the functions that decode, for a model's shapes, once a machine, and calls them.

Without a C compiler, and in other types than float32, decoding is torch's: the same results up to rounding, several
times slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

_HERE = Path(__file__).parent
_HEADERS = [_HERE / name for name in ("forward.h", "guess.h", "products.h", "vectors.h")]
SOURCES = [*(_HERE / name for name in ("forward.c", "sample.c", "draft.c", "guess.c", "turns.c")), *_HEADERS]
GUESSES = [_HERE / "guess.c", _HERE / "guess.h"]
_BUILD = ("-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC", "-pthread")
# nothing may reorder a sum: rows are to have the same bits in every batch
_EXACT = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast")
FLAGS = (*_BUILD, *_EXACT)
log = logging.getLogger(__name__)
_P, _I = ctypes.c_void_p, ctypes.c_int64


class CLayer(ctypes.Structure):
    """``Layer`` of forward.c: addresses of packed matrices, of biases and norms, and of the cache."""

    _fields_ = [(n, _P) for n in ["qkv", "qkv_bias", "qk_norm", "o", "o_bias", "gate_up", "down", "keys", "values"]]


class CModel(ctypes.Structure):
    """``Model`` of forward.c."""

    _fields_ = [
        *((n, _I) for n in ["hidden", "kv_heads", "intermediate", "vocab", "layers", "capacity"]),
        *((n, _P) for n in ["embedding", "head", "rotation", "zeros", "layer"]),
        ("eps", ctypes.c_double),
    ]


class CBatch(ctypes.Structure):
    """``Batch`` of forward.c."""

    _fields_ = [
        *((n, _P) for n in ["tokens", "slots", "positions", "stored", "body", "tail", "tails", "wanted"]),
        ("logit_rows", _I),
        *((n, _P) for n in ["x", "qkv", "logits", "states", "barrier"]),
    ]


class CDrafter(ctypes.Structure):
    """``Drafter`` of draft.c."""

    _fields_ = [
        *((n, _I) for n in ["hidden", "layers", "head_rows", "linear"]),
        *((n, _P) for n in ["w", "u", "u_bias", "blocks", "biases", "head", "ids", "embedding", "zeros", "ones"]),
    ]


Inbox: TypeAlias = "SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None]] | None]"


class Team:
    """Threads that work side by side with the caller. All of them run before any work is given out, for threads that
    meet would wait for ever for one that cannot start; where the system allows fewer than asked for, they are fewer.
    """

    def __init__(self, threads: int):
        self._inboxes: list[Inbox] = []
        for i in range(1, threads):
            inbox: Inbox = SimpleQueue()
            try:
                Thread(target=_serve, args=(inbox,), name=f"decoding-{i}", daemon=True).start()
            except RuntimeError as error:
                log.warning("decoding with %d threads instead of %d: %s", i, threads, error)
                break
            self._inboxes.append(inbox)

    def __len__(self) -> int:
        return len(self._inboxes) + 1

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Call each of at most ``len(self)`` works in a thread of its own, at the same time; return when all have."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for inbox, work in zip(self._inboxes, works[1:], strict=False):
            inbox.put((work, done))
        try:
            works[0]()
        finally:
            errors = [done.get() for _ in works[1:]]
        for error in errors:
            if error is not None:
                raise error

    def __del__(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)


def _serve(inbox: Inbox) -> None:
    while (task := inbox.get()) is not None:
        work, done = task
        error = None
        try:
            work()
        except BaseException as raised:  # it is the caller's
            error = raised
        del task, work  # nothing may keep what it worked on
        done.put(error)
        del done, error


class Kernels:
    """The compiled functions and the threads that run them. Calls release the GIL."""

    def __init__(self, library: ctypes.CDLL, threads: int):
        def function(name: str, result: type | None, *arguments: type) -> Callable[..., int]:
            f = getattr(library, name)
            f.argtypes, f.restype = arguments, result
            return f

        self.run = function("run", _I, *(10 * [_P]), *(5 * [_I]), _P, ctypes.c_double, _I, ctypes.c_double, *(3 * [_P]))
        self.keep = function("keep", None, _P, _I, _I, _P, _I)
        self.pack = function("pack", None, _P, _I, _I, _I, _P)
        self.lay_out = function("lay_out", None, _I, *(7 * [_P]))
        self.forward = function("forward", None, _P, _P, _P, _I, _I)
        self.forward_wide = function("forward_wide", None, _P, _P, _P, _P, _P, _I, _I, _I)
        self.sample = function("sample", None, _P, _I, _I, _P, _P, _P, _P, _P, _I, _I, _P, _P, _P)
        self.draft = function("draft", None, _P, _P, _P, _I, _I, _I, _I, _P, _P, _P, _P)
        self.draft_size = function("draft_size", _I, _P)
        self.scratch_size = function("scratch_size", _I, _I, _I, _I)
        self.room_size = function("room_size", _I, _I)
        self.most_tokens = function("turn_constant", _I, _I)(0)
        self.most_guesses = function("guess_constant", _I, _I)(0)
        constant = function("constant", _I, _I)
        self.lanes, self.panel, self.span, self.most_wide = (constant(i) for i in range(4))
        self._free_barrier = function("free_barrier", None, _P)
        self._team = Team(threads)
        self.threads = len(self._team)
        self.barrier = function("make_barrier", _P, _I)(self.threads) if self.threads > 1 else None

    def share(self, work: Callable[[int, int, int], None], n: int) -> None:
        """Call ``work(thread, first, last)`` for parts of 0..n-1, side by side; every thread has one where n allows."""
        parts = max(1, min(self.threads, n))
        if parts == 1:
            work(0, 0, n)
            return
        bounds = [n * i // parts for i in range(parts + 1)]
        self._team.run([partial(work, i, bounds[i], bounds[i + 1]) for i in range(parts)])

    def together(self, work: Callable[[int], None]) -> None:
        """Call ``work(thread)`` in every thread at the same time."""
        self._team.run([partial(work, i) for i in range(self.threads)])

    def __del__(self) -> None:
        if getattr(self, "barrier", None):
            self._free_barrier(self.barrier)


def load_kernels(head_dim: int, group: int, threads: int) -> Kernels | None:
    """Return the functions for these shapes, which are compiled once a machine; None where there is no compiler."""
    library = compiled_library(SOURCES, (f"-DHEAD_DIM={head_dim}", f"-DGROUP={group}"))
    if library is None:
        log.warning("decoding without compiled kernels, which is slower")
    return None if library is None else Kernels(library, threads)


def compiled_library(sources: Sequence[Path], flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """Return the library of ``sources``, which is compiled once a machine; None, and a warning, where that fails."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not all(s.is_file() for s in sources):
        log.warning("there is no C compiler (cc, gcc, clang, or CC)")
        return None
    flags = [*FLAGS, *flags]
    identity = " ".join([*flags, compiler, platform.machine(), _cpu()]).encode()
    identity += b"".join(s.read_bytes() for s in sources)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo_openmath"
    file = cache / f"decode-{hashlib.sha256(identity).hexdigest()[:16]}.so"
    try:
        if not file.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                library = Path(folder) / "decode.so"
                names = [str(s) for s in sources if s.suffix == ".c"]
                command = [compiler, *flags, "-o", str(library), *names, "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                library.replace(file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s could not be compiled: %s", " and ".join(s.name for s in sources), error)
        return None


def _cpu() -> str:
    """What -march=native depends on: a cache on a shared home serves several kinds of machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
