"""What this process's device can do, of which the model FLOPs per second are a share (MFU), and its peak memory."""

from __future__ import annotations

import resource
import time

import torch

from nemo_openmath.models.layout import Precision
from nemo_openmath.training.planning.gpus import gpu_of_device


def peak_flops(precision: Precision, device: torch.device) -> float:
    """Return FLOP/s of one device: the data sheet's for a GPU that we know in bf16, else :func:`measured_flops`."""
    if device.type == "cuda" and precision == "bf16":
        gpu = gpu_of_device(torch.cuda.get_device_name(device))
        if gpu is not None:
            return gpu.peak
    return measured_flops(precision, device)


def measured_flops(precision: Precision, device: torch.device) -> float:
    """Return the FLOP/s of a square matrix product: the best of ten. On a CPU it is fp32, with this process's
    threads."""
    if device.type == "cuda":
        dtype, size = torch.bfloat16 if precision == "bf16" else torch.float32, 8192
    else:
        dtype, size = torch.float32, 512
    # random numbers: products of ones draw less power, and run faster than a training's
    random = torch.Generator(device).manual_seed(0)
    a, best = torch.randn(size, size, device=device, dtype=dtype, generator=random), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most bytes that this process has held: of the GPU's memory, or of the host's where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
