"""The device on which this process computes.

It is chosen once, when the process joins its group, and never guessed from what the machine has: a process that
computes on the CPU beside GPUs does not see them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

CPU = torch.device("cpu")


def process_device() -> torch.device:
    """Return the device that this process's group was made for: the thread's current GPU under NCCL, else the CPU."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return CPU
