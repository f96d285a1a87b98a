"""A process that is a world of one rank, in which megatron-core's model runs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


def use_megatron() -> None:
    """Make megatron-core usable in this process, quietly; call it before megatron-core is imported elsewhere."""
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\b.*")
    for noisy in ("megatron.core", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from nemo_openmath.models import cpu_compat

    cpu_compat.install()


@contextlib.contextmanager
def world_of_one() -> Iterator[None]:
    """Make this process a process group of its own within it, where it is in none."""
    import torch.distributed as dist

    use_megatron()
    if dist.is_initialized():
        yield
        return
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
