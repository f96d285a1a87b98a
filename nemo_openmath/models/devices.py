"""Devices on which a model is run: what a setting means on this machine, and which one a training's process has.

torch is imported where it is used: settings are checked before it is needed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from nemo_openmath.core.errors import UserError

if TYPE_CHECKING:
    import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]

log = logging.getLogger(__name__)


def check_device(device: str) -> None:
    """Raise UserError where torch has no such device here."""
    if device == "cpu":
        return
    import torch

    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError:
        raise UserError(f"no device {device!r}", remedy="use cpu, cuda or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "no GPU is visible"
        raise UserError(f"{device!r} cannot be used: {why}", remedy="use cpu")
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise UserError(f"{device!r}, and there are {torch.cuda.device_count()} GPUs", remedy="count from cuda:0")
    if kind not in ("cpu", "cuda"):
        raise UserError(f"{device!r} is not supported", remedy="use cpu or cuda")


def run_device(choice: DeviceChoice, needed: int, task: str) -> str:
    """Return ``cpu`` or ``cuda``, where ``task`` is to run. ``auto`` is the GPU where there is one with room.

    ``needed``: bytes of its memory that the task takes. ``task``: in words, for messages. Raises UserError where a GPU
    is asked for and there is none, or too little of its memory is free.
    """
    import torch

    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return "cpu"
    check_device("cuda")
    free = torch.cuda.mem_get_info()[0]
    if needed <= free:
        return "cuda"
    problem = f"{task} takes some {needed / 2**30:.1f} GiB of the GPU's memory, and {free / 2**30:.1f} GiB are free"
    if choice == "cuda":
        raise UserError(problem, remedy="use device: cpu, or a GPU with more memory")
    log.warning("%s: it runs on the CPU", problem)
    return "cpu"


def process_device() -> torch.device:
    """Return the device that this process's group was made for: the thread's current GPU under NCCL, else the CPU.

    It is chosen once (:mod:`nemo_openmath.training.choose_device`) and never guessed from what the machine has: a
    process that computes on the CPU beside GPUs does not see them.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def use_steady_attention(device: str) -> None:
    """Turn cuDNN's attention off in this process where ``device`` is a GPU.

    On Hopper torch prefers it, and it makes a plan for each pair of lengths (of queries, of keys) that it meets and
    frees none (torch 2.13, ``sdp_utils.cpp`` and ``MHA.cpp``): prompts of all lengths would wait for plans, and memory
    would grow. Flash attention needs no plan.
    """
    import torch

    if torch.device(device).type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
