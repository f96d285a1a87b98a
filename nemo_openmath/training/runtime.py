"""What surrounds a training in a rank: process group, memory, megatron-core's parallel state, signals."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from nemo_openmath.core.errors import ExitCode
from nemo_openmath.models import cpu_compat
from nemo_openmath.models.layout import Parallel
from nemo_openmath.training.run_lock import RunLock


def start_process(timeout_minutes: float = 30.0) -> None:
    """Join the process group that the launcher described (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK)."""
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\b.*")
    for noisy in ("megatron.core", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    cpu_compat.install()
    keep_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", timeout=datetime.timedelta(minutes=timeout_minutes)
        )


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones, on a CPU.

    glibc gives blocks above 128 kB back to the system at once, and pays for every page of the next tensor anew. Blocks
    above 64 MiB (a checkpoint's copies) still go back.
    """
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-3, 64 << 20), (-1, (1 << 31) - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, value)


@contextlib.contextmanager
def parallel_state_of(parallel: Parallel, seed: int) -> Iterator[None]:
    """Make megatron-core's groups for ``parallel`` over the whole world and seed every generator; remove the groups at
    the end."""
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp if parallel.vpp > 1 else None,
        context_parallel_size=parallel.cp,
        create_gloo_process_groups=False,
    )
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


@contextlib.contextmanager
def stop_signals(run_lock: RunLock | None) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGTERM, SIGUSR1 or Ctrl-C came; the handlers before are put back at the end.

    ``run_lock`` is told at once, so that a training that waits for the folder knows. A second Ctrl-C ends this rank.
    """
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        if number == signal.SIGINT and number in received:
            os._exit(ExitCode.INTERRUPTED)
        received.append(number)
        if run_lock is not None:
            run_lock.stopping()

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
