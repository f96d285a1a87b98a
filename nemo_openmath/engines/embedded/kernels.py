"""Compiles kernels.c for a model's shapes, once a machine, and calls it. Without a C compiler decoding falls back to
torch: the same results up to rounding, at about half the speed."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
# sums may be reordered (once, by the compiler); not -ffast-math, whose start-up code turns off denormals process-wide
FLAGS = (
    *("-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-ffp-contract=fast"),
)
_log = logging.getLogger(__name__)


class Kernels:
    """The compiled functions. Calls release the GIL; rows are split over ``threads``."""

    def __init__(self, library: ctypes.CDLL, threads: int):
        self._rms_norm, self._gated, self._attend = library.rms_norm, library.gated, library.attend
        pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._rms_norm.argtypes = [pointer, pointer, integer, integer, number]
        self._gated.argtypes = [pointer, pointer, integer, integer]
        self._attend.argtypes = [pointer] * 9 + [integer] * 4 + [number]
        for function in (self._rms_norm, self._gated, self._attend):
            function.restype = None
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "attention") if threads > 1 else None

    def rms_norm(self, x: Tensor, out: Tensor, eps: float) -> None:
        """out = x / rms(x), both [rows, n]."""
        self._rms_norm(x.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], eps)

    def gated(self, gate_up: Tensor, out: Tensor) -> None:
        """out [rows, n] = silu(gate) * up, from [rows, 2 n]."""
        self._gated(gate_up.data_ptr(), out.data_ptr(), out.shape[0], out.shape[1])

    def attend(
        self,
        qkv: Tensor,
        qk_norm: Tensor | None,
        rotation: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        live: Tensor,
        scores: Tensor,
        out: Tensor,
        kv_heads: int,
        eps: float,
    ) -> None:
        """See kernels.c. ``scores``: [threads, group, capacity + 16]."""
        rows, capacity = qkv.shape[0], keys.shape[1]
        head = (qkv.data_ptr(), None if qk_norm is None else qk_norm.data_ptr(), rotation.data_ptr())
        middle = (keys.data_ptr(), values.data_ptr(), positions.data_ptr(), live.data_ptr())
        parts = min(self.threads, rows)
        bounds = [rows * i // parts for i in range(parts + 1)]

        def part(i: int) -> None:
            mine = scores.data_ptr() + i * scores.stride(0) * 4
            self._attend(*head, *middle, mine, out.data_ptr(), bounds[i], bounds[i + 1], kv_heads, capacity, eps)

        if self._pool is None or parts == 1:
            part(0)
            return
        others = [self._pool.submit(part, i) for i in range(1, parts)]
        part(0)
        for other in others:
            other.result()


def load_kernels(head_dim: int, group: int, intermediate: int, threads: int) -> Kernels | None:
    """The kernels for these shapes; None where they do not apply or there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if head_dim % 16 or intermediate % 16 or compiler is None or not SOURCE.is_file():
        return None
    flags = [*FLAGS, f"-DHEAD_DIM={head_dim}", f"-DGROUP={group}"]
    identity = " ".join([*flags, compiler, platform.machine(), _cpu()]).encode() + SOURCE.read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo_openmath"
    file = cache / f"decode-{hashlib.sha256(identity).hexdigest()[:16]}.so"
    try:
        if not file.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                made = Path(folder) / "decode.so"
                subprocess.run(
                    [compiler, *flags, "-o", str(made), str(SOURCE), "-lm"],
                    check=True,
                    capture_output=True,
                    timeout=120,
                )
                made.replace(file)
        return Kernels(ctypes.CDLL(str(file)), threads)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("decoding without compiled kernels: %s", error)
        return None


def _cpu() -> str:
    """What -march=native depends on: a cache on a shared home serves several kinds of machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
