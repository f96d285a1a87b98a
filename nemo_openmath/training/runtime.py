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
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from nemo_openmath.core.errors import ExitCode
from nemo_openmath.models import cpu_compat
from nemo_openmath.models.devices import DeviceChoice, process_device
from nemo_openmath.models.layout import Parallel
from nemo_openmath.training.choose_device import agree_on_device, hide_gpus
from nemo_openmath.training.run_lock import RunLock


def start_process(
    device: DeviceChoice = "auto", *, deterministic: bool = False, timeout_minutes: float = 30.0
) -> torch.device:
    """Join the process group that the launcher described (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK) and
    return the device of this rank.

    Call it before anything imports megatron-core. ``deterministic``: see :func:`be_deterministic`. Raises what
    :func:`nemo_openmath.training.choose_device.choose_device` raises.
    """
    if dist.is_initialized():
        return process_device()
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\b.*")
    for noisy in ("megatron.core", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if deterministic:
        be_deterministic()
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, rank, ranks = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    chosen = agree_on_device(device, store, rank, ranks)
    on_gpu = chosen.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(chosen)  # before megatron-core and TransformerEngine, which it imports, open one
    else:
        hide_gpus()
        keep_freed_memory()
    cpu_compat.install()
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timeout,
        device_id=chosen if on_gpu else None,  # NCCL connects now, and fails now
    )
    return chosen


def be_deterministic() -> None:
    """Let the same ranks on the same GPUs compute the same bits again; CUDA must not be in use yet.

    - torch takes deterministic kernels, the backward pass of flash attention among them, and refuses what has none,
    - cuBLAS gets workspaces of its own (https://docs.nvidia.com/cuda/cublas/#results-reproducibility),
    - TransformerEngine leaves out its non-deterministic kernels,
    - NCCL leaves out sums in the switch.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "^NVLS")
    os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
    torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones, on a CPU.

    glibc gives blocks above 128 kB back to the system at once, and pays for every page of the next tensor anew. Blocks
    above 64 MiB (a checkpoint's copies) still go back.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-3, 64 << 20), (-1, (1 << 31) - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, value)


@contextlib.contextmanager
def parallel_state_of(parallel: Parallel, seed: int) -> Iterator[None]:
    """Make megatron-core's groups for ``parallel`` over the whole world and seed every generator; remove the groups at
    the end.

    megatron-core only forgets them. A group of gloo has a thread for each device that wakes a hundred times a second,
    so a process that opens many layouts one after another would come to spend all its time on them. After an error
    they stay: other ranks may still wait in them, and the process ends.
    """
    from megatron.core import parallel_state, tensor_parallel

    others = process_groups()
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
    except BaseException:
        parallel_state.destroy_model_parallel()
        raise
    parallel_state.destroy_model_parallel()
    end_groups_but(others)


def process_groups() -> list[dist.ProcessGroup]:
    """Return all process groups of this process, in the order in which it joined them."""
    return list(dist.distributed_c10d._world.pg_map)


def end_groups_but(kept: Sequence[dist.ProcessGroup]) -> None:
    """End the other process groups. No rank may wait in one of them."""
    for group in [group for group in process_groups() if group not in kept]:
        dist.destroy_process_group(group)


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
