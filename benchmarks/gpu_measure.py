"""What the sections of gpu.py measure with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_openmath.models.devices import process_device

if TYPE_CHECKING:
    pass


def relative(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over that of ``expected``."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def wait() -> None:
    """Wait for the GPU, where there is one."""
    if process_device().type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """Return the mean time of ``work`` after a first call."""
    work()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times
