"""A process that is a world of one rank, in which megatron-core's model runs."""

from __future__ import annotations

import logging
import warnings


def start_alone() -> None:
    """Make this process a world of one rank; call it before megatron-core is imported elsewhere."""
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\b.*")
    for noisy in ("megatron.core", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    import torch.distributed as dist

    from nemo_openmath.models import cpu_compat

    cpu_compat.install()
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
